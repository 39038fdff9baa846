//! One stream's way from guest memory to the socket: a group of pages becomes frames.
//!
//! Zero pages go as a count. Where packing and deltas are of no use the rest goes straight from
//! guest memory to the socket; otherwise it is copied once, because what is packed, compared and
//! remembered must be the same bytes. What a page was sent as is remembered only from such a copy:
//! of a page sent straight away nobody knows what the kernel read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::first_look::{Look, Looks};
use crate::codec::block::{Method, Packer, begin, take_lines};
use crate::codec::choice::{Choice, Spent};
use crate::codec::signatures::{LINE_BYTES, LINES, Signatures};
use crate::codec::{CHECK_BYTES, Checks, Delta, Encoding, UNCHECKED, check};
use crate::guest::MemoryView;
use crate::link::channel::Channel;
use crate::link::pacer::Pacer;
use crate::memory::{GROUP_PAGES, PAGE_BYTES, PageNumber, pages_of, runs_of};
use crate::proto::frame::{HEADER_BYTES, Header, Kind};
use crate::report::Contents;

/// A page with more changed lines than this is sent whole: masks and patching are not free.
const LINES_MAX: u32 = LINES as u32 * 7 / 8;
/// Frames of zero pages are gathered up to so many bytes.
const SMALL_BYTES_MAX: usize = 16 << 10;
/// Pages of a sample.
const SAMPLE_PAGES: u64 = 4;
const PAGE: usize = PAGE_BYTES as usize;

/// Counters of all streams together.
#[derive(Debug, Default)]
pub(super) struct Counters {
    whole: AtomicU64,
    zero: AtomicU64,
    unchanged: AtomicU64,
    packed: AtomicU64,
    packed_bytes: AtomicU64,
    lines: AtomicU64,
    lines_bytes: AtomicU64,
    wire_bytes: AtomicU64,
}

impl Counters {
    /// Pages that the destination now has, whatever way they took.
    pub(super) fn sent(&self) -> u64 {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        of(&self.whole) + of(&self.zero) + of(&self.unchanged) + of(&self.packed) + of(&self.lines)
    }

    /// Everything sent so far.
    pub(super) fn contents(&self) -> Contents {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Contents {
            whole_pages: of(&self.whole),
            zero_pages: of(&self.zero),
            unchanged_pages: of(&self.unchanged),
            packed_pages: of(&self.packed),
            packed_bytes: of(&self.packed_bytes),
            delta_pages: of(&self.lines),
            delta_bytes: of(&self.lines_bytes),
            wire_bytes: of(&self.wire_bytes),
        }
    }
}

fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

/// Where pages lie in the copy of the group at `first`.
fn place(first: PageNumber, pages: &Range<PageNumber>) -> Range<usize> {
    (pages.start - first) as usize * PAGE..(pages.end - first) as usize * PAGE
}

/// What a sender works with.
pub(super) struct Wiring {
    pub(super) streams: u64,
    pub(super) tag: u64,
    pub(super) channel: Arc<Channel>,
    pub(super) memory: MemoryView,
    pub(super) looks: Arc<Looks>,
    pub(super) pacer: Arc<Pacer>,
    pub(super) counters: Arc<Counters>,
    pub(super) encoding: Encoding,
}

/// Sends groups of pages of one shard.
pub(super) struct Sender {
    pub(super) wiring: Wiring,
    choice: Choice,
    signatures: Option<Signatures>,
    packer: Packer,
    /// Checks known from the first look of the pages of the group; or [`UNCHECKED`].
    checks: [u64; GROUP_PAGES as usize],
    /// The group as it is sent, each page in its place.
    copy: Vec<u8>,
    plain: Vec<u8>,
    payload: Vec<u8>,
    /// Frames of zero pages, which go with the next frame of contents or at the end.
    small: Vec<u8>,
}

impl Sender {
    pub(super) fn new(wiring: Wiring) -> Self {
        let (encoding, streams) = (wiring.encoding, wiring.streams);
        let pages = wiring.memory.pages();
        // A key of its own for every migration and shard, so that no guest can aim at collisions.
        let signatures = (encoding.delta != Delta::Off).then(|| {
            Signatures::new(pages, streams, encoding.delta_cache_bytes / streams, rand::random())
        });
        Self {
            choice: Choice::new(encoding),
            signatures,
            packer: Packer::new(),
            checks: [UNCHECKED; GROUP_PAGES as usize],
            copy: vec![0; GROUP_PAGES as usize * PAGE],
            plain: Vec::new(),
            payload: Vec::new(),
            small: Vec::new(),
            wiring,
        }
    }

    /// Says that nothing more comes in this epoch.
    pub(super) fn end(&mut self, epoch: u64) -> std::io::Result<()> {
        self.flush()?;
        let header = Header::new(Kind::EndOfPages, epoch, 0, 0);
        self.wiring.channel.send(self.wiring.tag, &header, &[])
    }

    /// Sends what was gathered.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        if !self.small.is_empty() {
            self.wiring.channel.write(&self.small)?;
            self.small.clear();
        }
        Ok(())
    }

    /// Sends the pages of the group at `first` that `mask` names, as they are now.
    pub(super) fn group(&mut self, first: PageNumber, mask: u64) -> std::io::Result<()> {
        let start = Instant::now();
        let zero = self.look_up(first, mask);
        self.zero_pages(first, zero)?;
        let rest = mask & !zero;
        if rest == 0 {
            return Ok(());
        }
        let mut spent = Spent { pages: u64::from(rest.count_ones()), ..Spent::default() };
        let mut packed_share = None;
        let (method, signs) = (self.choice.method(), self.choice.signs());
        if method == Method::Plain && !signs {
            self.forget(first, rest);
            spent.wire_bytes += self.direct(first, rest)?;
        } else {
            self.copy_out(first, rest);
            let mut whole = rest;
            if signs {
                let lines = self.compare(first, &mut whole, &mut spent);
                self.deltas(first, &lines, method, &mut spent)?;
            } else {
                self.forget(first, rest);
            }
            packed_share = self.pages(first, whole, method, &mut spent)?;
        }
        spent.elapsed = start.elapsed();
        self.choice.spent(&spent, packed_share);
        self.sample(first, rest);
        Ok(())
    }

    /// Finds out which pages are zero, and the checks that are known of the others.
    fn look_up(&mut self, first: PageNumber, mask: u64) -> u64 {
        let Wiring { memory, looks, .. } = &self.wiring;
        let mut zero = 0;
        for page in pages_of(first, mask) {
            let index = page - first;
            let look = looks.take(page);
            if look == Some(Look::Zero) || look.is_none() && memory.is_zero(page) {
                zero |= 1 << index;
            }
            self.checks[index as usize] = match look {
                Some(Look::Check(check)) => check,
                _ => UNCHECKED,
            };
        }
        zero
    }

    fn zero_pages(&mut self, first: PageNumber, mask: u64) -> std::io::Result<()> {
        if mask == 0 {
            return Ok(());
        }
        self.forget(first, mask);
        let header = Header::new(Kind::ZeroPages, first, mask, 0);
        self.admit(HEADER_BYTES);
        self.small.extend(header.encode(self.wiring.tag));
        add(&self.wiring.counters.zero, u64::from(mask.count_ones()));
        if self.small.len() >= SMALL_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn forget(&mut self, first: PageNumber, mask: u64) {
        if let Some(signatures) = &mut self.signatures {
            pages_of(first, mask).for_each(|page| signatures.forget(page));
        }
    }

    /// Pages straight from guest memory, with checks of what they were a moment before.
    fn direct(&mut self, first: PageNumber, mask: u64) -> std::io::Result<u64> {
        let count = u64::from(mask.count_ones());
        let length = count as usize * (CHECK_BYTES as usize + PAGE);
        self.payload.clear();
        for page in pages_of(first, mask) {
            let check = match (self.wiring.encoding.checks, self.checks[(page - first) as usize]) {
                (Checks::Off, _) => UNCHECKED,
                (Checks::On, known) if known != UNCHECKED => known,
                (Checks::On, _) => {
                    let scratch = &mut self.copy[..PAGE];
                    self.wiring.memory.copy_out(&(page..page + 1), scratch);
                    check(page, scratch)
                }
            };
            self.payload.extend(check.to_le_bytes());
        }
        self.admit(HEADER_BYTES + length);
        let header = Header::new(Kind::Pages, first, mask, length);
        let Wiring { channel, memory, tag, counters, .. } = &self.wiring;
        channel.send_pages(*tag, &self.small, &header, &self.payload, memory)?;
        self.small.clear();
        add(&counters.whole, count);
        Ok((HEADER_BYTES + length) as u64)
    }

    fn copy_out(&mut self, first: PageNumber, mask: u64) {
        for run in runs_of(first, mask) {
            self.wiring.memory.copy_out(&run, &mut self.copy[place(first, &run)]);
        }
    }

    fn copied(&self, first: PageNumber, page: PageNumber) -> &[u8] {
        &self.copy[place(first, &(page..page + 1))]
    }

    /// Takes out of `whole` the pages that are unchanged or need only some lines; returns those
    /// with the masks of their changed lines.
    fn compare(
        &mut self,
        first: PageNumber,
        whole: &mut u64,
        spent: &mut Spent,
    ) -> Vec<(PageNumber, u64)> {
        let start = Instant::now();
        let Some(signatures) = &mut self.signatures else { return Vec::new() };
        let mut deltas = Vec::new();
        for page in pages_of(first, *whole) {
            let contents = &self.copy[place(first, &(page..page + 1))];
            let Some(changed) = signatures.exchange(page, contents) else { continue };
            spent.compared += 1;
            if changed.count_ones() <= LINES_MAX {
                *whole &= !(1 << (page - first));
                let lines = u64::from(changed.count_ones());
                spent.saved_bytes += PAGE_BYTES - lines * LINE_BYTES as u64;
                match changed {
                    0 => add(&self.wiring.counters.unchanged, 1),
                    _ => deltas.push((page, changed)),
                }
            }
        }
        spent.signed = spent.pages;
        spent.signing = start.elapsed();
        deltas
    }

    /// Sends changed lines.
    fn deltas(
        &mut self,
        first: PageNumber,
        deltas: &[(PageNumber, u64)],
        method: Method,
        spent: &mut Spent,
    ) -> std::io::Result<()> {
        if deltas.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        self.plain.clear();
        for (_, changed) in deltas {
            self.plain.extend(changed.to_le_bytes());
        }
        for (page, changed) in deltas {
            let contents = &self.copy[place(first, &(*page..page + 1))];
            take_lines(contents, *changed, &mut self.plain);
        }
        self.block(first, deltas.iter().map(|(page, _)| *page), method);
        spent.packing += start.elapsed();
        let mask = deltas.iter().fold(0, |mask, (page, _)| mask | 1 << (page - first));
        let bytes = self.send_block(Kind::Lines, first, mask)?;
        spent.wire_bytes += bytes;
        add(&self.wiring.counters.lines, deltas.len() as u64);
        add(&self.wiring.counters.lines_bytes, bytes);
        Ok(())
    }

    /// Sends whole pages from the copy, packed if that makes them smaller; returns the share of
    /// their size that they were packed to.
    fn pages(
        &mut self,
        first: PageNumber,
        mask: u64,
        method: Method,
        spent: &mut Spent,
    ) -> std::io::Result<Option<f64>> {
        if mask == 0 {
            return Ok(None);
        }
        let count = u64::from(mask.count_ones());
        if method != Method::Plain {
            let start = Instant::now();
            self.plain.clear();
            for run in runs_of(first, mask) {
                self.plain.extend_from_slice(&self.copy[place(first, &run)]);
            }
            let packed = self.block(first, pages_of(first, mask), method);
            spent.packing += start.elapsed();
            spent.packed += count;
            if packed {
                let bytes = self.send_block(Kind::Packed, first, mask)?;
                spent.wire_bytes += bytes;
                add(&self.wiring.counters.packed, count);
                add(&self.wiring.counters.packed_bytes, bytes);
                return Ok(Some(bytes as f64 / (count * PAGE_BYTES) as f64));
            }
        }
        self.payload.clear();
        for page in pages_of(first, mask) {
            let check = self.check_of(first, page);
            self.payload.extend(check.to_le_bytes());
        }
        let length = count as usize * (CHECK_BYTES as usize + PAGE);
        let header = Header::new(Kind::Pages, first, mask, length);
        let contents = runs_of(first, mask).map(|run| &self.copy[place(first, &run)]);
        let parts: Vec<_> = std::iter::once(&self.payload[..]).chain(contents).collect();
        spent.wire_bytes += self.send(&header, &parts)?;
        self.small.clear();
        add(&self.wiring.counters.whole, count);
        Ok((method != Method::Plain).then_some(1.0))
    }

    fn check_of(&self, first: PageNumber, page: PageNumber) -> u64 {
        match self.wiring.encoding.checks {
            Checks::On => check(page, self.copied(first, page)),
            Checks::Off => UNCHECKED,
        }
    }

    /// Makes the payload of a block of `self.plain`; whether packing made it smaller.
    fn block(
        &mut self,
        first: PageNumber,
        pages: impl Iterator<Item = PageNumber>,
        method: Method,
    ) -> bool {
        let mut payload = std::mem::take(&mut self.payload);
        let checks: Vec<_> = pages.map(|page| self.check_of(first, page)).collect();
        begin(method, checks.iter().copied(), &mut payload);
        let packed = self.packer.pack(method, &self.plain, &mut payload);
        if !packed {
            begin(Method::Plain, checks.into_iter(), &mut payload);
            payload.extend_from_slice(&self.plain);
        }
        self.payload = payload;
        packed
    }

    fn send_block(&mut self, kind: Kind, first: PageNumber, mask: u64) -> std::io::Result<u64> {
        let header = Header::new(kind, first, mask, self.payload.len());
        let bytes = self.send(&header, &[&self.payload])?;
        self.small.clear();
        Ok(bytes)
    }

    /// Sends a frame when the pacer admits it, after what was gathered; returns its bytes on the
    /// wire.
    fn send(&self, header: &Header, parts: &[&[u8]]) -> std::io::Result<u64> {
        let bytes = HEADER_BYTES + header.length;
        self.admit(bytes);
        self.wiring.channel.send_parts(self.wiring.tag, &self.small, header, parts)?;
        Ok(bytes as u64)
    }

    fn admit(&self, bytes: usize) {
        self.wiring.pacer.admit(bytes);
        add(&self.wiring.counters.wire_bytes, bytes as u64);
    }

    /// Tries another method on a few pages, if it is time; nothing is sent.
    fn sample(&mut self, first: PageNumber, mask: u64) {
        let Some(method) = self.choice.wants_sample() else { return };
        let Some(run) = runs_of(first, mask).next() else { return };
        let run = run.start..run.end.min(run.start + SAMPLE_PAGES);
        let (pages, bytes) = (run.end - run.start, (run.end - run.start) as usize * PAGE);
        self.wiring.memory.copy_out(&run, &mut self.copy[..bytes]);
        let start = Instant::now();
        self.payload.clear();
        let packed = self.packer.pack(method, &self.copy[..bytes], &mut self.payload);
        let share = if packed { self.payload.len() as f64 / bytes as f64 } else { 1.0 };
        self.choice.sample(method, pages, share, start.elapsed());
    }
}
