//! Pacing: how one host plays a slower link without privileges.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How far behind schedule sending may be and still catch up: what the queues of a real link hold
/// while its sender waits for a CPU (`tc tbf` is usually given 50 ms as well).
const CATCH_UP_MAX: Duration = Duration::from_millis(50);

/// Limits the sum of several streams to a rate, on an absolute schedule.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_s: Option<f64>,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    /// Limits to `bytes_per_s`; `None` does not limit.
    pub fn new(bytes_per_s: Option<f64>) -> Self {
        Self { bytes_per_s, next: Mutex::new(None) }
    }

    /// Blocks until `bytes` more may be sent.
    pub fn admit(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_s else { return };
        let now = Instant::now();
        let start = {
            let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
            let start = next.unwrap_or(now).max(earliest);
            *next = Some(start + Duration::from_secs_f64(bytes as f64 / rate));
            start
        };
        // The bytes are on the wire from `start` on; they may go out when it has come.
        std::thread::sleep(start.saturating_duration_since(now));
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
}
