//! The ioctls and their structs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::PAGE_BYTES;

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

/// Memory under asynchronous write protection; dropped, it is ordinary memory again.
#[derive(Debug)]
pub struct WriteTracker {
    base: u64,
    bytes: u64,
    uffd: OwnedFd,
    pagemap: File,
}

impl WriteTracker {
    /// Registers the mapping of `bytes` bytes (a multiple of the page) at `base`.
    ///
    /// # Errors
    /// The kernel lacks any part of the interface, or the mapping is of a kind it cannot watch.
    ///
    /// # Safety
    /// The mapping must stay as it is until the tracker is dropped.
    pub unsafe fn register(base: *mut u8, bytes: usize) -> io::Result<Self> {
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
        let (base, bytes) = (base as u64, bytes as u64);
        let mut register =
            UffdioRegister { start: base, len: bytes, mode: REGISTER_MODE_WP, ioctls: 0 };
        ioctl(&uffd, UFFDIO_REGISTER, &mut register)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let this = Self { base, bytes, uffd, pagemap };
        // The probe: kernels before 6.7 refuse the scan.
        this.harvest(0..this.pages().min(1), |_| {})?;
        Ok(this)
    }

    /// Pages watched.
    pub fn pages(&self) -> u64 {
        self.bytes / PAGE_BYTES
    }

    /// Marks every page clean.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn protect_all(&mut self) -> io::Result<()> {
        let mut protect =
            UffdioWriteProtect { start: self.base, len: self.bytes, mode: WRITEPROTECT_MODE_WP };
        ioctl(&self.uffd, UFFDIO_WRITEPROTECT, &mut protect)
    }

    /// Tells `written` the runs of pages of `range` written since they were marked clean, marking
    /// them clean again. Ranges that do not overlap may be harvested at the same time.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn harvest(
        &self,
        range: Range<u64>,
        mut written: impl FnMut(Range<u64>),
    ) -> io::Result<()> {
        let address = |page: u64| self.base + page.min(self.pages()) * PAGE_BYTES;
        let (mut start, end) = (address(range.start), address(range.end));
        let mut found = vec![PageRegion::default(); SCAN_RUNS];
        while start < end {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start,
                end,
                walk_end: 0,
                vec: found.as_mut_ptr() as u64,
                vec_len: found.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            let count = ioctl_count(&self.pagemap, PAGEMAP_SCAN, &mut arg)?;
            for run in &found[..count.min(SCAN_RUNS)] {
                let page = |address: u64| (address - self.base) / PAGE_BYTES;
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

impl Drop for WriteTracker {
    fn drop(&mut self) {
        let mut range = UffdioRange { start: self.base, len: self.bytes };
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
