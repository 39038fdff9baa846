//! Compares a region with what its workload and watermarks say, every line, all cores at work.
//!
//! Three situations are told apart, because they allow different things:
//! [`Moment::Exact`] (stopped between operations: nothing may deviate), [`Moment::Stopped`]
//! (stopped anywhere: per writer one record may be half written) and [`Moment::Running`] (writers
//! go on while we look: a line may be newer than the watermark read before, never older, and what
//! is newer must be accounted for by a watermark read afterwards).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use workload::PAGE_LINES;
use workload::cores;
use workload::line::Generation;
use workload::pattern::{Operation, Slot};
use workload::spec::Workload;
use workload::work::{Cancelled, Unwatched, Watch, to_its_end};

use crate::classify::Class;
use crate::expected::{Expected, HISTORY_PAGES_MAX};
use crate::extent::Faults;
use crate::memory::{Memory, Moment};
use crate::page::{Judge, Judged};

/// Pages that one task checks.
const CHUNK_PAGES: u64 = 512;
/// How often a page that looks wrong is looked at again while its writer runs.
const RUNNING_RETRIES: u32 = 50;
/// Time between two such looks: a writer may be off the CPU in the middle of a line.
const RUNNING_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// So many of these times are waited in one scan. Memory that is wrong all over would take days; where as
/// much was waited for in vain, the rest is looked at as often, but not waited for.
const RUNNING_WAITS_MAX: u32 = 1000;
/// How far random patterns are replayed to account for what a running writer did meanwhile.
const AHEAD_OPERATIONS_MAX: u64 = 1 << 28;

/// What a scan saw.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Lines compared.
    pub lines: u64,
    /// What was wrong.
    pub faults: Faults,
    /// Lines that changed under our eyes and were looked at again (running writers only).
    pub unstable_lines: u64,
    /// By writer: one more than the newest operation seen in memory beyond the watermark;
    /// `u64::MAX` where no operation that could have been done explains it.
    pub newest: Vec<u64>,
    /// How long it took, with the replay where that was part of it.
    pub elapsed: Duration,
    /// What memory was held against.
    pub expected: Expected,
}

/// What one task saw.
#[derive(Default)]
struct Part {
    faults: Faults,
    unstable_lines: u64,
    lines: u64,
    ahead: HashMap<(usize, Slot), Generation>,
    /// Pages with lines of another generation: whether they are torn depends on their history.
    aged_pages: Vec<u64>,
}

/// Compares all of `memory` with what `workload` has written at `watermarks`; `progress` hears of
/// pages done.
///
/// # Panics
/// There is not one watermark per writer.
pub fn scan<M: Memory>(
    memory: &M,
    workload: &Workload,
    moment: Moment,
    watermarks: &[Operation],
    progress: impl Fn(u64) + Sync,
) -> Scan {
    let expected = Expected::at(workload, watermarks);
    to_its_end(scan_and_tell(memory, workload, moment, expected, &Unwatched, progress))
}

/// The same, watched; replayed operations and lines are the units of work.
///
/// # Errors
/// Whoever watches called it off.
///
/// # Panics
/// There is not one watermark per writer.
pub fn scan_watched<M: Memory>(
    memory: &M,
    workload: &Workload,
    moment: Moment,
    watermarks: &[Operation],
    watch: &dyn Watch,
) -> Result<Scan, Cancelled> {
    let start = Instant::now();
    let expected = Expected::replay(workload, watermarks, watch)?;
    let scan = scan_against(memory, workload, moment, expected, watch)?;
    Ok(Scan { elapsed: start.elapsed(), ..scan })
}

/// Compares all of `memory` with what is known that it must hold.
///
/// # Errors
/// Whoever watches called it off.
pub fn scan_against<M: Memory>(
    memory: &M,
    workload: &Workload,
    moment: Moment,
    expected: Expected,
    watch: &dyn Watch,
) -> Result<Scan, Cancelled> {
    scan_and_tell(memory, workload, moment, expected, watch, |_| {})
}

fn scan_and_tell<M: Memory>(
    memory: &M,
    workload: &Workload,
    moment: Moment,
    mut expected: Expected,
    watch: &dyn Watch,
    progress: impl Fn(u64) + Sync,
) -> Result<Scan, Cancelled> {
    let start = Instant::now();
    watch.expect(workload.lines());
    let mut whole = look(memory, workload, moment, &expected, watch, &progress)?;
    if !whole.aged_pages.is_empty() && !expected.knows_history(workload) {
        whole.aged_pages.truncate(HISTORY_PAGES_MAX);
        expected.learn_history(workload, &whole.aged_pages, watch)?;
        watch.expect(workload.lines());
        whole = look(memory, workload, moment, &expected, watch, &|_| {})?;
    }
    Ok(Scan {
        lines: whole.lines,
        faults: whole.faults,
        unstable_lines: whole.unstable_lines,
        newest: newest(workload, &expected, &whole.ahead),
        elapsed: start.elapsed(),
        expected,
    })
}

fn look<M: Memory>(
    memory: &M,
    workload: &Workload,
    moment: Moment,
    expected: &Expected,
    watch: &dyn Watch,
    progress: &(impl Fn(u64) + Sync),
) -> Result<Part, Cancelled> {
    let pages = workload.spec().memory.0 / workload::PAGE_BYTES;
    let judge = Judge { memory, workload, expected, moment };
    let waits = AtomicU32::new(RUNNING_WAITS_MAX);
    let parts = cores::map(pages.div_ceil(CHUNK_PAGES), |chunk| {
        let first = chunk * CHUNK_PAGES;
        let end = (first + CHUNK_PAGES).min(pages);
        let mut part = Part::default();
        for page in (first..end).filter(|page| memory.has(*page)) {
            if watch.cancelled() {
                return Err(Cancelled);
            }
            part.lines += PAGE_LINES;
            let writer = workload.owner(page);
            if !judge.is_right(page, writer) {
                let judged = settle(&judge, page, writer, &mut part.unstable_lines, &waits);
                part.add(page, writer, judged);
            }
        }
        progress(end - first);
        watch.done((end - first) * PAGE_LINES);
        Ok(part)
    });
    let mut whole = Part::default();
    for part in parts {
        let part = part?;
        whole.faults.append(part.faults);
        whole.lines += part.lines;
        whole.unstable_lines += part.unstable_lines;
        whole.aged_pages.extend(part.aged_pages);
        for (slot, generation) in part.ahead {
            let newest = whole.ahead.entry(slot).or_default();
            *newest = generation.max(*newest);
        }
    }
    Ok(whole)
}

/// Judges a page; one of a running writer is looked at again, because a line may be caught half
/// written and must become right while its writer goes on.
fn settle<M: Memory>(
    judge: &Judge<'_, M>,
    page: u64,
    writer: usize,
    unstable_lines: &mut u64,
    waits: &AtomicU32,
) -> Judged {
    let mut judged = judge.judge(page, writer);
    if judge.moment == Moment::Running {
        for _ in 0..RUNNING_RETRIES {
            if judged.faults.is_empty() {
                break;
            }
            *unstable_lines += judged.faults.len() as u64;
            let one_less = |waits: u32| waits.checked_sub(1);
            match waits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
                Ok(_) => std::thread::sleep(RUNNING_RETRY_INTERVAL),
                Err(_) => std::thread::yield_now(),
            }
            judged = judge.judge(page, writer);
        }
    }
    judged
}

impl Part {
    fn add(&mut self, page: u64, writer: usize, judged: Judged) {
        let aged = |class| matches!(class, Class::Stale { .. } | Class::Future { .. });
        if judged.faults.iter().any(|f| aged(f.fault.class)) {
            self.aged_pages.push(page);
        }
        for ahead in judged.ahead {
            let newest = self.ahead.entry((writer, ahead.slot)).or_default();
            *newest = ahead.generation.max(*newest);
        }
        for found in judged.faults {
            self.faults.push(found.address, writer, found.expected, found.fault);
        }
    }
}

/// By writer, one more than the newest operation that memory shows.
fn newest(
    workload: &Workload,
    expected: &Expected,
    ahead: &HashMap<(usize, Slot), Generation>,
) -> Vec<u64> {
    let of_writer = |writer: usize| {
        let pattern = &workload.shares()[writer].pattern;
        let mut ahead: HashMap<Slot, Generation> = ahead
            .iter()
            .filter(|((owner, _), _)| *owner == writer)
            .map(|((_, slot), generation)| (*slot, *generation))
            .collect();
        let mut generations = expected.of_writer(writer).clone();
        if pattern.is_closed_form() {
            let operations = ahead.iter().filter_map(|(s, g)| pattern.written_by(*s, *g));
            return operations.map(|k| k + 1).max().unwrap_or(generations.watermark());
        }
        let limit = generations.watermark() + AHEAD_OPERATIONS_MAX;
        while !ahead.is_empty() {
            if generations.watermark() == limit {
                return u64::MAX;
            }
            if let (workload::pattern::Access::Write(slot), before) = generations.step()
                && ahead.get(&slot).is_some_and(|generation| before + 1 >= *generation)
            {
                ahead.remove(&slot);
            }
        }
        generations.watermark()
    };
    (0..workload.shares().len()).map(of_writer).collect()
}
