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
        self.tracker.harvest(0..self.region.pages(), |run| join(&mut runs, run))?;
        Ok(runs)
    }
}

/// Adds a run to ascending ones. A long harvest takes several calls, and a page that is written
/// again where one ended may be in the next as well; it is one page all the same.
fn join(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.start <= run.start && run.start <= last.end => {
            last.end = last.end.max(run.end);
        }
        Some(last) if run.start < last.start => {
            // Back by more than a run: rare enough for a search.
            let tail = runs.split_off(runs.partition_point(|r| r.end < run.start));
            let rest = std::iter::once(run).chain(tail);
            let mut rest: Vec<_> = rest.collect();
            rest.sort_unstable_by_key(|r| r.start);
            rest.into_iter().for_each(|r| join(runs, r));
        }
        _ => runs.push(run),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_ascending_and_apart(runs in prop::collection::vec((0u64..100, 1u64..10), 0..30)) {
            let mut joined = Vec::new();
            let mut pages = std::collections::BTreeSet::new();
            for (start, length) in runs {
                join(&mut joined, start..start + length);
                pages.extend(start..start + length);
            }
            prop_assert!(joined.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(joined.into_iter().flatten().collect::<Vec<_>>(), pages.into_iter().collect::<Vec<_>>());
        }
    }
}
