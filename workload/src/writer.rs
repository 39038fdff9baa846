//! One writer: performs its operations on schedule until its vCPU says stop.
//!
//! Lines of a record ascend, then the watermark goes up with Release: whoever reads the watermark
//! with Acquire sees every line of every operation before it. Between operations, at least once a
//! millisecond, the writer passes its vCPU's checkpoint; there, and only there, it may be held.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::PAGE_BYTES;
use crate::region::Region;
use crate::schedule::Schedule;
use crate::spec::Workload;
use crate::stats::Stats;

/// Longest time between two checkpoints.
pub const CHECKPOINT_MAX: Duration = Duration::from_millis(1);
/// Most pages written between two checkpoints.
pub const BATCH_PAGES_MAX: u64 = 64;
/// Wake-ups are this far apart at high rates: batches, not a timer per record.
const WAKE_MIN: Duration = Duration::from_micros(500);

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
}

/// The operation counters of a region's writers: the only state that memory does not hold.
#[derive(Clone, Debug)]
pub struct Watermarks(Arc<[AtomicU64]>);

impl Watermarks {
    /// Counters starting at the given operations.
    pub fn new(values: &[u64]) -> Self {
        Self(values.iter().map(|v| AtomicU64::new(*v)).collect())
    }

    /// Operations completed, by writer.
    pub fn read(&self) -> Vec<u64> {
        self.0.iter().map(|w| w.load(Ordering::Acquire)).collect()
    }

    fn counter(&self, writer: usize) -> &AtomicU64 {
        &self.0[writer]
    }
}

/// How fast a writer goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Open loop: bytes of records per second of this writer.
    BytesPerSecond(f64),
    /// As fast as memory takes it.
    Unlimited,
}

/// One writer at work.
#[derive(Debug)]
pub struct Writer {
    workload: Arc<Workload>,
    region: Arc<Region>,
    watermarks: Watermarks,
    index: usize,
}

impl Writer {
    /// Writer `index` of `workload`, going on from its watermark.
    pub fn new(
        workload: Arc<Workload>,
        region: Arc<Region>,
        watermarks: Watermarks,
        index: usize,
    ) -> Self {
        assert_eq!(region.bytes(), workload.spec().memory.0, "the region fits its workload");
        assert!(index < workload.shares().len(), "a writer has a share");
        Self { workload, region, watermarks, index }
    }

    /// Performs operation `k`; later ones must not have been performed.
    #[inline]
    pub fn perform(&self, k: u64) {
        let share = &self.workload.shares()[self.index];
        let slot = share.pattern.slot(k);
        // Generations are closed form, so a writer needs no memory of its own.
        let generation = share.pattern.generation(slot, k) + 1;
        let first = self.workload.slot_line(self.index, slot);
        let key = self.workload.key();
        for address in first..first + self.workload.record_lines() {
            self.region.store(address, &key.line(address, generation));
        }
        self.watermarks.counter(self.index).store(k + 1, Ordering::Release);
    }

    /// Runs until the vCPU says stop, or `operations_max` have been performed.
    pub fn run(&mut self, pace: Pace, vcpu: &mut dyn Vcpu, operations_max: u64) -> Stats {
        let record = self.workload.spec().record.0;
        let batch_max = (BATCH_PAGES_MAX * PAGE_BYTES / record).max(1);
        // A clock read per kilobyte, not per 64-byte record.
        let sample = (1024 / record).max(1);
        let origin = Instant::now();
        let now_ns = || origin.elapsed().as_nanos() as u64;
        let mut schedule = match pace {
            Pace::BytesPerSecond(rate) => Some(Schedule::new(rate / record as f64, 0)),
            Pace::Unlimited => None,
        };
        let mut stats = Stats::default();
        let mut k = self.watermarks.counter(self.index).load(Ordering::Acquire);
        let end = k.saturating_add(operations_max);
        let mut woke_ns = 0;
        while k < end {
            match vcpu.checkpoint() {
                Checkpoint::Stop => break,
                Checkpoint::Go { held } => {
                    if let Some(schedule) = &mut schedule {
                        schedule.hold(held);
                    }
                }
            }
            let batch_start = now_ns();
            let due = match &mut schedule {
                Some(schedule) => schedule.due(batch_start),
                None => batch_max,
            };
            let mut batch = due.min(batch_max).min(end - k);
            let mut before = batch_start;
            while batch > 0 {
                let count = batch.min(sample);
                let intended = match &mut schedule {
                    Some(schedule) => {
                        let first = schedule.take();
                        for _ in 1..count {
                            schedule.take();
                        }
                        first
                    }
                    None => before,
                };
                for _ in 0..count {
                    self.perform(k);
                    k += 1;
                }
                batch -= count;
                let after = now_ns();
                stats.record(count, after - before, after.saturating_sub(intended));
                before = after;
                if after - batch_start > CHECKPOINT_MAX.as_nanos() as u64 {
                    break;
                }
            }
            if let Some(schedule) = &schedule {
                let wake = schedule.next_ns().max(woke_ns + WAKE_MIN.as_nanos() as u64);
                let wait = Duration::from_nanos(wake.saturating_sub(before)).min(CHECKPOINT_MAX);
                if !wait.is_zero() {
                    std::thread::sleep(wait);
                    woke_ns = wake;
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
    use crate::spec::{ContentKind, PatternKind, WorkloadSpec};
    use crate::units::Bytes;

    struct FreeVcpu;
    impl Vcpu for FreeVcpu {
        fn checkpoint(&mut self) -> Checkpoint {
            Checkpoint::Go { held: Duration::ZERO }
        }
    }

    #[test]
    fn memory_is_a_function_of_the_watermark() {
        for (pattern, record) in
            [(PatternKind::Stream, 64), (PatternKind::Uniform, 256), (PatternKind::Uniform, 8192)]
        {
            let spec = WorkloadSpec {
                seed: 3,
                memory: Bytes(37 * PAGE_BYTES),
                writers: 2,
                record: Bytes(record),
                pattern,
                content: ContentKind::Random,
            };
            let workload = Arc::new(spec.resolve().unwrap());
            let region = Arc::new(Region::anonymous(spec.memory).unwrap());
            region.fill(&workload, |_| {});
            let watermarks = Watermarks::new(&[0, 0]);
            for index in 0..2 {
                let mut writer =
                    Writer::new(workload.clone(), region.clone(), watermarks.clone(), index);
                let stats = writer.run(Pace::Unlimited, &mut FreeVcpu, 777 + index as u64);
                assert_eq!(stats.operations, 777 + index as u64);
            }
            assert_eq!(watermarks.read(), [777, 778]);
            for (index, share) in workload.shares().iter().enumerate() {
                let first = workload.slot_line(index, 0);
                let lines = share.pages * crate::PAGE_LINES;
                for address in first..first + lines {
                    let slot = (address - first) / workload.record_lines();
                    let generation = if slot < share.slots {
                        share.pattern.generation(slot, 777 + index as u64)
                    } else {
                        0
                    };
                    assert_eq!(region.load(address), workload.key().line(address, generation));
                }
            }
        }
    }
}
