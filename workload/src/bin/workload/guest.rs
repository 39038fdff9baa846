//! The writers as threads that can be paused, slowed down, sped up and stopped.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use workload::rate::{Demand, Leg, Plan, Unit};
use workload::region::Region;
use workload::schedule::CatchUp;
use workload::spec::Workload;
use workload::stats::Stats;
use workload::unique;
use workload::writer::{BeforeWrite, Checkpoint, Pace, Vcpu, Watermarks, Writer};

const RUNNING: u8 = 0;
const PAUSED: u8 = 1;
const STOPPED: u8 = 2;
/// Longest rest of a writer between two looks at what it is told.
const REST_MAX: Duration = Duration::from_millis(5);
/// How long writers may take to stand still.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the writers are told.
struct Control {
    state: AtomicU8,
    /// Counts the changes of pace.
    version: AtomicU64,
    pace: Mutex<Pace>,
    standing: Mutex<usize>,
    changed: Condvar,
}

/// Writers at work.
pub(crate) struct Guest {
    pub(crate) workload: Arc<Workload>,
    pub(crate) region: Arc<Region>,
    pub(crate) watermarks: Watermarks,
    control: Arc<Control>,
    catch_up: CatchUp,
    threads: Vec<JoinHandle<Stats>>,
}

/// Operations per second of one writer for what all of them together are to do; `None` for as
/// fast as possible.
pub(crate) fn plan(workload: &Workload, demand: &Demand) -> anyhow::Result<Option<Plan>> {
    let Demand::Scheduled { unit, legs, text } = demand else { return Ok(None) };
    let writers = workload.shares().len() as f64;
    let operations = |rate: f64| -> anyhow::Result<f64> {
        match unit {
            Unit::Bytes => Ok(rate / writers / workload.spec().workload.record.0 as f64),
            Unit::Pages => unique::operations_for_pages(workload, 0, rate / writers)
                .map_err(|most| {
                    let most = most as f64 * writers;
                    anyhow::anyhow!("rate {text}: this workload has at most {most:.0} distinct pages; use more memory")
                }),
        }
    };
    let legs = legs
        .iter()
        .map(|leg| {
            Ok(Leg { from: operations(leg.from)?, to: operations(leg.to)?, length: leg.length })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Some(Plan::new(&legs)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    pub(crate) fn start(
        workload: Arc<Workload>,
        region: Arc<Region>,
        demand: &Demand,
        catch_up: CatchUp,
        before_write: BeforeWrite,
    ) -> anyhow::Result<Self> {
        let watermarks = Watermarks::new(&vec![0; workload.shares().len()]);
        let control = Arc::new(Control {
            state: AtomicU8::new(RUNNING),
            version: AtomicU64::new(0),
            pace: Mutex::new(pace(&workload, demand, catch_up)?),
            standing: Mutex::new(0),
            changed: Condvar::new(),
        });
        let threads = (0..workload.shares().len())
            .map(|index| {
                let mut writer =
                    Writer::new(workload.clone(), region.clone(), watermarks.clone(), index)
                        .before_write(before_write);
                let control = control.clone();
                std::thread::Builder::new()
                    .name(format!("writer-{index}"))
                    .spawn(move || control.drive(&mut writer))
            })
            .collect::<Result<_, _>>()
            .context("cannot start the writers")?;
        Ok(Self { workload, region, watermarks, control, catch_up, threads })
    }

    /// Holds every writer between two operations.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.control.state.store(PAUSED, Ordering::Release);
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        let mut standing = lock(&self.control.standing);
        while *standing < self.threads.len() {
            let rest = deadline.saturating_duration_since(Instant::now());
            anyhow::ensure!(!rest.is_zero(), "a writer does not stop");
            let waited = self.control.changed.wait_timeout(standing, rest);
            standing = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.control.state.load(Ordering::Acquire) == PAUSED
    }

    pub(crate) fn resume(&self) {
        self.change(RUNNING);
    }

    /// Goes on at another rate; the schedule starts afresh.
    pub(crate) fn set_rate(&self, demand: &Demand) -> anyhow::Result<()> {
        *lock(&self.control.pace) = pace(&self.workload, demand, self.catch_up)?;
        self.control.version.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn change(&self, state: u8) {
        let _standing = lock(&self.control.standing);
        self.control.state.store(state, Ordering::Release);
        self.control.changed.notify_all();
    }

    /// Ends the writers; returns what they did, and when the last of them had ended: freeing the
    /// memory afterwards takes its time, in which nothing was to be written.
    pub(crate) fn stop(mut self) -> anyhow::Result<(Stats, Instant)> {
        self.change(STOPPED);
        let mut stats = Stats::default();
        for thread in self.threads.drain(..) {
            let one = thread.join().map_err(|_| anyhow::anyhow!("a writer died"))?;
            stats.merge(&one);
        }
        Ok((stats, Instant::now()))
    }
}

fn pace(workload: &Workload, demand: &Demand, catch_up: CatchUp) -> anyhow::Result<Pace> {
    Ok(match plan(workload, demand)? {
        Some(plan) => Pace::Scheduled { plan, catch_up },
        None => Pace::Unlimited,
    })
}

impl Control {
    /// A writer's life: at each pace in turn, until stopped.
    fn drive(self: &Arc<Self>, writer: &mut Writer) -> Stats {
        let mut stats = Stats::default();
        while self.state.load(Ordering::Acquire) != STOPPED {
            let version = self.version.load(Ordering::Acquire);
            let pace = lock(&self.pace).clone();
            let mut vcpu = ThreadVcpu { control: self.clone(), version };
            stats.merge(&writer.run(pace, &mut vcpu, u64::MAX));
        }
        stats
    }

    /// Stands still while paused.
    fn stand(&self) -> Duration {
        let start = Instant::now();
        let mut standing = lock(&self.standing);
        *standing += 1;
        self.changed.notify_all();
        while self.state.load(Ordering::Acquire) == PAUSED {
            standing = self.changed.wait(standing).unwrap_or_else(PoisonError::into_inner);
        }
        *standing -= 1;
        start.elapsed()
    }
}

struct ThreadVcpu {
    control: Arc<Control>,
    version: u64,
}

impl Vcpu for ThreadVcpu {
    #[inline]
    fn checkpoint(&mut self) -> Checkpoint {
        let mut held = Duration::ZERO;
        if self.control.state.load(Ordering::Acquire) == PAUSED {
            held = self.control.stand();
        }
        let stopped = self.control.state.load(Ordering::Acquire) == STOPPED;
        if stopped || self.control.version.load(Ordering::Acquire) != self.version {
            return Checkpoint::Stop;
        }
        Checkpoint::Go { held }
    }

    /// Pauses are not in a hurry: a thousand resting writers must not keep a core busy.
    fn rest(&mut self, time: Duration) {
        std::thread::sleep(time.min(REST_MAX));
    }
}
