//! `stop-and-copy`: stun first. The downtime is the whole migration.

use std::time::Duration;

use super::budget::Budget;
use super::{Action, Event, Fit, GiveUp, Policy, Settings, Stun, Time};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct StopAndCopy {
    budget: Budget,
}

impl StopAndCopy {
    pub(super) fn new(settings: Settings) -> Self {
        Self { budget: Budget::new(settings) }
    }
}

impl Policy for StopAndCopy {
    fn set_goal(&mut self, goal: Duration) {
        // It stuns first, whatever that takes.
        let _ = goal;
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.budget.observe(&event);
        match event {
            Event::Start { pages } | Event::Overran { pending: pages, .. } => {
                let end = match self.budget.exhausted(now) {
                    Some(why) => Action::GiveUp(GiveUp { why, advice: "use --policy adaptive" }),
                    None => Action::Stun(Stun { pending_pages: pages, fit: Fit::StopAndCopy }),
                };
                vec![end]
            }
            Event::Tick(_) | Event::RoundDone(..) => vec![],
        }
    }
}
