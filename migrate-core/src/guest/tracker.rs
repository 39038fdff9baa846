//! The built-in dirty trackers, chosen by a probe or by name.

use std::ops::Range;

use super::sys::Mechanism;
use super::sys::fault::FaultTracking;
use super::sys::uffd::WriteProtection;
use super::{DirtyTracker, GuestError, MemoryView, threads};
use crate::memory::{Bitmap, GROUP_PAGES, PageNumber, PageRange, all};

/// Which tracker to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrackerKind {
    /// The first that works here: userfaultfd, then mprotect.
    #[default]
    Auto,
    /// userfaultfd write protection with PAGEMAP_SCAN: Linux 6.7 or newer.
    Userfaultfd,
    /// mprotect and SIGSEGV: everywhere, at some microseconds per first write.
    Mprotect,
}

impl std::str::FromStr for TrackerKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uffd" => Ok(Self::Userfaultfd),
            "mprotect" => Ok(Self::Mprotect),
            _ => Err(format!("no tracker is called '{text}'; there are: auto, uffd, mprotect")),
        }
    }
}

/// A tracker of `memory` by this process's own writes.
///
/// # Errors
/// The kernel has no such interface, with what to choose instead.
pub fn open(kind: TrackerKind, memory: &MemoryView) -> Result<Box<dyn DirtyTracker>, GuestError> {
    let uffd = |memory: &MemoryView| Tracker::of(memory, WriteProtection::register);
    let fault = |memory: &MemoryView| Tracker::of(memory, FaultTracking::register);
    match kind {
        TrackerKind::Userfaultfd => uffd(memory).map_err(|e| {
            let why = format!("{e} (needs Linux 6.7); use --tracker mprotect");
            GuestError::new("track writes by userfaultfd", why)
        }),
        TrackerKind::Mprotect => {
            fault(memory).map_err(|e| GuestError::new("track writes by mprotect", e))
        }
        TrackerKind::Auto => {
            uffd(memory).or_else(|_| fault(memory)).map_err(|e| GuestError::new("track writes", e))
        }
    }
}

/// A thread of a parallel harvest scans at least this many pages (1 GiB): below that, starting it
/// takes longer than the scan.
const PART_PAGES_MIN: u64 = 1 << 18;

/// A mechanism for each region.
struct Tracker<M>(Vec<Tracked<M>>);

struct Tracked<M> {
    /// Which of memory's pages it is.
    pages: PageRange,
    mechanism: M,
}

impl<M: Mechanism + 'static> Tracker<M> {
    /// Of all regions, or of none.
    fn of(
        memory: &MemoryView,
        register: impl Fn(MemoryView) -> std::io::Result<M>,
    ) -> std::io::Result<Box<dyn DirtyTracker>> {
        let tracked = memory.alone().map(|(first, region)| {
            let pages = first..first + region.pages();
            Ok(Tracked { pages, mechanism: register(region)? })
        });
        Ok(Box::new(Self(tracked.collect::<std::io::Result<_>>()?)))
    }
}

impl<M: Mechanism> Tracked<M> {
    /// Those of its own pages, counted from its first, that a look at `range` has to look at: whole
    /// units.
    fn inside(&self, range: &PageRange) -> Range<u64> {
        let (start, end) = (range.start.max(self.pages.start), range.end.min(self.pages.end));
        if start >= end {
            return 0..0;
        }
        let (start, end) = (start - self.pages.start, end - self.pages.start);
        let unit = self.mechanism.unit();
        let end = end.next_multiple_of(unit).min(self.pages.end - self.pages.start);
        start / unit * unit..end
    }

    /// The written ones of its own pages, counted from the start of the part.
    fn scan(&self, part: Range<u64>) -> std::io::Result<Bitmap> {
        let mut found = Bitmap::empty(part.end - part.start);
        self.mechanism.scan(PageNumber(part.start)..PageNumber(part.end), |run| {
            found.insert(PageNumber(run.start.0 - part.start)..PageNumber(run.end.0 - part.start));
        })?;
        Ok(found)
    }
}

impl<M: Mechanism> DirtyTracker for Tracker<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let mut tracked = self.0.iter_mut();
        tracked
            .try_for_each(|tracked| tracked.mechanism.protect_all())
            .map_err(|e| GuestError::new("write-protect guest memory", e))
    }

    /// Large ranges on all cores: a stun must not wait for one of them to look at everything.
    fn harvest(&mut self, range: PageRange, into: &mut Bitmap) -> Result<u64, GuestError> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let pages = range.end - range.start;
        let parts = pages.div_ceil(PART_PAGES_MIN).clamp(1, threads);
        let step = pages.div_ceil(parts).max(1);
        let parts = self.0.iter().flat_map(|tracked| {
            let inside = tracked.inside(&range);
            let step = step.next_multiple_of(tracked.mechanism.unit().max(GROUP_PAGES));
            let starts = inside.clone().step_by(step as usize);
            starts.map(move |start| (tracked, start..(start + step).min(inside.end)))
        });
        let scan = |(tracked, part): (&Tracked<M>, Range<u64>)| {
            let found = tracked.scan(part.clone())?;
            Ok((tracked.pages.start + part.start, found))
        };
        let found: std::io::Result<Vec<(PageNumber, Bitmap)>> =
            threads::map(parts.collect(), scan).into_iter().collect();
        let found = found.map_err(|e| GuestError::new("look for written pages", e))?;
        let mut pages = 0;
        for (start, part) in &found {
            for run in part.runs(all(part.pages())) {
                pages += run.end - run.start;
                into.insert(*start + run.start.0..*start + run.end.0);
            }
        }
        Ok(pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::each;

    /// Written pages in a pattern, scanned in turn and at once.
    struct Every(u64);

    impl Mechanism for Every {
        const NAME: &'static str = "every";
        fn protect_all(&mut self) -> std::io::Result<()> {
            Ok(())
        }
        fn scan(
            &self,
            range: PageRange,
            mut written: impl FnMut(PageRange),
        ) -> std::io::Result<()> {
            let first = PageNumber(range.start.0.next_multiple_of(self.0));
            each(first..range.end).step_by(self.0 as usize).for_each(|page| written(page.alone()));
            Ok(())
        }
    }

    #[test]
    fn a_parallel_harvest_finds_what_a_single_scan_does() {
        let pages = 3 * PART_PAGES_MIN + 77;
        for range in [0..pages, 5..pages - 3, 9..9, 0..100] {
            let range = PageNumber(range.start)..PageNumber(range.end);
            let (mut found, mut once) = (Bitmap::empty(pages), Bitmap::empty(pages));
            let tracked = Tracked { pages: all(pages), mechanism: Every(1001) };
            let count = Tracker(vec![tracked]).harvest(range.clone(), &mut found).unwrap();
            Every(1001)
                .scan(range, |run| {
                    once.insert(run);
                })
                .unwrap();
            assert_eq!((&found, count), (&once, once.count()));
        }
    }

    /// Pages are numbered across regions, harvests stop anywhere in them.
    #[test]
    fn writes_to_every_region_are_found_by_their_numbers() {
        for kind in [TrackerKind::Auto, TrackerKind::Mprotect] {
            let memory = MemoryView::joined([3, 130, 1].map(MemoryView::for_ever));
            let mut tracker = open(kind, &memory).unwrap();
            tracker.start().unwrap();
            let written = [0, 2, 3, 66, 67, 132, 133].map(PageNumber);
            // Written as a guest writes, not as an engine does.
            written.iter().for_each(|page| memory.zero(*page));
            let (mut found, mut pages) = (Bitmap::empty(134), 0);
            for range in [0..1, 1..67, 67..134] {
                let range = PageNumber(range.start)..PageNumber(range.end);
                pages += tracker.harvest(range, &mut found).unwrap();
            }
            assert_eq!(found.iter().collect::<Vec<_>>(), written, "{kind:?}");
            assert_eq!(pages, written.len() as u64);
            assert_eq!(tracker.harvest(all(134), &mut found).unwrap(), 0, "{kind:?}: re-armed");
        }
    }
}
