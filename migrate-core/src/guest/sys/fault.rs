//! Write tracking by mprotect and SIGSEGV, where userfaultfd's asynchronous mode is missing.
//!
//! Clean pages are read-only. A write faults; the handler makes the page writable and *then* sets
//! its bit. In that order a harvest that runs between the two sees no bit and leaves the page
//! writable, and the bit appears for the next harvest; the other way round it would clear the bit
//! and protect the page, the handler would unprotect it, and later writes would be lost.
//! A final harvest follows a pause, when no handler is half way.
//!
//! The handler stays installed for good, because a migration that failed is tried again. A fault in
//! no tracked memory is one of two things. Late: the page was tracked when the instruction faulted,
//! and is writable by now; it is retried. Genuine: it faults again although nothing was untracked
//! in between, and whoever had the signal before gets it.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::Mechanism;
use super::view::MemoryView;
use crate::memory::{PAGE_BYTES, PageNumber, PageRange, all};

/// Memories that can be tracked at the same time in one process.
const TRACKED_MAX: usize = 16;

static TRACKED: [AtomicPtr<Tracked>; TRACKED_MAX] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; TRACKED_MAX];

/// How many memories are tracked no more.
static UNTRACKED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The last address that this thread retried, and the value of [`UNTRACKED`] then. Without a
    /// destructor, so that a handler may use it.
    static RETRIED: Cell<(usize, u64)> = const { Cell::new((0, 0)) };
}

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
        let (start, bytes) = memory.raw(&all(memory.pages()));
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
        let this = Self { memory, slot, tracked };
        // The probe; a writer that faults already is let through by the handler.
        let first = all(this.memory.pages().min(1));
        match this.protect(first, libc::PROT_READ) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                let why = "a part of a huge page cannot be protected alone; use --tracker uffd";
                Err(io::Error::other(why))
            }
            other => other.map(|()| this),
        }
    }

    fn protect(&self, range: PageRange, prot: libc::c_int) -> io::Result<()> {
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
        self.protect(all(self.memory.pages()), libc::PROT_READ)
    }

    fn scan(&self, range: PageRange, mut written: impl FnMut(PageRange)) -> io::Result<()> {
        let (mut page, end) = (range.start.0, range.end.0);
        while page < end {
            let (word, bit) = ((page / 64) as usize, page % 64);
            let count = (64 - bit).min(end - page);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let mut dirty = self.tracked.bits[word].fetch_and(!mask, Ordering::AcqRel) & mask;
            while dirty != 0 {
                let first = dirty.trailing_zeros();
                let length = (dirty >> first).trailing_ones();
                let start = PageNumber(word as u64 * 64 + u64::from(first));
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
        let _ = self.protect(all(self.memory.pages()), libc::PROT_READ | libc::PROT_WRITE);
        // Counted before it is forgotten: who finds nobody to ask finds the new count.
        UNTRACKED.fetch_add(1, Ordering::AcqRel);
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
            // SAFETY: the handler is async-signal-safe (atomics and mprotect only), and hands on
            // faults that are not ours.
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
    context: *mut libc::c_void,
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
    // SAFETY: as above.
    let code = unsafe { (*info).si_code };
    let now = (address, UNTRACKED.load(Ordering::Acquire));
    if code == SEGV_ACCERR && now.1 > 0 && RETRIED.replace(now) != now {
        return;
    }
    pass_to_previous_handler(signal, info, context);
}

/// Gives a genuine crash to whoever had the signal before: Rust's stack overflow guard, an
/// embedder's handler, or the default.
fn pass_to_previous_handler(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: PREVIOUS was written before our handler was installed, and never again.
    let previous = unsafe { &*previous_mut() };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The end of this process, when the instruction faults again.
            // SAFETY: restores what the process was started with.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: installed with SA_SIGINFO, so a function of this type; it gets what the
            // kernel gave us.
            unsafe { std::mem::transmute::<usize, Handler>(handler)(signal, info, context) }
        }
        handler => {
            // SAFETY: installed without SA_SIGINFO, so a function of the signal alone.
            unsafe {
                std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal);
            }
        }
    }
}

/// `si_code` of a fault in memory that is there and may not be used like that (sigaction(2)).
const SEGV_ACCERR: libc::c_int = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::each;
    use std::sync::atomic::AtomicBool;

    /// Writers that fault while their memory ceases to be tracked, again and again.
    #[test]
    fn a_fault_that_comes_late_is_retried_and_the_next_tracker_works() {
        let memory = MemoryView::for_ever(64);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        each(all(64)).for_each(|page| memory.zero(page));
                    }
                });
            }
            for _ in 0..20_000 {
                let mut tracking = FaultTracking::register(memory.clone()).unwrap();
                tracking.protect_all().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut tracking = FaultTracking::register(memory.clone()).unwrap();
        tracking.protect_all().unwrap();
        memory.zero(PageNumber(7));
        let mut found = Vec::new();
        tracking.scan(all(64), |run| found.extend(each(run))).unwrap();
        assert_eq!(found, [PageNumber(7)]);
    }

    /// In a child, which must die of it.
    #[test]
    fn a_genuine_crash_still_ends_the_process() {
        let (tracked, victim) = (MemoryView::for_ever(1), MemoryView::for_ever(1));
        drop(FaultTracking::register(tracked).unwrap());
        let (address, bytes) = victim.raw(&all(1));
        // SAFETY: the child does system calls and one write only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: our own page; the write is meant to fault.
            unsafe {
                libc::mprotect(address.cast(), bytes, libc::PROT_READ);
                address.write_volatile(1);
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status}");
    }
}
