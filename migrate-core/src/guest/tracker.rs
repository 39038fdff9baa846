//! The built-in dirty trackers, chosen by a probe or by name.

use std::ops::Range;

use super::sys::Mechanism;
use super::sys::fault::FaultTracking;
use super::sys::uffd::WriteProtection;
use super::{DirtyTracker, GuestError, MemoryView};
use crate::memory::{Bitmap, PageNumber};

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
pub fn open(kind: TrackerKind, memory: MemoryView) -> Result<Box<dyn DirtyTracker>, GuestError> {
    let uffd = |memory| WriteProtection::register(memory).map(|p| Box::new(Tracker(p)) as _);
    let fault = |memory| FaultTracking::register(memory).map(|p| Box::new(Tracker(p)) as _);
    match kind {
        TrackerKind::Userfaultfd => uffd(memory).map_err(|e| {
            let why = format!("{e} (needs Linux 6.7); use --tracker mprotect");
            GuestError::new("track writes by userfaultfd", why)
        }),
        TrackerKind::Mprotect => {
            fault(memory).map_err(|e| GuestError::new("track writes by mprotect", e))
        }
        TrackerKind::Auto => uffd(memory.clone())
            .or_else(|_| fault(memory))
            .map_err(|e| GuestError::new("track writes", e)),
    }
}

struct Tracker<M>(M);

impl<M: Mechanism> DirtyTracker for Tracker<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn start(&mut self) -> Result<(), GuestError> {
        self.0.protect_all().map_err(|e| GuestError::new("write-protect guest memory", e))
    }

    fn harvest(&mut self, range: Range<PageNumber>, into: &mut Bitmap) -> Result<u64, GuestError> {
        let mut pages = 0;
        self.0
            .scan(range, |run| {
                pages += run.end - run.start;
                into.insert(run);
            })
            .map_err(|e| GuestError::new("look for written pages", e))?;
        Ok(pages)
    }
}
