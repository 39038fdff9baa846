//! `auto-converge`: the rule QEMU uses, with its defaults, as a rival on the same traces.
//!
//! At each synchronisation (a round's end, at least a second after the one before) more than 50 %
//! as many bytes dirtied as sent count as high; the second high one throttles, by 20 % at first
//! and 10 % more each further time, to 99 % at most. The throttle never eases. Stuns when the rest
//! fits the switchover goal. Source: QEMU 7.2, migration/ram.c, `migration_trigger_throttle` and
//! `mig_throttle_guest_down`; parameters throttle-trigger-threshold, cpu-throttle-initial,
//! cpu-throttle-increment, max-cpu-throttle. QEMU holds vCPUs in slices of 10 ms; how finely a
//! share is held is the guest's business here.

use std::time::Duration;

use super::budget::Budget;
use super::estimate::Estimate;
use super::stall::stun_if_it_fits;
use super::{Action, Event, GiveUp, Policy, Settings, Time};

const PERIOD_MIN: Duration = Duration::from_millis(1000);
const TRIGGER_SHARE: f64 = 0.5;
const HIGH_PERIODS: u32 = 2;
const INITIAL_PERCENT: u32 = 20;
const INCREMENT_PERCENT: u32 = 10;
const MAX_PERCENT: u32 = 99;
const ADVICE: &str = "use --policy adaptive, a faster link, or a longer --downtime";

#[derive(Clone, Debug, PartialEq)]
pub(super) struct AutoConverge {
    settings: Settings,
    budget: Budget,
    estimate: Estimate,
    period_start: Time,
    sent: u64,
    dirtied: u64,
    high: u32,
    percent: u32,
}

impl AutoConverge {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            budget: Budget::new(settings),
            estimate: Estimate::new(&settings.tuning),
            period_start: Time::ZERO,
            sent: 0,
            dirtied: 0,
            high: 0,
            percent: 0,
        }
    }

    /// The end of a period: whether to throttle more.
    fn synchronise(&mut self, now: Time) -> Vec<Action> {
        if now < self.period_start + PERIOD_MIN {
            return vec![];
        }
        let high = self.dirtied as f64 > self.sent as f64 * TRIGGER_SHARE;
        (self.period_start, self.sent, self.dirtied) = (now, 0, 0);
        if !high {
            return vec![];
        }
        self.high += 1;
        if self.high < HIGH_PERIODS {
            return vec![];
        }
        self.high = 0;
        self.percent = match self.percent {
            0 => INITIAL_PERCENT,
            percent => (percent + INCREMENT_PERCENT).min(MAX_PERCENT),
        };
        let percent = self.percent;
        let why = "more than half as much was dirtied as was sent, twice more";
        vec![
            Action::Explain(format!("throttle {percent} %: {why}")),
            Action::Throttle { held_share: f64::from(percent) / 100.0 },
        ]
    }

    fn spent(&self, now: Time) -> Option<Action> {
        let why = self.budget.exhausted(now)?;
        let why = format!("{why}, throttled to {} %", self.percent);
        Some(Action::GiveUp(GiveUp { why, advice: ADVICE }))
    }
}

impl Policy for AutoConverge {
    fn set_goal(&mut self, goal: Duration) {
        self.settings.goal = goal;
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.budget.observe(&event);
        match event {
            Event::Start { .. } => vec![Action::BeginRound],
            Event::Overran { .. } => vec![self.spent(now).unwrap_or(Action::BeginRound)],
            Event::Tick(window) => {
                self.estimate.update(window);
                self.spent(now).into_iter().collect()
            }
            Event::RoundDone(window, round) => {
                self.estimate.update(window);
                self.sent += round.sent;
                self.dirtied += round.owed;
                let throttle = self.synchronise(now);
                if let Some(stun) = stun_if_it_fits(&round, &self.estimate, &self.settings) {
                    return vec![stun];
                }
                let next = self.spent(now).unwrap_or(Action::BeginRound);
                throttle.into_iter().chain([next]).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Round, Window};

    /// Rounds of two seconds that leave as much as they sent.
    #[test]
    fn every_second_high_period_throttles_and_99_percent_is_the_end() {
        let mut policy = AutoConverge::new(Settings::default());
        policy.step(Event::Start { pages: 100_000 }, Time::ZERO);
        let mut shares = Vec::new();
        for i in 1..=24 {
            let elapsed = Duration::from_secs(2);
            let window = Window { elapsed, sent: 100_000, dirtied: 100_000, fresh: 0, pending: 0 };
            let round = Round { sent: 100_000, owed: 100_000, elapsed };
            let actions = policy.step(Event::RoundDone(window, round), elapsed * i);
            shares.extend(actions.iter().filter_map(|a| match a {
                Action::Throttle { held_share } => Some((held_share * 100.0).round() as u32),
                _ => None,
            }));
            assert_eq!(actions.last(), Some(&Action::BeginRound));
        }
        assert_eq!(shares, [20, 30, 40, 50, 60, 70, 80, 90, 99, 99, 99, 99]);
    }

    #[test]
    fn a_period_that_is_not_high_throttles_nothing() {
        let mut policy = AutoConverge::new(Settings::default());
        let elapsed = Duration::from_secs(2);
        for i in 1..10 {
            let window =
                Window { elapsed, sent: 1_000_000, dirtied: 400_000, fresh: 0, pending: 0 };
            let round = Round { sent: 1_000_000, owed: 400_000, elapsed };
            let actions = policy.step(Event::RoundDone(window, round), elapsed * i);
            assert_eq!(actions, [Action::BeginRound]);
        }
    }
}
