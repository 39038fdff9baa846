//! userfaultfd write protection in asynchronous mode, with the PAGEMAP_SCAN ioctl.
//!
//! The kernel itself resolves a write fault by marking the page written, so the guest pays one
//! short fault per page and harvest, and no handler thread exists. PAGEMAP_SCAN with
//! WP_MATCHING reports written pages and protects them again, atomically per page.
//! Sources: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst, Linux 6.7 or newer.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Mechanism;
use super::view::MemoryView;
use crate::memory::{PAGE_BYTES, PageNumber};

const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_API: u64 = 0xAA;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_AA01;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xC018_AA06;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Runs that one scan call can return; a call that fills them is continued.
const SCAN_RUNS: usize = 2048;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A memory under asynchronous write protection.
#[derive(Debug)]
pub(crate) struct WriteProtection {
    memory: MemoryView,
    uffd: OwnedFd,
    pagemap: File,
    found: Vec<PageRegion>,
}

// SAFETY: descriptors and a memory view, which are usable from any thread; the scan results are
// plain numbers.
unsafe impl Send for WriteProtection {}

impl std::fmt::Debug for PageRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}..{:x}", self.start, self.end)
    }
}

impl WriteProtection {
    /// Registers the memory; fails where the kernel lacks any part of the interface.
    pub(crate) fn register(memory: MemoryView) -> io::Result<Self> {
        // SAFETY: a plain system call.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let uffd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut api = UffdioApi {
            api: UFFD_API,
            features: FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        ioctl(&uffd, UFFDIO_API, &mut api)?;
        let (start, len) = memory.raw(&(0..memory.pages()));
        let mut register = UffdioRegister {
            start: start as u64,
            len: len as u64,
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        ioctl(&uffd, UFFDIO_REGISTER, &mut register)?;
        let mut this = Self {
            memory,
            uffd,
            pagemap: File::open("/proc/self/pagemap")?,
            found: vec![PageRegion::default(); SCAN_RUNS],
        };
        // The probe: kernels before 6.7 refuse the scan.
        let pages = this.memory.pages().min(1);
        this.scan(0..pages, |_| {})?;
        Ok(this)
    }
}

impl Mechanism for WriteProtection {
    const NAME: &'static str = "uffd";

    fn protect_all(&mut self) -> io::Result<()> {
        let (start, len) = self.memory.raw(&(0..self.memory.pages()));
        let mut protect =
            UffdioWriteProtect { start: start as u64, len: len as u64, mode: WRITEPROTECT_MODE_WP };
        ioctl(&self.uffd, UFFDIO_WRITEPROTECT, &mut protect)
    }

    fn scan(
        &mut self,
        range: Range<PageNumber>,
        mut written: impl FnMut(Range<PageNumber>),
    ) -> io::Result<()> {
        let (base, _) = self.memory.raw(&(0..0));
        let (start, len) = self.memory.raw(&range);
        let (mut start, end) = (start as u64, start as u64 + len as u64);
        while start < end {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start,
                end,
                walk_end: 0,
                vec: self.found.as_mut_ptr() as u64,
                vec_len: self.found.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            let count = ioctl_count(&self.pagemap, PAGEMAP_SCAN, &mut arg)?;
            for run in &self.found[..count.min(SCAN_RUNS)] {
                let page = |address: u64| (address - base as u64) / PAGE_BYTES;
                written(page(run.start)..page(run.end));
            }
            if arg.walk_end <= start {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            start = arg.walk_end;
        }
        Ok(())
    }
}

impl Drop for WriteProtection {
    fn drop(&mut self) {
        let (start, len) = self.memory.raw(&(0..self.memory.pages()));
        let mut range = UffdioRange { start: start as u64, len: len as u64 };
        // Closing the descriptor would do as well, but later; errors leave nothing to be done.
        let _ = ioctl(&self.uffd, UFFDIO_UNREGISTER, &mut range);
    }
}

fn ioctl<T>(fd: &impl AsRawFd, request: libc::c_ulong, arg: &mut T) -> io::Result<()> {
    ioctl_count(fd, request, arg).map(|_| ())
}

fn ioctl_count<T>(fd: &impl AsRawFd, request: libc::c_ulong, arg: &mut T) -> io::Result<usize> {
    loop {
        // SAFETY: every request of this file takes a pointer to exactly the struct passed with it,
        // and pointers inside (`vec`) refer to memory that outlives the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(arg)) };
        if result >= 0 {
            return Ok(result as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
