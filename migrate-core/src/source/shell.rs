//! One attempt, phase by phase. Who runs the guest is the session's to decide; here its orders are
//! carried out, and the copying in between is done. Errors are handled once, in [`Attempt::run`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::caller::{Caller, hear_interrupts, told, write_down};
use super::debt::Debt;
use super::notes::{NoteSignal, Notes};
use super::withdrawal::Withdrawal;
use super::{Migrated, NotMigrated, Observer, OverLimit, Progress, SourceSettings};
use crate::Error;
use crate::clock::cpu_time;
use crate::codec::looks::Looks;
use crate::conductor::{Conductor, ProgressGauge};
use crate::driver::{Driver, Event as DriverEvent};
use crate::error::lost;
use crate::guest::{DirtyTracker, Guest, GuestError};
use crate::link::channel::Channel;
use crate::link::pacer::Pacer;
use crate::memory::PAGE_BYTES;
use crate::operator::record::{Record, Says};
use crate::operator::{Registration, StateDirectory};
use crate::policy::Stun;
use crate::proto::StunNumber;
use crate::proto::hello::{Features, MigrationId};
use crate::proto::message::Setup;
use crate::report::{Contents, Downtime, MigrationReport, Overrun, Phase, SCHEMA, Status};
use crate::session::Failure;
use crate::session::record::SourceRecord;
use crate::session::source::{Arrival, Event, Order, Settings, Source};
use crate::wire::sender::Counters;
use crate::wire::shards::{Done, Job};

/// How often a wait looks up.
const TICK: Duration = Duration::from_millis(20);

/// What reaches the main loop.
pub(super) enum Signal {
    Order(Order),
    Shard(Done),
}

/// How a stun ended.
enum Handover {
    Done(Arrival),
    /// The guest runs on here; what the policy is told.
    CalledOff(DriverEvent),
}

pub(super) struct Attempt<'a> {
    pub(super) guest: &'a mut dyn Guest,
    pub(super) tracker: &'a mut dyn DirtyTracker,
    pub(super) settings: &'a SourceSettings,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) id: MigrationId,
    pub(super) report: MigrationReport,
    /// How far it is.
    phase: Phase,
    pub(super) debt: Debt,
    /// What is known of pages that were not sent yet.
    pub(super) looks: Arc<Looks>,
    /// When the first page was sent; when the attempt began, before that.
    pub(super) first_page: Instant,
    pub(super) cpu_at_start: Duration,
    pub(super) counters: Arc<Counters>,
    pub(super) gauge: Arc<ProgressGauge>,
    pub(super) pacer: Arc<Pacer>,
    /// The switchover goal in force, in microseconds.
    pub(super) goal_us: Arc<AtomicU64>,
    /// The one that the policy knows.
    pub(super) goal: Duration,
    signals: mpsc::Receiver<Signal>,
    /// An order that was taken too early, to be taken again before any other.
    first: Option<Order>,
    pub(super) to_main: mpsc::Sender<Signal>,
    /// Interrupts of the observer that the session was told of.
    interrupts: usize,
    /// When the guest was paused, while it stands still.
    paused: Option<Instant>,
}

/// The session of an attempt and what goes with it.
pub(super) struct Control {
    pub(super) conductor: Conductor<Source>,
    record: Record,
    _registered: Option<Registration>,
    /// Why the last connection could not be made, as it was.
    pub(super) unreachable: Arc<Mutex<Option<Error>>>,
}

/// The data connections of an attempt whose shadow exists.
pub(super) struct Links {
    pub(super) jobs: Vec<mpsc::Sender<Job>>,
    pub(super) abandon: Arc<AtomicBool>,
    pub(super) data: Vec<Arc<Channel>>,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) pacer: Arc<Pacer>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.abandon.store(true, Ordering::Relaxed);
        self.pacer.stop();
        self.jobs.clear();
        for channel in &self.data {
            channel.close();
        }
        for thread in self.threads.drain(..) {
            // What went wrong in it was said through its signal.
            let _ = thread.join();
        }
    }
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        guest: &'a mut dyn Guest,
        tracker: &'a mut dyn DirtyTracker,
        settings: &'a SourceSettings,
        observer: &'a mut dyn Observer,
    ) -> Self {
        let id = MigrationId::random();
        let pages = guest.memory().pages();
        let report = MigrationReport {
            schema: SCHEMA,
            id: id.to_string(),
            epoch: settings.epoch.0,
            policy: settings.policy,
            tracker: tracker.name().to_owned(),
            streams: settings.streams.count(),
            congestion: String::new(),
            memory_pages: pages,
            untouched_pages: 0,
            looked_at_pages: 0,
            setup_ms: 0.0,
            migration_ms: 0.0,
            total_ms: 0.0,
            page_bytes: 0,
            wire_bytes: 0,
            contents: Contents::default(),
            rounds: Vec::new(),
            decisions: Vec::new(),
            overruns: Vec::new(),
            stun: None,
            downtime: Downtime::default(),
            downtime_goal_ms: ms(settings.limits.goal),
            over_goal: false,
            cpu_ms: 0.0,
            status: Status::under_way(),
        };
        let (to_main, signals) = mpsc::channel();
        let interrupts = observer.interrupts();
        let goal_us = settings.limits.goal.as_micros() as u64;
        Self {
            guest,
            tracker,
            settings,
            observer,
            id,
            report,
            phase: Phase::Setup,
            debt: Debt::of(pages),
            looks: Arc::new(Looks::none(0)),
            first_page: Instant::now(),
            cpu_at_start: cpu_time(),
            counters: Arc::default(),
            gauge: Arc::default(),
            pacer: Arc::new(Pacer::new(settings.bandwidth)),
            goal_us: Arc::new(AtomicU64::new(goal_us)),
            goal: Duration::from_micros(goal_us),
            signals,
            first: None,
            to_main,
            interrupts,
            paused: None,
        }
    }

    /// The whole attempt; whatever went wrong is put right here.
    pub(super) fn run(mut self) -> Result<Migrated, Box<NotMigrated>> {
        let (result, control) = match self.control() {
            Ok(mut control) => {
                control.conductor.on(Event::Start);
                let result = match self.phases(&mut control) {
                    Ok(arrival) => Ok(arrival),
                    Err(error) => self.settle(error, &mut control),
                };
                (result, Some(control))
            }
            Err(error) => (Err(error), None),
        };
        if self.report.setup_ms > 0.0 && self.report.migration_ms == 0.0 {
            self.report.migration_ms = ms(self.first_page.elapsed());
        }
        self.report.cpu_ms = ms(cpu_time().saturating_sub(self.cpu_at_start));
        let contents = self.counters.contents();
        self.report.page_bytes = contents.content_pages() * PAGE_BYTES;
        self.report.wire_bytes = contents.wire_bytes;
        self.report.contents = contents;
        self.report.total_ms = self.report.setup_ms + self.report.migration_ms;
        match (result, control) {
            (Ok(arrival), Some(control)) => {
                self.report.status = Status::done();
                let notes = (arrival == Arrival::Running).then(|| self.notes(control));
                Ok(Migrated { report: self.report, control: notes })
            }
            (Err(error), control) => {
                self.report.status = Status::of(&error, self.phase);
                // A guest that was given up stays committed on disk.
                let unresolved = matches!(error, Error::Unresolved { .. });
                let withdrawal = control.filter(|_| !unresolved).map(|control| {
                    let signals = self.signals;
                    let over =
                        move || signals.try_iter().any(|s| matches!(s, Signal::Order(Order::Over)));
                    Withdrawal::new(control.conductor, control.record, over)
                });
                Err(Box::new(NotMigrated { error, report: self.report, withdrawal }))
            }
            (Ok(_), None) => unreachable!("nothing arrives without a session"),
        }
    }

    pub(super) fn caller(&self) -> Caller {
        Caller {
            migration: self.id,
            epoch: self.settings.epoch,
            peer: self.settings.peer.clone(),
            link: self.settings.link.clone(),
            needs: match self.guest.memory().regions().len() {
                1 => Features::default(),
                _ => Features::REGIONS,
            },
        }
    }

    /// The session, its record, and the way for an operator to both.
    fn control(&mut self) -> Result<Control, Error> {
        let settings = self.settings;
        settings.check()?;
        let directory = StateDirectory::open(&settings.state_directory)?;
        let says = Says::Source(SourceRecord::Open);
        let (timeout, peer) = (settings.link.timeout, settings.peer.to_string());
        let record = Record::create(&directory, self.id, says, settings.epoch, timeout, &peer)?;
        let source = Source::new(Settings {
            setup: Setup {
                regions: self.guest.memory().regions(),
                streams: self.report.streams,
                earlier: settings.earlier.clone(),
                description: self.guest.description(),
            },
            link_timeout: timeout,
            resolve_limit: settings.resolve_timeout,
            give_up_after: settings.give_up_after,
        });
        let unreachable: Arc<Mutex<Option<Error>>> = Arc::default();
        let to_main = self.to_main.clone();
        let conductor = Conductor::start(
            source,
            self.id.tag(),
            self.gauge.clone(),
            move |order| drop(to_main.send(Signal::Order(order))),
            Some(self.caller().dial(unreachable.clone())),
        )?;
        let registered = settings
            .operator
            .as_ref()
            .map(|desk| desk.register(self.id, Arc::new(self.attendant(conductor.handle()))));
        Ok(Control { conductor, record, _registered: registered, unreachable })
    }

    fn phases(&mut self, control: &mut Control) -> Result<Arrival, Error> {
        let links = self.setup(control)?;
        self.phase = Phase::Copying;
        let result = self.copy_and_stun(control, &links);
        if let Err(error) = &result {
            // Said before the data connections go, so that the other side hears the reason first.
            self.abandon(error, control);
        }
        result
    }

    /// Copies and stuns, as often as stuns are called off.
    fn copy_and_stun(&mut self, control: &mut Control, links: &Links) -> Result<Arrival, Error> {
        let policy = self.settings.policy.build(self.settings.limits);
        let mut driver = Driver::new(policy, self.guest.vcpus());
        let mut event = self.begin()?;
        loop {
            let stun = self.copy(&mut driver, control, links, event)?;
            event = match self.stun(control, links, stun)? {
                Handover::Done(arrival) => return Ok(arrival),
                Handover::CalledOff(event) => event,
            };
        }
    }

    fn abandon(&self, error: &Error, control: &Control) {
        let failure = match error {
            // The session knows.
            Error::Session(_) | Error::Unresolved { .. } => return,
            Error::Link { .. } => Failure::LinkLost(error.to_string()),
            _ => Failure::Local(error.to_string()),
        };
        control.conductor.on(Event::Abandon(failure));
    }

    /// After a failure: the session says whether the guest runs here again, or that it stays stopped
    /// because it may run there.
    fn settle(&mut self, error: Error, control: &mut Control) -> Result<Arrival, Error> {
        self.abandon(&error, control);
        let mut error = Some(error);
        loop {
            match self.next_order(control)? {
                Order::Resume(failure) => {
                    self.release()?;
                    self.count_standstill();
                    return Err(match error.take() {
                        Some(Error::Session(_)) | None => self.named(failure, control),
                        Some(error) => error,
                    });
                }
                Order::HandedOver(arrival) => return self.arrived(arrival, control),
                Order::Over => return Err(Error::Unresolved { id: self.id.to_string() }),
                // Overtaken by the end of the attempt.
                Order::Copy | Order::Ready(_) | Order::RunOn(_) => {}
                Order::Record(_) | Order::Note(_) | Order::NotesHeard | Order::Notice(_) => {}
            }
        }
    }

    /// The session's reason, as the error that it was where that is known.
    fn named(&self, failure: Failure, control: &Control) -> Error {
        let unreachable =
            || control.unreachable.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failure {
            Failure::Cancelled => Error::Cancelled,
            Failure::Peer(why) => Error::Peer(why),
            Failure::Breach(error) => Error::Protocol(error),
            Failure::Unreachable(why) => {
                unreachable().unwrap_or(Error::Session(Failure::Unreachable(why)))
            }
            other => Error::Session(other),
        }
    }

    /// A stun of an attempt that failed was a stun all the same.
    fn count_standstill(&mut self) {
        if let Some(paused) = self.paused.take() {
            let took = ms(paused.elapsed());
            let at_ms = ms(paused.saturating_duration_since(self.first_page));
            self.report.overruns.push(Overrun { at_ms, took_ms: took, pages: self.debt.count() });
            self.report.downtime.total_ms = took;
            self.report.over_goal = took > self.report.downtime_goal_ms;
        }
    }

    /// The guest runs here, and freely.
    fn release(&mut self) -> Result<(), Error> {
        self.guest.throttle(&vec![0.0; self.guest.vcpus()]);
        Ok(self.guest.resume()?)
    }

    /// Pauses, sends the rest and the state, and hands over; or calls it off if that takes longer
    /// than it may.
    fn stun(
        &mut self,
        control: &mut Control,
        links: &Links,
        stun: Stun,
    ) -> Result<Handover, Error> {
        let number = StunNumber(control.conductor.look(|session| session.stun().0) + 1);
        let paused = Instant::now();
        let goal = self.goal();
        let deadline = match self.settings.over_limit {
            OverLimit::GoBack => Some(paused + goal),
            OverLimit::Accept => None,
        };
        (self.paused, self.phase) = (Some(paused), Phase::Stun);
        self.guest.pause()?;
        let stopped = Instant::now();
        let (written, _) = self.harvest()?;
        self.debt.add_rest(&written);
        let harvested = Instant::now();
        let pages = self.debt.count();
        self.report.stun = Some(stun);
        self.observer.progress(Progress::Stun { pages });

        let state = self.guest.save_state()?;
        self.check_still()?;
        if !self.send_rest(control, links, deadline)? {
            // Nothing was said to the destination that would have to be taken back.
            self.guest.resume()?;
            return Ok(self.go_back(paused, goal));
        }
        self.give(links, &Job::End(number));
        control.conductor.on(Event::Stunned(state));
        self.await_all_shards(control, links.jobs.len(), "sending the last pages")?;
        let sent = Instant::now();

        let proof = self.await_ready(control)?;
        let prepared = Instant::now();
        let proof = proof.min(prepared - sent);
        if deadline.is_some_and(|deadline| prepared - proof > deadline) {
            self.call_off(control, links)?;
            return Ok(self.go_back(paused, goal));
        }

        let arrival = self.commit(control)?;
        let running = Instant::now();
        self.paused = None;
        let downtime = running - paused - proof;
        self.report.downtime = Downtime {
            total_ms: ms(downtime),
            pause_ms: ms(stopped - paused),
            harvest_ms: ms(harvested - stopped),
            send_ms: ms(sent - harvested),
            state_ms: ms(prepared - sent - proof),
            resume_ms: ms(running - prepared),
            proof_ms: ms(proof),
            pages,
        };
        self.report.over_goal = downtime > goal;
        self.report.migration_ms = ms(running - self.first_page - proof);
        Ok(Handover::Done(self.arrived(arrival, control)?))
    }

    /// Waits until the destination has all of the stun; how long it looked at it.
    fn await_ready(&mut self, control: &mut Control) -> Result<Duration, Error> {
        loop {
            match self.next_order_while(control, "waiting for Ready")? {
                Order::Ready(inspected) => return Ok(inspected),
                Order::Resume(failure) => return Err(self.put_back_later(failure)),
                _ => {}
            }
        }
    }

    /// Takes back what the destination has of the stun; the guest runs on here.
    fn call_off(&mut self, control: &mut Control, links: &Links) -> Result<(), Error> {
        const DOING: &str = "going back to copying";
        control.conductor.on(Event::GoBack);
        loop {
            match self.next_order_while(control, DOING)? {
                Order::RunOn(off) => {
                    self.guest.resume()?;
                    self.give(links, &Job::Again(off));
                    return self.await_all_shards(control, links.jobs.len(), DOING);
                }
                Order::Resume(failure) => return Err(self.put_back_later(failure)),
                _ => {}
            }
        }
    }

    /// Decides that the guest runs at the destination, and waits until it does.
    fn commit(&mut self, control: &mut Control) -> Result<Arrival, Error> {
        self.phase = Phase::Handover;
        control.conductor.on(Event::Commit);
        loop {
            match self.next_order(control)? {
                Order::HandedOver(arrival) => return Ok(arrival),
                Order::Resume(failure) => return Err(self.put_back_later(failure)),
                Order::Over => {
                    // Taken again by `settle`.
                    self.first = Some(Order::Over);
                    return Err(Error::Unresolved { id: self.id.to_string() });
                }
                _ => {}
            }
        }
    }

    /// The session ordered that the guest runs here: so it does before anything else happens.
    /// The order is taken again by `settle`, which releases the guest and names the error.
    pub(super) fn put_back_later(&mut self, failure: Failure) -> Error {
        self.first = Some(Order::Resume(failure.clone()));
        Error::Session(failure)
    }

    /// The guest is the destination's: what is left is to write that down and to say so.
    fn arrived(&mut self, arrival: Arrival, control: &mut Control) -> Result<Arrival, Error> {
        self.paused = None;
        loop {
            // The one order that follows at once.
            if let Order::Record(_) = self.next_order(control)? {
                return Ok(arrival);
            }
        }
    }

    /// In debug builds a guest that dirties memory while it gives its state is found out.
    fn check_still(&mut self) -> Result<(), Error> {
        if cfg!(debug_assertions) {
            let (written, _) = self.harvest()?;
            if self.debt.add_rest(&written) > 0 {
                let why = "memory was written meanwhile; a device must not, see `Guest`";
                return Err(GuestError::new("save device state", why).into());
            }
        }
        Ok(())
    }

    /// Sends everything owed while the guest stands still; whether it was done by the deadline.
    /// What was not sent stays owed.
    fn send_rest(
        &mut self,
        control: &mut Control,
        links: &Links,
        deadline: Option<Instant>,
    ) -> Result<bool, Error> {
        let rest = self.debt.begin_rest();
        self.give(links, &Job::Sweep(rest.clone()));
        let doing = "sending the last pages";
        let mut busy = links.jobs.len();
        if let Some(deadline) = deadline {
            while busy > 0 && Instant::now() < deadline {
                busy -= self.await_shards(control, deadline, busy, doing)?;
            }
            rest.halt.store(busy > 0, Ordering::Relaxed);
        }
        let in_time = busy == 0 || deadline.is_none();
        self.await_all_shards(control, busy, doing)?;
        self.debt.settle();
        Ok(in_time)
    }

    /// The stun was called off, the guest runs on here: the policy hears of it.
    fn go_back(&mut self, paused: Instant, goal: Duration) -> Handover {
        (self.paused, self.phase) = (None, Phase::Copying);
        let (took, owed, sent) = (paused.elapsed(), self.debt.count(), self.sent());
        let at_ms = ms(paused - self.first_page);
        self.report.overruns.push(Overrun { at_ms, took_ms: ms(took), pages: owed });
        self.explain(format!(
            "the stun was called off after {:.1} ms, {:.1} ms are allowed: copying goes on",
            ms(took),
            ms(goal)
        ));
        Handover::CalledOff(DriverEvent::Overran { took, owed, sent })
    }

    pub(super) fn goal(&self) -> Duration {
        Duration::from_micros(self.goal_us.load(Ordering::Relaxed))
    }

    pub(super) fn give(&self, links: &Links, job: &Job) {
        for stream in &links.jobs {
            // A stream that is gone has said why, or will, through its signal.
            let _ = stream.send(job.clone());
        }
    }

    /// Waits until `deadline` for streams to finish jobs, at most `busy`; returns how many did.
    pub(super) fn await_shards(
        &mut self,
        control: &mut Control,
        deadline: Instant,
        busy: usize,
        doing: &'static str,
    ) -> Result<usize, Error> {
        let mut finished = 0;
        while finished < busy {
            self.look_up(control);
            let wait = deadline.saturating_duration_since(Instant::now());
            match self.signals.recv_timeout(wait) {
                Ok(Signal::Shard(done)) => {
                    done.map_err(lost(doing))?;
                    finished += 1;
                }
                Ok(Signal::Order(order)) => {
                    if let Order::Resume(failure) = self.carry_out(order, control) {
                        return Err(self.put_back_later(failure));
                    }
                }
                Err(_) => break,
            }
        }
        Ok(finished)
    }

    /// Waits until all of `busy` jobs are done.
    pub(super) fn await_all_shards(
        &mut self,
        control: &mut Control,
        mut busy: usize,
        doing: &'static str,
    ) -> Result<(), Error> {
        while busy > 0 {
            busy -= self.await_shards(control, Instant::now() + TICK, busy, doing)?;
        }
        Ok(())
    }

    /// The session's next order, while streams may not fail.
    pub(super) fn next_order_while(
        &mut self,
        control: &mut Control,
        doing: &'static str,
    ) -> Result<Order, Error> {
        loop {
            self.look_up(control);
            match self.signals.recv_timeout(TICK) {
                Ok(Signal::Shard(done)) => done.map_err(lost(doing))?,
                Ok(Signal::Order(order)) => return Ok(self.carry_out(order, control)),
                Err(_) => {}
            }
        }
    }

    /// The session's next order. What becomes of streams does not matter any more.
    fn next_order(&mut self, control: &mut Control) -> Result<Order, Error> {
        if let Some(order) = self.first.take() {
            return Ok(order);
        }
        loop {
            self.look_up(control);
            match self.signals.recv_timeout(TICK) {
                Ok(Signal::Order(order)) => return Ok(self.carry_out(order, control)),
                Ok(Signal::Shard(_)) | Err(_) => {}
            }
        }
    }

    /// Does at once what can be done anywhere: the record, and what the user should hear.
    fn carry_out(&mut self, order: Order, control: &mut Control) -> Order {
        match &order {
            Order::Record(says) => {
                // The session decides what follows.
                let _ = write_down(&control.conductor, &mut control.record, *says);
            }
            Order::Notice(notice) => self.observer.progress(told(self.id, notice)),
            _ => {}
        }
        order
    }

    /// Tells the session of the user's interrupts; each of them is a word.
    fn look_up(&mut self, control: &Control) {
        hear_interrupts(&control.conductor, &mut self.interrupts, self.observer);
    }

    /// The embedder's notes go on over the session.
    fn notes(&mut self, control: Control) -> Notes {
        let (_, never) = mpsc::channel();
        let signals = std::mem::replace(&mut self.signals, never);
        let Control { conductor, record, _registered, .. } = control;
        let released = record.contents().says == Says::Source(SourceRecord::Released);
        if released {
            record.remove();
        }
        let handle = conductor.handle();
        Notes::new(
            move |note| handle.on(Event::Note(note)),
            move |wait| {
                let deadline = Instant::now() + wait;
                loop {
                    match signals.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                        Ok(Signal::Order(Order::Note(note))) => {
                            return Some(NoteSignal::Note(note));
                        }
                        Ok(Signal::Order(Order::NotesHeard)) => return Some(NoteSignal::Heard),
                        Ok(Signal::Order(Order::Over)) => return Some(NoteSignal::Over),
                        Ok(_) => {}
                        Err(mpsc::RecvTimeoutError::Timeout) => return None,
                        Err(mpsc::RecvTimeoutError::Disconnected) => return Some(NoteSignal::Over),
                    }
                }
            },
            conductor,
        )
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
