//! userfaultfd write protection of guest memory; the interface itself is the `pagemap` crate's.

use std::io;

use super::Mechanism;
use super::view::MemoryView;
use crate::memory::{PageNumber, PageRange, all};

/// A memory under asynchronous write protection.
#[derive(Debug)]
pub(crate) struct WriteProtection {
    // Before the memory: dropped first.
    tracker: pagemap::WriteTracker,
    memory: MemoryView,
}

impl WriteProtection {
    /// Registers the memory; fails where the kernel lacks any part of the interface.
    pub(crate) fn register(memory: MemoryView) -> io::Result<Self> {
        let (base, bytes) = memory.raw(&all(memory.pages()));
        // SAFETY: the view keeps its mapping for as long as it lives, which is longer than the
        // tracker.
        let tracker = unsafe { pagemap::WriteTracker::register(base, bytes)? };
        Ok(Self { tracker, memory })
    }
}

impl Mechanism for WriteProtection {
    const NAME: &'static str = "uffd";

    fn unit(&self) -> u64 {
        self.tracker.unit()
    }

    fn protect_all(&mut self) -> io::Result<()> {
        self.tracker.protect_all()
    }

    fn scan(&self, range: PageRange, mut written: impl FnMut(PageRange)) -> io::Result<()> {
        debug_assert!(range.end.0 <= self.memory.pages(), "a range of the memory");
        let pages = |run: std::ops::Range<u64>| written(PageNumber(run.start)..PageNumber(run.end));
        self.tracker.harvest(range.start.0..range.end.0, pages)
    }
}
