//! The built-in guest without a hypervisor: one writer thread per vCPU. Needs no privileges.

use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use verifier::expected::Expected;
use verifier::memory::Moment;
use workload::region::Region;
use workload::spec::Workload;
use workload::stats::Stats;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};

use super::machine::{Machine, not_paused};
use super::tracker::{self, TrackerKind};
use super::{DirtyTracker, GuestError, MemoryView, threads};
use workload::gate::{Control, Gate, Gates, PAUSE_TIMEOUT, Passage};

/// Writer threads.
#[derive(Debug)]
pub(super) struct Threads {
    gates: Gates,
    threads: Vec<JoinHandle<Option<Stats>>>,
    watermarks: Watermarks,
}

/// A vCPU that is a thread.
struct ThreadVcpu(Passage);

impl Vcpu for ThreadVcpu {
    fn checkpoint(&mut self) -> Checkpoint {
        match self.0.pass(|| ()) {
            Some(held) => Checkpoint::Go { held },
            None => Checkpoint::Stop,
        }
    }

    fn rest(&mut self, time: Duration) {
        self.0.rest(time);
    }

    fn collect(&mut self, stats: &mut Stats) {
        self.0.collect(stats);
    }
}

/// What a thread does for its guest, with figures that it made before.
type Job = Box<dyn FnOnce(Stats) -> Stats + Send>;

/// Threads that exist and have nothing to do yet: making one, and what it counts in, takes longer than
/// a stun may, so they are there before it.
#[derive(Debug)]
pub(super) struct Hired(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    /// Taken when there is something to do; a thread that is given nothing ends.
    job: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<Option<Stats>>>,
}

impl Hired {
    /// So many threads. If one cannot be had, those that came are ended.
    pub(super) fn new(count: usize) -> Result<Self, GuestError> {
        let mut hired = Self(Vec::new());
        for index in 0..count {
            let (job, jobs) = mpsc::sync_channel::<Job>(1);
            let thread = threads::start(format!("vcpu-{index}"), move || {
                let stats = Stats::default();
                Some(jobs.recv().ok()?(stats))
            })?;
            hired.0.push(Worker { job: Some(job), thread: Some(thread) });
        }
        Ok(hired)
    }
}

impl Drop for Hired {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            worker.job = None;
            if let Some(thread) = worker.thread.take() {
                // It had nothing to do.
                let _ = thread.join();
            }
        }
    }
}

impl Threads {
    /// Lets threads go on from what memory is expected to hold.
    pub(super) fn start(
        mut hired: Hired,
        workload: &Arc<Workload>,
        region: &Arc<Region>,
        expected: Expected,
        watermarks: &Watermarks,
        pace: &Pace,
        gate: Gate,
    ) -> Result<Self, GuestError> {
        let watermarks = watermarks.clone();
        let mut this = Self { gates: Gates::default(), threads: Vec::new(), watermarks };
        let generations = expected.into_generations();
        assert_eq!(generations.len(), hired.0.len(), "a thread for each writer");
        for (index, (generations, worker)) in generations.into_iter().zip(&mut hired.0).enumerate()
        {
            let (Some(job), Some(thread)) = (worker.job.take(), worker.thread.take()) else {
                continue;
            };
            let control = Arc::new(Control::new(gate));
            let (workload, region) = (workload.clone(), region.clone());
            let counters = this.watermarks.clone();
            let mut writer =
                Writer::with_generations(workload, region, counters, index, generations);
            let pace = pace.clone();
            let mut vcpu = ThreadVcpu(Passage::new(control.clone()));
            let run: Job = Box::new(move |stats| writer.run_with(stats, pace, &mut vcpu, u64::MAX));
            this.gates.0.push(control);
            this.threads.push(thread);
            if job.send(run).is_err() {
                return Err(GuestError::new("start the guest", "one of its threads is gone"));
            }
        }
        Ok(this)
    }
}

impl Machine for Threads {
    fn vcpus(&self) -> usize {
        self.threads.len()
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.gates.close(|| ()).map_err(not_paused)
    }

    fn resume(&mut self) {
        self.gates.open();
    }

    fn await_standing(&self, deadline: Instant) -> Result<(), GuestError> {
        match self.gates.await_standing(deadline) {
            true => Ok(()),
            false => {
                Err(GuestError::new("prepare the guest", "a writer does not come to its gate"))
            }
        }
    }

    fn passed_at_ns(&self) -> u64 {
        self.gates.passed_at_ns()
    }

    fn await_running(&self, deadline: Instant) -> Result<(), GuestError> {
        match self.gates.await_running(deadline) {
            true => Ok(()),
            false => Err(GuestError::new("start the guest", "a writer does not run")),
        }
    }

    fn throttle(&mut self, held_shares: &[f64]) {
        self.gates.throttle(held_shares);
    }

    fn written(&self) -> Vec<u64> {
        self.watermarks.stored_lines()
    }

    fn moment(&self) -> Moment {
        Moment::Exact
    }

    fn tracker(
        &self,
        kind: TrackerKind,
        memory: MemoryView,
    ) -> Result<Box<dyn DirtyTracker>, GuestError> {
        tracker::open(kind, &memory)
    }

    fn lap(&self) -> Result<Stats, GuestError> {
        self.gates.0.iter().for_each(|c| c.ask_for_stats());
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        let mut stats = Stats::default();
        for control in &self.gates.0 {
            loop {
                if let Some(one) = control.take_stats() {
                    stats.merge(&one);
                    break;
                }
                if Instant::now() > deadline {
                    return Err(GuestError::new("ask the writers", "one of them stands still"));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(stats)
    }

    fn halt(&mut self) -> Result<Stats, GuestError> {
        self.gates.stop();
        let mut stats = Stats::default();
        let mut died = false;
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(one) => stats.merge(&one.unwrap_or_default()),
                Err(_) => died = true,
            }
        }
        match died {
            true => Err(GuestError::new("stop the guest", "a writer died")),
            false => Ok(stats),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.halt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::line::PageFormat;
    use workload::spec::WorkloadSpec;
    use workload::units::Bytes;

    /// As when the last of them could not be had.
    #[test]
    fn threads_that_are_dropped_end() {
        for gate in [Gate::Open, Gate::Closed] {
            let memory = Bytes(1 << 20);
            let workload = "stream".parse().unwrap();
            let spec =
                WorkloadSpec { format: PageFormat::fresh(), seed: 1, memory, writers: 2, workload };
            let workload = Arc::new(spec.resolve().unwrap());
            let region = Arc::new(Region::anonymous(memory).unwrap());
            let fill = Expected::at(&workload, &[0, 0]);
            let watermarks = Watermarks::new(&[0, 0]);
            let pace = Pace::Unlimited;
            let hired = Hired::new(2).unwrap();
            let threads =
                Threads::start(hired, &workload, &region, fill, &watermarks, &pace, gate).unwrap();
            drop(threads);
            assert_eq!(Arc::strong_count(&region), 1, "{gate:?}: no thread holds the region");
        }
    }
}
