//! `vmotion`: rounds, and SDPS once they stop shrinking.
//!
//! A round shrinks well enough when it left less than `beta` of what it sent; the first that does
//! not switches SDPS on, for good. From then on every window sets the throttle anew, so a guest
//! that calms down by itself is left alone. Stuns when the rest fits the switchover goal.

use std::time::Duration;

use super::budget::Budget;
use super::estimate::Estimate;
use super::sdps::Sdps;
use super::stall::{Stall, stun_if_it_fits};
use super::{Action, Event, GiveUp, Policy, Settings, Time, Window};

/// Rounds without a new smallest rest after which even the throttle is of no use.
const STALLED_ROUNDS: u32 = 20;
const ADVICE: &str = "use a faster link, a lower --beta, or a longer --downtime";

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Vmotion {
    settings: Settings,
    budget: Budget,
    estimate: Estimate,
    sdps: Sdps,
    throttling: Throttling,
    stall: Stall,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Throttling {
    Off,
    On,
}

impl Vmotion {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            budget: Budget::new(settings),
            estimate: Estimate::new(&settings.tuning),
            sdps: Sdps::new(settings.beta, &settings.tuning),
            throttling: Throttling::Off,
            stall: Stall::new(),
        }
    }

    fn throttle(&mut self, window: Window) -> Option<Action> {
        let window = self.estimate.update(window)?;
        self.sdps.observe(&window);
        let send = self.estimate.send()?;
        match self.throttling {
            Throttling::Off => None,
            Throttling::On => {
                Some(Action::Throttle { held_share: self.sdps.held_share(&window, send) })
            }
        }
    }

    fn why_stop(&self, now: Time) -> Option<String> {
        if self.stall.rounds >= STALLED_ROUNDS {
            let limit = if self.sdps.at_limit() { ", with the throttle at its limit" } else { "" };
            Some(format!("{STALLED_ROUNDS} rounds in a row left no less to send{limit}"))
        } else {
            self.budget.exhausted(now)
        }
    }
}

impl Policy for Vmotion {
    fn set_goal(&mut self, goal: Duration) {
        self.settings.goal = goal;
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.budget.observe(&event);
        // Rounds of a large VM are long; budgets must not wait for their end.
        let spent = |this: &Self| {
            this.budget.exhausted(now).map(|why| Action::GiveUp(GiveUp { why, advice: ADVICE }))
        };
        match event {
            Event::Start { .. } => vec![Action::BeginRound],
            Event::Overran { .. } => vec![spent(self).unwrap_or(Action::BeginRound)],
            Event::Tick(window) => self.throttle(window).into_iter().chain(spent(self)).collect(),
            Event::RoundDone(window, round) => {
                let mut explained = None;
                if round.owed as f64 > self.settings.beta * round.sent as f64
                    && self.throttling == Throttling::Off
                {
                    self.throttling = Throttling::On;
                    explained = Some(Action::Explain(format!(
                        "throttle: a round left {:.0} % of what it sent, {:.0} % is allowed",
                        100.0 * round.owed as f64 / round.sent as f64,
                        100.0 * self.settings.beta
                    )));
                }
                let throttle = explained.into_iter().chain(self.throttle(window));
                let throttle: Vec<_> = throttle.collect();
                if let Some(stun) = stun_if_it_fits(&round, &self.estimate, &self.settings) {
                    return vec![stun];
                }
                self.stall.observe(&round);
                let next = match self.why_stop(now) {
                    Some(why) => Action::GiveUp(GiveUp { why, advice: ADVICE }),
                    None => Action::BeginRound,
                };
                throttle.into_iter().chain([next]).collect()
            }
        }
    }
}
