//! A region: memory that writers dirty and verifiers read, shared by files or file descriptors.
//!
//! Seen as relaxed atomic words, because the host reads while the guest writes: such a race is
//! the subject of this project and must be defined behaviour in our own code. On x86-64 a relaxed
//! access is a plain move.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::line::Line;
use crate::regular;
use crate::units::Bytes;
use crate::{LINE_WORDS, PAGE_BYTES};

/// Bytes in a huge page.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// What went wrong with a region's backing.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The file could not be opened, sized or locked.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done to it.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Memory could not be had.
    #[error("cannot {doing} {bytes} of memory: {source}")]
    Memory {
        /// What was being done.
        doing: &'static str,
        /// How much.
        bytes: Bytes,
        /// What the system said.
        source: io::Error,
    },
    /// A region file of a size that its workload does not have.
    #[error("{} holds {found} bytes, but the workload's region has {expected}; is it the file of another run?", path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size in bytes that was wanted.
        expected: u64,
    },
}

/// Mapped memory of a whole number of pages.
#[derive(Debug)]
pub struct Region {
    map: sys::Map,
    file: File,
}

impl AsFd for Region {
    /// The file that the region is a shared mapping of, from its first byte on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Region {
    /// New zeroed memory in a memfd: it has no name, and is gone with its last user.
    ///
    /// # Errors
    /// The system has no memory or no memfd to give.
    pub fn anonymous(bytes: Bytes) -> Result<Self, RegionError> {
        let fail = |doing| move |source| RegionError::Memory { doing, bytes, source };
        let file = sys::memfd("vmigrate-guest").map_err(fail("create"))?;
        file.set_len(bytes.0).map_err(fail("size"))?;
        let map = sys::Map::shared(&file, bytes.0, sys::Access::ReadWrite).map_err(fail("map"))?;
        Ok(Self { map, file })
    }

    /// The same in huge pages, which must have been reserved.
    ///
    /// # Errors
    /// Not enough huge pages are free, or `bytes` is no multiple of 2 MiB.
    pub fn huge(bytes: Bytes) -> Result<Self, RegionError> {
        let fail = |doing| move |source| RegionError::Memory { doing, bytes, source };
        if !bytes.0.is_multiple_of(HUGE_PAGE_BYTES) {
            let source = io::Error::other("not a multiple of the huge page of 2 MiB");
            return Err(fail("map huge pages for")(source));
        }
        let file = sys::huge_memfd("vmigrate-guest").map_err(fail("create huge-page file for"))?;
        file.set_len(bytes.0).map_err(fail("size"))?;
        let map = sys::Map::shared(&file, bytes.0, sys::Access::ReadWrite).map_err(|source| {
            let wanted = bytes.0 / HUGE_PAGE_BYTES;
            fail("map huge pages for")(io::Error::other(format!(
                "{source}; reserve them first: echo {wanted} > /proc/sys/vm/nr_hugepages"
            )))
        })?;
        Ok(Self { map, file })
    }

    /// Keeps the region from being swapped out.
    ///
    /// # Errors
    /// More than this process may lock.
    pub fn lock(&self) -> Result<(), RegionError> {
        self.map.lock().map_err(|source| RegionError::Memory {
            doing: "lock (raise `ulimit -l`, or run as root, for)",
            bytes: Bytes(self.bytes()),
            source,
        })
    }

    /// A path under which other processes of this user find the region while it lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// A new region file, its space reserved on disk so that a full disk is an error here and
    /// not a SIGBUS later. Holds an exclusive lock while it lives: [`Region::is_live`] sees it.
    ///
    /// # Errors
    /// The file cannot be made or locked, or the disk is full; a file made here is removed again.
    pub fn create(path: &Path, bytes: Bytes) -> Result<Self, RegionError> {
        let fail = |doing| move |source| RegionError::File { path: path.to_owned(), doing, source };
        let existed = path.exists();
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail("create"))?;
        let fill = || {
            file.try_lock().map_err(|e| fail("lock")(e.into()))?;
            file.set_len(0).map_err(fail("truncate"))?;
            sys::reserve(&file, bytes.0).map_err(fail("reserve space for"))?;
            sys::Map::shared(&file, bytes.0, sys::Access::ReadWrite).map_err(fail("map"))
        };
        match fill() {
            Ok(map) => Ok(Self { map, file }),
            Err(e) => {
                if !existed {
                    let _ = std::fs::remove_file(path);
                }
                Err(e)
            }
        }
    }

    /// An existing region file of exactly `bytes`, for reading.
    ///
    /// # Errors
    /// The file is missing or of another size.
    pub fn open(path: &Path, bytes: Bytes) -> Result<Self, RegionError> {
        let fail = |doing| move |source| RegionError::File { path: path.to_owned(), doing, source };
        let (file, found) = regular::open(path).map_err(fail("open"))?;
        if found != bytes.0 {
            return Err(RegionError::WrongSize { path: path.to_owned(), found, expected: bytes.0 });
        }
        let map = sys::Map::shared(&file, bytes.0, sys::Access::Read).map_err(fail("map"))?;
        Ok(Self { map, file })
    }

    /// Whether a generator still runs on this file (it holds the lock).
    pub fn is_live(&self) -> bool {
        match self.file.try_lock_shared() {
            Ok(()) => {
                let _ = self.file.unlock();
                false
            }
            Err(_) => true,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.bytes()
    }

    /// Size in pages.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_BYTES
    }

    /// First byte of the mapping, for those who hand it to the kernel.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_ptr()
    }

    /// The memory as words.
    pub fn words(&self) -> &[AtomicU64] {
        self.map.words()
    }

    /// The words of one line.
    #[inline(always)]
    pub fn line(&self, address: u64) -> &[AtomicU64; LINE_WORDS] {
        let start = address as usize * LINE_WORDS;
        let words = &self.words()[start..start + LINE_WORDS];
        words.try_into().unwrap_or_else(|_| unreachable!("a line has eight words"))
    }

    /// Writes one line, word by word.
    #[inline(always)]
    pub fn store(&self, address: u64, line: &Line) {
        for (word, value) in self.line(address).iter().zip(line) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Reads one line, word by word.
    #[inline(always)]
    pub fn load(&self, address: u64) -> Line {
        let words = self.line(address);
        std::array::from_fn(|i| u64::from_le(words[i].load(Ordering::Relaxed)))
    }

    /// The words of neighbouring lines.
    #[inline(always)]
    pub fn lines(&self, addresses: Range<u64>) -> &[AtomicU64] {
        &self.words()[addresses.start as usize * LINE_WORDS..addresses.end as usize * LINE_WORDS]
    }

    /// Says that a line will be looked at soon; one beyond the end is no harm.
    #[inline(always)]
    pub fn prefetch(&self, address: u64) {
        if let Some(word) = self.words().get(address as usize * LINE_WORDS) {
            sys::prefetch(word);
        }
    }

    /// Copies `into.len()` bytes (a multiple of 8) from byte `offset` (a multiple of 8).
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) {
        let first = (offset / 8) as usize;
        sys::copy_words(&self.words()[first..first + into.len() / 8], into);
    }
}

/// Mappings, memfds and disk reservation: the system calls behind a region.
mod sys {
    use std::fs::File;
    use std::io::{self, Read};
    use std::ptr::{self, NonNull};
    use std::sync::atomic::AtomicU64;

    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
    use rustix::io::Errno;
    use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};

    #[derive(Clone, Copy)]
    pub(super) enum Access {
        Read,
        ReadWrite,
    }

    /// A shared mapping, unmapped when dropped.
    #[derive(Debug)]
    pub(super) struct Map {
        base: NonNull<u8>,
        bytes: usize,
    }

    // SAFETY: the mapping is plain memory, valid from any thread until dropped, and only ever
    // accessed as atomics through `words`.
    unsafe impl Send for Map {}
    // SAFETY: as above.
    unsafe impl Sync for Map {}

    impl Map {
        pub(super) fn shared(file: &File, bytes: u64, access: Access) -> io::Result<Self> {
            let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
            let prot = match access {
                Access::Read => ProtFlags::READ,
                Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
            };
            // SAFETY: a fresh mapping at an address the kernel chooses touches no existing memory.
            let base = unsafe { mmap(ptr::null_mut(), bytes, prot, MapFlags::SHARED, file, 0)? };
            let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { base, bytes })
        }

        pub(super) fn lock(&self) -> io::Result<()> {
            // SAFETY: base and length are those of our own mapping.
            let locked = unsafe { mlock(self.base.as_ptr().cast(), self.bytes) };
            locked.map_err(Into::into)
        }

        pub(super) fn bytes(&self) -> u64 {
            self.bytes as u64
        }

        pub(super) fn as_ptr(&self) -> *mut u8 {
            self.base.as_ptr()
        }

        pub(super) fn words(&self) -> &[AtomicU64] {
            // SAFETY: the mapping is page-aligned, `bytes` long, lives as long as `self`, any bit
            // pattern is a valid u64, and every access in this process is atomic. (A read-only
            // mapping is never stored to: the writers' constructors map read-write.)
            unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.bytes / 8) }
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            // SAFETY: base and length are those of our own mapping, which nothing borrows now.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        }
    }

    #[inline(always)]
    pub(super) fn prefetch(word: &AtomicU64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint about an address that is valid; every x86-64 has the instruction.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(word.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = word;
    }

    /// Copies words that may be written meanwhile, each of them whole or not yet.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn copy_words(from: &[AtomicU64], into: &mut [u8]) {
        assert_eq!(from.len() * 8, into.len(), "as many bytes as words");
        // SAFETY: both slices are valid for `count` words and do not overlap, one being borrowed
        // exclusively. The instruction is not a Rust memory access, so a race with a writer of
        // atomics is the machine's business: aligned words are copied whole.
        unsafe {
            std::arch::asm!(
                "rep movsq",
                inout("rcx") from.len() => _,
                inout("rsi") from.as_ptr() => _,
                inout("rdi") into.as_mut_ptr() => _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Copies words that may be written meanwhile, each of them whole or not yet.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn copy_words(from: &[AtomicU64], into: &mut [u8]) {
        use std::sync::atomic::Ordering;
        for (chunk, word) in into.chunks_exact_mut(8).zip(from) {
            chunk.copy_from_slice(&u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes());
        }
    }

    pub(super) fn memfd(name: &str) -> io::Result<File> {
        Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
    }

    pub(super) fn huge_memfd(name: &str) -> io::Result<File> {
        let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        Ok(memfd_create(name, MemfdFlags::CLOEXEC | huge)?.into())
    }

    pub(super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            // A file system that cannot promise space has it taken.
            Err(Errno::OPNOTSUPP) => {
                io::copy(&mut io::repeat(0).take(bytes), &mut { file }).map(drop)
            }
            other => Ok(other?),
        }
    }
}
