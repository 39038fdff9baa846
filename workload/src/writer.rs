//! One writer: performs its operations on schedule until its vCPU says stop.
//!
//! Lines of a record ascend, then the watermark goes up with Release: whoever reads the watermark
//! with Acquire sees every line of every operation before it. Between operations, at least once a
//! millisecond while it works, the writer passes its vCPU's checkpoint; there, and only there, it may
//! be held. A writer with nothing to do rests, and its vCPU may end the rest at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::PAGE_BYTES;
use crate::generations::Generations;
use crate::pattern::Access;
use crate::rate::Plan;
use crate::region::Region;
use crate::schedule::{CatchUp, Schedule};
use crate::spec::Workload;
use crate::stats::{Finding, Stats};

/// Longest time between two checkpoints of a writer at work.
pub const CHECKPOINT_MAX: Duration = Duration::from_millis(1);
/// Most pages written between two checkpoints.
pub const BATCH_PAGES_MAX: u64 = 64;
/// Wake-ups are this far apart at high rates: batches, not a timer per record.
const WAKE_MIN: Duration = Duration::from_micros(500);
/// The wake-ups of all writers of a core together are this far apart: a thousand writers would
/// otherwise do nothing but wake up.
const WAKE_OF_CORE_MIN: Duration = Duration::from_micros(20);
/// Longest rest at once.
const REST_MAX: Duration = Duration::from_millis(100);

/// What a writer learns at a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// Go on; the vCPU was held for this long.
    Go {
        /// Time during which the host did not let the guest run.
        held: Duration,
    },
    /// No further operation.
    Stop,
}

/// The vCPU a writer runs on.
pub trait Vcpu {
    /// Passed between operations at least every [`CHECKPOINT_MAX`]; blocks while the vCPU is held.
    fn checkpoint(&mut self) -> Checkpoint;

    /// Nothing is due for so long; a checkpoint follows. May end sooner, and must where somebody waits
    /// for the checkpoint.
    fn rest(&mut self, time: Duration) {
        std::thread::sleep(time.min(CHECKPOINT_MAX));
    }

    /// Passed after each checkpoint: who wants the writer's figures so far takes them, and leaves
    /// new ones.
    fn collect(&mut self, stats: &mut Stats) {
        let _ = stats;
    }
}

/// The operation counters of a region's writers: the only state that memory does not hold. Beside
/// them, for those who watch, how much each writer has stored.
#[derive(Clone, Debug)]
pub struct Watermarks {
    operations: Arc<[AtomicU64]>,
    stored_lines: Arc<[AtomicU64]>,
}

impl Watermarks {
    /// Counters starting at the given operations.
    pub fn new(values: &[u64]) -> Self {
        Self {
            operations: values.iter().map(|v| AtomicU64::new(*v)).collect(),
            stored_lines: values.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Operations completed, by writer.
    pub fn read(&self) -> Vec<u64> {
        self.operations.iter().map(|w| w.load(Ordering::Acquire)).collect()
    }

    /// Lines stored by each writer since these counters were made; reads store none.
    pub fn stored_lines(&self) -> Vec<u64> {
        self.stored_lines.iter().map(|w| w.load(Ordering::Relaxed)).collect()
    }

    /// Says how far a writer is whose operations are counted elsewhere, and how much it stored.
    pub fn publish(&self, writer: usize, operations: u64, stored_lines: u64) {
        self.operations[writer].store(operations, Ordering::Release);
        self.stored_lines[writer].store(stored_lines, Ordering::Relaxed);
    }

    fn counter(&self, writer: usize) -> &AtomicU64 {
        &self.operations[writer]
    }
}

/// How fast a writer goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Pace {
    /// Open loop.
    Scheduled {
        /// Operations per second of this writer.
        plan: Plan,
        /// What becomes of late work.
        catch_up: CatchUp,
    },
    /// As fast as memory takes it.
    Unlimited,
}

impl Pace {
    /// One constant rate in bytes of records per second of this writer.
    pub fn bytes_per_second(rate: f64, workload: &Workload) -> Self {
        let plan = Plan::constant(rate / workload.spec().workload.record.0 as f64);
        Self::Scheduled { plan, catch_up: CatchUp::default() }
    }
}

/// Whether a record is looked at before it is overwritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BeforeWrite {
    /// No: what was lost and is rewritten is not noticed.
    #[default]
    Trust,
    /// Yes: a loss cannot hide by being rewritten. Halves the speed.
    Check,
}

/// One writer at work.
#[derive(Debug)]
pub struct Writer {
    workload: Arc<Workload>,
    region: Arc<Region>,
    watermarks: Watermarks,
    index: usize,
    generations: Generations,
    before_write: BeforeWrite,
}

impl Writer {
    /// Writer `index` of `workload`, going on from its watermark. Patterns without a closed form
    /// are replayed up to there.
    pub fn new(
        workload: Arc<Workload>,
        region: Arc<Region>,
        watermarks: Watermarks,
        index: usize,
    ) -> Self {
        let share = &workload.shares()[index];
        let watermark = watermarks.counter(index).load(Ordering::Acquire);
        let generations = Generations::at(&share.pattern, share.slots, watermark);
        Self::with_generations(workload, region, watermarks, index, generations)
    }

    /// The same with generations that are known already.
    ///
    /// # Panics
    /// They are of another watermark.
    pub fn with_generations(
        workload: Arc<Workload>,
        region: Arc<Region>,
        watermarks: Watermarks,
        index: usize,
        generations: Generations,
    ) -> Self {
        assert_eq!(region.bytes(), workload.spec().memory.0, "the region fits its workload");
        let watermark = watermarks.counter(index).load(Ordering::Acquire);
        assert_eq!(generations.watermark(), watermark, "generations of another moment");
        let before_write = BeforeWrite::Trust;
        Self { workload, region, watermarks, index, generations, before_write }
    }

    /// Whether records are looked at before they are overwritten.
    pub fn before_write(mut self, what: BeforeWrite) -> Self {
        self.before_write = what;
        self
    }

    /// Performs the next operation; what it finds wrong goes to `stats`.
    #[inline]
    fn perform(&mut self, stats: &mut Stats) {
        let (access, generation) = self.generations.step();
        let (workload, region, index) = (&*self.workload, &*self.region, self.index);
        let (slot, look) = match access {
            Access::Write(slot) => (slot, self.before_write == BeforeWrite::Check),
            Access::Read(slot) => (slot, true),
        };
        if look && let Some(address) = workload.first_difference(region, index, slot, generation) {
            stats.finding(Finding { writer: index as u32, address, generation });
        }
        match access {
            Access::Write(slot) => {
                let lines = workload.store(region, index, slot, generation + 1);
                stats.lines += lines;
                let stored = &self.watermarks.stored_lines[index];
                // One writer each: no need for an atomic addition.
                stored.store(stored.load(Ordering::Relaxed) + lines, Ordering::Relaxed);
            }
            Access::Read(_) => stats.reads += 1,
        }
        let watermark = self.generations.watermark();
        self.watermarks.counter(index).store(watermark, Ordering::Release);
    }

    /// How far wake-ups of this writer are apart, given how many writers share the cores.
    fn wake_min(&self) -> Duration {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let writers = self.workload.spec().writers;
        WAKE_MIN.max(WAKE_OF_CORE_MIN * writers.div_ceil(cores))
    }

    /// Runs until the vCPU says stop, or `operations_max` have been performed.
    pub fn run(&mut self, pace: Pace, vcpu: &mut dyn Vcpu, operations_max: u64) -> Stats {
        self.run_with(Stats::default(), pace, vcpu, operations_max)
    }

    /// The same with figures that were made before: making them takes milliseconds, which a guest
    /// that arrives has not.
    pub fn run_with(
        &mut self,
        mut stats: Stats,
        pace: Pace,
        vcpu: &mut dyn Vcpu,
        operations_max: u64,
    ) -> Stats {
        let profile = &self.workload.spec().workload;
        let (record, timing) = (profile.record.0, profile.timing);
        let batch_max = (BATCH_PAGES_MAX * PAGE_BYTES / record).max(1);
        // A clock read per kilobyte, not per 64-byte record.
        let sample = (1024 / record).max(1);
        let origin = Instant::now();
        let now_ns = || origin.elapsed().as_nanos() as u64;
        let mut schedule = match pace {
            Pace::Scheduled { plan, catch_up } => Some(Schedule::new(plan, timing, catch_up, 0)),
            Pace::Unlimited => None,
        };
        let mut left = operations_max;
        let wake_min_ns = self.wake_min().as_nanos() as u64;
        let mut worked_ns: u64 = 0;
        while left > 0 {
            match vcpu.checkpoint() {
                Checkpoint::Stop => break,
                Checkpoint::Go { held } => {
                    if let Some(schedule) = &mut schedule
                        && !held.is_zero()
                    {
                        schedule.hold(held, now_ns());
                    }
                }
            }
            vcpu.collect(&mut stats);
            let batch_start = now_ns();
            let due = match &mut schedule {
                Some(schedule) => schedule.due(batch_start),
                None => batch_max,
            };
            if due > 0 {
                worked_ns = batch_start;
            }
            let mut batch = due.min(batch_max).min(left);
            let mut before = batch_start;
            while batch > 0 {
                let count = batch.min(sample);
                let intended = match &mut schedule {
                    Some(schedule) => {
                        let first = schedule.take();
                        schedule.skip_over(count - 1);
                        first
                    }
                    None => before,
                };
                for _ in 0..count {
                    self.perform(&mut stats);
                }
                left -= count;
                batch -= count;
                let after = now_ns();
                stats.record(count, after - before, after.saturating_sub(intended));
                before = after;
                if after - batch_start > CHECKPOINT_MAX.as_nanos() as u64 {
                    break;
                }
            }
            if let Some(schedule) = &schedule
                // While more is due there is no rest, whatever the batch was limited to.
                && schedule.next_ns() > before
            {
                let wake = schedule.next_ns().max(worked_ns.saturating_add(wake_min_ns));
                let wait = Duration::from_nanos(wake.saturating_sub(before)).min(REST_MAX);
                if !wait.is_zero() {
                    vcpu.rest(wait);
                }
            }
        }
        if let Some(schedule) = &schedule {
            stats.missed = schedule.missed();
            stats.held = schedule.held();
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fill::fill;
    use crate::line::PageFormat;
    use crate::run::RunId;
    use crate::spec::WorkloadSpec;
    use crate::units::Bytes;

    struct FreeVcpu;
    impl Vcpu for FreeVcpu {
        fn checkpoint(&mut self) -> Checkpoint {
            Checkpoint::Go { held: Duration::ZERO }
        }
    }

    fn start(name: &str) -> (Arc<Workload>, Arc<Region>, Watermarks) {
        let spec = WorkloadSpec {
            format: PageFormat::V2 { run: RunId(1) },
            seed: 3,
            memory: Bytes(37 * PAGE_BYTES),
            writers: 2,
            workload: name.parse().unwrap(),
        };
        let workload = Arc::new(spec.resolve().unwrap());
        let region = Arc::new(Region::anonymous(spec.memory).unwrap());
        fill(&region, &workload, |_| {});
        (workload, region, Watermarks::new(&[0, 0]))
    }

    const NAMES: [&str; 12] = [
        "stream,record=64",
        "stream-index,every=2,record=1KiB,content=text",
        "uniform,record=256,content=sparse",
        "uniform,record=8KiB,content=delta:5",
        "iid,content=zero-flip",
        "iid,record=128,content=sparse*1+text*1",
        "zipf,record=512",
        "hotset,content=delta:1",
        "touch,content=zero-flip",
        "fileio,file=16KiB,run=8KiB,content=random*1+delta:3*2+zero-flip*1",
        "iometer,content=text",
        "phases,of=stream*100+iid*200",
    ];

    /// The law itself: write line by line into a plain array, generation by generation.
    #[test]
    fn memory_is_a_function_of_the_watermark() {
        for name in NAMES {
            let (workload, region, watermarks) = start(name);
            for (index, share) in workload.shares().iter().enumerate() {
                let operations = 777 + index as u64;
                let mut writer =
                    Writer::new(workload.clone(), region.clone(), watermarks.clone(), index)
                        .before_write(BeforeWrite::Check);
                let stats = writer.run(Pace::Unlimited, &mut FreeVcpu, operations);
                assert_eq!((stats.operations, stats.findings), (operations, 0), "{name}");
                let generations = Generations::at(&share.pattern, share.slots, operations);
                for page in share.first_page..share.first_page + share.pages {
                    for segment in workload.segments(index, page) {
                        let generation = segment.slot.map_or(0, |slot| generations.of(slot));
                        for address in segment.lines {
                            let wanted = workload.line(segment.place, address, generation);
                            assert_eq!(region.load(address), wanted, "{name}, line {address}");
                        }
                    }
                }
            }
            assert_eq!(watermarks.read(), [777, 778]);
        }
    }

    #[test]
    fn a_writer_goes_on_where_it_was() {
        for name in NAMES {
            let (workload, region, watermarks) = start(name);
            let (_, other, whole) = start(name);
            for operations in [100, 677] {
                Writer::new(workload.clone(), region.clone(), watermarks.clone(), 0).run(
                    Pace::Unlimited,
                    &mut FreeVcpu,
                    operations,
                );
            }
            Writer::new(workload.clone(), other.clone(), whole, 0).run(
                Pace::Unlimited,
                &mut FreeVcpu,
                777,
            );
            assert!((0..workload.lines()).all(|a| region.load(a) == other.load(a)), "{name}");
        }
    }

    #[test]
    fn a_loss_is_noticed_before_it_is_rewritten() {
        for name in ["stream", "iometer,reads=0.9"] {
            let (workload, region, watermarks) = start(name);
            let check = match name {
                "stream" => BeforeWrite::Check,
                _ => BeforeWrite::Trust,
            };
            region.store(5, &[1; 8]);
            let mut writer =
                Writer::new(workload.clone(), region.clone(), watermarks, 0).before_write(check);
            let stats = writer.run(Pace::Unlimited, &mut FreeVcpu, 777);
            assert!(stats.findings > 0, "{name}");
            let first = Finding { writer: 0, address: 5, generation: 0 };
            assert_eq!(stats.first_finding, Some(first), "{name}");
        }
    }
}
