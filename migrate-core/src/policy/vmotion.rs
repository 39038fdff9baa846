//! `vmotion`: rounds, and SDPS once they stop shrinking.
//!
//! A round shrinks well enough when it left less than `beta` of what it sent; the first that does
//! not switches SDPS on, for good. From then on every window sets the throttle anew, so a guest
//! that calms down by itself is left alone. Stuns when the rest fits the switchover goal.

use super::estimate::Estimate;
use super::sdps::Sdps;
use super::{Action, Event, Fit, GiveUp, Policy, Settings, Stun, Time, Window, send_time};

/// Rounds without a new smallest rest after which even the throttle is of no use.
const STALLED_ROUNDS: u32 = 20;
const ADVICE: &str = "use a faster link, a lower --beta, or a longer --downtime";

#[derive(Debug)]
pub(super) struct Vmotion {
    settings: Settings,
    estimate: Estimate,
    sdps: Sdps,
    throttling: Throttling,
    smallest: u64,
    stalled: u32,
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
            estimate: Estimate::default(),
            sdps: Sdps::new(settings.beta),
            throttling: Throttling::Off,
            smallest: u64::MAX,
            stalled: 0,
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
        if self.stalled >= STALLED_ROUNDS {
            let limit = if self.sdps.at_limit() { ", with the throttle at its limit" } else { "" };
            Some(format!("{STALLED_ROUNDS} rounds in a row left no less to send{limit}"))
        } else if now >= self.settings.time_max {
            Some(format!("{:.0} s were not enough", now.as_secs_f64()))
        } else {
            None
        }
    }
}

impl Policy for Vmotion {
    fn name(&self) -> &'static str {
        "vmotion"
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        match event {
            Event::Start { .. } => vec![Action::BeginRound],
            Event::Tick(window) => {
                let mut actions: Vec<_> = self.throttle(window).into_iter().collect();
                // Rounds of a large VM are long; the time limit must not wait for their end.
                if now >= self.settings.time_max
                    && let Some(why) = self.why_stop(now)
                {
                    actions.push(Action::GiveUp(GiveUp { why, advice: ADVICE }));
                }
                actions
            }
            Event::RoundDone(window, round) => {
                if round.owed as f64 > self.settings.beta * round.sent as f64 {
                    self.throttling = Throttling::On;
                }
                let throttle = self.throttle(window);
                if send_time(round.owed, self.estimate.send())
                    .is_some_and(|t| t <= self.settings.goal)
                {
                    let fit = Fit::WithinGoal;
                    return vec![Action::Stun(Stun { pending_pages: round.owed, fit })];
                }
                if round.owed < self.smallest {
                    (self.smallest, self.stalled) = (round.owed, 0);
                } else {
                    self.stalled += 1;
                }
                let next = match self.why_stop(now) {
                    Some(why) => Action::GiveUp(GiveUp { why, advice: ADVICE }),
                    None => Action::BeginRound,
                };
                throttle.into_iter().chain([next]).collect()
            }
        }
    }
}
