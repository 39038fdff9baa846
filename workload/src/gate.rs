//! The gate that every vCPU's thread passes again and again: there it stands while the guest is
//! paused, and there the throttle holds it.
//!
//! The throttle holds the thread for a share of time, in sleeps of at most 1 ms, by keeping books:
//! every run of length t earns a hold of t * s / (1 - s), and what a sleep overshot is taken off
//! the next. Time held is not the guest's: its schedule moves on by it, as the work of a guest
//! that keeps its vCPUs busy does.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::clock::realtime_ns;
use crate::stats::Stats;
// Of the standard library; tests put others in their place.
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Longest single sleep of the throttle.
const HOLD_MAX: Duration = Duration::from_millis(1);
/// Time between two nudges of a vCPU that is to stand still.
const NUDGE_INTERVAL: Duration = Duration::from_millis(1);
/// Shorter holds are saved up: a sleep costs about this much by itself.
const HOLD_MIN: Duration = Duration::from_micros(100);

/// Whether a vCPU may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Open,
    /// It stands still.
    Closed,
}

/// A vCPU that was asked to stand still does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a writer does not stop")]
pub struct DoesNotStop;

/// Where a vCPU's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Running,
    Standing,
    Gone,
}

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const STOP: u8 = 2;

/// The host's side of a vCPU.
#[derive(Debug)]
pub struct Control {
    /// Read at every checkpoint without a lock.
    request: AtomicU8,
    /// Share of time to hold, as the bits of an f64.
    held_share: AtomicU64,
    passed: AtomicBool,
    /// When it passed a gate that had been closed, by the wall clock; 0 if it never did.
    passed_at_ns: AtomicU64,
    /// Whether the host waits for the writer's figures, and where they are put.
    collect: AtomicBool,
    collected: Mutex<Option<Stats>>,
    place: Mutex<Place>,
    changed: Condvar,
}

impl Control {
    /// A vCPU that begins before its gate.
    pub fn new(gate: Gate) -> Self {
        Self {
            request: AtomicU8::new(if gate == Gate::Open { OPEN } else { CLOSED }),
            held_share: AtomicU64::new(0f64.to_bits()),
            passed: AtomicBool::new(false),
            passed_at_ns: AtomicU64::new(0),
            collect: AtomicBool::new(false),
            collected: Mutex::new(None),
            place: Mutex::new(Place::Running),
            changed: Condvar::new(),
        }
    }

    fn ask(&self, request: u8) {
        let _place = self.lock();
        // A vCPU that was told to stop never runs again.
        let _ = self.request.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            (old != STOP).then_some(request)
        });
        self.changed.notify_all();
    }

    /// Asks it to stand still.
    pub fn close(&self) {
        self.ask(CLOSED);
    }

    /// Lets it run on.
    pub fn open(&self) {
        self.passed.store(false, Ordering::Release);
        self.ask(OPEN);
    }

    /// Asks it to end.
    pub fn stop(&self) {
        self.ask(STOP);
    }

    /// Holds it for this share of time, from 0 (free) to below 1.
    pub fn throttle(&self, held_share: f64) {
        let share = held_share.clamp(0.0, 0.999);
        self.held_share.store(share.to_bits(), Ordering::Release);
    }

    /// Whether it was asked to stand still, and not to go on since.
    pub fn is_closed(&self) -> bool {
        self.request.load(Ordering::Acquire) == CLOSED
    }

    /// Asks the writer for its figures.
    pub fn ask_for_stats(&self) {
        let _place = self.lock();
        self.collect.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// See [`Passage::rest`].
    fn rest(&self, time: Duration) {
        let place = self.lock();
        let wanted = !self.wants_to_run() || self.collect.load(Ordering::Acquire);
        // What it rests earns a hold too, and is to be as short.
        let time = if self.is_throttled() { time.min(HOLD_MAX) } else { time };
        if !wanted {
            drop(self.changed.wait_timeout(place, time));
        }
    }

    /// The figures, once they are here.
    pub fn take_stats(&self) -> Option<Stats> {
        self.collected.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the vCPU stands still (or is gone) before the deadline.
    pub fn await_standing(&self, deadline: Instant) -> bool {
        self.wait(deadline, |place| place != Place::Running)
    }

    /// What the host wants, read without a lock.
    pub fn wants_to_run(&self) -> bool {
        self.request.load(Ordering::Acquire) == OPEN && self.passed.load(Ordering::Acquire)
    }

    /// Whether the throttle is to hold the vCPU now and then.
    pub fn is_throttled(&self) -> bool {
        f64::from_bits(self.held_share.load(Ordering::Acquire)) > 0.0
    }

    fn leave(&self) {
        *self.lock() = Place::Gone;
        self.changed.notify_all();
    }

    /// Whether the vCPU passed its gate (or is gone) before the deadline.
    pub fn await_running(&self, deadline: Instant) -> bool {
        self.wait(deadline, |place| place == Place::Gone || self.passed.load(Ordering::Acquire))
    }

    fn wait(&self, deadline: Instant, done: impl Fn(Place) -> bool) -> bool {
        let mut place = self.lock();
        while !done(*place) {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            place =
                self.changed.wait_timeout(place, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands still while the gate is closed; `false` when told to stop.
    fn pass(&self) -> bool {
        let mut place = self.lock();
        while self.request.load(Ordering::Acquire) == CLOSED {
            *place = Place::Standing;
            self.changed.notify_all();
            place = self.changed.wait(place).unwrap_or_else(PoisonError::into_inner);
        }
        let go = self.request.load(Ordering::Acquire) == OPEN;
        self.passed_at_ns.store(realtime_ns(), Ordering::Relaxed);
        *place = if go { Place::Running } else { Place::Gone };
        self.passed.store(true, Ordering::Release);
        self.changed.notify_all();
        go
    }
}

/// The guest's side of the gate.
#[derive(Debug)]
pub struct Passage {
    control: Arc<Control>,
    released: Instant,
    /// Hold that was earned and not served, in seconds; below zero if a sleep overshot. `None` while
    /// the throttle is off.
    owed_s: Option<f64>,
}

impl Passage {
    /// Of the vCPU that `control` controls.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control, released: Instant::now(), owed_s: None }
    }

    /// The vCPU has nothing to do for so long, or until the host wants something.
    pub fn rest(&self, time: Duration) {
        self.control.rest(time);
    }

    /// Says that the vCPU's thread is at its end: nobody is to wait for it.
    pub fn leave(&self) {
        self.control.leave();
    }

    fn serve_throttle(&mut self, now: Instant) {
        let share = f64::from_bits(self.control.held_share.load(Ordering::Acquire));
        if share == 0.0 {
            self.owed_s = None;
            return;
        }
        // What was before the throttle earns nothing.
        let Some(owed_s) = &mut self.owed_s else {
            self.owed_s = Some(0.0);
            return;
        };
        *owed_s += (now - self.released).as_secs_f64() * share / (1.0 - share);
        while *owed_s > HOLD_MIN.as_secs_f64()
            && self.control.request.load(Ordering::Acquire) == OPEN
        {
            let start = Instant::now();
            std::thread::sleep(Duration::from_secs_f64(*owed_s).min(HOLD_MAX));
            *owed_s -= start.elapsed().as_secs_f64();
        }
    }

    /// Passes the gate: how long the vCPU was held, or `None` when it is to stop. `stand` is called
    /// before it stands still.
    #[inline]
    pub fn pass(&mut self, stand: impl FnOnce()) -> Option<Duration> {
        // Between two records of a free guest no clock is read.
        if self.control.wants_to_run() && !self.control.is_throttled() {
            self.owed_s = None;
            return Some(Duration::ZERO);
        }
        let arrived = Instant::now();
        self.serve_throttle(arrived);
        if !self.control.wants_to_run() {
            stand();
            if !self.control.pass() {
                return None;
            }
        }
        self.released = Instant::now();
        Some(self.released - arrived)
    }
}

impl Passage {
    /// Hands the writer's figures to a host that waits for them, and begins new ones.
    pub fn collect(&self, stats: &mut Stats) {
        if self.control.collect.swap(false, Ordering::AcqRel) {
            let taken = std::mem::take(stats);
            let place = &self.control.collected;
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
        }
    }
}

/// The vCPUs of a guest, as the host holds them.
#[derive(Clone, Debug, Default)]
pub struct Gates(
    /// One each.
    pub Vec<Arc<Control>>,
);

/// How long a vCPU may take to stand still: it comes by every millisecond, unless the machine is
/// starved.
pub const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

impl Gates {
    /// Has every vCPU stand still; `nudge` is called until all do.
    ///
    /// # Errors
    /// One of them does not; then all go on.
    pub fn close(&self, nudge: impl Fn()) -> Result<(), DoesNotStop> {
        // All are asked before any is waited for.
        self.0.iter().for_each(|c| c.close());
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        loop {
            nudge();
            let soon = Instant::now() + NUDGE_INTERVAL;
            if self.0.iter().all(|c| c.await_standing(soon)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.open();
                return Err(DoesNotStop);
            }
        }
    }

    /// Lets all run on.
    pub fn open(&self) {
        self.0.iter().for_each(|c| c.open());
    }

    /// Asks all to end.
    pub fn stop(&self) {
        self.0.iter().for_each(|c| c.stop());
    }

    /// Holds each for its share of time.
    pub fn throttle(&self, held_shares: &[f64]) {
        self.0.iter().zip(held_shares).for_each(|(c, share)| c.throttle(*share));
    }

    /// Whether all passed their gates before the deadline.
    pub fn await_running(&self, deadline: Instant) -> bool {
        self.0.iter().all(|c| c.await_running(deadline))
    }

    /// Whether all that were asked to stand do so (or are gone) before the deadline.
    pub fn await_standing(&self, deadline: Instant) -> bool {
        self.0.iter().all(|c| c.await_standing(deadline))
    }

    /// When the last vCPU passed a gate that had been closed, by the wall clock.
    pub fn passed_at_ns(&self) -> u64 {
        self.0.iter().map(|c| c.passed_at_ns.load(Ordering::Relaxed)).max().unwrap_or(0)
    }
}
