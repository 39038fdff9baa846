//! Where callers arrive: greeted side by side, each within one deadline for its hello, and handed to
//! whoever holds the migration that they name.
//!
//! A caller that is silent, drips or babbles costs a thread for at most that deadline, and nobody
//! else anything: of too many that are being greeted the oldest is hung up on.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::LinkSettings;
use super::channel::Channel;
use crate::Error;
use crate::error::spawn;
use crate::proto::hello::{
    Features, HELLO_BYTES, HELLO_VERSION_BYTES, Hello, MigrationId, Role, Terms, Welcome,
    agreed_timeout,
};

/// How often the listening socket and the deadlines are looked at.
const POLL: Duration = Duration::from_millis(5);
/// A hello takes a caller's thread, and memory, for no longer.
const GREETING_TIME_MAX: Duration = Duration::from_secs(4);
/// Most callers that are being greeted; of more the oldest is hung up on.
const GREETINGS_MAX: usize = 512;
/// Most of them from one address.
const GREETINGS_PER_PEER_MAX: usize = 256;
/// Most new migrations that wait to be taken up; more are told that this host is busy.
const ARRIVALS_MAX: usize = 16;
/// Most rejections that are kept to be shown.
const REJECTED_MAX: usize = 64;

/// A connection whose hello was read and not yet answered.
#[derive(Debug)]
pub struct Caller {
    /// Who calls.
    pub hello: Hello,
    /// From where.
    pub peer: SocketAddr,
    channel: Channel,
    link_timeout: Duration,
}

impl Caller {
    /// Answers; the channel, and the link timeout that both ends keep to, are good for use after
    /// [`Welcome::Ok`].
    ///
    /// # Errors
    /// The caller is gone.
    pub fn answer(self, welcome: &Welcome) -> Result<(Channel, Duration), Error> {
        let lost = |source| Error::Link { doing: "shaking hands", source };
        let terms = Terms { link_timeout: self.link_timeout, features: Features::OURS };
        self.channel.write(&welcome.encode(terms)).map_err(lost)?;
        self.channel.wait_patiently().map_err(lost)?;
        Ok((self.channel, agreed_timeout(self.link_timeout, self.hello.link_timeout)))
    }
}

/// What becomes of a caller that asks for a migration nobody here holds.
pub type Stranger = Arc<dyn Fn(Caller) + Send + Sync>;

/// A listening address.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    settings: LinkSettings,
    stop: AtomicBool,
    greetings: Mutex<Greetings>,
    callers: Mutex<Callers>,
    arrived: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Who is being greeted, the oldest first.
#[derive(Debug, Default)]
struct Greetings {
    next: u64,
    under_way: VecDeque<Greeting>,
}

#[derive(Debug)]
struct Greeting {
    number: u64,
    peer: SocketAddr,
    deadline: Instant,
    /// To hang up with.
    socket: TcpStream,
}

#[derive(Default)]
struct Callers {
    /// New migrations.
    arrivals: VecDeque<Caller>,
    routes: HashMap<MigrationId, mpsc::Sender<Caller>>,
    rejected: VecDeque<String>,
    /// Why no new migration is taken, and since when.
    busy: Option<(String, Instant)>,
    stranger: Option<Stranger>,
}

impl Callers {
    fn reject(&mut self, what: String) {
        if self.rejected.len() < REJECTED_MAX {
            self.rejected.push_back(what);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Endpoint {
    /// Listens on `address`, and greets from now on.
    ///
    /// # Errors
    /// The address is taken, not ours, or not allowed without protection.
    pub fn bind(address: SocketAddr, settings: LinkSettings) -> Result<Self, Error> {
        settings.allow(address)?;
        let failed = |source| Error::Listen { address, source };
        let socket = TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            settings,
            stop: AtomicBool::new(false),
            greetings: Mutex::default(),
            callers: Mutex::default(),
            arrived: Condvar::new(),
        });
        let accepting = shared.clone();
        let acceptor = spawn("accept", move || accepting.accept(&socket))?;
        Ok(Self { shared, address, acceptor: Some(acceptor) })
    }

    /// Where it listens; the port was chosen by the system if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who answers for migrations that nobody here holds, from now on.
    pub fn set_stranger(&self, stranger: Stranger) {
        lock(&self.shared.callers).stranger = Some(stranger);
    }

    /// New migrations are told that this host is busy with `what`; with `None` they are taken again.
    pub fn set_busy(&self, what: Option<String>) {
        lock(&self.shared.callers).busy = what.map(|what| (what, Instant::now()));
    }

    /// From now on callers that name `migration` come here.
    pub fn route(&self, migration: MigrationId) -> Route {
        let (to, callers) = mpsc::channel();
        lock(&self.shared.callers).routes.insert(migration, to);
        Route { shared: self.shared.clone(), migration, callers }
    }

    /// The next new migration, or `None` at `deadline`.
    pub fn arrival(&self, deadline: Instant) -> Option<Caller> {
        let mut callers = lock(&self.shared.callers);
        loop {
            if let Some(caller) = callers.arrivals.pop_front() {
                return Some(caller);
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return None;
            }
            let waited = self.shared.arrived.wait_timeout(callers, rest);
            callers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts a new migration back as the next to be taken.
    pub fn put_back(&self, caller: Caller) {
        lock(&self.shared.callers).arrivals.push_front(caller);
        self.shared.arrived.notify_all();
    }

    /// Who was turned away since this was asked last, and why.
    pub fn rejected(&self) -> Vec<String> {
        lock(&self.shared.callers).rejected.drain(..).collect()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for greeting in &lock(&self.shared.greetings).under_way {
            let _ = greeting.socket.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Callers that name one migration, until this value goes.
#[derive(Debug)]
pub struct Route {
    shared: Arc<Shared>,
    migration: MigrationId,
    callers: mpsc::Receiver<Caller>,
}

impl Route {
    /// The next caller, or `None` after `wait`.
    pub fn next(&self, wait: Duration) -> Option<Caller> {
        self.callers.recv_timeout(wait).ok()
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        lock(&self.shared.callers).routes.remove(&self.migration);
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, socket: &TcpListener) {
        while !self.stop.load(Ordering::Relaxed) {
            match socket.accept() {
                Ok((stream, peer)) => self.begin(stream, peer),
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(POLL),
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    // No file descriptors left, say: those who come later may have more luck.
                    lock(&self.callers).reject(format!("a caller: {e}"));
                    std::thread::sleep(POLL * 10);
                }
            }
            self.hang_up_on_the_late();
        }
    }

    fn hang_up_on_the_late(&self) {
        let now = Instant::now();
        for greeting in &lock(&self.greetings).under_way {
            if greeting.deadline > now {
                break;
            }
            let _ = greeting.socket.shutdown(Shutdown::Both);
        }
    }

    /// Greets in a thread of its own.
    fn begin(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let Ok(socket) = stream.try_clone() else { return };
        let time = self.settings.timeout.min(GREETING_TIME_MAX);
        let number = {
            let mut greetings = lock(&self.greetings);
            let of_peer = |g: &&Greeting| g.peer.ip() == peer.ip();
            let too_many = greetings.under_way.len() >= GREETINGS_MAX;
            let of_one = greetings.under_way.iter().filter(of_peer).count();
            let oldest = match of_one >= GREETINGS_PER_PEER_MAX {
                true => greetings.under_way.iter().position(|g| g.peer.ip() == peer.ip()),
                false => too_many.then_some(0),
            };
            if let Some(old) = oldest.and_then(|index| greetings.under_way.remove(index)) {
                let _ = old.socket.shutdown(Shutdown::Both);
            }
            greetings.next += 1;
            let (number, deadline) = (greetings.next, Instant::now() + time);
            greetings.under_way.push_back(Greeting { number, peer, deadline, socket });
            number
        };
        let shared = self.clone();
        let greeter = spawn("greet", move || {
            let greeted = shared.greet(stream, peer);
            lock(&shared.greetings).under_way.retain(|greeting| greeting.number != number);
            match greeted {
                Ok(caller) => shared.hand_out(caller),
                Err(error) => lock(&shared.callers).reject(format!("{peer}: {error}")),
            }
        });
        if let Err(error) = greeter {
            lock(&self.greetings).under_way.retain(|greeting| greeting.number != number);
            lock(&self.callers).reject(format!("{peer}: {error}"));
        }
    }

    fn greet(&self, stream: TcpStream, peer: SocketAddr) -> Result<Caller, Error> {
        let lost = |source| Error::Link { doing: "shaking hands", source };
        stream.set_nonblocking(false).map_err(lost)?;
        self.settings.tune(&stream).map_err(lost)?;
        let channel = match &self.settings.identity {
            Some(identity) => Channel::tls(stream, identity.accept()?)?,
            None => Channel::plain(stream),
        };
        let mut bytes = [0; HELLO_BYTES];
        let (first, rest) = bytes.split_at_mut(HELLO_VERSION_BYTES);
        channel.read_exact(first).map_err(lost)?;
        let mut version = [0; HELLO_VERSION_BYTES];
        version.copy_from_slice(first);
        let rest = Hello::check_version(version)
            .map_err(Error::from)
            .and_then(|()| channel.read_exact(rest).map_err(lost));
        let hello = rest.and_then(|()| Ok(Hello::decode(bytes)?));
        let link_timeout = self.settings.timeout;
        match hello {
            Ok(hello) => Ok(Caller { hello, peer, channel, link_timeout }),
            Err(e) => {
                // A peer of another version can read which this is; others see it is not theirs.
                let terms = Terms { link_timeout, features: Features::OURS };
                let _ = channel.write(&Welcome::Version.encode(terms));
                channel.finish();
                Err(e)
            }
        }
    }

    /// To whom it belongs; who belongs to nobody is told so.
    fn hand_out(&self, caller: Caller) {
        let mut callers = lock(&self.callers);
        let caller = match callers.routes.get(&caller.hello.migration) {
            Some(route) => match route.send(caller) {
                Ok(()) => return,
                Err(mpsc::SendError(caller)) => caller,
            },
            None => caller,
        };
        let peer = caller.peer;
        let answer = match (caller.hello.role, callers.stranger.clone()) {
            (Role::Resolve, Some(stranger)) => {
                drop(callers);
                return stranger(caller);
            }
            (Role::Resolve | Role::Data { .. }, _) => Welcome::Unknown,
            (Role::Control, _) => match &callers.busy {
                Some((what, since)) => {
                    let seconds = since.elapsed().as_secs();
                    Welcome::Busy(format!("{what}, {seconds} s so far"))
                }
                None if callers.arrivals.len() >= ARRIVALS_MAX => {
                    Welcome::Busy(format!("{ARRIVALS_MAX} others wait already"))
                }
                None => {
                    callers.arrivals.push_back(caller);
                    self.arrived.notify_all();
                    return;
                }
            },
        };
        callers.reject(match &answer {
            Welcome::Busy(_) => format!("{peer}: a new migration, while another is under way"),
            _ => format!("{peer}: belongs to no migration under way"),
        });
        drop(callers);
        // Its loss is the caller's.
        let _ = caller.answer(&answer);
    }
}
