//! `adaptive`: a continuous sweep, hot pages left for the stun, and a throttle only where it pays.
//!
//! A sweep sends a page at most once per turn and only as it is then, so what is written ahead of
//! the sweep costs nothing; pages written since the sweep began are passed over, so hot ones wait
//! for the stun, and warm ones for a later sweep. It stuns when the rest fits the goal and waiting
//! for a smaller one costs more than it is worth.
//!
//! The throttle. Let r be the guest's dirty rate over the send rate, and u the share of the send
//! rate it is held to. What is left, P, takes P / (B(1-u)) to send, during which the guest loses
//! the share 1 - u/r of its time, so it loses (1 - u/r)/(1 - u) * P/B guest-seconds. Below r = 1
//! this falls with u: as gentle as the time allows. Above r = 1 it *rises* with u, so that a firm
//! throttle costs the guest less than a gentle one, and is over sooner; at r = 1 the cost is P/B
//! whatever u is. The throttle is therefore firm wherever the guest writes as fast as we send.
//!
//! Near the end. Let F be the rate at which what is owed grows: what is sent, B, shrinks it by
//! B - F. Waiting for a smaller rest costs x = F / (B - F) seconds of the migration for each second
//! of stun that it saves the guest. Holding the guest instead, by whatever share, saves the same x
//! seconds of the migration for each second that it costs the guest, and costs it less than
//! the stun that it shortens. So one price decides: below it, wait and let the guest run; above it,
//! hold the guest for the last stretch, and stun when the rest fits.

use std::time::Duration;

use super::budget::Budget;
use super::estimate::Estimate;
use super::sdps::Sdps;
use super::stall::Stall;
use super::{
    Action, Event, Fit, GiveUp, Policy, Round, Settings, Stun, Time, Tuning, Window, send_time,
};
use crate::memory::PAGE_BYTES;

const ADVICE: &str = "use a faster link or a longer --downtime";

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Adaptive {
    settings: Settings,
    budget: Budget,
    /// Time of a handover beyond the last send; learned from stuns that overran.
    handover: Duration,
    /// Whether one did.
    overran: bool,
    estimate: Estimate,
    /// What the guest asks for, and how it is held to a share of the send rate.
    sdps: Sdps,
    throttling: Throttling,
    /// Whether it is firm although the rates alone do not ask for it.
    firm_because_stalled: bool,
    stall: Stall,
    /// When the rest was last smaller than ever before.
    shrank: Time,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Throttling {
    Off,
    Gentle,
    Firm,
    /// In the last stretch.
    Last,
}

impl Throttling {
    /// Share of the send rate to which the guest is held, or would be.
    fn share(self, settings: &Settings) -> f64 {
        match self {
            Self::Firm => settings.tuning.firm_share,
            Self::Last => settings.tuning.last_share,
            Self::Gentle | Self::Off => settings.beta.min(settings.tuning.shrinking),
        }
    }
}

impl Adaptive {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            budget: Budget::new(settings),
            handover: Duration::from_secs_f64(settings.tuning.handover_s),
            overran: false,
            estimate: Estimate::new(&settings.tuning),
            sdps: Sdps::new(Throttling::Off.share(&settings), &settings.tuning),
            throttling: Throttling::Off,
            firm_because_stalled: false,
            stall: Stall::new(),
            shrank: Time::ZERO,
        }
    }

    /// The time that the last send may take.
    fn send_budget(&self) -> Duration {
        let least = if self.overran { 8 } else { 2 };
        self.settings.goal.saturating_sub(self.handover).max(self.settings.goal / least)
    }

    /// Seconds of the migration that a second of the guest costs now.
    fn price(&self) -> Option<f64> {
        // Both rates waver from window to window over a slow link. What is owed grows by no more
        // than what is dirtied, which is measured over a longer time.
        let fresh = self.estimate.fresh()?.min(self.estimate.dirty()?);
        let send = self.estimate.steady_send()?;
        Some(if fresh < send { fresh / (send - fresh) } else { f64::INFINITY })
    }

    /// The stun, if the rest fits and waiting for a smaller one is not worth it.
    fn stun(&self, pending: u64) -> Option<Action> {
        let time = send_time(pending, self.estimate.send())?;
        let budget = self.send_budget();
        let ready = time <= budget.mul_f64(self.settings.tuning.small_enough)
            || time <= budget && self.price()? > self.settings.tuning.guest_worth;
        ready.then_some(Action::Stun(Stun { pending_pages: pending, fit: Fit::WithinGoal }))
    }

    /// Learns from a window; the throttle to set, if there is one.
    fn throttle(&mut self, window: Window) -> Option<Action> {
        let window = self.estimate.update(window)?;
        let send = self.estimate.send()?;
        self.sdps.observe(&window);
        (self.throttling != Throttling::Off)
            .then(|| Action::Throttle { held_share: self.sdps.held_share(&window, send) })
    }

    /// Holds the guest in this way, or lets it go.
    fn hold(&mut self, throttling: Throttling) {
        let share = throttling.share(&self.settings);
        self.sdps = match throttling {
            Throttling::Off => self.sdps.released(share),
            _ => self.sdps.at_share(share),
        };
        self.throttling = throttling;
    }

    /// Begins the last stretch, or calls it off; says so.
    fn last_stretch(&mut self, pending: u64) -> Option<Action> {
        let send = self.estimate.send()?;
        let goals = send_time(pending, Some(send))?.div_duration_f64(self.send_budget());
        let why = match self.throttling {
            Throttling::Off | Throttling::Gentle if goals <= self.settings.tuning.last_stretch => {
                if self.price()? < self.settings.tuning.guest_worth {
                    return None;
                }
                self.hold(Throttling::Last);
                "throttle for the last stretch"
            }
            Throttling::Last if goals > 2.0 * self.settings.tuning.last_stretch => {
                self.hold(Throttling::Off);
                "no throttle any more"
            }
            _ => return None,
        };
        let rest = (pending * PAGE_BYTES) as f64 / 1e6;
        Some(Action::Explain(format!("{why}: {rest:.1} MB are left to send")))
    }

    /// After a sweep: whether the guest has to be held from now on, and how firmly; why, if that
    /// changes.
    fn decide(&mut self, round: &Round, now: Time) -> Option<Action> {
        self.stall.observe(round);
        if self.stall.rounds == 0 {
            self.shrank = now;
        }
        let Tuning { calm, shrinking, firm_from, stalled_sweeps, stalled_s, .. } =
            self.settings.tuning;
        let rates = (self.estimate.fresh(), self.estimate.send(), self.sdps.demand());
        let (Some(fresh), Some(send), Some(demand)) = rates else { return None };
        let stalled = self.is_stalled(stalled_sweeps, stalled_s, now);
        let before = self.throttling;
        let rates = |demand: f64| {
            format!("the guest writes {:.0} MB/s, {:.0} MB/s are sent", demand / 1e6, send / 1e6)
        };
        if before == Throttling::Firm {
            if demand >= calm * send || self.firm_because_stalled {
                return None;
            }
            self.hold(Throttling::Off);
            return Some(Action::Explain(format!("no throttle any more: {}", rates(demand))));
        }
        if !stalled && (before == Throttling::Last || fresh < shrinking * send) {
            return None;
        }
        if demand >= firm_from * send || stalled {
            self.hold(Throttling::Firm);
            self.firm_because_stalled = demand < firm_from * send;
        } else if before != Throttling::Gentle {
            self.hold(Throttling::Gentle);
        }
        if self.throttling == before {
            return None;
        }
        let how = if self.throttling == Throttling::Firm { "firmly" } else { "gently" };
        let why = match self.firm_because_stalled && stalled {
            true => format!("{} sweeps left no less to send", self.stall.rounds),
            false => rates(demand),
        };
        Some(Action::Explain(format!("throttle {how}: {why}")))
    }

    /// A throttle that ends is set to nothing once.
    fn released(&self, before: Throttling) -> Option<Action> {
        (before != Throttling::Off && self.throttling == Throttling::Off)
            .then_some(Action::Throttle { held_share: 0.0 })
    }

    /// Whether so many sweeps, and so many seconds, have left no smaller rest than before.
    fn is_stalled(&self, sweeps: f64, seconds: f64, now: Time) -> bool {
        f64::from(self.stall.rounds) >= sweeps && (now - self.shrank).as_secs_f64() >= seconds
    }

    fn give_up(&self, now: Time) -> Option<Action> {
        let Tuning { hopeless_sweeps, hopeless_s, .. } = self.settings.tuning;
        let why = if self.is_stalled(hopeless_sweeps, hopeless_s, now) {
            format!("{} sweeps in a row left no less to send, throttle and all", self.stall.rounds)
        } else {
            self.budget.exhausted(now)?
        };
        Some(Action::GiveUp(GiveUp { why, advice: ADVICE }))
    }
}

impl Policy for Adaptive {
    fn set_goal(&mut self, goal: Duration) {
        self.settings.goal = goal;
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.budget.observe(&event);
        let before = self.throttling;
        let (explained, window, pending, go_on) = match event {
            Event::Start { .. } => return vec![Action::BeginSweep],
            Event::Overran { took, .. } => {
                // What it took too long is what a handover costs more than was thought.
                self.overran = true;
                self.handover += took.saturating_sub(self.settings.goal) + self.settings.goal / 4;
                let end = self.give_up(now);
                let why = format!(
                    "the last send may take {:.0} ms now: a stun took {:.0} ms",
                    self.send_budget().as_secs_f64() * 1e3,
                    took.as_secs_f64() * 1e3
                );
                return vec![Action::Explain(why), end.unwrap_or(Action::BeginSweep)];
            }
            Event::Tick(window) => {
                (self.last_stretch(window.pending), window, window.pending, None)
            }
            Event::RoundDone(window, round) => {
                (self.decide(&round, now), window, round.owed, Some(Action::BeginSweep))
            }
        };
        let throttle = self.throttle(window).or_else(|| self.released(before));
        let end = self.stun(pending).or_else(|| self.give_up(now)).or(go_on);
        explained.into_iter().chain(throttle).chain(end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages in a window of 10 ms at 1 Gbit/s.
    const SENT: u64 = 305;

    /// A guest whose rest fits the goal and does not shrink is stunned at once, also where two
    /// seconds before zero pages went by, which cost the link nothing.
    #[test]
    fn zero_pages_do_not_make_the_link_look_faster_for_long() {
        let mut policy =
            Adaptive::new(Settings { goal: Duration::from_millis(100), ..Settings::default() });
        policy.step(Event::Start { pages: 1 << 20 }, Time::ZERO);
        let mut now = Time::ZERO;
        let mut stuns = |windows: u64, window: Window| {
            let mut actions = (0..windows).flat_map(|_| {
                now += window.elapsed;
                policy.step(Event::Tick(window), now)
            });
            actions.any(|action| matches!(action, Action::Stun(_)))
        };
        let elapsed = Duration::from_millis(10);
        let fresh = SENT * 9 / 10;
        let all = Window { elapsed, dirtied: fresh, fresh, sent: SENT, pending: 100_000 };
        assert!(!stuns(100, Window { sent: 10 * SENT, ..all }), "zero pages");
        assert!(!stuns(200, all), "pages");
        assert!(stuns(30, Window { pending: 8 * SENT, ..all }), "a rest that fits");
    }
}
