//! One reception: carries out what the session orders, and tells it how that went.
//!
//! Everything that takes long (building, loading, receiving) happens in threads beside, so that
//! callers, interrupts and the end of the attempt are heard meanwhile.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::attendant::DestinationAttendant;
use super::keeper::{Keeper, Kept, let_in};
use super::rooms::Rooms;
use super::{Arrived, Ended, Observer, Progress, Source, TICK};
use crate::Error;
use crate::clock::cpu_time;
use crate::conductor::{self, Conductor, ProgressGauge};
use crate::error::spawn;
use crate::guest::{GuestError, Shadow, ShadowFactory, Work};
use crate::link::channel::Channel;
use crate::link::endpoint::Route;
use crate::memory::PAGE_BYTES;
use crate::operator::Registration;
use crate::operator::record::{Record, Says};
use crate::proto::hello::{Hello, Role, Welcome};
use crate::proto::message::{Activity, Message, Setup};
use crate::proto::{ProtoError, StunNumber};
use crate::session::destination::{Destination, Event, Notice, Order, Settings};
use crate::session::record::DestinationRecord;
use crate::session::{Failure, Heard, Reply, Word};
use crate::source::Notes;
use crate::wire::receiver::Receiver;

/// How long the source may take to open its data connections.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(10);
/// When a data connection breaks, the source is given so long to say why on the other one.
const REASON_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a source that was refused may take to say that it heard so.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a newcomer may take to say what it wants while a guest waits for its source.
const NEWCOMER_TIMEOUT: Duration = Duration::from_secs(1);

/// What reaches the main loop.
enum Signal {
    Order(Order),
    /// A data connection came to its end of a stun; its receiver waits.
    Stream(Result<Box<Receiver>, Error>),
    /// The thread beside is done.
    Worked,
}

pub(super) struct Reception<'a> {
    rooms: &'a Rooms,
    observer: &'a mut dyn Observer,
    hello: Hello,
    peer: SocketAddr,
    conductor: Conductor<Destination>,
    registered: Option<Registration>,
    signals: mpsc::Receiver<Signal>,
    to_main: mpsc::Sender<Signal>,
    /// Orders that came while something else was waited for.
    waiting: VecDeque<Order>,
    route: Route,
    record: Option<Record>,
    gauge: Arc<ProgressGauge>,
    /// What is being computed, to be called off when the shadow is dropped.
    work: Arc<Mutex<Work>>,
    received: Arc<AtomicU64>,
    memory_pages: Arc<AtomicU64>,
    interrupts: usize,
    answers: Vec<mpsc::Receiver<Reply>>,
    streams: Streams,
    cpu: Duration,
    /// A later attempt of the same guest, if one came.
    successor: Option<Box<Source>>,
}

/// The data connections and the threads that receive from them.
#[derive(Default)]
struct Streams {
    count: u64,
    channels: Vec<Arc<Channel>>,
    idle: Vec<Receiver>,
    threads: Vec<JoinHandle<()>>,
    cpu_before: Duration,
}

impl Streams {
    /// Closes the connections, and waits until nobody writes the shadow's memory any more.
    fn end(&mut self) {
        self.channels.drain(..).for_each(|channel| channel.close());
        for thread in self.threads.drain(..) {
            // What went wrong in it was said through its signal.
            let _ = thread.join();
        }
        self.idle.clear();
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.end();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Reception<'a> {
    pub(super) fn begin(
        rooms: &'a Rooms,
        source: Source,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, Error> {
        let settings = &rooms.settings;
        let Source { hello, peer, channel, timeout, setup } = source;
        let session = Destination::new(Settings {
            resolve_limit: settings.resolve_timeout,
            give_up_after: settings.give_up_after,
        });
        let (to_main, signals) = mpsc::channel();
        let gauge: Arc<ProgressGauge> = Arc::default();
        let work: Arc<Mutex<Work>> = Arc::default();
        let (orders, running) = (Mutex::new(to_main.clone()), work.clone());
        let on_order = move |order| {
            if matches!(order, Order::Drop(_)) {
                locked(&running).cancel();
            }
            // A main loop that is gone wants no orders.
            let _ = locked(&orders).send(Signal::Order(order));
        };
        let tag = hello.migration.tag();
        let conductor = Conductor::start(session, tag, gauge.clone(), on_order, None)?;
        let memory_pages: Arc<AtomicU64> = Arc::default();
        let registered = settings.operator.as_ref().map(|desk| {
            let attendant = DestinationAttendant {
                session: conductor.handle(),
                gauge: gauge.clone(),
                migration: hello.migration,
                peer,
                memory_pages: memory_pages.clone(),
            };
            desk.register(hello.migration, Arc::new(attendant))
        });
        let interrupts = observer.interrupts();
        let route = rooms.endpoint.route(hello.migration);
        rooms.occupy(hello.migration, format!("migration {} from {peer}", hello.migration));
        let reception = Self {
            rooms,
            observer,
            hello,
            peer,
            conductor,
            registered,
            signals,
            to_main,
            waiting: VecDeque::new(),
            route,
            record: None,
            gauge,
            work,
            received: Arc::default(),
            memory_pages,
            interrupts,
            answers: Vec::new(),
            streams: Streams::default(),
            cpu: Duration::ZERO,
            successor: None,
        };
        let mut first = None;
        reception.conductor.attach(channel, |id| {
            first = Some(id);
            Event::Called(id, timeout)
        })?;
        if let (Some(setup), Some(id)) = (setup, first) {
            let setup = Heard::Message(Message::Setup(setup));
            reception.conductor.on(Event::Heard(id, setup));
        }
        Ok(reception)
    }

    /// Carries out what is ordered until the guest runs here, or will not.
    pub(super) fn run<F: ShadowFactory>(
        mut self,
        factory: &mut F,
    ) -> Result<Arrived<F::Shadow>, Ended> {
        let mut shadow: Option<F::Shadow> = None;
        loop {
            match self.next_order().map_err(Ended::Failed)? {
                Order::Build(setup) => {
                    let built = self.build(factory, &setup);
                    let result = built.map(|built| shadow = Some(built));
                    self.conductor.on(Event::Built(result.map_err(|e| e.to_string())));
                }
                Order::Receive(again) => {
                    let memory = shadow.as_ref().map(Shadow::memory);
                    let begun = match memory {
                        Some(memory) => self.receive(memory, again),
                        None => Err(GuestError::new("receive pages", "there is no shadow").into()),
                    };
                    if let Err(error) = begun {
                        self.abandon(&error);
                    }
                }
                Order::Load(state) => {
                    let result = match &mut shadow {
                        Some(shadow) => self.load(shadow, &state),
                        None => Err(GuestError::new("load the guest", "there is no shadow")),
                    };
                    self.conductor.on(Event::Loaded(result.map_err(|e| e.to_string())));
                }
                Order::Record(says) => {
                    let result = self.write(says);
                    self.conductor.on(Event::Recorded(result.map_err(|e| e.to_string())));
                }
                Order::Open => {
                    let Some(mut guest) = shadow.take() else { continue };
                    guest.start();
                    self.conductor.on(Event::Opened);
                    self.gauge.begin(Activity::Running, 0);
                    self.observer.progress(Progress::Running);
                    return self.arrived(guest).map_err(Ended::Failed);
                }
                Order::Drop(failure) => {
                    self.streams.end();
                    drop(shadow.take());
                    return Err(self.dropped(failure));
                }
                Order::Notice(notice) => self.show(notice),
                Order::Forget | Order::Note(_) | Order::NotesHeard | Order::Over => {}
            }
        }
    }

    /// The session's next order; meanwhile callers and interrupts are heard, and data connections
    /// that are done are counted.
    fn next_order(&mut self) -> Result<Order, Error> {
        loop {
            if let Some(order) = self.waiting.pop_front() {
                return Ok(order);
            }
            self.look_up();
            match self.signals.recv_timeout(TICK) {
                Ok(Signal::Order(order)) => return Ok(order),
                Ok(Signal::Stream(ended)) => self.stream_ended(ended),
                Ok(Signal::Worked) | Err(_) => {}
            }
        }
    }

    /// Whatever has to be looked at now and then.
    fn look_up(&mut self) {
        for what in self.rooms.endpoint.rejected() {
            self.observer.progress(Progress::Rejected { what });
        }
        while self.interrupts < self.observer.interrupts() {
            self.interrupts += 1;
            self.answers.push(self.conductor.handle().say(Word::Interrupt));
        }
        let mut heard = Vec::new();
        self.answers.retain(|answer| match answer.try_recv() {
            Ok(reply) => {
                heard.push(reply);
                false
            }
            Err(mpsc::TryRecvError::Empty) => true,
            Err(mpsc::TryRecvError::Disconnected) => false,
        });
        for reply in heard.into_iter().filter(|reply| !reply.taken) {
            self.observer.progress(Progress::Answer(reply));
        }
        let (done, total) = locked(&self.work).progress();
        match self.gauge.read().activity {
            Activity::Building | Activity::Inspecting => self.gauge.set_of(done, total),
            _ => self.gauge.set(self.received.load(Ordering::Relaxed)),
        }
        if self.streams.channels.len() as u64 == self.streams.count
            && let Some(caller) = self.route.next(Duration::ZERO)
        {
            let_in(&self.conductor, caller);
        }
        self.hear_successor();
    }

    /// While the guest waits for a source that was lost, a new attempt of that source may come.
    fn hear_successor(&mut self) {
        let alone = self.conductor.look(|session| {
            *session.state() == crate::session::destination::State::Prepared
                && !session.is_connected()
        });
        // Where others wait for guests as well, one of them takes it up, and asks this one to make room.
        if !alone || self.successor.is_some() || !self.rooms.is_single() {
            return;
        }
        let Some(caller) = self.rooms.endpoint.arrival(Instant::now()) else { return };
        let (hello, peer) = (caller.hello, caller.peer);
        let Ok((channel, timeout)) = caller.answer(&Welcome::Ok) else { return };
        let setup = match read_setup(&channel, hello.migration.tag()) {
            Ok(setup) => setup,
            Err(error) => {
                return self
                    .observer
                    .progress(Progress::Rejected { what: format!("{peer}: {error}") });
            }
        };
        if setup.earlier.contains(&self.hello.migration) {
            let setup = Some(setup);
            self.successor = Some(Box::new(Source { hello, peer, channel, timeout, setup }));
            self.conductor.on(Event::Superseded);
        } else {
            let why = format!("a guest of migration {} waits here", self.hello.migration);
            let _ = channel.write(&Message::Fail { why }.encode(hello.migration.tag()));
            channel.finish();
            let what = format!("{peer}: a new migration, while a guest waits for its source");
            self.observer.progress(Progress::Rejected { what });
        }
    }

    fn show(&mut self, notice: Notice) {
        let migration = self.hello.migration;
        self.observer.progress(match notice {
            Notice::Prepared => Progress::Prepared,
            Notice::SourceLost => {
                self.rooms.left_alone(migration, self.conductor.handle());
                Progress::Unresolved { migration, since: Duration::ZERO }
            }
            Notice::StillWaiting(since) => Progress::Unresolved { migration, since },
            Notice::SourceBack => {
                self.rooms.vacate(migration);
                self.rooms.occupy(migration, format!("migration {migration} from {}", self.peer));
                Progress::SourceBack
            }
            Notice::RecordFails(why) => Progress::RecordFails { why },
        });
    }

    fn abandon(&self, error: &Error) {
        let failure = match error {
            Error::Protocol(error) => Failure::Breach(error.clone()),
            Error::Link { .. } => Failure::LinkLost(error.to_string()),
            Error::Cancelled => Failure::Cancelled,
            other => Failure::Local(other.to_string()),
        };
        self.conductor.on(Event::Abandon(failure));
    }

    /// Does something that takes long in a thread beside; orders wait meanwhile.
    fn beside<T: Send>(&mut self, job: impl FnOnce(&Work) -> T + Send) -> Result<T, GuestError> {
        let work = Work::default();
        *locked(&self.work) = work.clone();
        let done = self.to_main.clone();
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("guest".to_owned())
                .spawn_scoped(scope, || {
                    let _done = Done(done);
                    job(&work)
                })
                .map_err(|e| GuestError::new("start a thread", e))?;
            loop {
                match self.signals.recv_timeout(TICK) {
                    Ok(Signal::Worked) => break,
                    Ok(Signal::Order(order)) => self.waiting.push_back(order),
                    Ok(Signal::Stream(ended)) => self.stream_ended(ended),
                    Err(_) => {}
                }
                self.look_up();
            }
            thread.join().map_err(|_| GuestError::new("prepare the guest", "a thread panicked"))
        })
    }

    fn build<F: ShadowFactory>(
        &mut self,
        factory: &mut F,
        setup: &Setup,
    ) -> Result<F::Shadow, Error> {
        let (migration, pages) = (self.hello.migration, setup.pages());
        self.observer.progress(Progress::Setup { peer: self.peer, migration, pages });
        let what = format!(
            "migration {migration} of {} MiB from {}",
            (pages * PAGE_BYTES) >> 20,
            self.peer
        );
        self.rooms.occupy(migration, what);
        if !self.rooms.is_single() {
            self.rooms.supersede(&setup.earlier);
        }
        self.memory_pages.store(pages, Ordering::Relaxed);
        self.gauge.begin(Activity::Building, pages);
        self.streams.count = u64::from(setup.streams);
        // Before anything is built: a guest whose handover cannot be recorded cannot come.
        let says = Says::Destination(DestinationRecord::Receiving);
        let timeout = self.conductor.look(Destination::timeout).unwrap_or_default();
        let (epoch, peer) = (self.hello.epoch, self.peer.to_string());
        let record = Record::create(&self.rooms.directory, migration, says, epoch, timeout, &peer)?;
        self.record = Some(record);
        let (description, regions) = (&setup.description, &setup.regions);
        let shadow = self.beside(|work| factory.create(description, regions, work))??;
        if shadow.memory().regions() != *regions {
            return Err(GuestError::new("build a shadow", "its memory has other regions").into());
        }
        Ok(shadow)
    }

    /// Lets each stream receive until it says that nothing more comes in this stun.
    fn receive(
        &mut self,
        memory: crate::guest::MemoryView,
        again: Option<StunNumber>,
    ) -> Result<(), Error> {
        self.gauge.begin(Activity::Waiting, 0);
        self.observer.progress(Progress::Receiving);
        if again.is_none() {
            self.open_streams(&memory)?;
        }
        self.streams.cpu_before = cpu_time();
        for mut receiver in std::mem::take(&mut self.streams.idle) {
            let done = self.to_main.clone();
            let thread = spawn("receive", move || {
                let ended =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| receiver.run(again)));
                let ended = match ended {
                    Ok(ended) => ended.map(|_| Box::new(receiver)),
                    Err(_) => Err(GuestError::new("receive pages", "a thread panicked").into()),
                };
                let _ = done.send(Signal::Stream(ended));
            })?;
            self.streams.threads.push(thread);
        }
        Ok(())
    }

    /// Takes one connection for each stream, in whatever order they come.
    fn open_streams(&mut self, memory: &crate::guest::MemoryView) -> Result<(), Error> {
        let deadline = Instant::now() + STREAMS_TIMEOUT;
        let count = self.streams.count;
        let mut open: Vec<Option<Receiver>> = (0..count).map(|_| None).collect();
        while open.iter().any(Option::is_none) {
            self.look_up();
            while let Ok(Signal::Order(order)) = self.signals.try_recv() {
                let over = matches!(order, Order::Drop(_));
                self.waiting.push_back(order);
                if over {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::PeerSilent(STREAMS_TIMEOUT, "waiting for its data streams"));
            }
            let Some(caller) = self.route.next(TICK / 4) else { continue };
            let free = match caller.hello.role {
                Role::Data { stream } => {
                    open.get(stream as usize).is_some_and(Option::is_none).then_some(stream)
                }
                Role::Control | Role::Resolve => None,
            };
            let Some(stream) = free else {
                let_in(&self.conductor, caller);
                continue;
            };
            let (channel, _) = caller.answer(&Welcome::Ok)?;
            let channel = Arc::new(channel);
            self.streams.channels.push(channel.clone());
            let (tag, shard) = (self.hello.migration.tag(), (u64::from(stream), count));
            let received = self.received.clone();
            open[stream as usize] =
                Some(Receiver::new(channel, tag, memory.clone(), shard, received));
        }
        self.streams.idle = open.into_iter().flatten().collect();
        Ok(())
    }

    fn stream_ended(&mut self, ended: Result<Box<Receiver>, Error>) {
        match ended {
            Ok(receiver) => {
                self.streams.idle.push(*receiver);
                if self.streams.idle.len() as u64 == self.streams.count {
                    for thread in self.streams.threads.drain(..) {
                        let _ = thread.join();
                    }
                    self.cpu += cpu_time().saturating_sub(self.streams.cpu_before);
                    self.conductor.on(Event::PagesComplete);
                }
            }
            Err(error) => {
                // A source that ends the attempt says why on its control connection; that may come
                // a moment later.
                let reason = Instant::now() + REASON_TIMEOUT;
                let lost = matches!(error, Error::Link { .. });
                while lost && Instant::now() < reason {
                    match self.signals.recv_timeout(TICK) {
                        Ok(Signal::Order(order)) => {
                            let over = matches!(order, Order::Drop(_));
                            self.waiting.push_back(order);
                            if over {
                                return;
                            }
                        }
                        Ok(Signal::Stream(_) | Signal::Worked) | Err(_) => {}
                    }
                }
                self.abandon(&error);
            }
        }
    }

    /// Everything that can fail: state, a look at all of memory, threads at a closed gate.
    fn load<S: Shadow>(&mut self, shadow: &mut S, state: &[u8]) -> Result<Duration, GuestError> {
        self.gauge.begin(Activity::Inspecting, 0);
        self.beside(|work| {
            shadow.load_state(state)?;
            let start = Instant::now();
            shadow.inspect(work)?;
            let inspected = start.elapsed();
            shadow.prepare()?;
            Ok(inspected)
        })?
    }

    fn write(&mut self, says: DestinationRecord) -> std::io::Result<()> {
        let (stun, timeout) = self.conductor.look(|session| (session.stun(), session.timeout()));
        let Some(record) = &mut self.record else {
            return Err(std::io::Error::other("there is no record"));
        };
        let timeout = timeout.unwrap_or(record.contents().timeout);
        record.write(Says::Destination(says), stun, timeout)
    }

    fn arrived<S>(mut self, guest: S) -> Result<Arrived<S>, Error> {
        self.streams.end();
        self.rooms.vacate(self.hello.migration);
        let record = self.record.take();
        let record = record.ok_or_else(|| GuestError::new("keep the guest", "it has no record"))?;
        let (signals, mut waiting) = (self.signals, self.waiting);
        let orders = Box::new(move |wait| {
            waiting.pop_front().or_else(|| match signals.recv_timeout(wait) {
                Ok(Signal::Order(order)) => Some(order),
                Ok(Signal::Stream(_) | Signal::Worked) | Err(_) => None,
            })
        });
        let (keeper, notes) = Keeper::start(Kept {
            conductor: self.conductor,
            orders,
            record,
            route: Some(self.route),
            registered: self.registered,
            endpoint: Some(self.rooms.endpoint.clone()),
        })?;
        let (session, ended) = (keeper.handle(), keeper.handle());
        let source_is_gone = session.look(Destination::source_is_gone);
        let control = Notes::new(
            move |note| session.on(Event::Note(note)),
            move |wait| notes.recv_timeout(wait).ok(),
            keeper,
        )
        .with_left(move |standing| ended.on(Event::Left(standing)));
        Ok(Arrived {
            guest,
            migration: self.hello.migration,
            peer: self.peer,
            epoch: self.hello.epoch,
            pages: self.received.load(Ordering::Relaxed),
            cpu_ms: self.cpu.as_secs_f64() * 1e3,
            source_is_gone,
            control,
        })
    }

    /// The shadow is dropped: why, once the source has had time to hear it.
    fn dropped(mut self, failure: Failure) -> Ended {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut forget = false;
        while Instant::now() < deadline {
            match self
                .waiting
                .pop_front()
                .map(Signal::Order)
                .or_else(|| self.signals.recv_timeout(TICK).ok())
            {
                Some(Signal::Order(Order::Over)) => break,
                Some(Signal::Order(Order::Forget)) => forget = true,
                _ => {}
            }
        }
        // A refusal that the source may not have heard stays on disk, to be said again.
        if let (true, Some(record)) = (forget, self.record.take()) {
            record.remove();
        }
        match failure {
            Failure::Superseded => match self.successor.take() {
                Some(successor) => Ended::Superseded(successor),
                None => Ended::Failed(Error::Session(Failure::Superseded)),
            },
            failure if self.memory_pages.load(Ordering::Relaxed) == 0 => match failure {
                Failure::Cancelled => Ended::Failed(Error::Cancelled),
                failure => Ended::BeforeSetup(failure),
            },
            Failure::Cancelled => Ended::Failed(Error::Cancelled),
            Failure::Breach(error) => Ended::Failed(Error::Protocol(error)),
            failure => Ended::Failed(Error::Session(failure)),
        }
    }
}

/// Says that a thread beside is done, also if it panics.
struct Done(mpsc::Sender<Signal>);

impl Drop for Done {
    fn drop(&mut self) {
        let _ = self.0.send(Signal::Worked);
    }
}

/// What a source asks for, within a short while.
fn read_setup(channel: &Channel, tag: u64) -> Result<Setup, Error> {
    let lost = |source| Error::Link { doing: "reading what a source asks for", source };
    channel.wait_at_most(NEWCOMER_TIMEOUT).map_err(lost)?;
    let message = conductor::read(channel, tag).map_err(Error::Session);
    channel.wait_patiently().map_err(lost)?;
    match message? {
        Message::Setup(setup) => Ok(setup),
        other => Err(ProtoError::Unexpected { kind: other.kind(), why: "expected Setup" }.into()),
    }
}
