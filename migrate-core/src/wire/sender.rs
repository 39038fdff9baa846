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

use crate::codec::block::{Method, Packer, begin, take_lines};
use crate::codec::choice::{Choice, Spent};
use crate::codec::looks::{Look, Looks};
use crate::codec::signatures::{LINE_BYTES, LINES, Signatures};
use crate::codec::{Checks, Delta, Encoding, UNCHECKED, check};
use crate::guest::MemoryView;
use crate::link::channel::Channel;
use crate::link::pacer::Pacer;
use crate::memory::{GROUP_PAGES, Group, PAGE_BYTES, PageNumber, PageRange};
use crate::proto::StunNumber;
use crate::proto::header::HEADER_BYTES;
use crate::proto::page_frame::PageFrame;
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
pub(crate) struct Counters {
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
    pub(crate) fn sent(&self) -> u64 {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        of(&self.whole) + of(&self.zero) + of(&self.unchanged) + of(&self.packed) + of(&self.lines)
    }

    /// Everything sent so far.
    pub(crate) fn contents(&self) -> Contents {
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
fn place(first: PageNumber, pages: &PageRange) -> Range<usize> {
    (pages.start - first) as usize * PAGE..(pages.end - first) as usize * PAGE
}

/// What a sender works with.
pub(crate) struct Wiring {
    pub(crate) streams: u64,
    pub(crate) tag: u64,
    pub(crate) channel: Arc<Channel>,
    pub(crate) memory: MemoryView,
    pub(crate) looks: Arc<Looks>,
    pub(crate) pacer: Arc<Pacer>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) encoding: Encoding,
}

/// Sends groups of pages of one shard.
pub(crate) struct Sender {
    pub(crate) wiring: Wiring,
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
    pub(crate) fn new(wiring: Wiring) -> Self {
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

    /// Says that nothing more comes in this stun.
    pub(crate) fn end(&mut self, stun: StunNumber) -> std::io::Result<()> {
        self.mark(PageFrame::EndOfPages(stun))
    }

    /// Says that the stun is off, and that what follows belongs to copying.
    pub(crate) fn again(&mut self, stun: StunNumber) -> std::io::Result<()> {
        self.mark(PageFrame::Again(stun))
    }

    /// Says that this stream lives, although it has nothing to send.
    pub(crate) fn alive(&mut self) -> std::io::Result<()> {
        self.mark(PageFrame::Alive)
    }

    fn mark(&mut self, mark: PageFrame) -> std::io::Result<()> {
        self.flush()?;
        self.wiring.channel.write(&mark.encode(self.wiring.tag))
    }

    /// Sends what was gathered.
    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        if !self.small.is_empty() {
            self.wiring.channel.write(&self.small)?;
            self.small.clear();
        }
        Ok(())
    }

    /// Sends the pages of the group as they are now.
    pub(crate) fn group(&mut self, group: Group) -> std::io::Result<()> {
        let start = Instant::now();
        let zero = self.look_up(group);
        if let Some(zero) = group.only(zero) {
            self.zero_pages(zero)?;
        }
        let Some(rest) = group.only(!zero) else { return Ok(()) };
        let mut spent = Spent { pages: rest.count(), ..Spent::default() };
        let mut packed_share = None;
        let (method, signs) = (self.choice.method(), self.choice.signs());
        if method == Method::Plain && !signs {
            self.forget(rest);
            spent.wire_bytes += self.direct(rest)?;
        } else {
            self.copy_out(rest);
            let mut whole = Some(rest);
            if signs {
                let (changed, lines) = self.compare(rest, &mut spent);
                whole = changed;
                self.deltas(rest, &lines, method, &mut spent)?;
            } else {
                self.forget(rest);
            }
            if let Some(whole) = whole {
                packed_share = self.pages(whole, method, &mut spent)?;
            }
        }
        spent.elapsed = start.elapsed();
        self.choice.spent(&spent, packed_share);
        self.sample(rest);
        Ok(())
    }

    /// Finds out which pages are zero, and the checks that are known of the others.
    fn look_up(&mut self, group: Group) -> u64 {
        let Wiring { memory, looks, .. } = &self.wiring;
        let mut zero = 0;
        for page in group.pages() {
            let look = looks.take(page);
            if look == Some(Look::Zero) || look.is_none() && memory.is_zero(page) {
                zero |= group.bit(page);
            }
            self.checks[(page - group.first()) as usize] = match look {
                Some(Look::Check(check)) => check,
                _ => UNCHECKED,
            };
        }
        zero
    }

    fn zero_pages(&mut self, group: Group) -> std::io::Result<()> {
        self.forget(group);
        self.admit(HEADER_BYTES);
        self.small.extend(PageFrame::Zero(group).encode(self.wiring.tag));
        add(&self.wiring.counters.zero, group.count());
        if self.small.len() >= SMALL_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn forget(&mut self, group: Group) {
        if let Some(signatures) = &mut self.signatures {
            group.pages().for_each(|page| signatures.forget(page));
        }
    }

    /// Pages straight from guest memory, with checks of what they were a moment before.
    fn direct(&mut self, group: Group) -> std::io::Result<u64> {
        self.payload.clear();
        for page in group.pages() {
            let known = self.checks[(page - group.first()) as usize];
            let check = match self.wiring.encoding.checks {
                Checks::Off => UNCHECKED,
                Checks::On if known != UNCHECKED => known,
                Checks::On => {
                    let scratch = &mut self.copy[..PAGE];
                    self.wiring.memory.copy_out(&page.alone(), scratch);
                    check(page, scratch)
                }
            };
            self.payload.extend(check.to_le_bytes());
        }
        let frame = PageFrame::Pages(group);
        let bytes = HEADER_BYTES + frame.payload_bytes();
        self.admit(bytes);
        let Wiring { channel, memory, tag, counters, .. } = &self.wiring;
        let pages: Vec<_> = group.runs().flat_map(|run| memory.stretches(&run)).collect();
        channel.write_memory([&self.small, &frame.encode(*tag), &self.payload], &pages)?;
        self.small.clear();
        add(&counters.whole, group.count());
        Ok(bytes as u64)
    }

    fn copy_out(&mut self, group: Group) {
        for run in group.runs() {
            self.wiring.memory.copy_out(&run, &mut self.copy[place(group.first(), &run)]);
        }
    }

    fn copied(&self, first: PageNumber, page: PageNumber) -> &[u8] {
        &self.copy[place(first, &page.alone())]
    }

    /// The pages that must be sent whole, and of those that need only some lines the masks of their
    /// changed lines; unchanged ones are neither.
    fn compare(
        &mut self,
        group: Group,
        spent: &mut Spent,
    ) -> (Option<Group>, Vec<(PageNumber, u64)>) {
        let start = Instant::now();
        let Some(signatures) = &mut self.signatures else { return (Some(group), Vec::new()) };
        let (mut whole, mut deltas) = (group.mask(), Vec::new());
        for page in group.pages() {
            let contents = &self.copy[place(group.first(), &page.alone())];
            let Some(changed) = signatures.exchange(page, contents) else { continue };
            spent.compared += 1;
            if changed.count_ones() <= LINES_MAX {
                whole &= !group.bit(page);
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
        (group.only(whole), deltas)
    }

    /// Sends changed lines.
    fn deltas(
        &mut self,
        of: Group,
        deltas: &[(PageNumber, u64)],
        method: Method,
        spent: &mut Spent,
    ) -> std::io::Result<()> {
        let mask = deltas.iter().fold(0, |mask, (page, _)| mask | of.bit(*page));
        let Some(group) = of.only(mask) else { return Ok(()) };
        let start = Instant::now();
        self.plain.clear();
        for (_, changed) in deltas {
            self.plain.extend(changed.to_le_bytes());
        }
        for (page, changed) in deltas {
            let contents = &self.copy[place(group.first(), &page.alone())];
            take_lines(contents, *changed, &mut self.plain);
        }
        self.block(group, method);
        spent.packing += start.elapsed();
        let bytes = self.send_block(PageFrame::Lines(group, self.payload.len()))?;
        spent.wire_bytes += bytes;
        add(&self.wiring.counters.lines, group.count());
        add(&self.wiring.counters.lines_bytes, bytes);
        Ok(())
    }

    /// Sends whole pages from the copy, packed if that makes them smaller; returns the share of
    /// their size that they were packed to.
    fn pages(
        &mut self,
        group: Group,
        method: Method,
        spent: &mut Spent,
    ) -> std::io::Result<Option<f64>> {
        let count = group.count();
        if method != Method::Plain {
            let start = Instant::now();
            self.plain.clear();
            for run in group.runs() {
                self.plain.extend_from_slice(&self.copy[place(group.first(), &run)]);
            }
            let packed = self.block(group, method);
            spent.packing += start.elapsed();
            spent.packed += count;
            if packed {
                let bytes = self.send_block(PageFrame::Packed(group, self.payload.len()))?;
                spent.wire_bytes += bytes;
                add(&self.wiring.counters.packed, count);
                add(&self.wiring.counters.packed_bytes, bytes);
                return Ok(Some(bytes as f64 / (count * PAGE_BYTES) as f64));
            }
        }
        self.payload.clear();
        for page in group.pages() {
            let check = self.check_of(group.first(), page);
            self.payload.extend(check.to_le_bytes());
        }
        let contents = group.runs().map(|run| &self.copy[place(group.first(), &run)]);
        let parts: Vec<_> = std::iter::once(&self.payload[..]).chain(contents).collect();
        spent.wire_bytes += self.send(PageFrame::Pages(group), &parts)?;
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
    fn block(&mut self, group: Group, method: Method) -> bool {
        let mut payload = std::mem::take(&mut self.payload);
        let checks: Vec<_> = group.pages().map(|page| self.check_of(group.first(), page)).collect();
        begin(method, checks.iter().copied(), &mut payload);
        let packed = self.packer.pack(method, &self.plain, &mut payload);
        if !packed {
            begin(Method::Plain, checks.into_iter(), &mut payload);
            payload.extend_from_slice(&self.plain);
        }
        self.payload = payload;
        packed
    }

    fn send_block(&mut self, frame: PageFrame) -> std::io::Result<u64> {
        let bytes = self.send(frame, &[&self.payload])?;
        self.small.clear();
        Ok(bytes)
    }

    /// Sends a frame when the pacer admits it, after what was gathered; returns its bytes on the
    /// wire.
    fn send(&self, frame: PageFrame, parts: &[&[u8]]) -> std::io::Result<u64> {
        let bytes = HEADER_BYTES + frame.payload_bytes();
        debug_assert_eq!(frame.payload_bytes(), parts.iter().map(|p| p.len()).sum::<usize>());
        self.admit(bytes);
        let head = frame.encode(self.wiring.tag);
        let all: Vec<_> =
            [&self.small[..], &head].into_iter().chain(parts.iter().copied()).collect();
        self.wiring.channel.write_parts(&all)?;
        Ok(bytes as u64)
    }

    fn admit(&self, bytes: usize) {
        self.wiring.pacer.admit(bytes);
        add(&self.wiring.counters.wire_bytes, bytes as u64);
    }

    /// Tries another method on a few pages, if it is time; nothing is sent.
    fn sample(&mut self, group: Group) {
        let Some(method) = self.choice.wants_sample() else { return };
        let Some(run) = group.runs().next() else { return };
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
