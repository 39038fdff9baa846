//! `precopy`: classic rounds, no throttle. Stuns when the rest fits the goal; gives up when
//! rounds stop shrinking or run out.

use std::time::Duration;

use super::budget::Budget;
use super::estimate::Estimate;
use super::stall::{Stall, stun_if_it_fits};
use super::{Action, Event, GiveUp, Policy, Settings, Time};

/// Rounds without a new smallest rest after which going on is of no use.
const STALLED_ROUNDS: u32 = 4;
const ADVICE: &str = "use --policy adaptive, a faster link, or a longer --downtime";

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Precopy {
    settings: Settings,
    budget: Budget,
    estimate: Estimate,
    rounds: u32,
    stall: Stall,
}

impl Precopy {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            budget: Budget::new(settings),
            estimate: Estimate::new(&settings.tuning),
            rounds: 0,
            stall: Stall::new(),
        }
    }

    fn why_stop(&self, now: Time) -> Option<String> {
        if self.stall.rounds >= STALLED_ROUNDS {
            let mbs = |rate: Option<f64>| rate.unwrap_or(0.0) / 1e6;
            Some(format!(
                "{STALLED_ROUNDS} rounds in a row left no less to send; the guest dirties {:.0} MB/s and {:.0} MB/s are sent",
                mbs(self.estimate.dirty()),
                mbs(self.estimate.send())
            ))
        } else if self.rounds >= self.settings.rounds_max {
            Some(format!("{} rounds were not enough", self.rounds))
        } else {
            self.budget.exhausted(now)
        }
    }
}

impl Policy for Precopy {
    fn set_goal(&mut self, goal: Duration) {
        self.settings.goal = goal;
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.budget.observe(&event);
        match event {
            Event::Start { .. } => vec![Action::BeginRound],
            Event::Tick(window) => {
                self.estimate.update(window);
                let exhausted = self.budget.exhausted(now);
                exhausted
                    .map(|why| Action::GiveUp(GiveUp { why, advice: ADVICE }))
                    .into_iter()
                    .collect()
            }
            Event::Overran { .. } => match self.budget.exhausted(now) {
                Some(why) => vec![Action::GiveUp(GiveUp { why, advice: ADVICE })],
                None => vec![Action::BeginRound],
            },
            Event::RoundDone(window, round) => {
                self.estimate.update(window);
                self.rounds += 1;
                if let Some(stun) = stun_if_it_fits(&round, &self.estimate, &self.settings) {
                    return vec![stun];
                }
                self.stall.observe(&round);
                match self.why_stop(now) {
                    Some(why) => vec![Action::GiveUp(GiveUp { why, advice: ADVICE })],
                    None => vec![Action::BeginRound],
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Round, Stun, Window};
    use std::time::Duration;

    /// A small guest on a fast link is done before any window is long enough to be smoothed.
    #[test]
    fn a_first_round_of_a_millisecond_is_enough_to_stun() {
        let mut policy = Precopy::new(Settings::default());
        policy.step(Event::Start { pages: 100 }, Duration::ZERO);
        let elapsed = Duration::from_millis(1);
        let window = Window { elapsed, sent: 100, dirtied: 3, fresh: 0, pending: 0 };
        let event = Event::RoundDone(window, Round { sent: 100, owed: 3, elapsed });
        let actions = policy.step(event, elapsed);
        assert!(matches!(actions[..], [Action::Stun(Stun { pending_pages: 3, .. })]));
    }
}
