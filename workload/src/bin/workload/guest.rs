//! The writers as threads that can be paused, slowed down, sped up and stopped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use workload::gate::{Control, Gate, Gates, Passage};
use workload::heartbeat::Heart;
use workload::rate::{Demand, Leg, Plan, Unit};
use workload::region::Region;
use workload::schedule::CatchUp;
use workload::spec::Workload;
use workload::stats::Stats;
use workload::unique;
use workload::writer::{BeforeWrite, Checkpoint, Pace, Vcpu, Watermarks, Writer};

/// Longest rest of a writer between two looks at its pace.
const REST_MAX: Duration = Duration::from_millis(5);

/// How fast each writer is to go.
struct Paces {
    /// Counts the changes.
    version: AtomicU64,
    pace: Mutex<Pace>,
}

/// Writers at work.
pub(crate) struct Guest {
    pub(crate) workload: Arc<Workload>,
    pub(crate) region: Arc<Region>,
    pub(crate) watermarks: Watermarks,
    gates: Gates,
    paces: Arc<Paces>,
    catch_up: CatchUp,
    threads: Vec<JoinHandle<Stats>>,
    /// Says how far the writers are.
    heart: Option<Heart>,
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
        watermarks: Watermarks,
        demand: &Demand,
        catch_up: CatchUp,
        before_write: BeforeWrite,
        heart: Option<Heart>,
    ) -> anyhow::Result<Self> {
        let paces = Arc::new(Paces {
            version: AtomicU64::new(0),
            pace: Mutex::new(pace(&workload, demand, catch_up)?),
        });
        let writers = 0..workload.shares().len();
        let gates = Gates(writers.clone().map(|_| Arc::new(Control::new(Gate::Open))).collect());
        let threads = writers
            .map(|index| {
                let mut writer =
                    Writer::new(workload.clone(), region.clone(), watermarks.clone(), index)
                        .before_write(before_write);
                let passage = Passage::new(gates.0[index].clone());
                let mut vcpu =
                    ThreadVcpu { passage, paces: paces.clone(), version: 0, ends: false };
                std::thread::Builder::new()
                    .name(format!("writer-{index}"))
                    .spawn(move || vcpu.drive(&mut writer))
            })
            .collect::<Result<_, _>>()
            .context("cannot start the writers")?;
        Ok(Self { workload, region, watermarks, gates, paces, catch_up, threads, heart })
    }

    /// Holds every writer between two operations.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.gates.close(|| ())?;
        if let Some(heart) = &self.heart {
            heart.hold();
        }
        Ok(())
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.gates.0.iter().any(|control| control.is_closed())
    }

    pub(crate) fn resume(&self) {
        if let Some(heart) = &self.heart {
            heart.resume();
        }
        self.gates.open();
    }

    /// Goes on at another rate; the schedule starts afresh.
    pub(crate) fn set_rate(&self, demand: &Demand) -> anyhow::Result<()> {
        *lock(&self.paces.pace) = pace(&self.workload, demand, self.catch_up)?;
        self.paces.version.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Ends the writers; returns what they did, when the last of them had ended (freeing the memory
    /// afterwards takes its time, in which nothing was to be written), and who is to say so.
    pub(crate) fn stop(mut self) -> anyhow::Result<(Stats, Instant, Option<Heart>)> {
        self.gates.stop();
        let mut stats = Stats::default();
        for thread in self.threads.drain(..) {
            let one = thread.join().map_err(|_| anyhow::anyhow!("a writer died"))?;
            stats.merge(&one);
        }
        Ok((stats, Instant::now(), self.heart.take()))
    }
}

fn pace(workload: &Workload, demand: &Demand, catch_up: CatchUp) -> anyhow::Result<Pace> {
    Ok(match plan(workload, demand)? {
        Some(plan) => Pace::Scheduled { plan, catch_up },
        None => Pace::Unlimited,
    })
}

/// A writer's thread.
struct ThreadVcpu {
    passage: Passage,
    paces: Arc<Paces>,
    /// The version of the pace that it keeps.
    version: u64,
    ends: bool,
}

impl ThreadVcpu {
    /// A writer's life: at each pace in turn, until stopped.
    fn drive(&mut self, writer: &mut Writer) -> Stats {
        let mut stats = Stats::default();
        while !self.ends {
            self.version = self.paces.version.load(Ordering::Acquire);
            let pace = lock(&self.paces.pace).clone();
            stats.merge(&writer.run(pace, self, u64::MAX));
        }
        stats
    }
}

impl Vcpu for ThreadVcpu {
    #[inline]
    fn checkpoint(&mut self) -> Checkpoint {
        let Some(held) = self.passage.pass(|| ()) else {
            self.ends = true;
            return Checkpoint::Stop;
        };
        match self.paces.version.load(Ordering::Acquire) == self.version {
            true => Checkpoint::Go { held },
            false => Checkpoint::Stop,
        }
    }

    fn rest(&mut self, time: Duration) {
        self.passage.rest(time.min(REST_MAX));
    }
}
