//! Streams between hosts: TCP or mutual TLS, timeouts, pacing. What a page means is not known here.

pub mod address;
pub mod channel;
pub mod congestion;
pub mod pacer;
mod sys;
pub mod tls;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::Error;
use crate::proto::ProtoError;
use crate::proto::hello::{HELLO_BYTES, Hello, WELCOME_BYTES, Welcome};
use address::Endpoint;
use channel::Channel;
use congestion::Congestion;
use tls::Identity;

/// Bytes that wait in a socket to be sent, beyond those under way: few, because what is written last
/// at a stun waits behind them, and because what waits long leaves the processor's cache.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Shortest and longest silence that a link may be told to bear. A timeout below a round trip to the
/// other side of the world would end every link there.
pub const TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// Idle times that the kernel takes before it asks for a sign of life: whole seconds in 15 bits.
const KEEPALIVE_RANGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(32_767)];

/// How a link is protected and how long it may be silent.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// Certificates for mutual TLS.
    pub identity: Option<Identity>,
    /// Whether an unprotected link beyond loopback is wanted.
    pub exposure: Exposure,
    /// Longest silence or stall before a link counts as lost, within [`TIMEOUT_RANGE`].
    pub timeout: Duration,
    /// How connections that this side opens share the network.
    pub congestion: Congestion,
}

/// Whether guest memory may cross a network unprotected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Loopback only, unless TLS is on.
    LoopbackOnly,
    /// Anywhere: the user said so.
    Insecure,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            identity: None,
            exposure: Exposure::LoopbackOnly,
            timeout: Duration::from_secs(4),
            congestion: Congestion::Auto,
        }
    }
}

impl LinkSettings {
    /// Whether this address may be used with these settings.
    ///
    /// # Errors
    /// [`Error::Insecure`].
    pub fn allow(&self, address: SocketAddr) -> Result<(), Error> {
        let protected = self.identity.is_some() || self.exposure == Exposure::Insecure;
        match protected || address::is_loopback(address.ip()) {
            true => Ok(()),
            false => Err(Error::Insecure(address)),
        }
    }

    fn tune(&self, stream: &TcpStream) -> std::io::Result<()> {
        let socket = SockRef::from(stream);
        let timeout = self.timeout.clamp(*TIMEOUT_RANGE.start(), *TIMEOUT_RANGE.end());
        let [shortest, longest] = KEEPALIVE_RANGE;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        socket.set_tcp_user_timeout(Some(timeout))?;
        let idle = timeout.clamp(shortest, longest);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))
    }
}

/// Connects and shakes hands with the first address of `peer` that answers.
///
/// # Errors
/// Nobody is there, the peer is not ours, or it refuses.
pub fn connect(peer: &Endpoint, hello: Hello, settings: &LinkSettings) -> Result<Channel, Error> {
    // A name that also leads outside is refused, whichever of its addresses would answer.
    for address in peer.addresses() {
        settings.allow(*address)?;
    }
    peer.first(|address| call(address, hello, settings)).map_err(|failures| nobody(peer, failures))
}

/// What is said when no address of a peer would do: what the first that answered said, and else
/// what became of each.
fn nobody(peer: &Endpoint, failures: Vec<(SocketAddr, Error)>) -> Error {
    let mut absent = Vec::new();
    let mut kind = ErrorKind::NotConnected;
    for (address, error) in failures {
        match error {
            Error::Connect { source, .. } if peer.addresses().len() > 1 => {
                kind = source.kind();
                absent.push(format!("{address}: {source}"));
            }
            other => return other,
        }
    }
    let source = std::io::Error::new(kind, absent.join("; "));
    Error::Connect { peer: peer.to_string(), source }
}

fn call(peer: SocketAddr, hello: Hello, settings: &LinkSettings) -> Result<Channel, Error> {
    let failed = |source| Error::Connect { peer: peer.to_string(), source };
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, None).map_err(failed)?;
    settings.congestion.set(&socket).map_err(failed)?;
    socket.connect_timeout(&peer.into(), settings.timeout).map_err(failed)?;
    let stream = TcpStream::from(socket);
    settings.tune(&stream).map_err(failed)?;
    let channel = match &settings.identity {
        Some(identity) => Channel::tls(stream, identity.connect(peer)?)?,
        None => Channel::plain(stream),
    };
    let lost = |source| Error::Link { doing: "shaking hands", source };
    channel.write(&hello.encode()).map_err(lost)?;
    let mut answer = [0; WELCOME_BYTES];
    match channel.read_exact(&mut answer) {
        // Something that closes or keeps silent at our hello speaks another protocol.
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
            return Err(ProtoError::NotOurs.into());
        }
        other => other.map_err(lost)?,
    }
    Welcome::decode(answer)?;
    Ok(channel)
}

/// A listening socket that shakes hands.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    settings: LinkSettings,
}

/// A connection whose hello was read and not yet answered.
#[derive(Debug)]
pub struct Caller {
    /// Who calls.
    pub hello: Hello,
    /// From where.
    pub peer: SocketAddr,
    channel: Channel,
}

impl Caller {
    /// Answers; the channel is good for use after [`Welcome::Ok`].
    ///
    /// # Errors
    /// The caller is gone.
    pub fn answer(self, welcome: Welcome) -> Result<Channel, Error> {
        self.channel
            .write(&welcome.encode())
            .map_err(|source| Error::Link { doing: "shaking hands", source })?;
        Ok(self.channel)
    }
}

impl Listener {
    /// Listens on `address`.
    ///
    /// # Errors
    /// The address is taken, not ours, or not allowed without protection.
    pub fn bind(address: SocketAddr, settings: LinkSettings) -> Result<Self, Error> {
        settings.allow(address)?;
        let failed = |source| Error::Listen { address, source };
        let socket = TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { socket, settings })
    }

    /// Where it listens; the port was chosen by the system if 0 was asked for.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The link's settings.
    pub fn settings(&self) -> &LinkSettings {
        &self.settings
    }

    /// The next caller with a valid hello, or `None` at `deadline`. Callers that speak something
    /// else are told so and do not end the wait; `rejected` hears of them.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancelled` says so, or the socket fails.
    pub fn accept(
        &self,
        deadline: Instant,
        cancelled: &dyn Fn() -> bool,
        rejected: &mut dyn FnMut(SocketAddr, &Error),
    ) -> Result<Option<Caller>, Error> {
        const POLL: Duration = Duration::from_millis(5);
        loop {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            match self.socket.accept() {
                Ok((stream, peer)) => match self.greet(stream, peer) {
                    Ok(caller) => return Ok(Some(caller)),
                    Err(e) => rejected(peer, &e),
                },
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                    std::thread::sleep(POLL);
                }
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                Err(source) => return Err(Error::Link { doing: "accepting", source }),
            }
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
        channel.read_exact(&mut bytes).map_err(lost)?;
        match Hello::decode(bytes) {
            Ok(hello) => Ok(Caller { hello, peer, channel }),
            Err(e) => {
                // A newer peer can read which version this is; others see it is not theirs.
                let _ = channel.write(&Welcome::Version.encode());
                Err(e.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own limits on its options are not the user's.
    #[test]
    fn every_timeout_in_range_can_be_set() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for timeout_ms in [0, 100, 999, 1000, 32_768_000, 3_600_000, u64::MAX] {
            let timeout = Duration::from_millis(timeout_ms);
            let settings = LinkSettings { timeout, ..LinkSettings::default() };
            settings.tune(&stream).unwrap();
        }
    }
}
