//! Gathering writes straight from guest memory, and reads that fill what they are given.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::guest::MemoryView;
use crate::memory::{GROUP_PAGES, PAGE_BYTES, PageNumber};

/// Shorter runs of pages are copied into the socket: queueing pages one by one costs more.
const QUEUED_PAGES_MIN: u64 = 8;
/// A reader that waits for at least this much is woken when this much is there.
const WAKE_BYTES: usize = 256 << 10;
/// Parts of one gathered write or scattered read: heads, and every other page of a group.
const PARTS_MAX: usize = 4 + GROUP_PAGES as usize;

/// Fills the buffer.
pub(super) fn read_all(stream: &TcpStream, into: &mut [u8]) -> io::Result<()> {
    scatter(stream, vec![part(into.as_mut_ptr(), into.len())])
}

/// Fills `checks` and then pages of a shadow, which nobody else may write.
pub(super) fn read_pages(
    stream: &TcpStream,
    checks: &mut [u8],
    memory: &MemoryView,
    runs: impl Iterator<Item = Range<PageNumber>>,
) -> io::Result<()> {
    let mut parts = vec![part(checks.as_mut_ptr(), checks.len())];
    parts.extend(runs.map(|run| {
        let (start, bytes) = memory.raw(&run);
        part(start, bytes)
    }));
    scatter(stream, parts)
}

/// Writes the `head` and then `runs` of pages, which the kernel reads while the guest may write
/// them: what goes out is some mix of old and new, and the page is dirty again.
///
/// Of memory that is a mapping of a file the pages of a long run are queued themselves, and read
/// when the network card, or the receiver on this machine, takes them: no copy is made here.
/// Otherwise the kernel copies them into the socket.
pub(super) fn write_pages(
    stream: &TcpStream,
    head: [&[u8]; 3],
    memory: &MemoryView,
    runs: &[Range<PageNumber>],
) -> io::Result<()> {
    let mut parts: Vec<_> =
        head.iter().map(|bytes| part(bytes.as_ptr().cast_mut(), bytes.len())).collect();
    if let ([run], Some(file)) = (runs, memory.file())
        && run.end - run.start >= QUEUED_PAGES_MIN
    {
        gather(stream, parts, libc::MSG_MORE)?;
        let mut offset = (run.start * PAGE_BYTES) as libc::off_t;
        let end = (run.end * PAGE_BYTES) as libc::off_t;
        while offset < end {
            let rest = (end - offset) as usize;
            // SAFETY: both descriptors are open; the kernel reads the file, not our memory.
            let sent =
                unsafe { libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), &mut offset, rest) };
            match sent {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent if sent > 0 => {}
                _ => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    // A file of a kind that cannot be sent, such as huge pages.
                    e if e.raw_os_error() == Some(libc::EINVAL) => break,
                    e => return Err(e),
                },
            }
        }
        let (start, bytes) = memory.raw(run);
        let sent = bytes - (end - offset) as usize;
        // SAFETY: at most the whole run was sent, so the pointer stays inside or one past.
        let rest = part(unsafe { start.add(sent) }, bytes - sent);
        return gather(stream, vec![rest], 0);
    }
    parts.extend(runs.iter().map(|run| {
        let (start, bytes) = memory.raw(run);
        part(start, bytes)
    }));
    gather(stream, parts, 0)
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
        let got = unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, how) };
        more = match got {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got if got > 0 => advance(&mut parts, got as usize),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => true,
                e => return Err(e),
            },
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
    let timeout_ms = timeout.map_or(-1, |timeout| timeout.as_millis().min(1 << 30) as libc::c_int);
    wake_at(stream, bytes)?;
    let waited = loop {
        let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        match unsafe { libc::poll(&mut poll, 1, timeout_ms) } {
            0 => break Err(io::ErrorKind::WouldBlock.into()),
            ready if ready > 0 => break Ok(()),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => break Err(e),
            },
        }
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
        let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, flags) };
        more = match sent {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent if sent > 0 => advance(&mut parts, sent as usize),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => true,
                e => return Err(e),
            },
        };
    }
    Ok(())
}
