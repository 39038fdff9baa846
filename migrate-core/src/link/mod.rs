//! Streams between hosts: TCP or mutual TLS, timeouts, pacing. What a page means is not known here.

pub mod address;
pub mod channel;
pub mod congestion;
pub mod endpoint;
pub(crate) mod pacer;
mod sys;
pub mod tls;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::Error;
use crate::proto::hello::{Hello, Terms, Welcome, agreed_timeout, stranger};
use address::HostPort;
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
    /// The name that the peer's certificate must be of; `None` for its address. A name is what its
    /// user typed, and not what somebody's resolver made of it.
    pub peer_name: Option<String>,
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
            peer_name: None,
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

    /// What keeps others from the link to these addresses, in a word.
    pub fn protection(&self, peers: &[SocketAddr]) -> &'static str {
        match (&self.identity, peers.iter().all(|peer| address::is_loopback(peer.ip()))) {
            (Some(_), _) => "mutual TLS",
            (None, true) => "loopback",
            (None, false) => "INSECURE",
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

/// Connects and shakes hands with the first address of `peer` that answers; the connection, and what
/// both ends keep to: the shorter link timeout, and what the peer can do.
///
/// # Errors
/// Nobody is there, the peer is not ours, or it refuses.
pub fn connect(
    peer: &HostPort,
    hello: Hello,
    settings: &LinkSettings,
) -> Result<(Channel, Terms), Error> {
    // A name that also leads outside is refused, whichever of its addresses would answer.
    for address in peer.addresses() {
        settings.allow(*address)?;
    }
    peer.first(|address| call(address, hello, settings)).map_err(|failures| nobody(peer, failures))
}

/// What is said when no address of a peer would do: what the first that answered said, and else
/// what became of each.
fn nobody(peer: &HostPort, failures: Vec<(SocketAddr, Error)>) -> Error {
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

fn call(
    peer: SocketAddr,
    hello: Hello,
    settings: &LinkSettings,
) -> Result<(Channel, Terms), Error> {
    let failed = |source| Error::Connect { peer: peer.to_string(), source };
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, None).map_err(failed)?;
    settings.congestion.set(&socket).map_err(failed)?;
    socket.connect_timeout(&peer.into(), settings.timeout).map_err(failed)?;
    let stream = TcpStream::from(socket);
    settings.tune(&stream).map_err(failed)?;
    let channel = match &settings.identity {
        Some(identity) => {
            Channel::tls(stream, identity.connect(peer, settings.peer_name.as_deref())?)?
        }
        None => Channel::plain(stream),
    };
    let lost = |source| Error::Link { doing: "shaking hands", source };
    channel.write(&hello.encode()).map_err(lost)?;
    let deadline = Instant::now() + settings.timeout;
    let terms = Welcome::read(|into: &mut [u8]| match read_by(&channel, into, deadline) {
        // Something that closes at our hello speaks another protocol.
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(Error::from(stranger(into))),
        other => other.map_err(lost),
    })?;
    channel.wait_patiently().map_err(lost)?;
    let link_timeout = agreed_timeout(hello.link_timeout, terms.link_timeout);
    Ok((channel, Terms { link_timeout, ..terms }))
}

/// Fills `into` before the deadline, also if what comes drips: byte by byte, because each read of
/// several waits anew for each of them. A welcome is short.
fn read_by(channel: &Channel, into: &mut [u8], deadline: Instant) -> std::io::Result<()> {
    for byte in into.chunks_mut(1) {
        let rest = deadline.saturating_duration_since(Instant::now());
        // None at all would mean to wait for ever.
        channel.wait_at_most(rest.max(Duration::from_millis(1)))?;
        channel.read_exact(byte)?;
        if Instant::now() > deadline {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own limits on its options are not the user's.
    #[test]
    fn every_timeout_in_range_can_be_set() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for timeout_ms in [0, 100, 999, 1000, 32_768_000, 3_600_000, u64::MAX] {
            let timeout = Duration::from_millis(timeout_ms);
            let settings = LinkSettings { timeout, ..LinkSettings::default() };
            settings.tune(&stream).unwrap();
        }
    }
}
