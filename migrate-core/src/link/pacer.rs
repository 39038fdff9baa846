//! Pacing: how one host plays a slower link without privileges.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How far behind schedule sending may be and still catch up: what the queues of a real link hold
/// while its sender waits for a CPU (`tc tbf` is usually given 50 ms as well).
const CATCH_UP_MAX: Duration = Duration::from_millis(50);

/// Longest time by which one admission moves the schedule. A rate that needs more for one frame is
/// none that a migration could end at.
const STEP_MAX: Duration = Duration::from_secs(3600);

/// Longest sleep before it is seen whether anybody still wants to send.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Whether bytes can be sent at this rate: more than none a second, and a number.
pub(crate) fn is_rate(bytes_per_s: f64) -> bool {
    bytes_per_s.is_finite() && bytes_per_s > 0.0
}

/// Limits the sum of several streams to a rate, on an absolute schedule.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// As the bits of an f64; infinite where nothing is limited.
    bytes_per_s: AtomicU64,
    stopped: AtomicBool,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    /// Limits to `bytes_per_s`; `None`, and what is no rate (see [`is_rate`]), does not limit.
    pub(crate) fn new(bytes_per_s: Option<f64>) -> Self {
        let pacer = Self {
            bytes_per_s: AtomicU64::default(),
            stopped: AtomicBool::new(false),
            next: Mutex::new(None),
        };
        pacer.set(bytes_per_s);
        pacer
    }

    /// Limits to `bytes_per_s` from now on.
    pub(crate) fn set(&self, bytes_per_s: Option<f64>) {
        let rate = bytes_per_s.filter(|rate| is_rate(*rate)).unwrap_or(f64::INFINITY);
        self.bytes_per_s.store(rate.to_bits(), Ordering::Relaxed);
    }

    /// Lets everybody through who waits, or comes later: the attempt is over.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Blocks until `bytes` more may be sent.
    pub(crate) fn admit(&self, bytes: usize) {
        let rate = f64::from_bits(self.bytes_per_s.load(Ordering::Relaxed));
        if rate.is_infinite() {
            return;
        }
        let now = Instant::now();
        let start = {
            let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
            let start = next.unwrap_or(now).max(earliest);
            let step = Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(STEP_MAX);
            *next = Some(start.checked_add(step.min(STEP_MAX)).unwrap_or(start));
            start
        };
        // The bytes are on the wire from `start` on; they may go out when it has come.
        loop {
            let rest = start.saturating_duration_since(Instant::now());
            if rest.is_zero() || self.stopped.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(rest.min(SLEEP_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_absolute() {
        let pacer = Pacer::new(Some(1e9));
        let start = Instant::now();
        for _ in 0..100 {
            pacer.admit(1_000_000);
        }
        // Whatever the sleeps did, the hundredth megabyte may not start before 99 ms.
        assert!(start.elapsed() >= Duration::from_millis(99) - CATCH_UP_MAX);
        Pacer::new(None).admit(usize::MAX);
    }

    #[test]
    fn what_is_no_rate_does_not_limit() {
        for rate in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let pacer = Pacer::new(Some(rate));
            (0..3).for_each(|_| pacer.admit(usize::MAX));
        }
        // The first may go at once, and the schedule has an end.
        Pacer::new(Some(f64::MIN_POSITIVE)).admit(usize::MAX);
    }
}
