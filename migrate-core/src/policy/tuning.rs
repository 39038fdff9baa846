//! The numbers that policies are made of, in one place, so that what each of them does can be measured:
//! `ci/bench constants` halves and doubles every one of them on every trace. What it found stands in
//! docs/benchmarks.md.

/// Numbers of `adaptive`, of the controller that holds vCPUs, and of the estimates. Shares are of the
/// send rate unless something else is said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// At the end of a sweep everything the guest writes is behind it, so what is owed grows by what
    /// was not owed before. Below this share it shrinks by itself.
    pub shrinking: f64,
    /// Below this share a guest that was held firmly is let go: by so much less than where the throttle
    /// sets in that it does not come and go.
    pub calm: f64,
    /// From this share of what the guest writes on the throttle is firm; below 1 by what a measurement
    /// may be off, because just below 1 a gentle one takes for ever.
    pub firm_from: f64,
    /// Share to which a firm throttle holds the guest: it stays alive.
    pub firm_share: f64,
    /// Seconds of the migration that a second of the guest is worth near the end.
    pub guest_worth: f64,
    /// The last stretch begins with a rest of at most so many goals, and is called off at twice that.
    pub last_stretch: f64,
    /// Share to which the guest is held in it.
    pub last_share: f64,
    /// A rest that takes this share of the goal is small enough, whether it shrinks on or not.
    pub small_enough: f64,
    /// Seconds of a handover beyond the last send: pause, harvest, state, record, resume.
    pub handover_s: f64,
    /// Sweeps without a new smallest rest after which the guest is held firmly, whatever the rates say.
    pub stalled_sweeps: f64,
    /// Seconds that these must have taken, because sweeps may be short.
    pub stalled_s: f64,
    /// Sweeps without a new smallest rest after which holding the guest is of no use either.
    pub hopeless_sweeps: f64,
    /// Seconds that these must have taken.
    pub hopeless_s: f64,
    /// The throttle: seconds over which past error is worked off.
    pub horizon_s: f64,
    /// Most correction for past error, as a share of the target.
    pub correction_max: f64,
    /// Weight of the newest window in what the guest asks for.
    pub demand_weight: f64,
    /// Estimates: shorter windows are gathered until they are so many seconds long, because ratios of
    /// small counts mislead.
    pub window_s: f64,
    /// Seconds over which older windows fade to a third.
    pub memory_s: f64,
    /// The same for a send rate that keeps still where little is sent in a window.
    pub memory_steady_s: f64,
    /// The same for the growth of what is owed, which changes as a sweep passes the guest's writes.
    pub memory_fresh_s: f64,
}

impl Tuning {
    /// As they are.
    pub const DEFAULT: Self = Self {
        shrinking: 0.9,
        calm: 0.7,
        firm_from: 0.97,
        firm_share: 0.1,
        guest_worth: 1.5,
        last_stretch: 3.0,
        last_share: 0.3,
        small_enough: 0.1,
        handover_s: 0.008,
        stalled_sweeps: 3.0,
        stalled_s: 1.0,
        hopeless_sweeps: 40.0,
        hopeless_s: 10.0,
        horizon_s: 0.5,
        correction_max: 0.2,
        demand_weight: 0.3,
        window_s: 0.02,
        memory_s: 0.25,
        memory_steady_s: 0.5,
        memory_fresh_s: 0.08,
    };
}

impl Default for Tuning {
    fn default() -> Self {
        Self::DEFAULT
    }
}
