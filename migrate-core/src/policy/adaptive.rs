//! `adaptive`: a continuous sweep, hot pages left for the stun, and a throttle only where it pays.
//!
//! A sweep sends a page at most once per turn and only as it is then, so what is written ahead of
//! the sweep costs nothing; pages written since the sweep began are passed over, so hot ones wait
//! for the stun, and warm ones for a later sweep. It stuns when the rest fits the goal and has stopped shrinking.
//!
//! The throttle. Let r be the guest's dirty rate over the send rate, and u the share of the send
//! rate it is held to. What is left, P, takes P / (B(1-u)) to send, during which the guest loses
//! the share 1 - u/r of its time, so it loses (1 - u/r)/(1 - u) * P/B guest-seconds. Below r = 1
//! this falls with u: as gentle as the time allows. Above r = 1 it *rises* with u, so that a firm
//! throttle costs the guest less than a gentle one, and is over sooner; at r = 1 the cost is P/B
//! whatever u is. The throttle is therefore firm wherever the guest writes as fast as we send.

use std::time::Duration;

use super::budget::Budget;
use super::estimate::Estimate;
use super::sdps::Sdps;
use super::stall::Stall;
use super::{Action, Event, Fit, GiveUp, Policy, Round, Settings, Stun, Time, Window, send_time};

/// At the end of a sweep everything the guest writes is behind it, so what is owed grows by what
/// was not owed before. Below this share of the send rate it shrinks by itself.
const SHRINKING: f64 = 0.9;
/// Below this share of the send rate a guest that was held firmly is let go: by so much less than
/// where the throttle sets in that it does not come and go.
const CALM: f64 = 0.7;
/// From this share of what the guest writes on the throttle is firm; below 1 by what a measurement
/// may be off, because just below 1 a gentle one takes for ever.
const FIRM_FROM: f64 = 0.97;
/// Share of the send rate to which a firm throttle holds the guest: it stays alive.
const FIRM_SHARE: f64 = 0.1;
/// A rest that takes this share of the goal is small enough, whether it shrinks on or not.
const SMALL_ENOUGH: f64 = 0.1;
/// While the rest fits: where it shrinks to this share of itself in the time that a stun may take,
/// waiting on costs no more time than it saves the guest.
const WORTH_WAITING: f64 = 0.5;
/// Windows without a smaller rest after which it has stopped shrinking; and the least time for
/// that, as a share of what a stun may take, because on a slow link little happens in a window.
const LEVEL_WINDOWS: u32 = 3;
const LEVEL_SHARE: f64 = 0.5;
/// Time of a handover beyond the last send: pause, harvest, state, record, resume.
const HANDOVER: Duration = Duration::from_millis(5);
/// Sweeps without a new smallest rest after which the guest is held firmly, whatever the rates
/// say, and after which that is of no use either; and the least time for both, because sweeps may
/// be short.
const STALLED_SWEEPS: [u32; 2] = [3, 40];
const STALLED_TIME: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
const ADVICE: &str = "use a faster link or a longer --downtime";

#[derive(Debug)]
pub(super) struct Adaptive {
    settings: Settings,
    budget: Budget,
    /// Time of a handover beyond the last send; learned from stuns that overran.
    handover: Duration,
    estimate: Estimate,
    /// What the guest asks for, and the throttle in force.
    gentle: Sdps,
    firm: Sdps,
    throttling: Throttling,
    /// Whether it is firm although the rates alone do not ask for it.
    firm_because_stalled: bool,
    stall: Stall,
    /// When the rest was last smaller than ever before.
    shrank: Time,
    /// While the rest fits the goal.
    fitting: Option<Fitting>,
}

#[derive(Clone, Copy, Debug)]
struct Fitting {
    /// The smallest rest, when it was seen, and the windows since.
    least: u64,
    least_at: Time,
    windows: u32,
    /// The rest, and when, at which it was last asked whether waiting is worth while.
    first: u64,
    since: Time,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Throttling {
    Off,
    Gentle,
    Firm,
}

impl Adaptive {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            budget: Budget::new(settings),
            handover: HANDOVER,
            estimate: Estimate::default(),
            gentle: Sdps::new(settings.beta.min(SHRINKING)),
            firm: Sdps::new(FIRM_SHARE),
            throttling: Throttling::Off,
            firm_because_stalled: false,
            stall: Stall::new(),
            shrank: Time::ZERO,
            fitting: None,
        }
    }

    /// The time that the last send may take.
    fn send_budget(&self) -> Duration {
        let least = if self.handover == HANDOVER { 2 } else { 8 };
        self.settings.goal.saturating_sub(self.handover).max(self.settings.goal / least)
    }

    /// The stun, if the rest fits and is as small as it gets in reasonable time.
    fn stun(&mut self, pending: u64, now: Time) -> Option<Action> {
        let time = send_time(pending, self.estimate.send())?;
        let budget = self.send_budget();
        if time > budget {
            self.fitting = None;
            return None;
        }
        let fresh =
            Fitting { least: u64::MAX, least_at: now, windows: 0, since: now, first: pending };
        let fitting = self.fitting.get_or_insert(fresh);
        match pending < fitting.least {
            true => (fitting.least, fitting.least_at, fitting.windows) = (pending, now, 0),
            false => fitting.windows += 1,
        }
        let level = fitting.windows >= LEVEL_WINDOWS
            && now - fitting.least_at >= budget.mul_f64(LEVEL_SHARE);
        let mut ready = time <= budget.mul_f64(SMALL_ENOUGH) || level;
        if now - fitting.since >= budget {
            // What shrinks slowly is not worth waiting for.
            ready |= pending as f64 > WORTH_WAITING * fitting.first as f64;
            (fitting.first, fitting.since) = (pending, now);
        }
        ready.then_some(Action::Stun(Stun { pending_pages: pending, fit: Fit::WithinGoal }))
    }

    /// Learns from a window; the throttle to set, if there is one.
    fn throttle(&mut self, window: Window) -> Option<Action> {
        let window = self.estimate.update(window)?;
        let send = self.estimate.send()?;
        let controller = match self.throttling {
            Throttling::Firm => &mut self.firm,
            _ => &mut self.gentle,
        };
        controller.observe(&window);
        (self.throttling != Throttling::Off)
            .then(|| Action::Throttle { held_share: controller.held_share(&window, send) })
    }

    /// After a sweep: whether the guest has to be held from now on, and how firmly; why, if that
    /// changes.
    fn decide(&mut self, round: &Round, now: Time) -> Option<Action> {
        self.stall.observe(round);
        if self.stall.rounds == 0 {
            self.shrank = now;
        }
        let rates = (self.estimate.fresh(), self.estimate.send(), self.gentle.demand());
        let (Some(fresh), Some(send), Some(demand)) = rates else { return None };
        let stalled = self.is_stalled(0, now);
        let before = self.throttling;
        let rates = |demand: f64| {
            format!("the guest writes {:.0} MB/s, {:.0} MB/s are sent", demand / 1e6, send / 1e6)
        };
        if before == Throttling::Firm {
            let demand = self.firm.demand().unwrap_or(demand);
            if demand >= CALM * send || self.firm_because_stalled {
                return None;
            }
            self.throttling = Throttling::Off;
            self.gentle = self.firm.released(self.settings.beta.min(SHRINKING));
            return Some(Action::Explain(format!("no throttle any more: {}", rates(demand))));
        }
        if fresh < SHRINKING * send && !stalled {
            return None;
        }
        if demand >= FIRM_FROM * send || stalled {
            self.firm = self.gentle.at_share(FIRM_SHARE);
            self.throttling = Throttling::Firm;
            self.firm_because_stalled = demand < FIRM_FROM * send;
        } else {
            self.throttling = Throttling::Gentle;
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

    fn is_stalled(&self, patience: usize, now: Time) -> bool {
        self.stall.rounds >= STALLED_SWEEPS[patience] && now - self.shrank >= STALLED_TIME[patience]
    }

    fn give_up(&self, now: Time) -> Option<Action> {
        let why = if self.is_stalled(1, now) {
            format!("{} sweeps in a row left no less to send, throttle and all", self.stall.rounds)
        } else {
            self.budget.exhausted(now)?
        };
        Some(Action::GiveUp(GiveUp { why, advice: ADVICE }))
    }
}

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.budget.observe(&event);
        match event {
            Event::Start { .. } => vec![Action::BeginSweep],
            Event::Overran { took, .. } => {
                // What it took too long is what a handover costs more than was thought.
                self.handover += took.saturating_sub(self.settings.goal) + self.settings.goal / 4;
                self.fitting = None;
                let end = self.give_up(now);
                let why = format!(
                    "the last send may take {:.0} ms now: a stun took {:.0} ms",
                    self.send_budget().as_secs_f64() * 1e3,
                    took.as_secs_f64() * 1e3
                );
                vec![Action::Explain(why), end.unwrap_or(Action::BeginSweep)]
            }
            Event::Tick(window) => {
                let throttle = self.throttle(window);
                let end = self.stun(window.pending, now).or_else(|| self.give_up(now));
                throttle.into_iter().chain(end).collect()
            }
            Event::RoundDone(window, round) => {
                let before = self.throttling;
                let explained = self.decide(&round, now);
                let throttle = self.throttle(window);
                // A throttle that ends is set to nothing once.
                let released = (before != Throttling::Off && self.throttling == Throttling::Off)
                    .then_some(Action::Throttle { held_share: 0.0 });
                let end = self.stun(round.owed, now).or_else(|| self.give_up(now));
                let actions = explained.into_iter().chain(throttle).chain(released);
                actions.chain([end.unwrap_or(Action::BeginSweep)]).collect()
            }
        }
    }
}
