//! Whether rounds still get anywhere, and whether the rest is small enough to stun.

use super::estimate::Estimate;
use super::{Action, Fit, Round, Settings, Stun, send_time};

/// Counts rounds that left no less to send than the best one before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stall {
    smallest: u64,
    pub(super) rounds: u32,
}

impl Stall {
    pub(super) fn new() -> Self {
        Self { smallest: u64::MAX, rounds: 0 }
    }

    pub(super) fn observe(&mut self, round: &Round) {
        if round.owed < self.smallest {
            (self.smallest, self.rounds) = (round.owed, 0);
        } else {
            self.rounds += 1;
        }
    }
}

/// The stun, if what the round left can be sent within the switchover goal.
pub(super) fn stun_if_it_fits(
    round: &Round,
    estimate: &Estimate,
    settings: &Settings,
) -> Option<Action> {
    let fits = send_time(round.owed, estimate.send())? <= settings.goal;
    fits.then_some(Action::Stun(Stun { pending_pages: round.owed, fit: Fit::WithinGoal }))
}
