//! A virtual clock, a model link and a model guest driving the same policies as [`crate::source`].
//!
//! There is no rule here: pages, rounds and windows are counted as the source counts them, and
//! every decision is the policy's. Time is virtual, so a terabyte takes milliseconds.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::bound;
use crate::memory::{Bitmap, PAGE_BYTES, PageNumber};
use crate::policy::heat::Heat;
use crate::policy::{
    Action, Event, GiveUp, PolicyKind, Round, Settings, Stun, Window, harvest_interval,
    leaves_hot_pages,
};

/// How a model guest chooses pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// One after the other, round and round: streaming records.
    Stream,
    /// Any, with replacement.
    Uniform,
}

/// A guest without memory: which pages it writes, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct ModelGuest {
    /// Pages of memory.
    pub pages: u64,
    /// Pages that are ever written: the first ones.
    pub writable: u64,
    /// Pages written per second while not held.
    pub pages_per_s: f64,
    /// Which.
    pub writes: Writes,
}

/// A link of varying bandwidth.
#[derive(Clone, Copy, Debug)]
pub struct ModelLink {
    /// Page data per second.
    pub bytes_per_s: f64,
    /// Bandwidth varies by up to this share of itself, anew in every tick.
    pub jitter: f64,
}

/// How a simulated migration ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The guest was handed over.
    Done {
        /// The policy's decision.
        stun: Stun,
        /// Time to send the rest, the guest standing still.
        downtime: Duration,
    },
    /// The policy gave up.
    GaveUp(GiveUp),
}

/// What a simulated migration came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// From the first page to the end.
    pub total: Duration,
    /// Pages sent.
    pub sent_pages: u64,
    /// Rounds.
    pub rounds: u32,
    /// Pages the guest would have written and did not, because it was held.
    pub lost_pages: f64,
    /// The least downtime that any migration could have had at the moment of the stun
    /// ([`bound::downtime_s`]). Zero if it gave up.
    pub downtime_bound: Duration,
}

/// Time between events inside a round.
const TICK: Duration = Duration::from_millis(50);
/// Virtual time after which something is wrong with the policy: none may go on for ever.
const TIME_MAX: Duration = Duration::from_secs(100_000);

struct Model<'a> {
    guest: ModelGuest,
    /// The page that the guest writes next.
    write_next: &'a mut dyn FnMut(&mut SmallRng) -> PageNumber,
    /// When each page was last written: the beginning of that window, in seconds.
    written_at: Vec<f32>,
    link: ModelLink,
    random: SmallRng,
    now: Duration,
    dirty: Bitmap,
    /// Pages that the sweep passes over: hot ones, and what was written since it began.
    recent: Bitmap,
    heat: Heat,
    fraction: f64,
    held_share: f64,
    lost_pages: f64,
    downtime_bound: Duration,
}

impl Model<'_> {
    fn bandwidth(&mut self) -> f64 {
        self.link.bytes_per_s * (1.0 + self.link.jitter * self.random.random_range(-1.0..=1.0))
    }

    /// The guest writes for `elapsed`; returns the distinct pages written, and how many of them
    /// were not dirty before.
    fn write(&mut self, elapsed: Duration) -> (Bitmap, u64) {
        let demand = self.guest.pages_per_s * elapsed.as_secs_f64();
        self.lost_pages += demand * self.held_share;
        let pages = demand * (1.0 - self.held_share) + self.fraction;
        self.fraction = pages.fract();
        let writable = self.guest.writable;
        let mut window = Bitmap::empty(self.guest.pages);
        let window_start = (self.now - elapsed).as_secs_f32();
        // More than every page twice adds nothing new to a window.
        for _ in 0..(pages as u64).min(writable * 4) {
            let page = (self.write_next)(&mut self.random);
            self.written_at[page.index()] = window_start;
            window.insert(page.alone());
        }
        let fresh = self.dirty.add(&window);
        (window, fresh)
    }

    /// The least downtime that was possible now, whatever had been sent before.
    fn bound(&self) -> Duration {
        let mut written: Vec<f32> = self.written_at.clone();
        written.sort_by(|a, b| b.total_cmp(a));
        let now = self.now.as_secs_f64();
        let ages = written.iter().map(|at| now - f64::from(*at));
        let page_s = PAGE_BYTES as f64 / self.link.bytes_per_s;
        Duration::from_secs_f64(bound::downtime_s(ages, page_s))
    }

    /// Sends the rest, the guest standing still.
    fn stun(&mut self, stun: Stun, sent_pages: &mut u64) -> End {
        self.downtime_bound = self.bound();
        let rest = self.dirty.count();
        let downtime = Duration::from_secs_f64((rest * PAGE_BYTES) as f64 / self.bandwidth());
        self.now += downtime;
        *sent_pages += rest;
        End::Done { stun, downtime }
    }

    /// One sweep, asking the policy at every harvest; says how it ended, and pages sent.
    fn sweep(&mut self, mut tick: impl FnMut(Window, Duration) -> Vec<Action>) -> (SweepEnd, u64) {
        let start = self.now;
        let pages = self.guest.pages;
        let (mut cursor, mut credit, mut sent_all) = (0, 0.0, 0);
        self.recent = self.heat.hot(&self.dirty);
        let mut window = Window::default();
        loop {
            let pages_per_s = self.bandwidth() / PAGE_BYTES as f64;
            let interval = harvest_interval(self.dirty.count(), &window);
            let leave = leaves_hot_pages(self.dirty.count(), &window);
            let room = pages_per_s * interval.as_secs_f64() + credit;
            let mut sent = 0;
            while cursor < pages && sent < room as u64 {
                let page = PageNumber(cursor);
                if !(leave && self.recent.contains(page)) && self.dirty.remove(page) {
                    sent += 1;
                }
                cursor += 1;
            }
            // A sweep that ends early takes as long as its pages did, and at least a glance.
            let done = cursor == pages;
            let least = Duration::from_millis(1);
            let elapsed = match done {
                true => Duration::from_secs_f64(sent as f64 / pages_per_s).clamp(least, interval),
                false => interval,
            };
            credit = if done { 0.0 } else { room.fract() };
            sent_all += sent;
            self.now += elapsed;
            let (written, fresh) = self.write(elapsed);
            let dirtied = written.count();
            self.recent.add(&written);
            self.heat.observe(&written);
            let owed = self.dirty.count();
            window = Window { elapsed, sent, dirtied, fresh, pending: owed };
            if done {
                let round = Round { sent: sent_all, owed, elapsed: self.now - start };
                return (SweepEnd::Done(window, round), sent_all);
            }
            for action in tick(window, self.now) {
                match action {
                    Action::Throttle { held_share } => self.held_share = held_share,
                    Action::Explain(_) => {}
                    Action::GiveUp(why) => return (SweepEnd::GaveUp(why), sent_all),
                    Action::Stun(stun) => return (SweepEnd::Stun(stun), sent_all),
                    other => unreachable!("{other:?} inside a sweep"),
                }
            }
        }
    }

    /// One round, asking the policy at every tick; `Err` if it gave up inside.
    fn round(
        &mut self,
        to_send: u64,
        mut tick: impl FnMut(Window, Duration) -> Result<Option<f64>, GiveUp>,
    ) -> Result<(Window, Round), GiveUp> {
        let start = self.now;
        let (mut left, mut credit) = (to_send, 0.0);
        loop {
            let bandwidth = self.bandwidth();
            let pages_per_s = bandwidth / PAGE_BYTES as f64;
            let need = Duration::from_secs_f64((left as f64 - credit).max(0.0) / pages_per_s);
            let elapsed = need.min(TICK);
            credit += pages_per_s * elapsed.as_secs_f64();
            let sent = if elapsed == need { left } else { (credit as u64).min(left) };
            credit -= sent as f64;
            left -= sent;
            self.now += elapsed;
            let (written, fresh) = self.write(elapsed);
            let (dirtied, pending) = (written.count(), left + self.dirty.count());
            let window = Window { elapsed, sent, dirtied, fresh, pending };
            if left == 0 {
                let owed = self.dirty.count();
                return Ok((window, Round { sent: to_send, owed, elapsed: self.now - start }));
            }
            if let Some(held_share) = tick(window, self.now)? {
                self.held_share = held_share;
            }
        }
    }
}

/// How a sweep ended.
enum SweepEnd {
    Done(Window, Round),
    Stun(Stun),
    GaveUp(GiveUp),
}

/// Runs one migration under `policy`; the same seed gives the same run.
pub fn run(
    guest: ModelGuest,
    link: ModelLink,
    policy: PolicyKind,
    settings: Settings,
    seed: u64,
) -> Outcome {
    let (writable, mut next) = (guest.writable, 0);
    let mut write_next = |random: &mut SmallRng| match guest.writes {
        Writes::Stream => {
            next = (next + 1) % writable;
            PageNumber(next)
        }
        Writes::Uniform => PageNumber(random.random_range(0..writable)),
    };
    run_writing(guest, &mut write_next, link, policy, settings, seed)
}

/// The same for a guest that writes the pages that `write_next` says, one after the other.
pub fn run_writing(
    guest: ModelGuest,
    write_next: &mut dyn FnMut(&mut SmallRng) -> PageNumber,
    link: ModelLink,
    policy: PolicyKind,
    settings: Settings,
    seed: u64,
) -> Outcome {
    let mut policy = policy.build(settings);
    let mut model = Model {
        guest,
        link,
        random: SmallRng::seed_from_u64(seed),
        now: Duration::ZERO,
        dirty: Bitmap::full(guest.pages),
        recent: Bitmap::empty(guest.pages),
        heat: Heat::new(guest.pages),
        write_next,
        written_at: vec![f32::NEG_INFINITY; guest.pages as usize],
        downtime_bound: Duration::ZERO,
        fraction: 0.0,
        held_share: 0.0,
        lost_pages: 0.0,
    };
    let (mut sent_pages, mut rounds) = (0, 0);
    let mut event = Event::Start { pages: guest.pages };
    let end = 'migration: loop {
        assert!(model.now < TIME_MAX, "a policy must end by itself");
        let mut next = None;
        for action in policy.step(event, model.now) {
            match action {
                Action::Throttle { held_share } => model.held_share = held_share,
                Action::Explain(_) => {}
                Action::GiveUp(why) => break 'migration End::GaveUp(why),
                Action::Stun(stun) => {
                    break 'migration model.stun(stun, &mut sent_pages);
                }
                begin => next = Some(begin),
            }
        }
        rounds += 1;
        event = match next {
            Some(Action::BeginSweep) => {
                let (end, sent) = model.sweep(|window, now| policy.step(Event::Tick(window), now));
                sent_pages += sent;
                match end {
                    SweepEnd::Done(window, round) => Event::RoundDone(window, round),
                    SweepEnd::Stun(stun) => break model.stun(stun, &mut sent_pages),
                    SweepEnd::GaveUp(why) => break End::GaveUp(why),
                }
            }
            Some(Action::BeginRound) => {
                let to_send = model.dirty.take().count();
                sent_pages += to_send;
                let round = model.round(to_send, |window, now| {
                    let mut throttle = None;
                    for action in policy.step(Event::Tick(window), now) {
                        match action {
                            Action::Throttle { held_share } => throttle = Some(held_share),
                            Action::Explain(_) => {}
                            Action::GiveUp(why) => return Err(why),
                            other => unreachable!("{other:?} inside a round"),
                        }
                    }
                    Ok(throttle)
                });
                match round {
                    Ok((window, round)) => Event::RoundDone(window, round),
                    Err(why) => break End::GaveUp(why),
                }
            }
            other => unreachable!("between rounds a policy sends, stuns or gives up: {other:?}"),
        };
    };
    Outcome {
        end,
        total: model.now,
        sent_pages,
        rounds,
        lost_pages: model.lost_pages,
        downtime_bound: model.downtime_bound,
    }
}
