//! Compares a region with what its workload and watermarks say, every line, all cores at work.
//!
//! Three situations are told apart, because they allow different things:
//! [`Moment::Exact`] (stopped between operations: nothing may deviate), [`Moment::Stopped`]
//! (stopped anywhere: per writer one record may be half written) and [`Moment::Running`] (writers
//! go on while we look: a line may be newer than the watermark read before, never older, and what
//! is newer must be accounted for by a watermark read afterwards).

use std::time::{Duration, Instant};

use rayon::prelude::*;
use workload::line::{Generation, StampKey};
use workload::region::Region;
use workload::spec::Workload;
use workload::{PAGE_LINES, line};

use crate::classify::{self, LineFault, Moments};
use crate::extent::Faults;

/// Pages that one task checks.
const CHUNK_PAGES: u64 = 512;
/// How often a page that looks wrong is looked at again while its writer runs.
const RUNNING_RETRIES: u32 = 50;
/// Time between two such looks: a writer may be off the CPU in the middle of a line.
const RUNNING_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// When the memory is looked at: watermarks by writer, and what may be in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Stopped between operations, at exactly these watermarks.
    Exact(Vec<u64>),
    /// Stopped anywhere: operation `watermark` of each writer may be a prefix of its record.
    Stopped(Vec<u64>),
    /// Running: at least these watermarks.
    Running(Vec<u64>),
}

impl Moment {
    fn watermarks(&self) -> &[u64] {
        match self {
            Self::Exact(w) | Self::Stopped(w) | Self::Running(w) => w,
        }
    }
}

/// What a scan saw.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Lines compared.
    pub lines: u64,
    /// What was wrong.
    pub faults: Faults,
    /// Lines that changed under our eyes and were looked at again (running writers only).
    pub unstable_lines: u64,
    /// By writer: one more than the newest operation seen in memory beyond the watermark.
    pub newest: Vec<u64>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a line's address implies.
struct Place {
    /// `None` in the part of a share that holds no whole record.
    slot: Option<u64>,
    generation: Generation,
}

struct Scanner<'a> {
    region: &'a Region,
    workload: &'a Workload,
    moment: &'a Moment,
    key: StampKey,
    lines: u64,
}

/// What one task saw.
#[derive(Clone, Default)]
struct Part {
    faults: Faults,
    unstable_lines: u64,
    newest: Vec<u64>,
}

/// Compares all of `region`; `progress` hears of pages done.
///
/// # Panics
/// The region is not of the workload's size, or there is not one watermark per writer.
pub fn scan(
    region: &Region,
    workload: &Workload,
    moment: &Moment,
    progress: impl Fn(u64) + Sync,
) -> Scan {
    assert_eq!(region.bytes(), workload.spec().memory.0, "the region fits its workload");
    assert_eq!(moment.watermarks().len(), workload.shares().len(), "one watermark per writer");
    let start = Instant::now();
    let pages = region.pages();
    let scanner =
        Scanner { region, workload, moment, key: workload.key(), lines: pages * PAGE_LINES };
    let parts: Vec<Part> = (0..pages.div_ceil(CHUNK_PAGES))
        .into_par_iter()
        .map(|chunk| {
            let first = chunk * CHUNK_PAGES;
            let end = (first + CHUNK_PAGES).min(pages);
            let mut part = Part { newest: moment.watermarks().to_vec(), ..Part::default() };
            for page in first..end {
                scanner.page(page, &mut part);
            }
            progress(end - first);
            part
        })
        .collect();
    let mut whole = Part { newest: moment.watermarks().to_vec(), ..Part::default() };
    for part in parts {
        whole.faults.append(part.faults);
        whole.unstable_lines += part.unstable_lines;
        for (newest, seen) in whole.newest.iter_mut().zip(part.newest) {
            *newest = seen.max(*newest);
        }
    }
    Scan {
        lines: scanner.lines,
        faults: whole.faults,
        unstable_lines: whole.unstable_lines,
        newest: whole.newest,
        elapsed: start.elapsed(),
    }
}

impl Scanner<'_> {
    fn page(&self, page: u64, part: &mut Part) {
        let writer = self.workload.owner(page);
        if !self.page_is_right(page, writer) {
            self.judge_page(page, writer, part);
        }
    }

    /// The fast path: recompute and compare, one generation per slot and not per line.
    fn page_is_right(&self, page: u64, writer: usize) -> bool {
        let first = page * PAGE_LINES;
        let step = self.workload.record_lines().min(PAGE_LINES);
        let mut address = first;
        while address < first + PAGE_LINES {
            let generation = self.place(writer, address).generation;
            let mut different = 0;
            for address in address..address + step {
                let found = self.region.load(address);
                let expected = self.key.line(address, generation);
                for (f, e) in found.iter().zip(expected) {
                    different |= f ^ e;
                }
            }
            if different != 0 {
                return false;
            }
            address += step;
        }
        true
    }

    fn place(&self, writer: usize, address: u64) -> Place {
        let share = &self.workload.shares()[writer];
        let slot = (address - share.first_page * PAGE_LINES) / self.workload.record_lines();
        if slot >= share.slots {
            return Place { slot: None, generation: 0 };
        }
        let watermark = self.moment.watermarks()[writer];
        Place { slot: Some(slot), generation: share.pattern.generation(slot, watermark) }
    }

    /// The slow path: which lines are wrong, and how.
    fn judge_page(&self, page: u64, writer: usize, part: &mut Part) {
        let mut faults = self.page_faults(page, writer, part);
        if matches!(self.moment, Moment::Running(_)) {
            // A line may be caught half written: it must become right while its writer goes on.
            for _ in 0..RUNNING_RETRIES {
                if faults
                    .iter()
                    .all(|(_, _, fault)| matches!(fault.class, classify::Class::Stale { .. }))
                {
                    break;
                }
                part.unstable_lines += faults.len() as u64;
                std::thread::sleep(RUNNING_RETRY_INTERVAL);
                faults = self.page_faults(page, writer, part);
            }
        }
        for (address, expected, fault) in faults {
            part.faults.push(address, writer, expected, fault);
        }
    }

    fn page_faults(
        &self,
        page: u64,
        writer: usize,
        part: &mut Part,
    ) -> Vec<(u64, Generation, LineFault)> {
        let mut faults = Vec::new();
        let mut moments = Vec::new();
        let first = page * PAGE_LINES;
        for address in first..first + PAGE_LINES {
            let place = self.place(writer, address);
            let expected = self.key.line(address, place.generation);
            let found = self.region.load(address);
            let fault =
                classify::line(self.key, self.lines, address, place.generation, &expected, &found);
            let generation = match &fault {
                None => Some(place.generation),
                Some(fault) => fault.found,
            };
            if let (Some(slot), Some(generation)) = (place.slot, generation) {
                moments.push(self.moments(writer, slot, generation));
            }
            let Some(fault) = fault else { continue };
            if !self.allowed(writer, address, &place, &fault, part) {
                faults.push((address, place.generation, fault));
            }
        }
        let aged = |f: &LineFault| {
            matches!(f.class, classify::Class::Stale { .. } | classify::Class::Future { .. })
        };
        // Neighbours that no single watermark explains were copied at two different times.
        if faults.iter().any(|(_, _, f)| aged(f)) && classify::torn(moments.into_iter()) {
            for (_, _, fault) in faults.iter_mut().filter(|(_, _, f)| aged(f)) {
                fault.class = classify::Class::Torn;
            }
        }
        faults
    }

    /// The watermarks at which `slot` stands at `generation`.
    fn moments(&self, writer: usize, slot: u64, generation: Generation) -> Moments {
        let pattern = &self.workload.shares()[writer].pattern;
        Moments {
            since: pattern.written_by(slot, generation).map_or(0, |k| k + 1),
            until: pattern.written_by(slot, generation + 1).unwrap_or(u64::MAX),
        }
    }

    /// Whether the moment of looking excuses a line that differs.
    fn allowed(
        &self,
        writer: usize,
        address: u64,
        place: &Place,
        fault: &LineFault,
        part: &mut Part,
    ) -> bool {
        let (classify::Class::Future { .. }, Some(slot), Some(found)) =
            (fault.class, place.slot, fault.found)
        else {
            return false;
        };
        let pattern = &self.workload.shares()[writer].pattern;
        let Some(operation) = pattern.written_by(slot, found) else { return false };
        match self.moment {
            Moment::Exact(_) => false,
            Moment::Stopped(watermarks) => {
                operation == watermarks[writer] && self.in_prefix(writer, slot, address, found)
            }
            Moment::Running(_) => {
                part.newest[writer] = part.newest[writer].max(operation + 1);
                true
            }
        }
    }

    /// Lines ascend inside an operation: all before a new one must be new as well.
    fn in_prefix(&self, writer: usize, slot: u64, address: u64, found: Generation) -> bool {
        let first = self.workload.slot_line(writer, slot);
        (first..address).all(|a| self.region.load(a) == self.key.line(a, found))
    }
}

/// How far memory itself says each writer came, from the watermarks last journalled on: the first
/// operation whose record does not stand complete. Used when a generator was killed and nobody
/// wrote its last watermark down.
pub fn infer_watermarks(region: &Region, workload: &Workload, journalled: &[u64]) -> Vec<u64> {
    let key = workload.key();
    let complete = |writer: usize, k: u64| {
        let pattern = &workload.shares()[writer].pattern;
        let slot = pattern.slot(k);
        let wanted = pattern.generation(slot, k) + 1;
        let first = workload.slot_line(writer, slot);
        let last = first + workload.record_lines() - 1;
        [first, last].into_iter().all(|address| {
            let line: line::Line = region.load(address);
            matches!(key.identify(&line), Some((at, g)) if at == address && g >= wanted)
        })
    };
    let from = |(writer, start): (usize, &u64)| {
        (*start..).find(|k| !complete(writer, *k)).unwrap_or(*start)
    };
    journalled.iter().enumerate().map(from).collect()
}
