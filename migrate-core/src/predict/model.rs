//! A model guest and a model link on a virtual clock: a [`World`] of the same driver and policies that
//! run.
//!
//! There is no rule here: what is counted, and when the guest's writes are looked at, is the driver's,
//! and every decision is the policy's. Time is virtual, so a terabyte takes seconds.

use std::convert::Infallible;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::bound;
use crate::driver::{self, Driver, Event, Harvest, Order, Sent, World, drive};
use crate::memory::{Bitmap, GROUP_PAGES, Group, PAGE_BYTES, PageNumber};
use crate::policy::heat::Heat;
use crate::policy::{GiveUp, PolicyKind, Settings, Stun};

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
    /// Bandwidth varies by up to this share of itself, anew from event to event.
    pub jitter: f64,
}

/// What the source's host takes for its own part.
#[derive(Clone, Copy, Debug)]
pub struct ModelHost {
    /// A look at the guest's writes, for each page of memory.
    pub look_per_page: Duration,
    /// The same for each page that was written, besides.
    pub look_per_written: Duration,
}

impl Default for ModelHost {
    /// As measured with userfaultfd on the machine of docs/benchmarks.md: 2 to 6 ns for each page of
    /// memory, 35 to 40 for each that was written.
    fn default() -> Self {
        Self { look_per_page: Duration::from_nanos(3), look_per_written: Duration::from_nanos(36) }
    }
}

/// What is migrated over what.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The guest.
    pub guest: ModelGuest,
    /// The source's host.
    pub host: ModelHost,
    /// The link.
    pub link: ModelLink,
}

impl Scenario {
    /// The same with a page for each `pages`: what decides is how rates, times and sizes relate to
    /// each other, and that stays as it is.
    #[must_use]
    pub fn scaled(self, pages: u64) -> Self {
        let Self { guest, host, link } = self;
        let divided = 1.0 / pages as f64;
        Self {
            guest: ModelGuest {
                pages: guest.pages.div_ceil(pages),
                writable: guest.writable.div_ceil(pages),
                pages_per_s: guest.pages_per_s * divided,
                ..guest
            },
            host: ModelHost {
                look_per_page: host.look_per_page.mul_f64(pages as f64),
                look_per_written: host.look_per_written.mul_f64(pages as f64),
            },
            link: ModelLink { bytes_per_s: link.bytes_per_s * divided, ..link },
        }
    }
}

/// Most pages of a model: of larger guests each stands for several.
pub const MODEL_PAGES_MAX: u64 = 1 << 20;

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

/// What it takes to go through memory and find that nothing is to be sent.
const GLANCE: Duration = Duration::from_micros(50);
/// Virtual time after which something is wrong with the policy: none may go on for ever.
const TIME_MAX: Duration = Duration::from_secs(100_000);

/// Which pages are owed, and which of them a sweep takes when it comes to them: what an engine keeps
/// in bitmaps that its streams share. The model's own is [`Plain`].
pub(crate) trait Owed {
    /// Takes in what a harvest found; how many of them were not owed before.
    fn add(&mut self, written: Bitmap) -> u64;
    /// Pages that are owed, and those that were taken and not sent, so many having been sent.
    fn count_unsent(&self, sent: u64) -> u64;
    /// A round takes all of them; how many.
    fn begin_round(&mut self) -> u64;
    /// A sweep begins, so many having been sent.
    fn begin_sweep(&mut self, sent: u64);
    /// The sweep also passes over what the last harvest found.
    fn pass_over_written(&mut self);
    /// The sweep passes over nothing any more.
    fn pass_over_nothing(&mut self);
    /// The sweep takes what it takes of a group.
    fn take(&mut self, first: PageNumber) -> Option<Group>;
    /// The sweep ends where it is.
    fn halt(&mut self);
    /// Whether it does.
    fn is_halted(&self) -> bool;
    /// The streams stand still.
    fn settle(&mut self);
}

/// Sets of pages, and nothing else.
pub(crate) struct Plain {
    owed: Bitmap,
    passed_over: Bitmap,
    /// What the last harvest found.
    harvested: Bitmap,
    heat: Heat,
    /// In a sweep, pages that had been sent when it began and those that it took; else 0.
    taken: u64,
    halted: bool,
}

impl Plain {
    pub(crate) fn of(pages: u64) -> Self {
        Self {
            owed: Bitmap::full(pages),
            passed_over: Bitmap::empty(pages),
            harvested: Bitmap::empty(pages),
            heat: Heat::new(pages),
            taken: 0,
            halted: false,
        }
    }
}

impl Owed for Plain {
    fn add(&mut self, written: Bitmap) -> u64 {
        self.heat.observe(&written);
        let fresh = self.owed.add(&written);
        self.harvested = written;
        fresh
    }

    fn count_unsent(&self, sent: u64) -> u64 {
        self.owed.count() + self.taken.saturating_sub(sent)
    }

    fn begin_round(&mut self) -> u64 {
        self.owed.take().count()
    }

    fn begin_sweep(&mut self, sent: u64) {
        self.passed_over = self.heat.hot(&self.owed);
        (self.taken, self.halted) = (sent, false);
    }

    fn pass_over_written(&mut self) {
        self.passed_over.add(&self.harvested);
    }

    fn pass_over_nothing(&mut self) {
        self.passed_over = Bitmap::empty(self.owed.pages());
    }

    fn take(&mut self, first: PageNumber) -> Option<Group> {
        let group = self.owed.take_group(first, &self.passed_over)?;
        self.taken += group.count();
        Some(group)
    }

    fn halt(&mut self) {
        self.halted = true;
    }

    fn is_halted(&self) -> bool {
        self.halted
    }

    fn settle(&mut self) {
        self.taken = 0;
    }
}

/// What the streams are at.
enum Streams {
    Idle,
    /// Pages of a round that are still to be sent.
    Round(u64),
    /// A sweep has come so far.
    Sweep(PageNumber),
}

pub(crate) struct Model<'a, O> {
    guest: ModelGuest,
    host: ModelHost,
    link: ModelLink,
    /// The page that the guest writes next.
    write_next: &'a mut dyn FnMut(&mut SmallRng) -> PageNumber,
    /// When each page was last written, in seconds.
    written_at: Vec<f32>,
    random: SmallRng,
    now: Duration,
    streams: Streams,
    owed: O,
    /// Written since the last harvest.
    written: Bitmap,
    sent_pages: u64,
    /// Pages of a group that were taken out and are not sent yet.
    taken: u64,
    /// Parts of a page that were sent, and written.
    credit: f64,
    fraction: f64,
    held_share: f64,
    lost_pages: f64,
}

impl<O: Owed> World for Model<'_, O> {
    type Error = Infallible;

    fn now(&self) -> Duration {
        self.now
    }

    fn harvest(&mut self) -> Result<Harvest, Infallible> {
        let dirtied = self.written.count();
        let fresh = self.owed.add(self.written.take());
        let pages = self.guest.pages as f64;
        let took = self.host.look_per_page.mul_f64(pages)
            + self.host.look_per_written.mul_f64(dirtied as f64);
        let (owed, sent) = (self.owed.count_unsent(self.sent_pages), self.sent());
        Ok(Harvest { took, dirtied, fresh, owed, sent, written: Vec::new() })
    }

    fn carry_out(&mut self, order: Order) -> Result<(), Infallible> {
        match order {
            Order::BeginRound => self.streams = Streams::Round(self.owed.begin_round()),
            Order::BeginSweep => {
                self.owed.begin_sweep(self.sent_pages);
                self.streams = Streams::Sweep(PageNumber(0));
            }
            Order::PassOverWritten => self.owed.pass_over_written(),
            Order::PassOverNothing => self.owed.pass_over_nothing(),
            Order::Halt => self.owed.halt(),
            Order::Throttle(shares) => {
                self.held_share = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
            }
            Order::Done(_) => self.owed.settle(),
            Order::Window(_) | Order::Explain(_) => {}
        }
        Ok(())
    }

    fn next(&mut self, wake: Duration) -> Result<Event, Infallible> {
        assert!(self.now < TIME_MAX, "a policy must end by itself");
        let pages_per_s = self.bandwidth() / PAGE_BYTES as f64;
        let time = wake.saturating_sub(self.now);
        let room = pages_per_s * time.as_secs_f64() + self.credit;
        let (sent, is_over) = self.send(room as u64);
        self.sent_pages += sent;
        if !is_over {
            self.credit = room - sent as f64;
            self.pass(time);
            return Ok(Event::Tick);
        }
        let needed = Duration::from_secs_f64((sent as f64 - self.credit).max(0.0) / pages_per_s);
        self.credit = 0.0;
        match std::mem::replace(&mut self.streams, Streams::Idle) {
            // They wait, as their guest writes.
            Streams::Idle => {
                self.pass(time);
                Ok(Event::Tick)
            }
            Streams::Round(_) | Streams::Sweep(_) => {
                self.pass(needed.max(GLANCE));
                Ok(Event::Sent(self.sent()))
            }
        }
    }
}

impl<'a, O: Owed> Model<'a, O> {
    /// A guest of which nothing was sent yet.
    pub(crate) fn new(
        scenario: Scenario,
        owed: O,
        write_next: &'a mut dyn FnMut(&mut SmallRng) -> PageNumber,
        seed: u64,
    ) -> Self {
        let Scenario { guest, host, link } = scenario;
        Self {
            guest,
            host,
            link,
            random: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            streams: Streams::Idle,
            owed,
            written: Bitmap::empty(guest.pages),
            write_next,
            written_at: vec![f32::NEG_INFINITY; guest.pages as usize],
            sent_pages: 0,
            taken: 0,
            credit: 0.0,
            fraction: 0.0,
            held_share: 0.0,
            lost_pages: 0.0,
        }
    }

    fn bandwidth(&mut self) -> f64 {
        self.link.bytes_per_s * (1.0 + self.link.jitter * self.random.random_range(-1.0..=1.0))
    }

    fn sent(&self) -> Sent {
        Sent { pages: self.sent_pages, zero: 0 }
    }

    /// Sends what is to be sent, group by group, up to so many pages; how many that were, and whether
    /// nothing is left.
    fn send(&mut self, most: u64) -> (u64, bool) {
        match &mut self.streams {
            Streams::Idle => (0, true),
            Streams::Round(left) => {
                let sent = most.min(*left);
                *left -= sent;
                (sent, *left == 0)
            }
            Streams::Sweep(next) => {
                let mut sent = most.min(self.taken);
                self.taken -= sent;
                let pages = self.guest.pages;
                let more = |next: PageNumber, owed: &O| next.0 < pages && !owed.is_halted();
                while more(*next, &self.owed) && sent < most {
                    // A group is taken out as a whole, before it is read.
                    let group = self.owed.take(*next);
                    let count = group.map_or(0, Group::count);
                    let now = count.min(most - sent);
                    (sent, self.taken) = (sent + now, count - now);
                    *next = *next + GROUP_PAGES;
                }
                (sent, self.taken == 0 && !more(*next, &self.owed))
            }
        }
    }

    /// Time passes, and the guest writes.
    fn pass(&mut self, time: Duration) {
        let demand = self.guest.pages_per_s * time.as_secs_f64();
        self.lost_pages += demand * self.held_share;
        let pages = demand * (1.0 - self.held_share) + self.fraction;
        self.fraction = pages.fract();
        let began = self.now.as_secs_f32();
        // More than every page twice adds nothing new to a window.
        for _ in 0..(pages as u64).min(self.guest.writable * 4) {
            let page = (self.write_next)(&mut self.random);
            self.written_at[page.index()] = began;
            self.written.insert(page.alone());
        }
        self.now += time;
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
    fn stun(&mut self, stun: Stun) -> End {
        self.owed.add(self.written.take());
        let rest = self.owed.count_unsent(self.sent_pages);
        let downtime = Duration::from_secs_f64((rest * PAGE_BYTES) as f64 / self.bandwidth());
        self.now += downtime;
        self.sent_pages += rest;
        End::Done { stun, downtime }
    }
}

/// Runs one migration under `policy`; the same seed gives the same run. Of a guest with more than
/// [`MODEL_PAGES_MAX`] pages each page of the model stands for several.
pub fn run(scenario: Scenario, policy: PolicyKind, settings: Settings, seed: u64) -> Outcome {
    let each = scenario.guest.pages.div_ceil(MODEL_PAGES_MAX).max(1);
    let scenario = scenario.scaled(each);
    let limits = Settings { pages_max: settings.pages_max.div_ceil(each), ..settings };
    let ModelGuest { writable, writes, .. } = scenario.guest;
    let mut next = 0;
    let mut write_next = |random: &mut SmallRng| match writes {
        Writes::Stream => {
            next = (next + 1) % writable;
            PageNumber(next)
        }
        Writes::Uniform => PageNumber(random.random_range(0..writable)),
    };
    let outcome = run_writing(scenario, &mut write_next, policy, limits, seed);
    Outcome {
        sent_pages: outcome.sent_pages * each,
        lost_pages: outcome.lost_pages * each as f64,
        ..outcome
    }
}

/// The same for a guest that writes the pages that `write_next` says, one after the other, and as it
/// is: large guests are to be scaled before.
pub fn run_writing(
    scenario: Scenario,
    write_next: &mut dyn FnMut(&mut SmallRng) -> PageNumber,
    policy: PolicyKind,
    settings: Settings,
    seed: u64,
) -> Outcome {
    let mut model = Model::new(scenario, Plain::of(scenario.guest.pages), write_next, seed);
    let mut driver = Driver::new(policy.build(settings), 1);
    let Ok(start) = model.harvest();
    let Ok(end) = drive(&mut driver, &mut model, Event::Start(start));
    let (end, downtime_bound) = match end {
        driver::End::Stun(stun) => {
            let bound = model.bound();
            (model.stun(stun), bound)
        }
        driver::End::GaveUp(why) => (End::GaveUp(why), Duration::ZERO),
    };
    Outcome {
        end,
        total: model.now,
        sent_pages: model.sent_pages,
        rounds: driver.rounds(),
        lost_pages: model.lost_pages,
        downtime_bound,
    }
}
