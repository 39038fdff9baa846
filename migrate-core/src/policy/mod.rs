//! What to send next, how hard to throttle, when to stun, when to give up.
//!
//! A policy is a pure state machine: `step(event, now) -> actions`. It reads no clock, no socket
//! and no memory. Rounds, sweeps and windows are counted by [`crate::driver`], which tells it what
//! happened, in an engine as in a model.

mod adaptive;
mod auto_converge;
mod budget;
mod estimate;
pub(crate) mod heat;
mod precopy;
mod sdps;
mod stall;
mod stop_and_copy;
mod tuning;
mod vmotion;
pub(crate) mod writers;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use tuning::Tuning;

use crate::memory::PAGE_BYTES;

/// Time since the first page, as the driver counts it.
pub type Time = Duration;

/// What a policy may be told to keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Switchover goal: the last send may take this long.
    pub goal: Duration,
    /// SDPS: the share of the send rate to which the dirty rate is held, above 0 and below 1.
    pub beta: f64,
    /// Most rounds for policies that bound them.
    pub rounds_max: u32,
    /// Most time before giving up.
    pub time_max: Duration,
    /// Most pages sent before giving up; repeats and pages found unchanged count.
    pub pages_max: u64,
    /// The numbers that policies are made of.
    pub tuning: Tuning,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            goal: Duration::from_millis(300),
            beta: 0.9,
            rounds_max: 30,
            time_max: Duration::from_secs(3600),
            pages_max: u64::MAX,
            tuning: Tuning::DEFAULT,
        }
    }
}

/// What happened since the event before; all counts in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Window {
    /// How long it lasted.
    pub elapsed: Duration,
    /// Pages sent in it.
    pub sent: u64,
    /// Pages the guest wrote in it (distinct within the window).
    pub dirtied: u64,
    /// Of these, pages that were not owed before: by so much what is owed grew.
    pub fresh: u64,
    /// Pages still owed at its end.
    pub pending: u64,
}

/// A round that ended: every page it owed was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Round {
    /// Pages sent.
    pub sent: u64,
    /// Distinct pages written meanwhile: what is owed now.
    pub owed: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a policy is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// Everything is set up; all of this many pages are owed.
    Start {
        /// Pages of memory.
        pages: u64,
    },
    /// Some time passed inside a round.
    Tick(Window),
    /// A round ended; the window since the last event, and the round as a whole.
    RoundDone(Window, Round),
    /// A stun took longer than it may: the guest runs on at the source.
    Overran {
        /// How long the guest stood still.
        took: Duration,
        /// Pages owed now.
        pending: u64,
    },
}

/// What a policy wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send every page owed now, once; events go on.
    BeginRound,
    /// Go through memory once and send what is owed when its turn comes, except pages written
    /// since the sweep began: those are left for later. Ends as a round does; may be stunned inside.
    BeginSweep,
    /// Hold the vCPUs for this share of time.
    Throttle {
        /// 0 is free, below 1.
        held_share: f64,
    },
    /// Pause the guest, send the rest, hand over.
    Stun(Stun),
    /// Abandon the attempt; the guest goes on at the source.
    GiveUp(GiveUp),
    /// What the policy changed and why, for whoever watches; nothing is to be done.
    Explain(String),
}

/// A decision to stun, and what was expected of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Stun {
    /// Pages owed at the decision.
    pub pending_pages: u64,
    /// Whether the rest fits the goal, and if not, why it is done all the same.
    pub fit: Fit,
}

/// How a stun relates to the switchover goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// The rest can be sent within the goal at the measured rate.
    WithinGoal,
    /// It cannot: the policy never waits for that.
    StopAndCopy,
}

/// Why a policy gave up.
#[derive(Clone, Debug, PartialEq)]
pub struct GiveUp {
    /// What was seen.
    pub why: String,
    /// What to try instead.
    pub advice: &'static str,
}

impl std::fmt::Display for GiveUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gave up: {}; {}", self.why, self.advice)
    }
}

/// Decides how a migration goes.
pub trait Policy: Send {
    /// From now on a stun may take so long.
    fn set_goal(&mut self, goal: Duration);

    /// What to do now that `event` happened. After a stun or giving up there are no more events.
    fn step(&mut self, event: Event, now: Time) -> Vec<Action>;
}

/// The policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// Stun first.
    StopAndCopy,
    /// Classic rounds, bounded count, no throttle.
    Precopy,
    /// Continuous sweep, hot pages left for the stun, a throttle only where it pays.
    Adaptive,
    /// Rounds, and SDPS once they stop shrinking.
    Vmotion,
    /// QEMU's throttle rule with its defaults.
    AutoConverge,
}

impl PolicyKind {
    /// All policies, with a line each.
    pub const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::Adaptive, "adaptive", "continuous sweep, hot pages last, a throttle where it pays"),
        (Self::Vmotion, "vmotion", "rounds; SDPS holds the dirty rate at beta times the send rate"),
        (Self::Precopy, "precopy", "classic rounds, bounded, no throttle"),
        (Self::AutoConverge, "auto-converge", "QEMU's throttle rule with its defaults"),
        (Self::StopAndCopy, "stop-and-copy", "stun first"),
    ];

    /// A fresh policy of this kind.
    pub fn build(self, settings: Settings) -> Chosen {
        Chosen(match self {
            Self::StopAndCopy => Any::StopAndCopy(stop_and_copy::StopAndCopy::new(settings)),
            Self::Precopy => Any::Precopy(precopy::Precopy::new(settings)),
            Self::Adaptive => Any::Adaptive(adaptive::Adaptive::new(settings)),
            Self::Vmotion => Any::Vmotion(vmotion::Vmotion::new(settings)),
            Self::AutoConverge => Any::AutoConverge(auto_converge::AutoConverge::new(settings)),
        })
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::StopAndCopy => "stop-and-copy",
            Self::Precopy => "precopy",
            Self::Adaptive => "adaptive",
            Self::Vmotion => "vmotion",
            Self::AutoConverge => "auto-converge",
        }
    }
}

/// A policy of any kind, as a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen(Any);

#[derive(Clone, Debug, PartialEq)]
enum Any {
    StopAndCopy(stop_and_copy::StopAndCopy),
    Precopy(precopy::Precopy),
    Adaptive(adaptive::Adaptive),
    Vmotion(vmotion::Vmotion),
    AutoConverge(auto_converge::AutoConverge),
}

impl Chosen {
    fn policy(&mut self) -> &mut dyn Policy {
        match &mut self.0 {
            Any::StopAndCopy(policy) => policy,
            Any::Precopy(policy) => policy,
            Any::Adaptive(policy) => policy,
            Any::Vmotion(policy) => policy,
            Any::AutoConverge(policy) => policy,
        }
    }
}

impl Policy for Chosen {
    fn set_goal(&mut self, goal: Duration) {
        self.policy().set_goal(goal);
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.policy().step(event, now)
    }
}

impl std::str::FromStr for PolicyKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, name, _)| *name == text).map(|(kind, ..)| *kind).ok_or_else(
            || {
                let names = Self::ALL.map(|(_, name, _)| name).join(", ");
                format!("no policy is called '{text}'; there are: {names}")
            },
        )
    }
}

/// Time to send `pages` at `bytes_per_s`; `None` while no rate is known.
pub(crate) fn send_time(pages: u64, bytes_per_s: Option<f64>) -> Option<Duration> {
    if pages == 0 {
        return Some(Duration::ZERO);
    }
    let seconds = (pages * PAGE_BYTES) as f64 / bytes_per_s?;
    Duration::try_from_secs_f64(seconds).ok()
}
