//! One attempt, phase by phase; errors are handled once, in [`Attempt::run`].

mod copy;
mod resolve;
mod setup;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use copy::HarvestCost;

use super::first_look::Looks;
use super::handover::Record;
use super::sender::Counters;
use super::shards::{Done, Job, Sweep};
use super::{Migrated, NotMigrated, Notes, Observer, OverLimit, Progress, SourceSettings};
use crate::Error;
use crate::clock::cpu_time;
use crate::error::lost;
use crate::guest::{DirtyTracker, Guest};
use crate::link::channel::Channel;
use crate::memory::{Bitmap, PAGE_BYTES};
use crate::policy::heat::Heat;
use crate::policy::writers::Writers;
use crate::policy::{Event, Policy, Stun};
use crate::proto::ProtoError;
use crate::proto::frame::{Header, Kind};
use crate::proto::hello::MigrationId;
use crate::proto::state::{Source as State, SourceEvent};
use crate::report::{Contents, Downtime, MigrationReport, Overrun, SCHEMA};

/// How often a wait looks up.
const TICK: Duration = Duration::from_millis(50);
/// How long the destination may take to build its shadow or to load a guest, beyond what that takes
/// by its size.
const SETUP_TIMEOUT: Duration = Duration::from_secs(20);
/// It has a second for so many bytes of a guest that it loads and inspects.
const READY_BYTES_PER_S: u64 = 256 << 20;
/// Time between signs of life on the control connection.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// What reaches the main loop from the connections.
enum Signal {
    Control(Result<(Header, Vec<u8>), Error>),
    Shard(Done),
}

/// How a stun ended.
enum Handover {
    Done,
    /// The guest runs on here; what the policy is told.
    CalledOff(Event),
}

pub(super) struct Attempt<'a> {
    guest: &'a mut dyn Guest,
    tracker: &'a mut dyn DirtyTracker,
    settings: &'a SourceSettings,
    observer: &'a mut dyn Observer,
    policy: Box<dyn Policy>,
    id: MigrationId,
    state: State,
    report: MigrationReport,
    owed: Bitmap,
    /// What is known of pages that were not sent yet.
    looks: Arc<Looks>,
    heat: Heat,
    harvest_cost: HarvestCost,
    writers: Writers,
    /// When the first page was sent; when the attempt began, before that.
    first_page: Instant,
    cpu_at_start: Duration,
    last_alive: Instant,
    counters: Arc<Counters>,
}

/// The connections of an attempt whose shadow exists.
struct Links {
    control: Arc<Channel>,
    jobs: Vec<mpsc::Sender<Job>>,
    signals: mpsc::Receiver<Signal>,
    abandon: Arc<AtomicBool>,
    data: Vec<Arc<Channel>>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.abandon.store(true, Ordering::Relaxed);
        for channel in &self.data {
            channel.close();
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
            epoch: settings.epoch,
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
            outcome: String::new(),
        };
        let writers = Writers::new(guest.vcpus(), guest.written());
        Self {
            writers,
            policy: settings.policy.build(settings.limits),
            guest,
            tracker,
            settings,
            observer,
            id,
            state: State::Setup,
            report,
            owed: Bitmap::full(pages),
            looks: Arc::new(Looks::none(0)),
            heat: Heat::new(pages),
            harvest_cost: HarvestCost::default(),
            first_page: Instant::now(),
            cpu_at_start: cpu_time(),
            last_alive: Instant::now(),
            counters: Arc::default(),
        }
    }

    /// The whole attempt; whatever went wrong is put right here.
    pub(super) fn run(mut self) -> Result<Migrated, Box<NotMigrated>> {
        let record = Record::create(&self.settings.state_directory, self.id);
        let result = match record {
            Ok(record) => {
                let result = match self.phases(&record) {
                    Err(error) => self.recover(error, &record),
                    done => done,
                };
                // Kept where it still says that the guest must not run here.
                if self.state != State::Unresolved {
                    record.remove();
                }
                result
            }
            Err(error) => Err(error),
        };
        if self.state != State::Setup && self.report.migration_ms == 0.0 {
            self.report.migration_ms = ms(self.first_page.elapsed());
        }
        self.report.cpu_ms = ms(cpu_time().saturating_sub(self.cpu_at_start));
        let contents = self.counters.contents();
        self.report.page_bytes = contents.content_pages() * PAGE_BYTES;
        self.report.wire_bytes = contents.wire_bytes;
        self.report.contents = contents;
        self.report.total_ms = self.report.setup_ms + self.report.migration_ms;
        match result {
            Ok(control) => {
                self.report.outcome = "done".to_owned();
                let control = control.map(|channel| Notes { channel, tag: self.id.tag() });
                Ok(Migrated { report: self.report, control })
            }
            Err(error) => {
                self.report.outcome = error.to_string();
                Err(Box::new(NotMigrated { error, report: self.report }))
            }
        }
    }

    fn phases(&mut self, record: &Record) -> Result<Option<Arc<Channel>>, Error> {
        let links = self.setup()?;
        self.enter(SourceEvent::ShadowReady);
        let result = self.copy_and_stun(&links, record);
        if result.is_err() && !matches!(self.state, State::Committed | State::Released) {
            // Best effort: the destination would notice the lost connection as well.
            let cancel = Header::new(Kind::Cancel, 0, 0, 0);
            let _ = links.control.send(self.id.tag(), &cancel, &[]);
            links.control.finish();
        }
        result.map(|()| Some(links.control.clone()))
    }

    /// Copies and stuns, as often as stuns are called off.
    fn copy_and_stun(&mut self, links: &Links, record: &Record) -> Result<(), Error> {
        let mut event = self.begin()?;
        loop {
            let stun = self.copy(links, event)?;
            event = match self.stun(links, stun, record)? {
                Handover::Done => return Ok(()),
                Handover::CalledOff(event) => event,
            };
        }
    }

    /// After a failure: the guest runs here again, or stays stopped because it may run there.
    fn recover(&mut self, error: Error, record: &Record) -> Result<Option<Arc<Channel>>, Error> {
        self.enter(SourceEvent::Failed);
        match self.state {
            State::Unresolved => self.resolve(record),
            _ => {
                self.release()?;
                Err(error)
            }
        }
    }

    /// The guest runs here, and freely.
    fn release(&mut self) -> Result<(), Error> {
        self.guest.throttle(&vec![0.0; self.guest.vcpus()]);
        Ok(self.guest.resume()?)
    }

    fn enter(&mut self, event: SourceEvent) {
        match self.state.next(event) {
            Some(state) => self.state = state,
            None => unreachable!("{event:?} cannot happen in {:?}", self.state),
        }
    }

    /// Pauses, sends the rest and the state, and hands over; or calls it off if that takes longer
    /// than it may.
    fn stun(&mut self, links: &Links, stun: Stun, record: &Record) -> Result<Handover, Error> {
        let (tag, epoch) = (self.id.tag(), self.settings.epoch);
        let paused = Instant::now();
        let deadline = match self.settings.over_limit {
            OverLimit::GoBack => Some(paused + self.settings.limits.goal),
            OverLimit::Accept => None,
        };
        self.guest.pause()?;
        self.enter(SourceEvent::Paused);
        let stopped = Instant::now();
        let written = self.harvest()?;
        self.owed.add(&written);
        let harvested = Instant::now();
        let rest_pages = self.owed.count();
        self.report.stun = Some(stun);
        self.observer.progress(Progress::Stun { pages: rest_pages });

        let state = self.guest.save_state()?;
        if !self.send_rest(links, deadline)? {
            return self.go_back(paused);
        }
        self.give(links, Job::End { epoch });
        let header = Header::new(Kind::State, epoch, 0, state.len());
        links.control.send(tag, &header, &state).map_err(lost("sending device state"))?;
        self.await_all_shards(links, links.jobs.len(), "sending the last pages")?;
        let sent = Instant::now();

        let patience =
            SETUP_TIMEOUT + Duration::from_secs(self.owed.pages() * PAGE_BYTES / READY_BYTES_PER_S);
        let ready = self.await_control(links, Kind::Ready, patience, "waiting for Ready")?;
        let proof = Duration::from_nanos(ready.b);
        if ready.a != epoch {
            let why = "Ready for another epoch";
            return Err(ProtoError::Unexpected { kind: Kind::Ready, why }.into());
        }
        self.enter(SourceEvent::Ready);
        let prepared = Instant::now();
        let proof = proof.min(prepared - sent);
        if deadline.is_some_and(|deadline| prepared - proof > deadline) {
            let again = Header::new(Kind::Again, epoch, 0, 0);
            links.control.send(tag, &again, &[]).map_err(lost("going back to copying"))?;
            return self.go_back(paused);
        }

        record.commit()?;
        self.enter(SourceEvent::Recorded);
        links
            .control
            .send(tag, &Header::new(Kind::Run, epoch, 0, 0), &[])
            .map_err(lost("handing over"))?;
        let patience = self.settings.link.timeout;
        self.await_control(links, Kind::Running, patience, "waiting for Running")?;
        let running = Instant::now();
        self.enter(SourceEvent::Running);
        // The guest runs there; whatever happens to this message changes nothing.
        let _ = links.control.send(tag, &Header::new(Kind::Released, epoch, 0, 0), &[]);

        let downtime = running - paused - proof;
        self.report.downtime = Downtime {
            total_ms: ms(downtime),
            pause_ms: ms(stopped - paused),
            harvest_ms: ms(harvested - stopped),
            send_ms: ms(sent - harvested),
            state_ms: ms(prepared - sent - proof),
            resume_ms: ms(running - prepared),
            proof_ms: ms(proof),
            pages: rest_pages,
        };
        self.report.over_goal = downtime > self.settings.limits.goal;
        self.report.migration_ms = ms(running - self.first_page - proof);
        Ok(Handover::Done)
    }

    /// Sends everything owed while the guest stands still; whether it was done by the deadline.
    /// What was not sent stays owed.
    fn send_rest(&mut self, links: &Links, deadline: Option<Instant>) -> Result<bool, Error> {
        let rest = Arc::new(Sweep::over(&self.owed, &Bitmap::empty(self.owed.pages())));
        self.give(links, Job::Sweep(rest.clone()));
        let doing = "sending the last pages";
        let mut busy = links.jobs.len();
        if let Some(deadline) = deadline {
            while busy > 0 && Instant::now() < deadline {
                busy -= self.await_shards(links, deadline, busy, doing)?;
            }
            rest.halt.store(busy > 0, Ordering::Relaxed);
        }
        let in_time = busy == 0 || deadline.is_none();
        self.await_all_shards(links, busy, doing)?;
        self.owed = rest.owed.snapshot();
        Ok(in_time)
    }

    /// The stun is called off: the guest runs on here, and the policy hears of it.
    fn go_back(&mut self, paused: Instant) -> Result<Handover, Error> {
        self.guest.resume()?;
        self.enter(SourceEvent::Overran);
        let (took, pending) = (paused.elapsed(), self.owed.count());
        let at_ms = ms(paused - self.first_page);
        self.report.overruns.push(Overrun { at_ms, took_ms: ms(took), pages: pending });
        self.explain(format!(
            "the stun was called off after {:.1} ms, {:.1} ms are allowed: copying goes on",
            ms(took),
            ms(self.settings.limits.goal)
        ));
        Ok(Handover::CalledOff(Event::Overran { took, pending }))
    }

    fn give(&self, links: &Links, job: Job) {
        for stream in &links.jobs {
            // A stream that is gone has said why, or will, through its signal.
            let _ = stream.send(job.clone());
        }
    }

    /// Waits until `deadline` for streams to finish jobs, at most `busy`; returns how many did.
    fn await_shards(
        &mut self,
        links: &Links,
        deadline: Instant,
        busy: usize,
        doing: &'static str,
    ) -> Result<usize, Error> {
        let mut finished = 0;
        while finished < busy {
            self.keep_alive(links)?;
            let wait = deadline.saturating_duration_since(Instant::now());
            match links.signals.recv_timeout(wait) {
                Ok(Signal::Shard(done)) => {
                    done.map_err(lost(doing))?;
                    finished += 1;
                }
                Ok(Signal::Control(message)) => {
                    let (header, payload) = message?;
                    if header.kind != Kind::Alive {
                        return Err(refused(&header, &payload));
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => break,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(gone(doing)),
            }
        }
        Ok(finished)
    }

    /// Waits until all of `busy` jobs are done.
    fn await_all_shards(
        &mut self,
        links: &Links,
        mut busy: usize,
        doing: &'static str,
    ) -> Result<(), Error> {
        while busy > 0 {
            busy -= self.await_shards(links, Instant::now() + TICK, busy, doing)?;
        }
        Ok(())
    }

    /// Waits for one message of `kind`.
    fn await_control(
        &mut self,
        links: &Links,
        kind: Kind,
        patience: Duration,
        doing: &'static str,
    ) -> Result<Header, Error> {
        let deadline = Instant::now() + patience;
        loop {
            self.keep_alive(links)?;
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Err(Error::PeerSilent(patience, doing));
            }
            match links.signals.recv_timeout(wait.min(TICK)) {
                Ok(Signal::Shard(done)) => done.map_err(lost(doing))?,
                Ok(Signal::Control(message)) => match message? {
                    (header, _) if header.kind == kind => return Ok(header),
                    (header, _) if header.kind == Kind::Alive => {}
                    (header, payload) => return Err(refused(&header, &payload)),
                },
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(gone(doing)),
            }
        }
    }

    /// Tells the peer that we live, and asks the user whether we should.
    fn keep_alive(&mut self, links: &Links) -> Result<(), Error> {
        if self.state != State::Committed && self.observer.cancelled() {
            return Err(Error::Cancelled);
        }
        if self.last_alive.elapsed() > ALIVE_INTERVAL {
            self.last_alive = Instant::now();
            let alive = Header::new(Kind::Alive, 0, 0, 0);
            links.control.send(self.id.tag(), &alive, &[]).map_err(lost("saying we live"))?;
        }
        Ok(())
    }
}

fn refused(header: &Header, payload: &[u8]) -> Error {
    match header.kind {
        Kind::Fail => Error::Peer(String::from_utf8_lossy(payload).into_owned()),
        kind => ProtoError::Unexpected { kind, why: "not now" }.into(),
    }
}

fn gone(doing: &'static str) -> Error {
    Error::Link { doing, source: std::io::ErrorKind::ConnectionAborted.into() }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
