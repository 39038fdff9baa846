//! The engine as a driver's world: streams that send, a tracker that harvests, a guest that is
//! throttled, a wall clock.

use std::time::{Duration, Instant};

use super::Progress;
use super::shell::{Attempt, Control, Links, ms};
use crate::Error;
use crate::driver::{self, Driver, End, Event, Harvest, Order, Sent, Tally, World, drive};
use crate::guest::GuestError;
use crate::memory::{Bitmap, PAGE_BYTES, all};
use crate::policy::{Stun, Time};
use crate::report::{Decision, RoundReport};
use crate::wire::shards::Job;

/// What the streams are doing.
const SENDING: &str = "sending pages";

struct Engine<'e, 'a> {
    attempt: &'e mut Attempt<'a>,
    control: &'e mut Control,
    links: &'e Links,
    /// Streams that are not done with what they were given.
    busy: usize,
}

impl World for Engine<'_, '_> {
    type Error = Error;

    fn now(&self) -> Time {
        self.attempt.first_page.elapsed()
    }

    fn harvest(&mut self) -> Result<Harvest, Error> {
        let (written, took) = self.attempt.harvest()?;
        let dirtied = written.count();
        let fresh = self.attempt.debt.add(written);
        Ok(self.attempt.harvested(took, dirtied, fresh))
    }

    fn carry_out(&mut self, order: Order) -> Result<(), Error> {
        let attempt = &mut *self.attempt;
        match order {
            Order::BeginRound => {
                let pages = attempt.debt.begin_round();
                self.send(&Job::Pages(pages));
            }
            Order::BeginSweep => {
                let sweep = attempt.debt.begin_sweep(attempt.counters.sent());
                self.send(&Job::Sweep(sweep));
            }
            Order::PassOverWritten => attempt.debt.pass_over_written(),
            Order::PassOverNothing => attempt.debt.pass_over_nothing(),
            Order::Halt => attempt.debt.halt(),
            Order::Throttle(shares) => attempt.guest.throttle(&shares),
            Order::Window(progress) => attempt.show(&progress),
            Order::Done(tally) => {
                attempt.debt.settle();
                attempt.report.rounds.push(report(&tally));
            }
            Order::Explain(what) => attempt.explain(what),
        }
        Ok(())
    }

    fn next(&mut self, wake: Time) -> Result<Event, Error> {
        let goal = self.attempt.goal();
        if goal != self.attempt.goal {
            (self.attempt.goal, self.attempt.report.downtime_goal_ms) = (goal, ms(goal));
            return Ok(Event::Goal(goal));
        }
        let deadline = self.attempt.first_page + wake;
        // Streams that are done say nothing; what the session wants is heard meanwhile.
        let listened = self.busy.max(1);
        let done = self.attempt.await_shards(self.control, deadline, listened, SENDING)?;
        let was_busy = self.busy > 0;
        self.busy -= done.min(self.busy);
        Ok(match was_busy && self.busy == 0 {
            true => Event::Sent(self.attempt.sent()),
            false => Event::Tick,
        })
    }
}

impl Engine<'_, '_> {
    fn send(&mut self, job: &Job) {
        self.attempt.give(self.links, job);
        self.busy = self.links.jobs.len();
    }
}

fn report(tally: &Tally) -> RoundReport {
    let with_contents = tally.sent.pages - tally.sent.zero;
    RoundReport {
        round: tally.number,
        start_ms: ms(tally.began),
        elapsed_ms: ms(tally.elapsed),
        sent_pages: with_contents,
        zero_pages: tally.sent.zero,
        owed_pages: tally.owed,
        send_rate: tally.rate(with_contents),
        dirty_rate: tally.rate(tally.dirtied),
        held_share: tally.held_share,
    }
}

impl Attempt<'_> {
    /// Starts the clock; what the driver is told first.
    pub(super) fn begin(&mut self) -> Result<Event, Error> {
        // Everything is owed anyhow, but what was written during setup is not as it was looked at.
        let (written, took) = self.harvest()?;
        // What is touched from here on is noticed by the tracker; the rest is zero there as well.
        let present = self.present()?;
        self.debt.begin(present, &written);
        self.report.untouched_pages = self.debt.pages() - self.debt.count();
        self.first_page = Instant::now();
        Ok(Event::Start(self.harvested(took, written.count(), 0)))
    }

    /// Rounds and sweeps after `event`, until the policy stuns.
    pub(super) fn copy(
        &mut self,
        driver: &mut Driver,
        control: &mut Control,
        links: &Links,
        event: Event,
    ) -> Result<Stun, Error> {
        let mut engine = Engine { attempt: self, control, links, busy: 0 };
        match drive(driver, &mut engine, event)? {
            End::Stun(stun) => Ok(stun),
            End::GaveUp(why) => Err(Error::GaveUp(why)),
        }
    }

    fn harvested(&self, took: Duration, dirtied: u64, fresh: u64) -> Harvest {
        let (sent, written) = (self.sent(), self.guest.written());
        let owed = self.debt.count_unsent(sent.pages);
        Harvest { took, dirtied, fresh, owed, sent, written }
    }

    pub(super) fn sent(&self) -> Sent {
        Sent { pages: self.counters.sent(), zero: self.counters.contents().zero_pages }
    }

    /// The pages written since the last harvest, of which nothing is known any more; and how long
    /// the look took.
    pub(super) fn harvest(&mut self) -> Result<(Bitmap, Duration), Error> {
        let start = Instant::now();
        let mut written = Bitmap::empty(self.debt.pages());
        self.tracker.harvest(all(written.pages()), &mut written)?;
        self.looks.forget(&written);
        self.gauge.set(self.counters.sent());
        Ok((written, start.elapsed()))
    }

    /// The pages that were ever touched.
    pub(super) fn present(&self) -> Result<Bitmap, Error> {
        let memory = self.guest.memory();
        Ok(memory.present().map_err(|e| GuestError::new("search guest memory", e))?)
    }

    fn show(&mut self, progress: &driver::Progress) {
        let window = progress.window;
        let seconds = window.elapsed.as_secs_f64();
        self.observer.progress(Progress::Round {
            round: progress.number,
            remaining_pages: progress.left,
            owed_pages: progress.owed,
            send_rate: (window.sent * PAGE_BYTES) as f64 / seconds,
            dirty_rate: (window.dirtied * PAGE_BYTES) as f64 / seconds,
            held_share: progress.held_share,
        });
    }

    pub(super) fn explain(&mut self, what: String) {
        self.observer.decided(&what);
        let at_ms = ms(self.first_page.elapsed());
        self.report.decisions.push(Decision { at_ms, what });
    }
}
