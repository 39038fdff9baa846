//! Gathering writes straight from guest memory, and reads that fill what they are given.

use std::cell::{Cell, OnceCell};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::guest::Stretch;

/// Less is copied into the socket: two more system calls cost more.
const QUEUED_BYTES_MIN: usize = 16 << 10;
/// Room in the pipe through which memory is queued.
const PIPE_BYTES: usize = 256 << 10;
/// A reader that waits for at least this much is woken when this much is there.
const WAKE_BYTES: usize = 256 << 10;
/// Most parts of one gathered write or scattered read: a system's least limit is 1,024.
const PARTS_MAX: usize = 1024;

/// Fills the buffer.
pub(super) fn read_all(stream: &TcpStream, into: &mut [u8]) -> io::Result<()> {
    scatter(stream, vec![part(into.as_mut_ptr(), into.len())])
}

/// Fills `head` and then memory of a shadow, which nobody else may write.
pub(super) fn read_memory<'a>(
    stream: &TcpStream,
    head: &mut [u8],
    memory: impl Iterator<Item = Stretch<'a>>,
) -> io::Result<()> {
    let mut parts = vec![part(head.as_mut_ptr(), head.len())];
    parts.extend(memory.map(of_memory));
    scatter(stream, parts)
}

fn of_memory(stretch: Stretch<'_>) -> libc::iovec {
    let (start, bytes) = stretch.raw();
    part(start, bytes)
}

/// A way for guest memory into a socket without a copy of our own: through a pipe, made
/// when it is first needed. A system may have no pipe to give, or deny its calls.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pipe: OnceCell<Option<Pipe>>,
    /// Memory cannot be handed on from the pipe, which holds some that was copied instead.
    denied: Cell<bool>,
}

/// Always empty between two uses, unless it is not used any more.
#[derive(Debug)]
struct Pipe {
    into: OwnedFd,
    out: OwnedFd,
}

impl Pipe {
    /// A pipe with room enough; a system may have none to give.
    fn open() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
        match fcntl_setpipe_size(&into, PIPE_BYTES)? {
            got if got >= PIPE_BYTES => Ok(Self { into, out }),
            _ => Err(io::ErrorKind::QuotaExceeded.into()),
        }
    }

    /// Puts memory in, as much as there is room for; how many bytes.
    fn put(&self, memory: &[libc::iovec]) -> io::Result<usize> {
        let (pipe, flags) = (self.into.as_raw_fd(), libc::SPLICE_F_NONBLOCK);
        // SAFETY: the parts are memory that the caller keeps. The kernel holds on to the pages
        // themselves, so what becomes of the mapping later does not matter.
        let put = retry(|| unsafe { libc::vmsplice(pipe, memory.as_ptr(), memory.len(), flags) })?;
        Ok(put as usize)
    }

    /// Hands on what was put in; how many bytes of it, which are fewer only where the system does
    /// not let us.
    fn hand_on(&self, stream: &TcpStream, bytes: usize, more: SpliceFlags) -> io::Result<usize> {
        let mut left = bytes;
        while left > 0 {
            match retry_on_intr(|| splice(&self.out, None, stream, None, left, more)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => left -= sent,
                Err(e) if is_denied(e) => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(bytes - left)
    }
}

impl Queue {
    /// Queues pages, all of them; where the system does not let us, it copies them.
    fn send(&self, stream: &TcpStream, mut pages: Vec<libc::iovec>) -> io::Result<()> {
        let pipe = self.pipe.get_or_init(|| Pipe::open().ok()).as_ref();
        let Some(pipe) = pipe.filter(|_| !self.denied.get()) else {
            return gather(stream, pages, 0);
        };
        let mut left = advance(&mut pages, 0);
        while left {
            let whole = pages.iter().position(|part| part.iov_len > 0).unwrap_or_default();
            let Ok(put @ 1..) = pipe.put(&pages[whole..]) else {
                return gather(stream, pages, 0);
            };
            let all: usize = pages.iter().map(|part| part.iov_len).sum();
            let more = if put < all { SpliceFlags::MORE } else { SpliceFlags::empty() };
            let sent = pipe.hand_on(stream, put, more)?;
            left = advance(&mut pages, sent);
            if sent < put {
                self.denied.set(true);
                return gather(stream, pages, 0);
            }
        }
        Ok(())
    }
}

/// Makes a system call until it is not interrupted.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<isize> {
    loop {
        match call() {
            done if done >= 0 => return Ok(done),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

/// Writes the `head` and then memory, which the kernel reads while the guest may write it: what goes
/// out is some mix of old and new, and the page is dirty again.
///
/// Unless it is little, the memory itself is queued, and read when the network card, or the
/// receiver on this machine, takes it: no copy is made here.
pub(super) fn write_memory(
    stream: &TcpStream,
    queue: &Queue,
    head: [&[u8]; 3],
    memory: &[Stretch<'_>],
) -> io::Result<()> {
    let mut parts: Vec<_> =
        head.iter().map(|bytes| part(bytes.as_ptr().cast_mut(), bytes.len())).collect();
    let memory = memory.iter().copied().map(of_memory);
    if memory.clone().map(|part| part.iov_len).sum::<usize>() < QUEUED_BYTES_MIN {
        parts.extend(memory);
        return gather(stream, parts, 0);
    }
    gather(stream, parts, libc::MSG_MORE)?;
    queue.send(stream, memory.collect())
}

/// Whether the system does not let us make this call, of which the connection knows nothing: a
/// filter of system calls, or a socket that cannot be spliced to.
fn is_denied(error: Errno) -> bool {
    let denied = [Errno::PERM, Errno::ACCESS, Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL];
    denied.contains(&error)
}

fn part(start: *mut u8, bytes: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: bytes }
}

/// Takes `bytes` off the front of what is left; whether anything is.
fn advance(parts: &mut [libc::iovec], mut bytes: usize) -> bool {
    for part in &mut *parts {
        let taken = bytes.min(part.iov_len);
        // SAFETY: at most the part's own length is added, so it stays inside or one past its end.
        part.iov_base = unsafe { part.iov_base.cast::<u8>().add(taken) }.cast();
        part.iov_len -= taken;
        bytes -= taken;
    }
    parts.iter().any(|part| part.iov_len > 0)
}

fn message(parts: &mut [libc::iovec]) -> libc::msghdr {
    debug_assert!(parts.len() <= PARTS_MAX, "{} parts", parts.len());
    // SAFETY: all-zero is a valid msghdr; the fields that matter are set below.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    message
}

/// Fills all parts, which must be ours to write.
fn scatter(stream: &TcpStream, mut parts: Vec<libc::iovec>) -> io::Result<()> {
    let mut more = advance(&mut parts, 0);
    while more {
        let missing: usize = parts.iter().map(|part| part.iov_len).sum();
        let how = match missing >= WAKE_BYTES {
            true => await_bytes(stream, WAKE_BYTES).map(|()| libc::MSG_DONTWAIT)?,
            false => libc::MSG_WAITALL,
        };
        let mut message = message(&mut parts);
        // SAFETY: the parts are valid for writing their length: buffers borrowed exclusively, or
        // pages of a shadow that only this stream writes.
        let got = retry(|| unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, how) })?;
        more = match got {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => advance(&mut parts, got as usize),
        };
    }
    Ok(())
}

/// Waits until so many bytes are there, or the other side has closed, or the socket's read timeout
/// has passed. A reader that the kernel woke for every packet would spend its time waking.
///
/// Waiting is `poll`'s, not the read's: a read takes what is there and then sleeps until as many
/// bytes as before are there *again*, which may never come.
fn await_bytes(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let timeout = stream.read_timeout()?;
    // Longer than any link's timeout is as long as it takes.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    wake_at(stream, bytes)?;
    let mut readable = [PollFd::new(stream, PollFlags::IN)];
    let waited = match retry_on_intr(|| poll(&mut readable, timeout.as_ref())) {
        Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
        other => other.map(drop).map_err(io::Error::from),
    };
    // The next read may be one of a few bytes.
    wake_at(stream, 1)?;
    waited
}

/// Lets whoever waits wait until so many bytes are there.
fn wake_at(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let bytes = bytes as libc::c_int;
    // SAFETY: the option takes an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes all parts, some of which may be guest memory.
fn gather(stream: &TcpStream, mut parts: Vec<libc::iovec>, flags: libc::c_int) -> io::Result<()> {
    let mut more = advance(&mut parts, 0);
    while more {
        let message = message(&mut parts);
        let flags = flags | libc::MSG_NOSIGNAL;
        // SAFETY: all parts are valid for reading their length; the kernel copies them, so a
        // guest that writes meanwhile races with no Rust reference.
        let sent = retry(|| unsafe { libc::sendmsg(stream.as_raw_fd(), &message, flags) })?;
        more = match sent {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => advance(&mut parts, sent as usize),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;
    use std::sync::Arc;

    use crate::guest::MemoryView;
    use crate::memory::{PAGE_BYTES, PageNumber, PageRange};

    const PAGES: u64 = 64;

    /// What arrives of scattered pages, queued or copied, is what memory holds.
    #[test]
    fn pages_arrive_in_order_queued_or_copied() {
        let mut bytes = vec![0u8; (PAGES as usize + 1) * PAGE_BYTES as usize];
        rand::Rng::fill(&mut rand::rng(), &mut bytes[..]);
        let start = bytes.as_ptr().align_offset(PAGE_BYTES as usize);
        let bytes = Arc::new(bytes);
        // SAFETY: the vector is kept, is long enough from its first whole page on, and nobody
        // writes it.
        let memory =
            unsafe { MemoryView::new(bytes.as_ptr().add(start).cast_mut(), PAGES, bytes.clone()) };
        let runs = [0..1, 2..5, 7..40, 63..64];
        let stretch = |run: &std::ops::Range<u64>| {
            let pages: PageRange = PageNumber(run.start)..PageNumber(run.end);
            memory.stretches(&pages)
        };
        let stretches: Vec<_> = runs.iter().flat_map(stretch).collect();
        let (head, pages) = ([&b"be"[..], b"fore", b""], runs.iter().cloned().flatten());
        let mut wanted = head.concat();
        for page in pages {
            wanted.extend(&bytes[start + (page * PAGE_BYTES) as usize..][..PAGE_BYTES as usize]);
        }
        let no_pipe = || Queue { pipe: OnceCell::from(None), ..Queue::default() };
        let denied = Queue { denied: Cell::new(true), ..Queue::default() };
        for (queue, stretches) in [
            (Queue::default(), &stretches[..]),
            (no_pipe(), &stretches[..]),
            (denied, &stretches[..]),
            (Queue::default(), &stretches[..1]),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut from = listener.accept().unwrap().0;
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                from.read_to_end(&mut got).map(|_| got)
            });
            // Twice, because what is left in the pipe would be found the second time.
            write_memory(&to, &queue, head, stretches).unwrap();
            write_memory(&to, &queue, head, stretches).unwrap();
            drop(to);
            let got = reader.join().unwrap().unwrap();
            let bytes: usize = stretches.iter().map(|stretch| stretch.raw().1).sum();
            let once = &wanted[..6 + bytes];
            assert!(got == [once, once].concat(), "{} bytes", got.len());
        }
    }
}
