//! Gathering writes straight from guest memory, and reads that fill what they are given.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::guest::MemoryView;

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

/// Writes the `head` and then `pages`, reading guest memory in the kernel while the guest may write
/// it: what goes out is some mix of old and new, and the page is dirty again.
pub(super) fn write_pages(
    stream: &TcpStream,
    head: [&[u8]; 2],
    memory: &MemoryView,
    pages: Range<u64>,
) -> io::Result<()> {
    let (mut start, mut bytes) = memory.raw(&pages);
    let mut head = head;
    while bytes > 0 || head.iter().any(|part| !part.is_empty()) {
        let part = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let pages = libc::iovec { iov_base: start.cast(), iov_len: bytes };
        let parts = [part(head[0]), part(head[1]), pages];
        // SAFETY: all parts are valid for reading their length; the kernel copies them, so a
        // guest that writes meanwhile races with no Rust reference.
        let sent = unsafe { libc::writev(stream.as_raw_fd(), parts.as_ptr(), 3) };
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
