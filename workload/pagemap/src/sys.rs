//! The ioctls and their structs.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;

use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::PAGE_BYTES;

const UFFD_USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);
const UFFD_API: u64 = 0xAA;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_API: Opcode = opcode::read_write::<UffdioApi>(0xAA, 0x3F);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<UffdioRegister>(0xAA, 0x00);
const UFFDIO_UNREGISTER: Opcode = opcode::read::<UffdioRange>(0xAA, 0x01);
const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<UffdioWriteProtect>(0xAA, 0x06);
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
const PAGEMAP_SCAN: Opcode = opcode::read_write::<PmScanArg>(b'f', 16);
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Pages that a page of the system can be: an ordinary one, and huge ones of 2 MiB and of 1 GiB.
const UNITS: [u64; 3] = [1, 512, 1 << 18];
/// The kernel looked at nothing of what it was to look at.
const NO_PROGRESS: io::ErrorKind = io::ErrorKind::InvalidInput;
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
    unit: u64,
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
        // SAFETY: what the descriptor can do is done below, to the mapping that we were given.
        let uffd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UFFD_USER_MODE_ONLY)? };
        let mut api = UffdioApi {
            api: UFFD_API,
            features: FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        update::<UFFDIO_API, _>(&uffd, &mut api)?;
        let (base, bytes) = (base as u64, bytes as u64);
        let mut register =
            UffdioRegister { start: base, len: bytes, mode: REGISTER_MODE_WP, ioctls: 0 };
        update::<UFFDIO_REGISTER, _>(&uffd, &mut register)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut this = Self { base, bytes, unit: 1, uffd, pagemap };
        this.unit = this.probe()?;
        Ok(this)
    }

    /// The least number of pages that can be harvested; kernels before 6.7 refuse any.
    fn probe(&self) -> io::Result<u64> {
        let mut last = None;
        for unit in UNITS {
            let pages = unit.min(self.pages());
            match self.harvest(0..pages, |_| {}) {
                Ok(()) => return Ok(unit),
                // A part of a huge page cannot be protected, and is not looked at.
                Err(e) if e.kind() == NO_PROGRESS => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
    }

    /// In how many pages at a time the kernel protects the mapping: more than one where they are huge.
    /// Ranges that are harvested begin and end at multiples of it, or at the end.
    pub fn unit(&self) -> u64 {
        self.unit
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
        Ok(update::<UFFDIO_WRITEPROTECT, _>(&self.uffd, &mut protect)?)
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
            let count = scan(&self.pagemap, &mut arg)?;
            for run in &found[..count.min(SCAN_RUNS)] {
                let page = |address: u64| (address - self.base) / PAGE_BYTES;
                written(page(run.start)..page(run.end));
            }
            if arg.walk_end <= start {
                return Err(io::Error::new(NO_PROGRESS, "PAGEMAP_SCAN made no progress"));
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
        let _ = update::<UFFDIO_UNREGISTER, _>(&self.uffd, &mut range);
    }
}

/// Makes a request that takes exactly a `T` and may change it.
fn update<const REQUEST: Opcode, T>(fd: &impl AsFd, arg: &mut T) -> Result<(), Errno> {
    // SAFETY: every request of this file stands with the struct that it takes.
    retry_on_intr(|| unsafe { ioctl(fd, Updater::<REQUEST, T>::new(arg)) })
}

/// The one request whose answer counts: how many runs were found.
struct Scan<'a>(&'a mut PmScanArg);

// SAFETY: the request takes a pointer to this struct, which refers to memory that the caller keeps.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(count: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        Ok(count as usize)
    }
}

fn scan(pagemap: &File, arg: &mut PmScanArg) -> Result<usize, Errno> {
    // SAFETY: `vec` has room for as many runs as `vec_len` says.
    retry_on_intr(|| unsafe { ioctl(pagemap, Scan(&mut *arg)) })
}
