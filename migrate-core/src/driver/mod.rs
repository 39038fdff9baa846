//! Rounds and sweeps as a machine: when something is sent, when the guest's writes are looked at, what
//! is counted, and when the policy is asked.
//!
//! It is told what happened and the time, and says what is to be done; it knows no bitmap, socket,
//! thread, clock or guest. A [`World`] carries its orders out and brings events back: the engine is
//! one ([`crate::source`]), the model another ([`crate::predict::model`]), so what is simulated is the
//! code that runs.
//!
//! A *round* sends everything that is owed at its beginning, once; what is written meanwhile is owed
//! at its end. A *sweep* goes through memory once and sends what is owed when its turn comes, but for
//! pages that are passed over: hot ones, and those written since it began. A *window* lies between
//! two harvests.

mod pace;

use std::time::Duration;

pub use pace::{HARVEST_INTERVAL_MAX, HARVEST_INTERVAL_MIN};
use pace::{HarvestCost, leaves_hot_pages, sweep_interval};

use crate::memory::PAGE_BYTES;
use crate::policy::writers::Writers;
use crate::policy::{Action, Chosen, Event as Told, GiveUp, Policy, Round, Stun, Time, Window};

/// Pages that the destination has, whatever way they took, since the migration began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// All of them; a page sent twice counts twice.
    pub pages: u64,
    /// Of these, pages that were zero.
    pub zero: u64,
}

/// What a look at the guest's writes found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    /// How long it took.
    pub took: Duration,
    /// Distinct pages written since the last one.
    pub dirtied: u64,
    /// Of these, pages that were not owed before.
    pub fresh: u64,
    /// Pages owed now, and those that a sweep took and has not sent; those that a round has still to
    /// send do not count.
    pub owed: u64,
    /// What was sent by now.
    pub sent: Sent,
    /// What each vCPU has written so far, in whatever unit; empty where that is not known.
    pub written: Vec<u64>,
}

/// What happens to a driver.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Everything is set up; the guest's writes were looked at for the first time.
    Start(Harvest),
    /// All that was to be sent in this round or sweep was, and by now so much in all.
    Sent(Sent),
    /// The answer to [`Output::Harvest`].
    Harvested(Harvest),
    /// A stun took longer than it may: the guest runs on here, so many pages are owed, and so much
    /// was sent by now.
    Overran {
        /// How long it stood still.
        took: Duration,
        /// Pages owed now.
        owed: u64,
        /// What was sent by now.
        sent: Sent,
    },
    /// From now on a stun may take so long.
    Goal(Duration),
    /// Time has passed.
    Tick,
}

/// What a driver wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Look at the guest's writes; answer with [`Event::Harvested`] before anything else.
    Harvest,
    /// Something for the world.
    Order(Order),
    /// Stop copying: pause the guest, send the rest, hand over.
    Stun(Stun),
    /// Stop copying: the guest goes on at the source.
    GiveUp(GiveUp),
}

/// What a world is to do; none of it is answered, but for the sending.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Send all that is owed now, once; answer with [`Event::Sent`].
    BeginRound,
    /// Go through memory once and send what is owed when its turn comes, passing over hot pages;
    /// answer with [`Event::Sent`].
    BeginSweep,
    /// The sweep also passes over what the last harvest found.
    PassOverWritten,
    /// The sweep passes over nothing any more.
    PassOverNothing,
    /// End the sweep where it is: what was not sent stays owed.
    Halt,
    /// Hold each vCPU for its share of time.
    Throttle(Vec<f64>),
    /// A window ended.
    Window(Progress),
    /// A round or sweep ended.
    Done(Tally),
    /// What the policy changed and why, for whoever watches.
    Explain(String),
}

/// A round or sweep in the middle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// From 1.
    pub number: u32,
    /// Pages that it has still to send, or may.
    pub left: u64,
    /// Pages owed beside them.
    pub owed: u64,
    /// The window that ended.
    pub window: Window,
    /// The share of time that a vCPU is held, on average.
    pub held_share: f64,
}

/// A round or sweep that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally {
    /// From 1.
    pub number: u32,
    /// When it began.
    pub began: Time,
    /// How long it took.
    pub elapsed: Duration,
    /// What it sent.
    pub sent: Sent,
    /// Pages written meanwhile, distinct in each window.
    pub dirtied: u64,
    /// Pages owed at its end.
    pub owed: u64,
    /// The share of time that a vCPU was held, on average.
    pub held_share: f64,
}

impl Tally {
    /// Bytes of page data per second for so many pages.
    pub fn rate(&self, pages: u64) -> f64 {
        (pages * PAGE_BYTES) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// What is being sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sending {
    /// So many pages.
    Round {
        pages: u64,
    },
    Sweep,
}

/// A round or sweep as it goes on.
#[derive(Clone, Debug, PartialEq)]
struct Underway {
    sending: Sending,
    began: Time,
    at_begin: Sent,
    /// The last harvest, or the beginning.
    window_began: Time,
    sent: Sent,
    dirtied: u64,
    /// Seconds that a vCPU was held, on average.
    held_s: f64,
    interval: Duration,
    /// Nothing is left to send.
    is_over: bool,
    stun: Option<Stun>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Driver {
    policy: Chosen,
    writers: Writers,
    cost: HarvestCost,
    underway: Option<Underway>,
    rounds: u32,
    sent: Sent,
    owed: u64,
    out: Vec<Output>,
}

/// Where a driver's orders are carried out.
pub trait World {
    /// What can go wrong in it.
    type Error;

    /// Time since the first page.
    fn now(&self) -> Time;

    /// Looks at the guest's writes.
    ///
    /// # Errors
    /// It cannot.
    fn harvest(&mut self) -> Result<Harvest, Self::Error>;

    /// Carries an order out.
    ///
    /// # Errors
    /// It cannot.
    fn carry_out(&mut self, order: Order) -> Result<(), Self::Error>;

    /// What happens next, and at `wake` a tick at the latest.
    ///
    /// # Errors
    /// Nothing will.
    fn next(&mut self, wake: Time) -> Result<Event, Self::Error>;
}

/// How copying ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The guest is to be handed over.
    Stun(Stun),
    /// The attempt is to be abandoned.
    GaveUp(GiveUp),
}

/// Copies after `event`, in this world, until the policy stuns or gives up.
///
/// # Errors
/// The world's.
pub fn drive<W: World>(
    driver: &mut Driver,
    world: &mut W,
    mut event: Event,
) -> Result<End, W::Error> {
    loop {
        let mut harvest = None;
        for output in driver.on(event, world.now()) {
            match output {
                Output::Harvest => harvest = Some(world.harvest()?),
                Output::Order(order) => world.carry_out(order)?,
                Output::Stun(stun) => return Ok(End::Stun(stun)),
                Output::GiveUp(why) => return Ok(End::GaveUp(why)),
            }
        }
        event = match harvest {
            Some(harvest) => Event::Harvested(harvest),
            None => world.next(driver.wake())?,
        };
    }
}

impl Driver {
    /// Before the first event.
    pub fn new(policy: Chosen, vcpus: usize) -> Self {
        Self {
            policy,
            writers: Writers::new(vcpus, Vec::new()),
            cost: HarvestCost::default(),
            underway: None,
            rounds: 0,
            sent: Sent::default(),
            owed: 0,
            out: Vec::new(),
        }
    }

    /// Takes an event in; what is to be done about it, in this order.
    pub fn on(&mut self, event: Event, now: Time) -> Vec<Output> {
        match event {
            Event::Start(harvest) => {
                self.cost.took(harvest.took);
                self.writers = Writers::new(self.writers.vcpus(), harvest.written);
                (self.owed, self.sent) = (harvest.owed, harvest.sent);
                self.ask(Told::Start { pages: harvest.owed }, now);
            }
            Event::Overran { took, owed, sent } => {
                (self.owed, self.sent) = (owed, sent);
                self.ask(Told::Overran { took, pending: owed }, now);
            }
            Event::Goal(goal) => {
                self.policy.set_goal(goal);
                let ms = goal.as_secs_f64() * 1e3;
                self.order(Order::Explain(format!("the goal was set to {ms:.1} ms")));
            }
            Event::Sent(sent) => self.all_sent(sent, now),
            Event::Tick => self.tick(now),
            Event::Harvested(harvest) => self.harvested(harvest, now),
        }
        std::mem::take(&mut self.out)
    }

    /// When it wants a tick at the latest.
    pub fn wake(&self) -> Time {
        // Between rounds nothing is waited for.
        self.underway.as_ref().map_or(Time::ZERO, Underway::due)
    }

    /// How many rounds and sweeps were begun.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    fn order(&mut self, order: Order) {
        self.out.push(Output::Order(order));
    }

    fn harvest(&mut self) {
        self.out.push(Output::Harvest);
    }

    fn tick(&mut self, now: Time) {
        if self.underway.as_ref().is_some_and(|underway| now >= underway.due()) {
            self.harvest();
        }
    }

    fn all_sent(&mut self, sent: Sent, now: Time) {
        let Some(underway) = &mut self.underway else { return };
        underway.is_over = true;
        // A sweep that finds only hot pages ends at once; it is not to be begun again before it is
        // known what has cooled down.
        let in_vain = underway.sending == Sending::Sweep && sent == underway.at_begin;
        if !in_vain || now >= underway.due() {
            self.harvest();
        }
    }

    fn harvested(&mut self, harvest: Harvest, now: Time) {
        let Some(mut underway) = self.underway.take() else { return };
        self.cost.took(harvest.took);
        (self.sent, self.owed) = (harvest.sent, harvest.owed);
        let (left, pending) = match underway.sending {
            Sending::Round { pages } => {
                let sent = harvest.sent.pages - underway.at_begin.pages;
                let left = pages.saturating_sub(sent);
                (left, left + harvest.owed)
            }
            Sending::Sweep => (harvest.owed, harvest.owed),
        };
        let window = Window {
            elapsed: now.saturating_sub(underway.window_began),
            sent: harvest.sent.pages - underway.sent.pages,
            dirtied: harvest.dirtied,
            fresh: harvest.fresh,
            pending,
        };
        self.writers.observe(harvest.written, window.elapsed);
        let held_share = self.writers.mean_held_share();
        underway.count(&window, held_share, harvest.sent, now);
        let least = self.cost.interval_min();
        underway.interval = match underway.sending {
            Sending::Round { .. } => HARVEST_INTERVAL_MAX.max(least),
            Sending::Sweep => sweep_interval(window.pending, &window).max(least),
        };
        if underway.sending == Sending::Sweep {
            // Nothing is too hot for a sweep that is nearly done.
            self.order(match leaves_hot_pages(window.pending, &window) {
                true => Order::PassOverWritten,
                false => Order::PassOverNothing,
            });
        }
        if underway.is_over {
            return self.done(underway, window, now);
        }
        let stunning = underway.stun.is_some();
        self.underway = Some(underway);
        if !stunning {
            let progress =
                Progress { number: self.rounds, left, owed: harvest.owed, window, held_share };
            self.order(Order::Window(progress));
            self.ask(Told::Tick(window), now);
        }
    }

    fn done(&mut self, underway: Underway, window: Window, now: Time) {
        let tally = underway.tally(self.rounds, self.owed, now);
        self.order(Order::Done(tally));
        match underway.stun {
            Some(stun) => self.out.push(Output::Stun(stun)),
            None => {
                let Tally { elapsed, owed, sent, .. } = tally;
                let round = Round { sent: sent.pages, owed, elapsed };
                self.ask(Told::RoundDone(window, round), now);
            }
        }
    }

    /// What the policy wants done.
    fn ask(&mut self, told: Told, now: Time) {
        self.carry_out_policy(told, now);
        let ends = |output: &Output| matches!(output, Output::Stun(_) | Output::GiveUp(_));
        if self.underway.is_none() && !self.out.iter().any(ends) {
            let why = "the policy neither sends, nor stuns, nor gives up".to_owned();
            self.out.push(Output::GiveUp(GiveUp { why, advice: "use another policy" }));
        }
    }

    fn carry_out_policy(&mut self, told: Told, now: Time) {
        for action in self.policy.step(told, now) {
            match action {
                Action::Throttle { held_share } => {
                    let shares = self.writers.hold(held_share).to_vec();
                    self.order(Order::Throttle(shares));
                }
                Action::Explain(what) => self.order(Order::Explain(what)),
                Action::GiveUp(why) => self.out.push(Output::GiveUp(why)),
                Action::Stun(stun) => match &mut self.underway {
                    // What is being sent comes to an end first.
                    Some(underway) => {
                        underway.stun = Some(stun);
                        self.order(Order::Halt);
                    }
                    None => self.out.push(Output::Stun(stun)),
                },
                Action::BeginRound => {
                    self.begin(Sending::Round { pages: self.owed }, HARVEST_INTERVAL_MAX, now);
                    self.order(Order::BeginRound);
                }
                Action::BeginSweep => {
                    self.begin(Sending::Sweep, HARVEST_INTERVAL_MIN, now);
                    self.order(Order::BeginSweep);
                }
            }
        }
    }

    fn begin(&mut self, sending: Sending, interval: Duration, now: Time) {
        self.rounds += 1;
        self.underway = Some(Underway {
            sending,
            began: now,
            at_begin: self.sent,
            window_began: now,
            sent: self.sent,
            dirtied: 0,
            held_s: 0.0,
            interval,
            is_over: false,
            stun: None,
        });
    }
}

impl Underway {
    /// When the guest's writes are to be looked at.
    fn due(&self) -> Time {
        self.window_began + self.interval
    }

    fn count(&mut self, window: &Window, held_share: f64, sent: Sent, now: Time) {
        self.dirtied += window.dirtied;
        self.held_s += held_share * window.elapsed.as_secs_f64();
        (self.sent, self.window_began) = (sent, now);
    }

    fn tally(&self, number: u32, owed: u64, now: Time) -> Tally {
        let elapsed = now.saturating_sub(self.began);
        let sent = Sent {
            pages: self.sent.pages - self.at_begin.pages,
            zero: self.sent.zero - self.at_begin.zero,
        };
        let held_share = self.held_s / elapsed.as_secs_f64().max(1e-9);
        let (began, dirtied) = (self.began, self.dirtied);
        Tally { number, began, elapsed, sent, dirtied, owed, held_share }
    }
}
