//! Write tracking by mprotect and SIGSEGV, where userfaultfd's asynchronous mode is missing.
//!
//! Clean pages are read-only. A write faults; the handler makes the page writable and *then* sets
//! its bit. In that order a harvest that runs between the two sees no bit and leaves the page
//! writable, and the bit appears for the next harvest; the other way round it would clear the bit
//! and protect the page, the handler would unprotect it, and later writes would be lost.
//! A final harvest follows a pause, when no handler is half way.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::Mechanism;
use super::view::MemoryView;
use crate::memory::{PAGE_BYTES, PageNumber};

/// Memories that can be tracked at the same time in one process.
const TRACKED_MAX: usize = 16;

static TRACKED: [AtomicPtr<Tracked>; TRACKED_MAX] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; TRACKED_MAX];

struct Tracked {
    start: usize,
    bytes: usize,
    bits: Vec<AtomicU64>,
}

/// A memory whose first writes fault.
#[derive(Debug)]
pub(crate) struct FaultTracking {
    memory: MemoryView,
    slot: usize,
    tracked: &'static Tracked,
}

impl std::fmt::Debug for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}+{:x}", self.start, self.bytes)
    }
}

impl FaultTracking {
    pub(crate) fn register(memory: MemoryView) -> io::Result<Self> {
        install_handler()?;
        static REGISTER: Mutex<()> = Mutex::new(());
        let _one_at_a_time = REGISTER.lock().map_err(|_| io::Error::other("poisoned"))?;
        let (start, bytes) = memory.raw(&(0..memory.pages()));
        let slot = TRACKED
            .iter()
            .position(|slot| slot.load(Ordering::Acquire).is_null())
            .ok_or_else(|| io::Error::other("too many memories are tracked in this process"))?;
        // Leaked on purpose: a handler may look at it at any time. One bit per page is little.
        let tracked: &'static Tracked = Box::leak(Box::new(Tracked {
            start: start as usize,
            bytes,
            bits: (0..memory.pages().div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }));
        TRACKED[slot].store(std::ptr::from_ref(tracked).cast_mut(), Ordering::Release);
        Ok(Self { memory, slot, tracked })
    }

    fn protect(&self, range: Range<PageNumber>, prot: libc::c_int) -> io::Result<()> {
        let (start, bytes) = self.memory.raw(&range);
        // SAFETY: changes the protection of our own mapping; writers that fault on it are resumed
        // by the handler installed before.
        match unsafe { libc::mprotect(start.cast(), bytes, prot) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Mechanism for FaultTracking {
    const NAME: &'static str = "mprotect";

    fn protect_all(&mut self) -> io::Result<()> {
        self.tracked.bits.iter().for_each(|b| b.store(0, Ordering::Relaxed));
        self.protect(0..self.memory.pages(), libc::PROT_READ)
    }

    fn scan(
        &self,
        range: Range<PageNumber>,
        mut written: impl FnMut(Range<PageNumber>),
    ) -> io::Result<()> {
        let mut page = range.start;
        while page < range.end {
            let (word, bit) = ((page / 64) as usize, page % 64);
            let count = (64 - bit).min(range.end - page);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let mut dirty = self.tracked.bits[word].fetch_and(!mask, Ordering::AcqRel) & mask;
            while dirty != 0 {
                let first = dirty.trailing_zeros();
                let length = (dirty >> first).trailing_ones();
                let start = word as u64 * 64 + u64::from(first);
                let run = start..start + u64::from(length);
                self.protect(run.clone(), libc::PROT_READ)?;
                written(run);
                dirty &= !((u64::MAX >> (64 - length)) << first);
            }
            page += count;
        }
        Ok(())
    }
}

impl Drop for FaultTracking {
    fn drop(&mut self) {
        // Writable first, so that no fault comes once the handler does not know the memory.
        let _ = self.protect(0..self.memory.pages(), libc::PROT_READ | libc::PROT_WRITE);
        TRACKED[self.slot].store(std::ptr::null_mut(), Ordering::Release);
    }
}

fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            // SAFETY: all-zero is a valid sigaction; every field that matters is set below.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: the handler is async-signal-safe (atomics and mprotect only), and restores
            // the previous behaviour for faults that are not ours.
            match unsafe { libc::sigaction(libc::SIGSEGV, &action, previous_mut()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            }
        })
        .map_err(io::Error::from_raw_os_error)
}

static mut PREVIOUS: std::mem::MaybeUninit<libc::sigaction> = std::mem::MaybeUninit::zeroed();

fn previous_mut() -> *mut libc::sigaction {
    // Only written inside the OnceLock above, before the handler can run.
    (&raw mut PREVIOUS).cast()
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &TRACKED {
        let tracked = slot.load(Ordering::Acquire);
        if tracked.is_null() {
            continue;
        }
        // SAFETY: entries are leaked, so a non-null pointer is valid for ever.
        let tracked = unsafe { &*tracked };
        if !(tracked.start..tracked.start + tracked.bytes).contains(&address) {
            continue;
        }
        let page = (address - tracked.start) / PAGE_BYTES as usize;
        let start = tracked.start + page * PAGE_BYTES as usize;
        // SAFETY: one page inside a mapping that its owner keeps while it is tracked.
        unsafe {
            libc::mprotect(
                start as *mut libc::c_void,
                PAGE_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
            );
        }
        tracked.bits[page / 64].fetch_or(1 << (page % 64), Ordering::AcqRel);
        return;
    }
    // A genuine crash: the previous handler (Rust's stack overflow guard, or the default) gets it
    // when the instruction faults again.
    // SAFETY: PREVIOUS was written before this handler was installed.
    unsafe { libc::sigaction(signal, previous_mut(), std::ptr::null_mut()) };
}
