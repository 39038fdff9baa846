//! Gathering writes straight from guest memory, and reads that fill what they are given.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::guest::MemoryView;
use crate::memory::PAGE_BYTES;

/// Fills both buffers. The kernel waits until all of a read is there, instead of waking the thread
/// for every few packets.
pub(super) fn read_all(stream: &TcpStream, mut into: [&mut [u8]; 2]) -> io::Result<()> {
    while into.iter().any(|part| !part.is_empty()) {
        let mut parts = into
            .each_mut()
            .map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
        // SAFETY: all-zero is a valid msghdr; the fields that matter are set below.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: both parts are ours to write for their length.
        let got = unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_WAITALL) };
        let mut got = match got {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got if got > 0 => got as usize,
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            },
        };
        for part in &mut into {
            let taken = got.min(part.len());
            *part = &mut std::mem::take(part)[taken..];
            got -= taken;
        }
    }
    Ok(())
}

/// Writes the `head` and then `pages`, which the kernel reads while the guest may write them: what
/// goes out is some mix of old and new, and the page is dirty again.
///
/// Of memory that is a mapping of a file the pages themselves are queued, and read when the network
/// card, or the receiver on this machine, takes them: no copy is made here. Otherwise the kernel
/// copies them into the socket.
pub(super) fn write_pages(
    stream: &TcpStream,
    head: [&[u8]; 2],
    memory: &MemoryView,
    pages: Range<u64>,
) -> io::Result<()> {
    let mut rest = memory.raw(&pages);
    if let Some(file) = memory.file() {
        let none = (rest.0, 0);
        gather(stream, head, none, libc::MSG_MORE)?;
        let mut offset = (pages.start * PAGE_BYTES) as libc::off_t;
        while rest.1 > 0 {
            // SAFETY: both descriptors are open; the kernel reads the file, not our memory.
            let sent = unsafe {
                libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), &mut offset, rest.1)
            };
            match sent {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent if sent > 0 => {
                    // SAFETY: at most the rest was sent, so it stays inside or one past.
                    rest = unsafe { (rest.0.add(sent as usize), rest.1 - sent as usize) };
                }
                _ => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    // A file of a kind that cannot be sent, such as huge pages.
                    e if e.raw_os_error() == Some(libc::EINVAL) => break,
                    e => return Err(e),
                },
            }
        }
        return gather(stream, [&[], &[]], rest, 0);
    }
    gather(stream, head, rest, 0)
}

/// Writes the `head` and then `bytes` of guest memory.
fn gather(
    stream: &TcpStream,
    mut head: [&[u8]; 2],
    (mut start, mut bytes): (*mut u8, usize),
    flags: libc::c_int,
) -> io::Result<()> {
    while bytes > 0 || head.iter().any(|part| !part.is_empty()) {
        let part = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let pages = libc::iovec { iov_base: start.cast(), iov_len: bytes };
        let mut parts = [part(head[0]), part(head[1]), pages];
        // SAFETY: all-zero is a valid msghdr; the fields that matter are set below.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        let flags = flags | libc::MSG_NOSIGNAL;
        // SAFETY: all parts are valid for reading their length; the kernel copies them, so a
        // guest that writes meanwhile races with no Rust reference.
        let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, flags) };
        if sent < 0 {
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            }
        }
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut sent = sent as usize;
        for part in &mut head {
            let taken = sent.min(part.len());
            *part = &part[taken..];
            sent -= taken;
        }
        // SAFETY: at most `bytes` of the pages were sent, so the pointer stays inside or one past.
        start = unsafe { start.add(sent) };
        bytes -= sent;
    }
    Ok(())
}
