//! The open-loop schedule: when each operation is intended to start.
//!
//! The schedule is absolute, so a late operation does not push its successors back. What is late
//! by more than the catch-up bound is *missed*: taken off the schedule and counted, never made up
//! for. Time during which the host held the vCPU is not the guest's: the schedule moves on by it,
//! as the clock of a paused VM does, and the work that would have been due is counted as held.

use std::time::Duration;

/// Lateness from which on work is missed rather than caught up.
pub const CATCH_UP_MAX: Duration = Duration::from_millis(100);

/// When operations are due. All times are nanoseconds on one caller-chosen clock.
#[derive(Clone, Debug)]
pub struct Schedule {
    ns_per_op: f64,
    origin_ns: f64,
    /// Operations taken from the schedule: done or missed.
    taken: u64,
    missed: u64,
    held: f64,
}

impl Schedule {
    /// `ops_per_s` operations per second (more than zero) from `start_ns` on.
    pub fn new(ops_per_s: f64, start_ns: u64) -> Self {
        assert!(ops_per_s > 0.0, "a schedule needs a rate");
        Self {
            ns_per_op: 1e9 / ops_per_s,
            origin_ns: start_ns as f64,
            taken: 0,
            missed: 0,
            held: 0.0,
        }
    }

    /// How many operations are due at `now_ns`, after those too late were counted as missed.
    pub fn due(&mut self, now_ns: u64) -> u64 {
        let scheduled = ((now_ns as f64 - self.origin_ns) / self.ns_per_op).floor();
        let due = (scheduled as u64).saturating_sub(self.taken);
        let catch_up = (CATCH_UP_MAX.as_nanos() as f64 / self.ns_per_op).ceil().max(1.0) as u64;
        let late = due.saturating_sub(catch_up);
        self.missed += late;
        self.taken += late;
        due - late
    }

    /// Takes the next operation; returns when it was intended to start.
    pub fn take(&mut self) -> u64 {
        // Operation n is due when n + 1 intervals have passed: the first not before its interval.
        let intended = self.origin_ns + (self.taken + 1) as f64 * self.ns_per_op;
        self.taken += 1;
        intended as u64
    }

    /// When the next operation is due.
    pub fn next_ns(&self) -> u64 {
        (self.origin_ns + (self.taken + 1) as f64 * self.ns_per_op) as u64
    }

    /// The host held this vCPU for `duration`: the schedule moves on by it.
    pub fn hold(&mut self, duration: Duration) {
        let ns = duration.as_nanos() as f64;
        self.origin_ns += ns;
        self.held += ns / self.ns_per_op;
    }

    /// Operations missed because the guest itself was late.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Operations that would have been due while the host held the vCPU.
    pub fn held(&self) -> u64 {
        self.held as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_follows_the_clock_not_the_calls() {
        let mut s = Schedule::new(1000.0, 0);
        assert_eq!(s.due(999_999), 0);
        assert_eq!(s.due(5_500_000), 5);
        assert_eq!(s.take(), 1_000_000);
        assert_eq!(s.due(5_500_000), 4);
        assert_eq!(s.next_ns(), 2_000_000);
    }

    #[test]
    fn late_work_is_missed_and_counted() {
        let mut s = Schedule::new(1000.0, 0);
        assert_eq!(s.due(1_000_000_000), 100);
        assert_eq!(s.missed(), 900);
        assert_eq!(s.due(1_000_000_000), 100, "asking again misses nothing more");
        assert_eq!(s.missed(), 900);
    }

    #[test]
    fn held_time_is_not_the_guests() {
        let mut s = Schedule::new(1000.0, 0);
        s.hold(Duration::from_millis(500));
        assert_eq!(s.due(500_000_000), 0);
        assert_eq!(s.due(510_000_000), 10);
        assert_eq!((s.held(), s.missed()), (500, 0));
    }
}
