//! One connection, usable from a reading and a writing thread at the same time, plain or TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;

use socket2::SockRef;

use crate::Error;
use crate::guest::MemoryView;
use crate::memory::{PAGE_BYTES, PageNumber, runs_of};
use crate::proto::frame::{HEADER_BYTES, Header, Kind};

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

impl Channel {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { stream, tls: None, writing: Mutex::default(), received: Mutex::default() }
    }

    pub(super) fn tls(stream: TcpStream, mut tls: rustls::Connection) -> Result<Self, Error> {
        while tls.is_handshaking() {
            tls.complete_io(&mut &stream).map_err(|e| Error::Tls(e.to_string()))?;
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

    /// Sends a frame.
    ///
    /// # Errors
    /// As [`Channel::write`].
    pub fn send(&self, tag: u64, header: &Header, payload: &[u8]) -> io::Result<()> {
        self.send_parts(tag, &[], header, &[payload])
    }

    /// Sends a frame whose payload lies in several places, after whole frames in `before`.
    ///
    /// # Errors
    /// As [`Channel::write`].
    pub fn send_parts(
        &self,
        tag: u64,
        before: &[u8],
        header: &Header,
        parts: &[&[u8]],
    ) -> io::Result<()> {
        debug_assert_eq!(header.length, parts.iter().map(|p| p.len()).sum::<usize>());
        let _whole = lock(&self.writing);
        let bytes: [u8; HEADER_BYTES] = header.encode(tag);
        let all = [before, &bytes].into_iter().chain(parts.iter().copied());
        if self.tls.is_none() {
            let mut slices: Vec<_> = all.map(io::IoSlice::new).collect();
            return write_all_vectored(&self.stream, &mut slices).map_err(stalled);
        }
        for part in all {
            self.write_locked(part).map_err(stalled)?;
        }
        Ok(())
    }

    /// Sends a frame whose payload is `checks` and then guest pages, after whole frames in
    /// `before`: from guest memory to the socket without a copy of our own, unless TLS has to
    /// encrypt them.
    ///
    /// # Errors
    /// As [`Channel::write`].
    pub fn send_pages(
        &self,
        tag: u64,
        before: &[u8],
        header: &Header,
        checks: &[u8],
        memory: &MemoryView,
    ) -> io::Result<()> {
        let writing = lock(&self.writing);
        let bytes: [u8; HEADER_BYTES] = header.encode(tag);
        let head = [before, &bytes, checks];
        let runs: Vec<_> = runs_of(header.a, header.b).collect();
        if self.tls.is_none() {
            return sys::write_pages(&self.stream, &writing, head, memory, &runs).map_err(stalled);
        }
        for part in head {
            self.write_locked(part).map_err(stalled)?;
        }
        let mut buffer = vec![0; PAGE_BYTES as usize];
        for page in runs.into_iter().flatten() {
            memory.copy_out(&(page..page + 1), &mut buffer);
            self.write_locked(&buffer).map_err(stalled)?;
        }
        Ok(())
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

    /// Fills `checks`, and then the pages of a shadow that the mask of a group names.
    ///
    /// # Errors
    /// As [`Channel::read_exact`].
    pub fn read_pages(
        &self,
        checks: &mut [u8],
        memory: &MemoryView,
        first: PageNumber,
        mask: u64,
    ) -> io::Result<()> {
        if self.tls.is_none() {
            let runs = runs_of(first, mask);
            return sys::read_pages(&self.stream, checks, memory, runs).map_err(stalled);
        }
        self.read_exact(checks)?;
        for run in runs_of(first, mask) {
            memory.fill(&run, |bytes| self.read_exact(bytes))?;
        }
        Ok(())
    }

    /// Reads a checked header.
    ///
    /// # Errors
    /// The link is lost or silent, or the peer breaks the protocol.
    pub fn read_header(&self, tag: u64, doing: &'static str) -> Result<Header, Error> {
        let mut bytes = [0; HEADER_BYTES];
        self.read_exact(&mut bytes).map_err(|source| Error::Link { doing, source })?;
        Ok(Header::decode(bytes, tag)?)
    }

    /// Reads the payload of a frame whose header was checked.
    ///
    /// # Errors
    /// The link is lost or silent.
    pub fn read_payload(&self, header: &Header, doing: &'static str) -> Result<Vec<u8>, Error> {
        let mut payload = vec![0; header.length];
        self.read_exact(&mut payload).map_err(|source| Error::Link { doing, source })?;
        Ok(payload)
    }

    /// Reads whole frames and hands them on, until one of kind `last`, an error (handed on too), or
    /// nobody takes them any more.
    pub fn listen(
        &self,
        tag: u64,
        last: Kind,
        doing: &'static str,
        deliver: impl Fn(Result<(Header, Vec<u8>), Error>) -> bool,
    ) {
        loop {
            let message = self
                .read_header(tag, doing)
                .and_then(|header| Ok((header, self.read_payload(&header, doing)?)));
            let more = matches!(&message, Ok((header, _)) if header.kind != last);
            if !deliver(message) || !more {
                return;
            }
        }
    }

    /// Lets reads wait as long as they must: for streams whose silence another one judges.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn wait_patiently(&self) -> io::Result<()> {
        self.stream.set_read_timeout(None)
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
