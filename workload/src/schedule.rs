//! The open-loop schedule: when each operation is intended to start.
//!
//! The schedule is absolute, so a late operation does not push its successors back. What is late
//! by more than the catch-up bound is *missed*: taken off the schedule and counted, never made up
//! for. Time during which the host held the vCPU is not the guest's: the schedule moves on by it,
//! as the clock of a paused VM does, and the work that would have been due is counted as held.

use std::str::FromStr;
use std::time::Duration;

use crate::profile::OnOff;
use crate::rate::Plan;
use crate::units::parse_duration;

/// What becomes of work that is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// Late work is missed, beyond what a timer's delay excuses ([`SKIP_BOUND`]).
    Skip,
    /// Work is made up for while it is at most this late.
    Bounded(Duration),
    /// All work is made up for, however late.
    Unbounded,
}

/// Lateness that `skip` still makes up for: that of a wake-up on a busy machine.
pub const SKIP_BOUND: Duration = Duration::from_millis(5);
/// Lateness made up for where nothing else is asked for.
pub const CATCH_UP_DEFAULT: Duration = Duration::from_millis(100);

impl Default for CatchUp {
    fn default() -> Self {
        Self::Bounded(CATCH_UP_DEFAULT)
    }
}

impl FromStr for CatchUp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "skip" => Ok(Self::Skip),
            None if text == "bounded" => Ok(Self::default()),
            None if text == "unbounded" => Ok(Self::Unbounded),
            Some(("bounded", bound)) => Ok(Self::Bounded(parse_duration(bound)?)),
            _ => Err(format!("'{text}' is none of skip, bounded, bounded:TIME, unbounded")),
        }
    }
}

impl CatchUp {
    fn bound(self) -> Option<Duration> {
        match self {
            Self::Skip => Some(SKIP_BOUND),
            Self::Bounded(bound) => Some(bound),
            Self::Unbounded => None,
        }
    }
}

/// When operations are due. All times are nanoseconds on one caller-chosen clock.
#[derive(Clone, Debug)]
pub struct Schedule {
    plan: Plan,
    timing: Option<OnOff>,
    bound: Option<Duration>,
    origin_ns: f64,
    /// Operations taken from the schedule: done or missed.
    taken: u64,
    missed: u64,
    held: f64,
}

impl Schedule {
    /// Follows `plan` in the time in which `timing` is on, from `start_ns` on.
    pub fn new(plan: Plan, timing: Option<OnOff>, catch_up: CatchUp, start_ns: u64) -> Self {
        let (bound, origin_ns) = (catch_up.bound(), start_ns as f64);
        Self { plan, timing, bound, origin_ns, taken: 0, missed: 0, held: 0.0 }
    }

    /// Operations that were due from the start to `ns`.
    fn scheduled(&self, ns: f64) -> f64 {
        self.plan.due(self.active((ns - self.origin_ns).max(0.0)))
    }

    /// Seconds of the plan that have passed after `ns` nanoseconds.
    fn active(&self, ns: f64) -> f64 {
        let active_ns = match &self.timing {
            None => ns,
            Some(OnOff { on, off }) => {
                let (on, off) = (on.as_nanos() as u64, off.as_nanos() as u64);
                // Whole nanoseconds, so that the ends of bursts do not depend on rounding.
                let (cycles, rest) = (ns as u64 / (on + off), ns as u64 % (on + off));
                (cycles * on + rest.min(on)) as f64
            }
        };
        active_ns / 1e9
    }

    /// How many operations are due at `now_ns`, after those too late were counted as missed.
    pub fn due(&mut self, now_ns: u64) -> u64 {
        let now = now_ns as f64;
        let due = (self.scheduled(now).floor() as u64).saturating_sub(self.taken);
        let Some(bound) = self.bound else { return due };
        let too_late = self.scheduled(now - bound.as_nanos() as f64).floor() as u64;
        // The newest one is never too late, or slow schedules would do nothing at all.
        let late = too_late.saturating_sub(self.taken).min(due.saturating_sub(1));
        self.missed += late;
        self.taken += late;
        due - late
    }

    /// Takes the next operation; returns when it was intended to start.
    pub fn take(&mut self) -> u64 {
        let intended = self.next_ns();
        self.taken += 1;
        intended
    }

    /// Takes `count` more operations.
    pub fn skip_over(&mut self, count: u64) {
        self.taken += count;
    }

    /// When the next operation is due.
    pub fn next_ns(&self) -> u64 {
        // Operation n is due when n + 1 intervals have passed: the first not before its interval.
        let active = self.plan.when((self.taken + 1) as f64);
        let seconds = match &self.timing {
            None => active,
            Some(OnOff { on, off }) => {
                let (on, off) = (on.as_secs_f64(), off.as_secs_f64());
                active + (active / on).floor() * off
            }
        };
        (self.origin_ns + seconds * 1e9).round() as u64
    }

    /// The host held this vCPU for `duration` up to `now_ns`: the schedule moves on by it.
    pub fn hold(&mut self, duration: Duration, now_ns: u64) {
        let before = self.scheduled(now_ns as f64);
        self.origin_ns += duration.as_nanos() as f64;
        self.held += before - self.scheduled(now_ns as f64);
    }

    /// Operations missed because the guest itself was late.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Operations that would have been due while the host held the vCPU.
    pub fn held(&self) -> u64 {
        self.held.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(catch_up: CatchUp) -> Schedule {
        Schedule::new(Plan::constant(1000.0), None, catch_up, 0)
    }

    #[test]
    fn due_follows_the_clock_not_the_calls() {
        let mut s = schedule(CatchUp::default());
        assert_eq!(s.due(999_999), 0);
        assert_eq!(s.due(5_500_000), 5);
        assert_eq!(s.take(), 1_000_000);
        assert_eq!(s.due(5_500_000), 4);
        assert_eq!(s.next_ns(), 2_000_000);
    }

    #[test]
    fn late_work_is_missed_and_counted() {
        let mut s = schedule(CatchUp::default());
        assert_eq!(s.due(1_000_000_000), 100);
        assert_eq!(s.missed(), 900);
        assert_eq!(s.due(1_000_000_000), 100, "asking again misses nothing more");
        assert_eq!(s.missed(), 900);
        let mut skipping = schedule(CatchUp::Skip);
        assert_eq!((skipping.due(1_000_000_000), skipping.missed()), (5, 995));
        let mut patient = schedule(CatchUp::Unbounded);
        assert_eq!((patient.due(1_000_000_000), patient.missed()), (1000, 0));
    }

    #[test]
    fn a_slow_schedule_is_never_skipped_altogether() {
        let mut s = Schedule::new(Plan::constant(1.0), None, CatchUp::Skip, 0);
        assert_eq!((s.due(1_900_000_000), s.missed()), (1, 0));
    }

    #[test]
    fn held_time_is_not_the_guests() {
        let mut s = schedule(CatchUp::default());
        s.hold(Duration::from_millis(500), 500_000_000);
        assert_eq!(s.due(500_000_000), 0);
        assert_eq!(s.due(510_000_000), 10);
        assert_eq!((s.held(), s.missed()), (500, 0));
    }

    #[test]
    fn bursts_stand_still_between() {
        let timing = OnOff { on: Duration::from_millis(10), off: Duration::from_millis(30) };
        let mut s = Schedule::new(Plan::constant(1000.0), Some(timing), CatchUp::Unbounded, 0);
        assert_eq!(s.due(10_000_000), 10);
        assert_eq!(s.due(39_000_000), 10);
        assert_eq!(s.due(45_000_000), 15);
        s.skip_over(10);
        assert_eq!(s.next_ns(), 41_000_000);
    }

    #[test]
    fn policies_have_names() {
        assert_eq!("skip".parse(), Ok(CatchUp::Skip));
        assert_eq!("bounded:1s".parse(), Ok(CatchUp::Bounded(Duration::from_secs(1))));
        assert_eq!("bounded".parse(), Ok(CatchUp::default()));
        assert!("later".parse::<CatchUp>().is_err());
        assert!("bounded:soon".parse::<CatchUp>().is_err());
    }
}
