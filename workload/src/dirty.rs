//! The kernel's own count of the pages that a region's writers dirty.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::region::Region;

/// Watches a region for written pages.
#[derive(Debug)]
pub struct DirtyPages {
    // Before the region: dropped first.
    tracker: pagemap::WriteTracker,
    region: Arc<Region>,
}

impl DirtyPages {
    /// Starts watching; every page counts as clean from now on.
    ///
    /// # Errors
    /// The kernel cannot tell (it is older than Linux 6.7), or not for this kind of memory.
    pub fn watch(region: Arc<Region>) -> io::Result<Self> {
        let mut tracker = sys::track(&region)?;
        tracker.protect_all()?;
        Ok(Self { tracker, region })
    }

    /// Runs of pages written since the last look, ascending.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn harvest(&mut self) -> io::Result<Vec<Range<u64>>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        self.tracker.harvest(0..self.region.pages(), |run| match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        })?;
        Ok(runs)
    }
}

/// Hands the region's mapping to the kernel interface.
mod sys {
    use super::Region;

    pub(super) fn track(region: &Region) -> std::io::Result<pagemap::WriteTracker> {
        // SAFETY: `DirtyPages` keeps the region, and with it the mapping, for longer than the
        // tracker.
        unsafe { pagemap::WriteTracker::register(region.as_ptr(), region.bytes() as usize) }
    }
}
