//! What drives a session in a program: it is given events from any thread, one at a time, and its
//! outputs are carried out at once and in their order: messages to their connections, ticks when it
//! wants them, orders to the shell.
//!
//! So signs of life go out and words are answered whatever else the shell is doing. An order is only
//! put down for the shell here; carrying it out is the shell's.

mod connection;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use connection::Connection;
pub(crate) use connection::read;

use crate::Error;
use crate::clock::now;
use crate::error::spawn;
use crate::link::channel::Channel;
use crate::proto::message::{Activity, Progress};
use crate::session::{ConnectionId, Machine, Output, Purpose, Reply, Word};

/// Longest wait for an operator's answer: a session gives it at once, or when a record is written.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that were closed and whose peer does not hang up; of more the oldest is cut.
const CLOSING_MAX: usize = 8;

/// How far this host is with what it does; read when a sign of life goes out.
#[derive(Debug, Default)]
pub(crate) struct ProgressGauge {
    activity: Mutex<Activity>,
    done: AtomicU64,
    total: AtomicU64,
}

impl ProgressGauge {
    /// Something else begins.
    pub(crate) fn begin(&self, activity: Activity, total: u64) {
        *lock(&self.activity) = activity;
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// So much of so much is done.
    pub(crate) fn set_of(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.set(done);
    }

    /// So much of it is done.
    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    /// How far it is.
    pub(crate) fn read(&self) -> Progress {
        Progress {
            activity: *lock(&self.activity),
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
        }
    }
}

/// What a new control connection brings: it, and the link timeout that both ends keep to.
pub(crate) type Connected = (Arc<Channel>, Duration);

/// How a session reaches its peer.
pub(crate) struct Dial<E> {
    /// Opens a connection; may take as long as a link timeout.
    pub(crate) open: Box<dyn Fn(Purpose) -> Result<Connected, Error> + Send + Sync>,
    /// The event of its success.
    pub(crate) connected: fn(ConnectionId, Duration) -> E,
    /// The event of its failure.
    pub(crate) failed: fn(String) -> E,
}

/// Drives one session; ends it, and its connections, when it goes.
pub(crate) struct Conductor<M: Machine> {
    shared: Arc<Shared<M>>,
    timer: Option<JoinHandle<()>>,
}

struct Shared<M: Machine> {
    tag: u64,
    inner: Mutex<Inner<M>>,
    changed: Condvar,
    gauge: Arc<ProgressGauge>,
    orders: Box<dyn Fn(M::Order) + Send + Sync>,
    dial: Option<Dial<M::Event>>,
}

struct Inner<M> {
    machine: M,
    connections: Vec<Connection>,
    next_connection: u64,
    dialling: Vec<JoinHandle<()>>,
    answers: HashMap<u64, mpsc::Sender<Reply>>,
    next_word: u64,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine whose events and orders may cross threads.
pub(crate) trait Driven: Machine<Event: Send, Order: Send> + Send + 'static {}
impl<M: Machine<Event: Send, Order: Send> + Send + 'static> Driven for M {}

impl<M: Driven> Conductor<M> {
    /// Drives `machine` for the migration with this tag. `orders` must not block, and must not call
    /// back.
    pub(crate) fn start(
        machine: M,
        tag: u64,
        gauge: Arc<ProgressGauge>,
        orders: impl Fn(M::Order) + Send + Sync + 'static,
        dial: Option<Dial<M::Event>>,
    ) -> Result<Self, Error> {
        let inner = Inner {
            machine,
            connections: Vec::new(),
            next_connection: 0,
            dialling: Vec::new(),
            answers: HashMap::new(),
            next_word: 0,
            ended: false,
        };
        let shared = Arc::new(Shared {
            tag,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            gauge,
            orders: Box::new(orders),
            dial,
        });
        let timed = shared.clone();
        let timer = spawn("session", move || timed.keep_time())?;
        Ok(Self { shared, timer: Some(timer) })
    }

    /// Something happened.
    pub(crate) fn on(&self, event: M::Event) {
        self.shared.on(event);
    }

    /// A connection that the peer opened; `event` says so to the session.
    pub(crate) fn attach(
        &self,
        channel: Channel,
        event: impl FnOnce(ConnectionId) -> M::Event,
    ) -> Result<(), Error> {
        self.shared.attach(Arc::new(channel), event)
    }

    /// What the session is asked by others, without holding this.
    pub(crate) fn handle(&self) -> Handle<M> {
        Handle(self.shared.clone())
    }

    /// Looks at the session.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        look(&lock(&self.shared.inner).machine)
    }
}

impl<M: Machine> Drop for Conductor<M> {
    fn drop(&mut self) {
        let (connections, dialling) = {
            let mut inner = lock(&self.shared.inner);
            inner.ended = true;
            (std::mem::take(&mut inner.connections), std::mem::take(&mut inner.dialling))
        };
        self.shared.changed.notify_all();
        // What was said last still arrives.
        connections.into_iter().for_each(Connection::end);
        for thread in dialling.into_iter().chain(self.timer.take()) {
            let _ = thread.join();
        }
    }
}

/// The way to a session for an operator.
pub(crate) struct Handle<M: Machine>(Arc<Shared<M>>);

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Driven> Handle<M> {
    /// Something happened.
    pub(crate) fn on(&self, event: M::Event) {
        self.0.on(event);
    }

    /// Says a word; where its answer will be.
    pub(crate) fn say(&self, word: Word) -> mpsc::Receiver<Reply> {
        let (answer, answered) = mpsc::channel();
        let number = {
            let mut inner = lock(&self.0.inner);
            inner.next_word += 1;
            let number = inner.next_word;
            inner.answers.insert(number, answer);
            number
        };
        self.0.on(M::word(number, word));
        answered
    }

    /// Says a word; the answer. Not for whoever has to write the session's records: a word waits
    /// until they are written.
    pub(crate) fn word(&self, word: Word) -> Reply {
        self.say(word).recv_timeout(ANSWER_TIMEOUT).unwrap_or_else(|_| Reply {
            taken: false,
            text: "no answer yet: a record is being written, and the disk is slow".to_owned(),
        })
    }

    /// Looks at the session.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&M) -> T) -> T {
        look(&lock(&self.0.inner).machine)
    }
}

impl<M: Driven> Shared<M> {
    fn on(self: &Arc<Self>, event: M::Event) {
        let mut inner = lock(&self.inner);
        self.on_locked(&mut inner, event);
        drop(inner);
        self.changed.notify_all();
    }

    fn on_locked(self: &Arc<Self>, inner: &mut Inner<M>, event: M::Event) {
        if inner.ended {
            return;
        }
        for output in inner.machine.on(event, now()) {
            match output {
                Output::Order(order) => (self.orders)(order),
                Output::Send(id, message) => {
                    if let Some(connection) = inner.connections.iter().find(|c| c.id == id) {
                        connection.queue(message.encode(self.tag));
                    }
                }
                Output::Close(id) => {
                    if let Some(connection) = inner.connections.iter_mut().find(|c| c.id == id) {
                        connection.close();
                    }
                    // Those that came to their end by themselves meanwhile, or never will.
                    inner.connections.retain(|connection| !connection.is_over());
                    let closed = inner.connections.iter().filter(|c| c.is_closed());
                    if closed.clone().count() > CLOSING_MAX {
                        closed.take(1).for_each(Connection::cut);
                    }
                }
                Output::Connect(purpose) => self.connect(inner, purpose),
                Output::Answer(number, reply) => {
                    if let Some(answer) = inner.answers.remove(&number) {
                        // Whoever asked may have stopped waiting.
                        let _ = answer.send(reply);
                    }
                }
            }
        }
    }

    fn connect(self: &Arc<Self>, inner: &mut Inner<M>, purpose: Purpose) {
        inner.dialling.retain(|thread| !thread.is_finished());
        let shared = self.clone();
        let dialling = spawn("connect", move || {
            let Some(dial) = &shared.dial else { return };
            let opened = (dial.open)(purpose).and_then(|(channel, timeout)| {
                shared.attach(channel, |id| (dial.connected)(id, timeout))
            });
            if let Err(error) = opened {
                shared.on((dial.failed)(error.to_string()));
            }
        });
        match dialling {
            Ok(thread) => inner.dialling.push(thread),
            Err(error) => {
                if let Some(dial) = &self.dial {
                    let failed = (dial.failed)(error.to_string());
                    self.on_locked(inner, failed);
                }
            }
        }
    }

    fn attach(
        self: &Arc<Self>,
        channel: Arc<Channel>,
        event: impl FnOnce(ConnectionId) -> M::Event,
    ) -> Result<(), Error> {
        let mut inner = lock(&self.inner);
        if inner.ended {
            channel.close();
            return Ok(());
        }
        inner.next_connection += 1;
        let id = ConnectionId(inner.next_connection);
        let shared = self.clone();
        let deliver = move |heard| shared.on(M::heard(id, heard));
        inner.connections.push(Connection::start(id, channel, self.tag, deliver)?);
        self.on_locked(&mut inner, event(id));
        drop(inner);
        self.changed.notify_all();
        Ok(())
    }

    fn keep_time(self: Arc<Self>) {
        let mut inner = lock(&self.inner);
        while !inner.ended {
            let rest = inner.machine.wake().map(|wake| wake.since(now()));
            match rest {
                Some(rest) if rest.is_zero() => {
                    let tick = M::tick(self.gauge.read());
                    self.on_locked(&mut inner, tick);
                    // A machine that wants a tick at once, again and again, must not hold a core.
                    let pause = Duration::from_millis(1);
                    inner = wait(&self.changed, inner, pause);
                }
                Some(rest) => inner = wait(&self.changed, inner, rest),
                None => {
                    inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
    changed.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}
