//! What was sent last, line by line, in an eighth of its size: a 64-bit hash of every 64-byte line.
//!
//! Comparing a page with its signature says which of its lines changed, so only those travel. A
//! copy of the page itself would say no more and take eight times the memory. A changed line with
//! an equal hash (one in 2^64, and the key is drawn anew for every migration, so no guest can aim
//! at it) would fail the page's check at the destination and be noticed there.
//!
//! The table is bounded and direct-mapped: a page has one place. Where several pages compete, one
//! takes another's place only now and then, so that a working set larger than the table keeps part
//! of itself in it instead of chasing itself out.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::memory::{CHUNK_PAGES, PAGE_BYTES, PageNumber};

/// Bytes of a line: the granularity of deltas.
pub(crate) const LINE_BYTES: usize = 64;
/// Lines in a page; a mask of them is one word.
pub(crate) const LINES: usize = PAGE_BYTES as usize / LINE_BYTES;
/// Memory that one page's signature takes.
const ENTRY_BYTES: u64 = size_of::<([u64; LINES], u64)>() as u64;
/// One in so many attempts to take another page's place succeeds.
const TAKEOVER: u32 = 8;

/// Signatures of the pages of one shard.
#[derive(Debug)]
pub(crate) struct Signatures {
    key: u64,
    streams: u64,
    /// Which page is in a place, plus one; 0 is nobody.
    owners: Vec<u64>,
    lines: Vec<[u64; LINES]>,
    attempts: u32,
}

impl Signatures {
    /// A table for one of `streams` shards of a guest of `pages` pages, within `bytes_max`.
    pub(crate) fn new(pages: u64, streams: u64, bytes_max: u64, key: u64) -> Self {
        let own = (pages.div_ceil(CHUNK_PAGES).div_ceil(streams)) * CHUNK_PAGES;
        let places = own.min(bytes_max / ENTRY_BYTES) as usize;
        // Zeroed memory that is never touched is never had.
        Self { key, streams, owners: vec![0; places], lines: vec![[0; LINES]; places], attempts: 0 }
    }

    fn place(&self, page: PageNumber) -> Option<usize> {
        let own = page.0 / CHUNK_PAGES / self.streams * CHUNK_PAGES + page.0 % CHUNK_PAGES;
        (own as usize).checked_rem(self.owners.len())
    }

    /// Remembers what is sent of `page` now; the mask of lines that changed since it was
    /// remembered last, bit i for line i, or `None` if it was not.
    pub(crate) fn exchange(&mut self, page: PageNumber, contents: &[u8]) -> Option<u64> {
        let place = self.place(page)?;
        let known = self.owners[place] == page.0 + 1;
        if !known {
            if self.owners[place] != 0 {
                self.attempts = self.attempts.wrapping_add(1);
                if !self.attempts.is_multiple_of(TAKEOVER) {
                    return None;
                }
            }
            self.owners[place] = page.0 + 1;
        }
        let mut changed = 0;
        let lines = self.lines[place].iter_mut().zip(contents.chunks_exact(LINE_BYTES));
        for (index, (old, line)) in lines.enumerate() {
            let new = xxh3_64_with_seed(line, self.key);
            changed |= u64::from(new != *old) << index;
            *old = new;
        }
        known.then_some(changed)
    }

    /// The destination's copy of `page` is no longer known.
    pub(crate) fn forget(&mut self, page: PageNumber) {
        if let Some(place) = self.place(page)
            && self.owners[place] == page.0 + 1
        {
            self.owners[place] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// The oracle keeps the pages themselves.
        #[test]
        fn masks_name_the_lines_that_changed(
            places in 0u64..40,
            writes in prop::collection::vec((0u64..32, 0usize..64, any::<u8>(), prop::bool::ANY), 1..200),
        ) {
            let mut signatures = Signatures::new(32, 1, places * ENTRY_BYTES, 9);
            prop_assert!(signatures.owners.len() as u64 <= places);
            let mut memory = vec![[0u8; PAGE_BYTES as usize]; 32];
            let mut sent: HashMap<PageNumber, [u8; PAGE_BYTES as usize]> = HashMap::new();
            for (page, line, value, forget) in writes {
                memory[page as usize][line * LINE_BYTES] = value;
                let now = memory[page as usize];
                let page = PageNumber(page);
                if forget {
                    signatures.forget(page);
                    sent.remove(&page);
                }
                let before = sent.insert(page, now);
                if let Some(mask) = signatures.exchange(page, &now) {
                    let before = before.expect("known only what was sent");
                    for line in 0..LINES {
                        let range = line * LINE_BYTES..(line + 1) * LINE_BYTES;
                        prop_assert_eq!(mask >> line & 1 == 1, before[range.clone()] != now[range]);
                    }
                } else {
                    // Not remembered before: it must not count as known by what came earlier.
                    prop_assert!(places < 32 || before.is_none() || forget);
                }
            }
        }
    }

    #[test]
    fn a_table_that_is_too_small_keeps_part_of_the_working_set() {
        let mut signatures = Signatures::new(4096, 1, 1024 * ENTRY_BYTES, 1);
        let page = [7u8; PAGE_BYTES as usize];
        let mut pass =
            || (0..4096).filter(|p| signatures.exchange(PageNumber(*p), &page).is_some()).count();
        assert_eq!(pass(), 0);
        assert!(pass() > 400, "a page that comes round finds itself again");
    }
}
