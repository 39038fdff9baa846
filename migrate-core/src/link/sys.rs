//! Gathering writes straight from guest memory.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::guest::MemoryView;

/// Writes `header` and then `pages`, reading guest memory in the kernel while the guest may write
/// it: what goes out is some mix of old and new, and the page is dirty again.
pub(super) fn write_pages(
    stream: &TcpStream,
    header: &[u8],
    memory: &MemoryView,
    pages: Range<u64>,
) -> io::Result<()> {
    let (mut start, mut bytes) = memory.raw(&pages);
    let mut header = header;
    while bytes > 0 || !header.is_empty() {
        let parts = [
            libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() },
            libc::iovec { iov_base: start.cast(), iov_len: bytes },
        ];
        // SAFETY: both parts are valid for reading their length; the kernel copies them, so a
        // guest that writes meanwhile races with no Rust reference.
        let sent = unsafe { libc::writev(stream.as_raw_fd(), parts.as_ptr(), 2) };
        if sent < 0 {
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            }
        }
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let from_header = header.len().min(sent as usize);
        header = &header[from_header..];
        let from_pages = sent as usize - from_header;
        // SAFETY: at most `bytes` were sent, so the pointer stays inside or one past the pages.
        start = unsafe { start.add(from_pages) };
        bytes -= from_pages;
    }
    Ok(())
}
