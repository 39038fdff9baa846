//! The destination: builds the shadow, receives pages into place, runs the guest when told to.
//!
//! The shadow exists with all its memory populated before the first page is asked for. Once Ready
//! was said the shadow is not forgotten because a connection was lost: it stays, stopped, until
//! Run arrives with the right epoch (on a new connection if need be), or the wait is over.

mod receiver;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Error;
use crate::clock::cpu_time;
use crate::error::{lost, spawn};
use crate::guest::{GuestError, MemoryView, Shadow, ShadowFactory, Work};
use crate::link::Listener;
use crate::link::channel::Channel;
use crate::proto::ProtoError;
use crate::proto::frame::{Header, Kind};
use crate::proto::hello::{Hello, MigrationId, Role, Welcome};
use crate::proto::state::{Destination as State, DestinationEvent};
use crate::source::Notes;
use receiver::Receiver;

/// Time between signs of life on the control connection.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How often waits look at whether the user cancelled.
const POLL: Duration = Duration::from_millis(50);
/// How long the source may take to open its data streams.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct DestinationSettings {
    /// For a source to come; `None` waits until cancelled.
    pub arrival_timeout: Option<Duration>,
    /// For an unresolved handover to be resolved, the guest stopped.
    pub resolve_timeout: Duration,
}

/// What a user may want to see while it goes on.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// A caller was turned away.
    Rejected {
        /// Who and why.
        what: String,
    },
    /// A source came; its shadow is being built.
    Setup {
        /// From where.
        peer: String,
        /// Pages of memory.
        pages: u64,
    },
    /// Pages arrive.
    Receiving,
    /// Everything is here; waiting for the source's word.
    Prepared,
    /// The link is lost with the guest prepared: waiting for the source to come back.
    Unresolved {
        /// Which migration.
        migration: MigrationId,
    },
    /// The guest runs here.
    Running,
}

/// Who watches.
pub trait Observer {
    /// Something happened.
    fn progress(&mut self, progress: Progress);
    /// Whether to stop waiting; asked often.
    fn cancelled(&self) -> bool;
}

/// A guest that arrived and runs here.
#[derive(Debug)]
pub struct Arrived<S> {
    /// The guest.
    pub guest: S,
    /// Which migration brought it.
    pub migration: MigrationId,
    /// Hosts it has left.
    pub epoch: u64,
    /// Pages received, zero pages included.
    pub pages: u64,
    /// CPU time of this process while pages were received, in milliseconds.
    pub cpu_ms: f64,
    /// To the source, for the embedder's notes.
    pub control: Notes,
}

/// What reaches the main loop from the connections.
enum Signal {
    Control(Result<(Header, Vec<u8>), Error>),
    /// A data stream said that nothing more comes; its receiver waits.
    Stream(Result<Box<Receiver>, Error>),
}

/// The source's word on a guest that is prepared.
enum Word {
    Run,
    /// The stun took too long: more pages will come.
    Again,
}

/// Waits for one guest, receives it, and runs it.
///
/// # Errors
/// Why it does not run here. The source was told, if it could be.
pub fn receive<F: ShadowFactory>(
    listener: &Listener,
    factory: &mut F,
    settings: &DestinationSettings,
    observer: &mut dyn Observer,
) -> Result<Arrived<F::Shadow>, Error> {
    let (hello, control) = await_source(listener, settings, observer)?;
    let control = Arc::new(control);
    let mut session = Session {
        listener,
        settings,
        observer,
        hello,
        tag: hello.migration.tag(),
        control,
        state: State::Setup,
        last_alive: Instant::now(),
    };
    let result = session.run(factory);
    if let Err(error) = &result {
        session.complain(error);
    }
    result
}

fn await_source(
    listener: &Listener,
    settings: &DestinationSettings,
    observer: &mut dyn Observer,
) -> Result<(Hello, Channel), Error> {
    let patience = settings.arrival_timeout.unwrap_or(Duration::from_secs(1 << 32));
    let deadline = Instant::now() + patience;
    loop {
        let mut rejected = Vec::new();
        let caller = listener.accept(deadline, &|| observer.cancelled(), &mut |peer, error| {
            rejected.push(format!("{peer}: {error}"));
        });
        for what in rejected {
            observer.progress(Progress::Rejected { what });
        }
        match caller? {
            None => return Err(Error::NobodyCame(patience)),
            Some(caller) if caller.hello.role == Role::Control => {
                let hello = caller.hello;
                if let Ok(channel) = caller.answer(Welcome::Ok) {
                    return Ok((hello, channel));
                }
            }
            Some(caller) => {
                let what = format!("{}: belongs to no migration under way", caller.peer);
                observer.progress(Progress::Rejected { what });
                let _ = caller.answer(Welcome::Unknown);
            }
        }
    }
}

/// Data connections, closed when this value goes.
struct Data(Vec<Arc<Channel>>);

impl Drop for Data {
    fn drop(&mut self) {
        self.0.iter().for_each(|channel| channel.close());
    }
}

struct Session<'a> {
    listener: &'a Listener,
    settings: &'a DestinationSettings,
    observer: &'a mut dyn Observer,
    hello: Hello,
    tag: u64,
    control: Arc<Channel>,
    state: State,
    last_alive: Instant,
}

impl Session<'_> {
    fn run<F: ShadowFactory>(&mut self, factory: &mut F) -> Result<Arrived<F::Shadow>, Error> {
        let (mut shadow, streams) = self.setup(factory)?;
        self.enter(DestinationEvent::ShadowReady)?;
        self.observer.progress(Progress::Receiving);
        let (signal, signals) = mpsc::channel();
        let mut receivers = self.open_streams(streams, &shadow.memory())?;
        // Closed in every case: a receiver that waits for pages ends then.
        let _data = Data(receivers.iter().map(Receiver::channel).collect());
        self.read_control(&signal)?;
        let epoch = self.hello.epoch;
        let mut cpu = Duration::ZERO;
        let pages = loop {
            let cpu_before = cpu_time();
            let ended = self.collect(receivers, &signal, &signals)?;
            cpu += cpu_time().saturating_sub(cpu_before);
            receivers = ended.0;
            shadow.load_state(&ended.1)?;
            let inspecting = Instant::now();
            shadow.inspect(&Work::default())?;
            let inspected = inspecting.elapsed();
            shadow.prepare()?;
            let ready = Header::new(Kind::Ready, epoch, inspected.as_nanos() as u64, 0);
            // From the moment Ready may have been heard, the shadow must not be dropped lightly.
            self.enter(DestinationEvent::Complete)?;
            self.observer.progress(Progress::Prepared);
            let said = self.control.send(self.tag, &ready, &[]).map_err(lost("saying Ready"));
            match said.and_then(|()| self.await_word(&signals)) {
                Ok(Word::Run) => {}
                Ok(Word::Again) => {
                    self.observer.progress(Progress::Receiving);
                    continue;
                }
                Err(_) if self.state == State::Discarded => {
                    return Err(Error::Peer("the source cancelled".to_owned()));
                }
                Err(_) => self.await_resolution(&signal, &signals)?,
            }
            break receivers.iter().map(Receiver::received).sum();
        };
        shadow.start();
        self.observer.progress(Progress::Running);
        self.confirm(&signal, &signals)?;
        Ok(Arrived {
            guest: shadow,
            migration: self.hello.migration,
            epoch,
            pages,
            cpu_ms: cpu.as_secs_f64() * 1e3,
            control: Notes { channel: self.control.clone(), tag: self.tag },
        })
    }

    fn enter(&mut self, event: DestinationEvent) -> Result<(), Error> {
        let why = "not in this state";
        self.state =
            self.state.next(event).ok_or(ProtoError::Unexpected { kind: Kind::Run, why })?;
        Ok(())
    }

    /// Reads what guest is coming, and builds its shadow.
    fn setup<F: ShadowFactory>(&mut self, factory: &mut F) -> Result<(F::Shadow, u64), Error> {
        let doing = "reading the guest's description";
        let header = self.control.read_header(self.tag, doing)?;
        if header.kind != Kind::Setup {
            return Err(ProtoError::Unexpected { kind: header.kind, why: "expected Setup" }.into());
        }
        let description = self.control.read_payload(&header, doing)?;
        let (pages, streams) = (header.a, header.b);
        self.observer
            .progress(Progress::Setup { peer: format!("{}", self.hello.migration), pages });
        // Building takes seconds for large guests; the source must hear that we live.
        let shadow = std::thread::scope(|scope| {
            let (stop, stopped) = mpsc::channel::<()>();
            let (control, tag) = (self.control.clone(), self.tag);
            scope.spawn(move || {
                while stopped.recv_timeout(ALIVE_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let _ = control.send(tag, &Header::new(Kind::Alive, 0, 0, 0), &[]);
                }
            });
            let shadow = factory.create(&description, pages);
            drop(stop);
            shadow
        })?;
        if shadow.memory().pages() != pages {
            return Err(GuestError::new("build a shadow", "it has another number of pages").into());
        }
        self.control
            .send(self.tag, &Header::new(Kind::SetupDone, 0, 0, 0), &[])
            .map_err(lost("confirming the shadow"))?;
        Ok((shadow, streams))
    }

    /// Accepts one connection per stream, each with a receiver for its shard of the shadow.
    fn open_streams(&mut self, streams: u64, memory: &MemoryView) -> Result<Vec<Receiver>, Error> {
        let deadline = Instant::now() + STREAMS_TIMEOUT;
        let mut open: Vec<Option<Receiver>> = (0..streams).map(|_| None).collect();
        while open.iter().any(Option::is_none) {
            let caller = self.next_caller(deadline)?;
            let Some(caller) = caller else {
                return Err(Error::PeerSilent(STREAMS_TIMEOUT, "waiting for its data streams"));
            };
            let free = match caller.hello.role {
                Role::Data { stream } if caller.hello.migration == self.hello.migration => {
                    open.get(stream as usize).is_some_and(Option::is_none).then_some(stream)
                }
                _ => None,
            };
            let Some(stream) = free else {
                let _ = caller.answer(Welcome::Busy);
                continue;
            };
            let channel = Arc::new(caller.answer(Welcome::Ok)?);
            // A shard without dirty pages is silent; the control connection tells the dead.
            channel.wait_patiently().map_err(lost("opening a data stream"))?;
            let shard = (u64::from(stream), streams);
            let (memory, epoch) = (memory.clone(), self.hello.epoch);
            open[stream as usize] = Some(Receiver::new(channel, self.tag, memory, shard, epoch));
        }
        Ok(open.into_iter().flatten().collect())
    }

    fn next_caller(&mut self, deadline: Instant) -> Result<Option<crate::link::Caller>, Error> {
        let mut rejected = Vec::new();
        let observer = &self.observer;
        let caller =
            self.listener.accept(deadline, &|| observer.cancelled(), &mut |peer, error| {
                rejected.push(format!("{peer}: {error}"));
            });
        for what in rejected {
            self.observer.progress(Progress::Rejected { what });
        }
        caller
    }

    fn read_control(&self, signal: &mpsc::Sender<Signal>) -> Result<(), Error> {
        let (control, tag, signal) = (self.control.clone(), self.tag, signal.clone());
        spawn("control", move || {
            let doing = "listening to the source";
            // After Released the connection belongs to the embedder's notes.
            control.listen(tag, Kind::Released, doing, |m| signal.send(Signal::Control(m)).is_ok());
        })
        .map(drop)
    }

    /// Lets each stream receive until all said that nothing more comes and the state is here.
    fn collect(
        &mut self,
        receivers: Vec<Receiver>,
        signal: &mpsc::Sender<Signal>,
        signals: &mpsc::Receiver<Signal>,
    ) -> Result<(Vec<Receiver>, Vec<u8>), Error> {
        let streams = receivers.len();
        for mut receiver in receivers {
            let done = signal.clone();
            spawn("receive", move || {
                let ended = receiver.run().map(|()| Box::new(receiver));
                let _ = done.send(Signal::Stream(ended));
            })?;
        }
        let (mut ended, mut state) = (Vec::new(), None);
        loop {
            if let Some(state) = state.take_if(|_| ended.len() == streams) {
                return Ok((ended, state));
            }
            match self.next_signal(signals)? {
                Some(Signal::Stream(receiver)) => ended.push(*receiver?),
                Some(Signal::Control(message)) => {
                    let (header, payload) = message?;
                    match header.kind {
                        Kind::Alive => {}
                        Kind::State if header.a == self.hello.epoch && state.is_none() => {
                            state = Some(payload);
                        }
                        kind => return Err(self.unexpected(kind)),
                    }
                }
                None => {}
            }
        }
    }

    /// The next signal, or `None` after a short while; keeps the source informed meanwhile.
    fn next_signal(&mut self, signals: &mpsc::Receiver<Signal>) -> Result<Option<Signal>, Error> {
        if self.state != State::Running && self.observer.cancelled() {
            return Err(Error::Cancelled);
        }
        if self.last_alive.elapsed() > ALIVE_INTERVAL {
            self.last_alive = Instant::now();
            // A lost link is noticed where it is read.
            let _ = self.control.send(self.tag, &Header::new(Kind::Alive, 0, 0, 0), &[]);
        }
        match signals.recv_timeout(POLL) {
            Ok(signal) => Ok(Some(signal)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(lost("receiving")(std::io::ErrorKind::ConnectionAborted.into()))
            }
        }
    }

    fn unexpected(&mut self, kind: Kind) -> Error {
        match kind {
            Kind::Cancel => {
                // Whatever the state was, this is the end of the attempt.
                let _ = self.enter(DestinationEvent::Cancel);
                Error::Peer("the source cancelled".to_owned())
            }
            kind => ProtoError::Unexpected { kind, why: "not now" }.into(),
        }
    }

    /// Waits for Run with our epoch, or Again, on the connection in use.
    fn await_word(&mut self, signals: &mpsc::Receiver<Signal>) -> Result<Word, Error> {
        loop {
            match self.next_signal(signals)? {
                Some(Signal::Control(message)) => {
                    let (header, _) = message?;
                    match header.kind {
                        Kind::Alive => {}
                        Kind::Run if header.a == self.hello.epoch => {
                            self.enter(DestinationEvent::Run)?;
                            return Ok(Word::Run);
                        }
                        Kind::Again if header.a == self.hello.epoch => {
                            self.enter(DestinationEvent::Again)?;
                            return Ok(Word::Again);
                        }
                        Kind::Run => self.enter(DestinationEvent::RunOtherEpoch)?,
                        kind => return Err(self.unexpected(kind)),
                    }
                }
                Some(Signal::Stream(_)) | None => {}
            }
        }
    }

    /// The source was lost with the guest prepared: it may come back on a new connection.
    fn await_resolution(
        &mut self,
        signal: &mpsc::Sender<Signal>,
        signals: &mpsc::Receiver<Signal>,
    ) -> Result<(), Error> {
        self.enter(DestinationEvent::Lost)?;
        self.observer.progress(Progress::Unresolved { migration: self.hello.migration });
        let deadline = Instant::now() + self.settings.resolve_timeout;
        loop {
            if !self.reconnect(deadline, signal)? {
                return Err(Error::Unresolved { id: self.hello.migration.to_string() });
            }
            match self.await_word(signals) {
                Ok(Word::Run) => return Ok(()),
                // Nobody calls off what was decided.
                Ok(Word::Again) => return Err(self.unexpected(Kind::Again)),
                Err(error) if self.state == State::Discarded => return Err(error),
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(_) => {}
            }
        }
    }

    /// Takes the source's new connection; `false` at the deadline.
    fn reconnect(
        &mut self,
        deadline: Instant,
        signal: &mpsc::Sender<Signal>,
    ) -> Result<bool, Error> {
        loop {
            let Some(caller) = self.next_caller(deadline)? else { return Ok(false) };
            let ours = caller.hello.role == Role::Resolve
                && caller.hello.migration == self.hello.migration;
            if !ours {
                let _ = caller.answer(Welcome::Busy);
                continue;
            }
            if let Ok(channel) = caller.answer(Welcome::Ok) {
                self.control = Arc::new(channel);
                self.read_control(signal)?;
                return Ok(true);
            }
        }
    }

    /// Says Running, until the source has heard it or has been silent for too long: the guest
    /// runs here in any case.
    fn confirm(
        &mut self,
        signal: &mpsc::Sender<Signal>,
        signals: &mpsc::Receiver<Signal>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + self.settings.resolve_timeout;
        let running = Header::new(Kind::Running, self.hello.epoch, 0, 0);
        loop {
            let _ = self.control.send(self.tag, &running, &[]);
            match self.await_released(signals) {
                Ok(()) => return Ok(()),
                Err(_) if !self.reconnect(deadline, signal)? => return Ok(()),
                Err(_) => {}
            }
        }
    }

    fn await_released(&mut self, signals: &mpsc::Receiver<Signal>) -> Result<(), Error> {
        loop {
            if let Some(Signal::Control(message)) = self.next_signal(signals)? {
                let (header, _) = message?;
                match header.kind {
                    Kind::Released => return Ok(()),
                    // Repeated by a source that did not hear the answer: it gets one.
                    Kind::Run => {
                        let running = Header::new(Kind::Running, self.hello.epoch, 0, 0);
                        let _ = self.control.send(self.tag, &running, &[]);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Tells the source why, if it can still hear.
    fn complain(&self, error: &Error) {
        let mut text = error.to_string();
        text.truncate(text.floor_char_boundary(crate::proto::TEXT_BYTES_MAX));
        let fail = Header::new(Kind::Fail, 0, 0, text.len());
        let _ = self.control.send(self.tag, &fail, text.as_bytes());
        self.control.close();
    }
}
