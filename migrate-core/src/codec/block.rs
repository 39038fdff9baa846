//! Pages of one group as one block on the wire, packed or not, with a check for each page.
//!
//! ```text
//! payload   method u8, 7 zero bytes, one check (u64) per page, block
//! contents  the pages, ascending                                        (frame Packed)
//! lines     one mask of changed lines (u64) per page, then the lines     (frame Lines)
//! ```
//!
//! All integers little-endian. The block is the contents or lines, packed by the method. What it
//! unpacks to is bounded before it is unpacked.

use crate::codec::CHECK_BYTES;
use crate::codec::signatures::{LINE_BYTES, LINES};
use crate::memory::{GROUP_PAGES, PAGE_BYTES};

/// Zstandard's level: the fastest regular one; slower ones gain little on single pages.
const ZSTD_LEVEL: i32 = 1;
const METHOD_BYTES: usize = 8;
/// Most that a block unpacks to: the pages of a group, or their lines and masks.
const PLAIN_BYTES_MAX: usize = GROUP_PAGES as usize * (8 + PAGE_BYTES as usize);
/// Most bytes of a payload: a block is sent only if it is shorter than what it holds.
pub(crate) const PAYLOAD_BYTES_MAX: usize =
    METHOD_BYTES + GROUP_PAGES as usize * CHECK_BYTES as usize + PLAIN_BYTES_MAX;

/// Least bytes of a payload with the pages of `mask`.
pub(crate) fn payload_bytes_min(mask: u64) -> usize {
    METHOD_BYTES + mask.count_ones() as usize * CHECK_BYTES as usize
}

/// How a block is packed. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Method {
    /// As it is.
    Plain = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// A Zstandard frame.
    Zstd = 2,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub &'static str);

/// Packs and unpacks blocks; keeps the working memory of doing so.
pub(crate) struct Packer {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Default for Packer {
    fn default() -> Self {
        Self::new()
    }
}

impl Packer {
    /// Takes memory as it is needed, a few hundred kilobytes.
    pub(crate) fn new() -> Self {
        Self { compressor: None, decompressor: None, plain: Vec::new() }
    }

    /// Appends `plain`, packed, to `out`; `false`, and nothing appended, if that would not be
    /// shorter by a twentieth.
    pub(crate) fn pack(&mut self, method: Method, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let (start, room) = (out.len(), plain.len() - plain.len() / 20);
        out.resize(start + room, 0);
        let packed = match method {
            Method::Plain => None,
            Method::Lz4 => {
                // Wants room for the worst case even where it will not be used.
                out.resize(start + lz4_flex::block::get_maximum_output_size(plain.len()), 0);
                let length = lz4_flex::block::compress_into(plain, &mut out[start..]);
                length.ok().filter(|length| *length <= room)
            }
            Method::Zstd => {
                if self.compressor.is_none() {
                    self.compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
                }
                // What does not fit the room is an error.
                let compressor = self.compressor.as_mut();
                compressor.and_then(|c| c.compress_to_buffer(plain, &mut out[start..]).ok())
            }
        };
        out.truncate(start + packed.unwrap_or(0));
        packed.is_some()
    }

    /// What a block holds, at most `bytes_max` of it.
    fn unpack(&mut self, method: u8, block: &[u8], bytes_max: usize) -> Result<&[u8], Malformed> {
        self.plain.resize(PLAIN_BYTES_MAX, 0);
        let room = &mut self.plain[..bytes_max];
        let failed = Malformed("a block that does not unpack");
        let length = match method {
            0 => {
                room.get_mut(..block.len()).ok_or(failed)?.copy_from_slice(block);
                block.len()
            }
            1 => lz4_flex::block::decompress_into(block, room).map_err(|_| failed)?,
            2 => {
                if self.decompressor.is_none() {
                    self.decompressor = zstd::bulk::Decompressor::new().ok();
                }
                let decompressor = self.decompressor.as_mut().ok_or(failed)?;
                decompressor.decompress_to_buffer(block, room).map_err(|_| failed)?
            }
            _ => return Err(Malformed("a block packed by an unknown method")),
        };
        Ok(&self.plain[..length])
    }

    /// The checks and contents of a Packed payload with `count` pages.
    ///
    /// # Errors
    /// It does not hold exactly these.
    pub(crate) fn contents<'a>(
        &'a mut self,
        payload: &'a [u8],
        count: usize,
    ) -> Result<impl Iterator<Item = (u64, &'a [u8])>, Malformed> {
        let (method, checks, block) = parts(payload, count)?;
        let wanted = count * PAGE_BYTES as usize;
        let plain = self.unpack(method, block, wanted)?;
        if plain.len() != wanted {
            return Err(Malformed("a block of another length than its pages"));
        }
        Ok(words(checks).zip(plain.chunks_exact(PAGE_BYTES as usize)))
    }

    /// The checks, masks and changed lines of a Lines payload with `count` pages.
    ///
    /// # Errors
    /// It does not hold exactly these.
    pub(crate) fn lines<'a>(
        &'a mut self,
        payload: &'a [u8],
        count: usize,
    ) -> Result<impl Iterator<Item = (u64, u64, &'a [u8])>, Malformed> {
        let (method, checks, block) = parts(payload, count)?;
        let plain = self.unpack(method, block, PLAIN_BYTES_MAX)?;
        let short = Malformed("a block of other lines than its masks say");
        let (masks, mut lines) = plain.split_at_checked(count * 8).ok_or(short)?;
        let wanted: usize = words(masks).map(|mask| mask.count_ones() as usize * LINE_BYTES).sum();
        if lines.len() != wanted {
            return Err(short);
        }
        Ok(words(checks).zip(words(masks)).map(move |(check, mask)| {
            let (own, rest) = lines.split_at(mask.count_ones() as usize * LINE_BYTES);
            lines = rest;
            (check, mask, own)
        }))
    }
}

/// Begins a payload: the method and the checks.
pub(crate) fn begin(method: Method, checks: impl Iterator<Item = u64>, out: &mut Vec<u8>) {
    out.clear();
    out.extend([method as u8, 0, 0, 0, 0, 0, 0, 0]);
    checks.for_each(|check| out.extend(check.to_le_bytes()));
}

/// Puts changed lines over a page.
pub(crate) fn patch(page: &mut [u8], mask: u64, lines: &[u8]) {
    let changed = (0..LINES).filter(|line| mask >> line & 1 == 1);
    for (line, new) in changed.zip(lines.chunks_exact(LINE_BYTES)) {
        page[line * LINE_BYTES..][..LINE_BYTES].copy_from_slice(new);
    }
}

/// Appends the lines of `page` that `mask` names.
pub(crate) fn take_lines(page: &[u8], mask: u64, out: &mut Vec<u8>) {
    for line in (0..LINES).filter(|line| mask >> line & 1 == 1) {
        out.extend_from_slice(&page[line * LINE_BYTES..][..LINE_BYTES]);
    }
}

fn parts(payload: &[u8], count: usize) -> Result<(u8, &[u8], &[u8]), Malformed> {
    let short = Malformed("a block without its checks");
    let (method, rest) = payload.split_first_chunk::<METHOD_BYTES>().ok_or(short)?;
    let (checks, block) = rest.split_at_checked(count * CHECK_BYTES as usize).ok_or(short)?;
    Ok((method[0], checks, block))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    bytes.chunks_exact(8).map(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: usize = PAGE_BYTES as usize;

    fn pages(seed: u64, count: usize) -> Vec<u8> {
        // Half noise, half repetition, so that packing has something to do.
        let noise =
            |i: usize| (seed.wrapping_mul(i as u64 | 1).wrapping_mul(0x9E37_79B9) >> 24) as u8;
        (0..count * PAGE).map(|i| if i / 64 % 2 == 0 { noise(i) } else { 5 }).collect()
    }

    proptest! {
        #[test]
        fn contents_come_back(seed: u64, count in 1usize..=64, method in 0usize..3) {
            let method = [Method::Plain, Method::Lz4, Method::Zstd][method];
            let plain = pages(seed, count);
            let (mut packer, mut payload) = (Packer::new(), Vec::new());
            begin(method, (1..=count as u64).map(|i| i.wrapping_mul(seed)), &mut payload);
            if method == Method::Plain {
                prop_assert!(!packer.pack(method, &plain, &mut payload));
                payload.extend(&plain);
            } else {
                prop_assert!(packer.pack(method, &plain, &mut payload), "half of it is repetition");
            }
            let back: Vec<_> = packer.contents(&payload, count).unwrap().collect();
            prop_assert_eq!(back.len(), count);
            for (i, (check, page)) in back.into_iter().enumerate() {
                prop_assert_eq!(check, (i as u64 + 1).wrapping_mul(seed));
                prop_assert_eq!(page, &plain[i * PAGE..(i + 1) * PAGE]);
            }
        }

        #[test]
        fn changed_lines_make_the_new_page(seed: u64, masks in prop::collection::vec(any::<u64>(), 1..64)) {
            let (old, new) = (pages(seed, masks.len()), pages(!seed, masks.len()));
            let (mut packer, mut payload, mut plain) = (Packer::new(), Vec::new(), Vec::new());
            masks.iter().for_each(|mask| plain.extend(mask.to_le_bytes()));
            for (page, mask) in new.chunks(PAGE).zip(&masks) {
                take_lines(page, *mask, &mut plain);
            }
            begin(Method::Lz4, masks.iter().copied(), &mut payload);
            if !packer.pack(Method::Lz4, &plain, &mut payload) {
                begin(Method::Plain, masks.iter().copied(), &mut payload);
                payload.extend(&plain);
            }
            for (i, (check, mask, lines)) in packer.lines(&payload, masks.len()).unwrap().enumerate() {
                prop_assert_eq!((check, mask), (masks[i], masks[i]));
                let mut page = old[i * PAGE..(i + 1) * PAGE].to_vec();
                patch(&mut page, mask, lines);
                for line in 0..LINES {
                    let source = if mask >> line & 1 == 1 { &new } else { &old };
                    prop_assert_eq!(&page[line * 64..][..64], &source[i * PAGE + line * 64..][..64]);
                }
            }
        }

        /// Whatever arrives, unpacking is bounded and says what is wrong.
        #[test]
        fn any_bytes_unpack_or_fail(payload in prop::collection::vec(any::<u8>(), 0..2000), method in 0u8..4, count in 0usize..=64) {
            let mut payload = payload;
            if let Some(first) = payload.first_mut() {
                *first = method;
            }
            let mut packer = Packer::new();
            if let Ok(pages) = packer.contents(&payload, count) {
                prop_assert_eq!(pages.count(), count);
            }
            if let Ok(pages) = packer.lines(&payload, count) {
                prop_assert!(pages.fold(0, |sum, (.., lines)| sum + lines.len()) <= PLAIN_BYTES_MAX);
            }
        }
    }

    #[test]
    fn noise_is_not_packed() {
        let noise: Vec<u8> = (0..4 * PAGE as u64)
            .map(|i| {
                (i.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(i | 1) >> 56)
                    as u8
            })
            .collect();
        let mut out = vec![1, 2, 3];
        for method in [Method::Lz4, Method::Zstd] {
            assert!(!Packer::new().pack(method, &noise, &mut out));
            assert_eq!(out, [1, 2, 3]);
        }
    }
}
