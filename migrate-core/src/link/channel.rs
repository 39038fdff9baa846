//! One connection, usable from a reading and a writing thread at the same time, plain or TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use socket2::SockRef;

use crate::Error;
use crate::guest::Stretch;

use super::congestion;
use super::sys::{self, Queue};

/// Bytes handed to TLS at a time.
const TLS_PIECE_BYTES: usize = 64 << 10;

/// A connection to a peer.
#[derive(Debug)]
pub struct Channel {
    stream: TcpStream,
    tls: Option<Mutex<rustls::Connection>>,
    /// One writer at a time, so that frames do not mix; what it queues pages with.
    writing: Mutex<Queue>,
    /// Encrypted bytes that TLS has not taken yet; one reader at a time.
    received: Mutex<Vec<u8>>,
}

/// What is said of a handshake that failed.
fn handshake(error: &io::Error) -> Error {
    use rustls::InvalidMessage::InvalidContentType;
    let said = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    Error::Tls(match said {
        Some(rustls::Error::InvalidMessage(InvalidContentType)) => {
            "the peer does not speak it: use --tls-dir on both sides, or on none".to_owned()
        }
        _ => error.to_string(),
    })
}

impl Channel {
    pub(crate) fn plain(stream: TcpStream) -> Self {
        Self { stream, tls: None, writing: Mutex::default(), received: Mutex::default() }
    }

    pub(super) fn tls(stream: TcpStream, mut tls: rustls::Connection) -> Result<Self, Error> {
        while tls.is_handshaking() {
            tls.complete_io(&mut &stream).map_err(|e| handshake(&e))?;
        }
        Ok(Self { tls: Some(Mutex::new(tls)), ..Self::plain(stream) })
    }

    /// The other side's address.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// The congestion control in force, as the kernel calls it.
    ///
    /// # Errors
    /// The system does not say.
    pub fn congestion(&self) -> io::Result<String> {
        congestion::in_force(&SockRef::from(&self.stream))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The link is lost or stalled for longer than its timeout.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let _whole = lock(&self.writing);
        self.write_locked(bytes).map_err(stalled)
    }

    /// Sends bytes that lie in several places, as one piece.
    ///
    /// # Errors
    /// As [`Channel::write`].
    pub fn write_parts(&self, parts: &[&[u8]]) -> io::Result<()> {
        let _whole = lock(&self.writing);
        if self.tls.is_none() {
            let mut slices: Vec<_> = parts.iter().copied().map(io::IoSlice::new).collect();
            return write_all_vectored(&self.stream, &mut slices).map_err(stalled);
        }
        for part in parts {
            self.write_locked(part).map_err(stalled)?;
        }
        Ok(())
    }

    /// Sends what is in `head` and then memory: from there to the socket without a copy of our own,
    /// unless TLS has to encrypt it.
    ///
    /// # Errors
    /// As [`Channel::write`].
    pub fn write_memory(&self, head: [&[u8]; 3], memory: &[Stretch<'_>]) -> io::Result<()> {
        let writing = lock(&self.writing);
        if self.tls.is_none() {
            return sys::write_memory(&self.stream, &writing, head, memory).map_err(stalled);
        }
        for part in head {
            self.write_locked(part).map_err(stalled)?;
        }
        let mut stretches = memory.iter();
        stretches
            .try_for_each(|stretch| stretch.each_page(|page| self.write_locked(page)))
            .map_err(stalled)
    }

    fn write_locked(&self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &self.tls else { return (&self.stream).write_all(bytes) };
        let mut tls = lock(tls);
        while !bytes.is_empty() {
            let taken = tls.writer().write(bytes)?;
            bytes = &bytes[taken..];
            while tls.wants_write() {
                tls.write_tls(&mut &self.stream)?;
            }
        }
        Ok(())
    }

    /// Reads exactly `into.len()` bytes.
    ///
    /// # Errors
    /// The link is lost, or silent for longer than its timeout (`TimedOut`).
    pub fn read_exact(&self, into: &mut [u8]) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            return sys::read_all(&self.stream, into).map_err(stalled);
        };
        let mut received = lock(&self.received);
        let mut filled = 0;
        while filled < into.len() {
            let mut tls = lock(tls);
            match tls.reader().read(&mut into[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                // Fed only when empty, so that the bounded plain text buffer is never overrun.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !received.is_empty() => {
                    let mut rest = received.as_slice();
                    tls.read_tls(&mut rest)?;
                    let taken = received.len() - rest.len();
                    received.drain(..taken);
                    tls.process_new_packets().map_err(io::Error::other)?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Not under the lock: a writer must be able to go on while we wait.
                    drop(tls);
                    received.resize(TLS_PIECE_BYTES, 0);
                    let count = (&self.stream).read(&mut received).map_err(stalled)?;
                    received.truncate(count);
                    if count == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Fills `head`, and then memory that nobody else writes.
    ///
    /// # Errors
    /// As [`Channel::read_exact`].
    pub fn read_memory<'a>(
        &self,
        head: &mut [u8],
        mut memory: impl Iterator<Item = Stretch<'a>>,
    ) -> io::Result<()> {
        if self.tls.is_none() {
            return sys::read_memory(&self.stream, head, memory).map_err(stalled);
        }
        self.read_exact(head)?;
        memory.try_for_each(|stretch| stretch.fill(|bytes| self.read_exact(bytes)))
    }

    /// Lets reads wait as long as they must: for connections whose silence is judged elsewhere.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn wait_patiently(&self) -> io::Result<()> {
        self.stream.set_read_timeout(None)
    }

    /// Lets each read wait for so long.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(time))
    }

    /// Nothing more will be sent; what was sent still arrives.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends both directions; whoever reads or writes in another thread gets an error at once.
    pub fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write_all_vectored(mut stream: &TcpStream, slices: &mut [io::IoSlice<'_>]) -> io::Result<()> {
    let mut left = slices;
    while !left.is_empty() {
        match stream.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => io::IoSlice::advance_slices(&mut left, count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A socket timeout shows as `WouldBlock`; say what it means.
fn stalled(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the link stalled"),
        _ => error,
    }
}
