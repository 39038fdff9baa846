//! Copying while the guest runs: rounds of what is owed, or sweeps over it, until the policy stuns.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Progress;
use super::shell::{Attempt, Control, Links, ms};
use crate::Error;
use crate::guest::GuestError;
use crate::memory::{Bitmap, PAGE_BYTES, all};
use crate::policy::writers::Writers;
use crate::policy::{
    Action, Event, HARVEST_INTERVAL_MAX, HARVEST_INTERVAL_MIN, Round, Stun, Window,
    harvest_interval, leaves_hot_pages,
};
use crate::report::{Decision, RoundReport};
use crate::wire::sender::Counters;
use crate::wire::shards::{Job, Sweep};

/// Harvests may take at most this share of the time.
const HARVEST_SHARE_MAX: f64 = 0.05;
/// However long they take, the guest is not left unwatched for longer.
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How long the last two harvests took.
#[derive(Default)]
pub(super) struct HarvestCost([Duration; 2]);

impl HarvestCost {
    fn took(&mut self, time: Duration) {
        self.0 = [self.0[1], time];
    }

    /// The least time to the next harvest: by the lesser of the two, because one that was held up
    /// by something else would leave the guest unwatched for seconds.
    fn interval_min(&self) -> Duration {
        self.0[0].min(self.0[1]).div_f64(HARVEST_SHARE_MAX).min(INTERVAL_MAX)
    }
}

/// How a sweep ended.
enum SweepEnd {
    Done(Event),
    Stun(Stun),
}

/// A round or sweep as it goes on.
struct Tally {
    number: u32,
    start: Instant,
    /// Pages sent before it began; of them, zero ones.
    sent: u64,
    zero: u64,
    dirtied: u64,
    /// Seconds that the vCPUs were held.
    held_s: f64,
    last: Window,
}

impl Tally {
    fn start(counters: &Counters, number: u32) -> Self {
        let zero = counters.contents().zero_pages;
        let (start, sent) = (Instant::now(), counters.sent());
        Self { number, start, sent, zero, dirtied: 0, held_s: 0.0, last: Window::default() }
    }

    fn window(&mut self, window: &Window, held_share: f64) {
        self.dirtied += window.dirtied;
        self.held_s += held_share * window.elapsed.as_secs_f64();
        self.last = *window;
    }

    /// Writes the round down; gives it and its last window.
    fn finish(
        self,
        counters: &Counters,
        owed: u64,
        begin: Instant,
        rounds: &mut Vec<RoundReport>,
    ) -> (Round, Window) {
        let elapsed = self.start.elapsed();
        let sent = counters.sent() - self.sent;
        let zero = counters.contents().zero_pages - self.zero;
        let seconds = elapsed.as_secs_f64();
        rounds.push(RoundReport {
            round: self.number,
            start_ms: ms(self.start - begin),
            elapsed_ms: ms(elapsed),
            sent_pages: sent - zero,
            zero_pages: zero,
            dirtied_pages: owed,
            send_rate: ((sent - zero) * PAGE_BYTES) as f64 / seconds,
            dirty_rate: (self.dirtied * PAGE_BYTES) as f64 / seconds,
            held_share: self.held_s / seconds,
        });
        (Round { sent, owed, elapsed }, self.last)
    }
}

/// Counters of the window since the last event.
struct Meter {
    at: Instant,
    sent: u64,
}

impl Attempt<'_> {
    /// Starts the clock; what the policy is told first.
    pub(super) fn begin(&mut self) -> Result<Event, Error> {
        // Everything is owed anyhow, but what was written during setup is not as it was looked at.
        let written = self.harvest()?;
        self.heat.observe(&written);
        // What is touched from here on is noticed by the tracker; the rest is zero there as well.
        self.owed = self.present()?;
        self.report.untouched_pages = self.owed.pages() - self.owed.count();
        self.first_page = Instant::now();
        self.writers = Writers::new(self.guest.vcpus(), self.guest.written());
        Ok(Event::Start { pages: self.owed.count() })
    }

    /// Rounds after `event`, until the policy stuns.
    pub(super) fn copy(
        &mut self,
        control: &mut Control,
        links: &Links,
        mut event: Event,
    ) -> Result<Stun, Error> {
        let begin = self.first_page;
        loop {
            let mut next = None;
            for action in self.step(event, begin) {
                match action {
                    Action::Throttle { held_share } => self.throttle(held_share),
                    Action::Explain(what) => self.explain(what),
                    Action::Stun(stun) => return Ok(stun),
                    Action::GiveUp(why) => return Err(Error::GaveUp(why)),
                    begin => next = Some(begin),
                }
            }
            event = match next {
                Some(Action::BeginRound) => self.round(control, links, begin)?,
                Some(Action::BeginSweep) => match self.sweep(control, links, begin)? {
                    SweepEnd::Done(event) => event,
                    SweepEnd::Stun(stun) => return Ok(stun),
                },
                other => {
                    unreachable!("between rounds a policy sends, stuns or gives up: {other:?}")
                }
            };
        }
    }

    /// Goes through memory once, and sends what is owed when its turn comes; harvests and asks the
    /// policy while it goes on. Whatever was not sent, or was written since, is owed at its end.
    fn sweep(
        &mut self,
        control: &mut Control,
        links: &Links,
        begin: Instant,
    ) -> Result<SweepEnd, Error> {
        let sweep = Arc::new(Sweep::over(&self.owed, &self.heat.hot(&self.owed)));
        let mut tally = Tally::start(&self.counters, self.report.rounds.len() as u32 + 1);
        let mut meter = Meter { at: tally.start, sent: tally.sent };
        self.give(links, &Job::Sweep(sweep.clone()));
        let mut busy = links.jobs.len();
        let (mut interval, mut stun) = (HARVEST_INTERVAL_MIN, None);
        while busy > 0 {
            let deadline = meter.at + interval;
            busy -= self.await_shards(control, deadline, busy, "sending pages")?;
            if busy > 0 && Instant::now() < deadline {
                continue;
            }
            if self.counters.sent() == tally.sent {
                // A sweep that finds only hot pages ends at once; it is not to be begun again
                // before it is known what has cooled down.
                let done = self.await_shards(control, deadline, busy.max(1), "sending pages")?;
                busy -= done.min(busy);
            }
            let written = self.harvest()?;
            self.heat.observe(&written);
            // Owed as soon as it is protected again: the streams take out what they send.
            let fresh = sweep.owed.add(&written);
            let (now, sent) = (Instant::now(), self.counters.sent());
            let window = Window {
                elapsed: now - meter.at,
                sent: sent - meter.sent,
                dirtied: written.count(),
                fresh,
                pending: sweep.owed.count(),
            };
            meter = Meter { at: now, sent };
            match leaves_hot_pages(window.pending, &window) {
                true => drop(sweep.recent.add(&written)),
                // Nothing is too hot for a sweep that is nearly done.
                false => sweep.recent.clear(),
            }
            self.watch(&window);
            tally.window(&window, self.writers.mean_held_share());
            interval =
                harvest_interval(window.pending, &window).max(self.harvest_cost.interval_min());
            if busy == 0 || stun.is_some() {
                continue;
            }
            self.show(tally.number, window.pending, &window);
            for action in self.step(Event::Tick(window), begin) {
                match action {
                    Action::Throttle { held_share } => self.throttle(held_share),
                    Action::Explain(what) => self.explain(what),
                    Action::GiveUp(why) => return Err(Error::GaveUp(why)),
                    Action::Stun(decided) => {
                        stun = Some(decided);
                        sweep.halt.store(true, Ordering::Relaxed);
                    }
                    other => unreachable!("{other:?} inside a sweep"),
                }
            }
        }
        self.owed = sweep.owed.snapshot();
        let owed = self.owed.count();
        let (round, window) = tally.finish(&self.counters, owed, begin, &mut self.report.rounds);
        Ok(match stun {
            Some(stun) => SweepEnd::Stun(stun),
            None => SweepEnd::Done(Event::RoundDone(window, round)),
        })
    }

    /// Sends everything owed now, once; harvests and asks the policy while it goes on.
    fn round(
        &mut self,
        control: &mut Control,
        links: &Links,
        begin: Instant,
    ) -> Result<Event, Error> {
        let sending = Arc::new(self.owed.take());
        let to_send = sending.count();
        let mut tally = Tally::start(&self.counters, self.report.rounds.len() as u32 + 1);
        let mut meter = Meter { at: tally.start, sent: tally.sent };
        self.give(links, &Job::Pages(sending));
        let mut busy = links.jobs.len();
        let mut interval = HARVEST_INTERVAL_MAX;
        while busy > 0 {
            let deadline = meter.at + interval;
            busy -= self.await_shards(control, deadline, busy, "sending pages")?;
            if busy > 0 && Instant::now() < deadline {
                continue;
            }
            let window = self.window(&mut meter, to_send + tally.sent)?;
            self.watch(&window);
            tally.window(&window, self.writers.mean_held_share());
            interval = HARVEST_INTERVAL_MAX.max(self.harvest_cost.interval_min());
            if busy == 0 {
                break;
            }
            self.show(tally.number, (to_send + tally.sent) - meter.sent, &window);
            for action in self.step(Event::Tick(window), begin) {
                match action {
                    Action::Throttle { held_share } => self.throttle(held_share),
                    Action::Explain(what) => self.explain(what),
                    Action::GiveUp(why) => return Err(Error::GaveUp(why)),
                    other => unreachable!("{other:?} inside a round"),
                }
            }
        }
        let owed = self.owed.count();
        let (round, window) = tally.finish(&self.counters, owed, begin, &mut self.report.rounds);
        Ok(Event::RoundDone(window, round))
    }

    /// Harvests, and measures the time since the last window.
    fn window(&mut self, meter: &mut Meter, sent_at_end: u64) -> Result<Window, Error> {
        let written = self.harvest()?;
        let fresh = self.owed.add(&written);
        let (now, sent) = (Instant::now(), self.counters.sent());
        let window = Window {
            elapsed: now - meter.at,
            sent: sent - meter.sent,
            dirtied: written.count(),
            fresh,
            pending: sent_at_end - sent + self.owed.count(),
        };
        *meter = Meter { at: now, sent };
        Ok(window)
    }

    /// What the policy wants done, under the goal that is in force now.
    fn step(&mut self, event: Event, begin: Instant) -> Vec<Action> {
        let goal = self.goal();
        if goal != self.goal {
            (self.goal, self.report.downtime_goal_ms) = (goal, ms(goal));
            self.policy.set_goal(goal);
            self.explain(format!("the goal was set to {:.1} ms", ms(goal)));
        }
        self.policy.step(event, begin.elapsed())
    }

    /// The pages written since the last harvest, of which nothing is known any more.
    pub(super) fn harvest(&mut self) -> Result<Bitmap, Error> {
        let start = Instant::now();
        let mut written = Bitmap::empty(self.owed.pages());
        self.tracker.harvest(all(written.pages()), &mut written)?;
        self.looks.forget(&written);
        self.harvest_cost.took(start.elapsed());
        self.gauge.set(self.counters.sent());
        Ok(written)
    }

    /// The pages that were ever touched.
    pub(super) fn present(&self) -> Result<Bitmap, Error> {
        let memory = self.guest.memory();
        Ok(memory.present().map_err(|e| GuestError::new("search guest memory", e))?)
    }

    fn show(&mut self, round: u32, remaining_pages: u64, window: &Window) {
        let seconds = window.elapsed.as_secs_f64();
        self.observer.progress(Progress::Round {
            round,
            remaining_pages,
            dirtied_pages: self.owed.count(),
            send_rate: (window.sent * PAGE_BYTES) as f64 / seconds,
            dirty_rate: (window.dirtied * PAGE_BYTES) as f64 / seconds,
            held_share: self.writers.mean_held_share(),
        });
    }

    /// Who wrote how much, for the throttle.
    fn watch(&mut self, window: &Window) {
        self.writers.observe(self.guest.written(), window.elapsed);
    }

    fn throttle(&mut self, held_share: f64) {
        self.guest.throttle(self.writers.hold(held_share));
    }

    pub(super) fn explain(&mut self, what: String) {
        self.observer.decided(&what);
        let at_ms = ms(self.first_page.elapsed());
        self.report.decisions.push(Decision { at_ms, what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_harvest_that_was_held_up_does_not_leave_the_guest_unwatched() {
        let mut cost = HarvestCost::default();
        let (usual, held_up) = (Duration::from_micros(100), Duration::from_millis(100));
        let mut after = |time| {
            cost.took(time);
            cost.interval_min()
        };
        // The very first as well.
        assert_eq!(after(held_up), Duration::ZERO);
        assert_eq!(after(usual), usual.div_f64(HARVEST_SHARE_MAX));
        assert_eq!(after(held_up), usual.div_f64(HARVEST_SHARE_MAX));
        // Two in a row are what harvests cost now.
        assert_eq!(after(held_up), INTERVAL_MAX);
    }
}
