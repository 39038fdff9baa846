//! The kernel interfaces behind guests and trackers; the only unsafe code on this side.

use std::io;

use crate::memory::PageRange;

pub(crate) mod fault;
pub(crate) mod uffd;
pub(crate) mod view;

/// One kernel interface that reports written pages and re-arms them.
pub(crate) trait Mechanism: Send + Sync {
    /// Name for reports.
    const NAME: &'static str;

    /// How many pages are protected at a time, from a multiple of it on: more than one where the
    /// system keeps huge ones. What is scanned is whole units.
    fn unit(&self) -> u64 {
        1
    }

    /// Marks every page clean.
    fn protect_all(&mut self) -> io::Result<()>;

    /// Tells `written` the runs of pages of `range` written since protected, protecting them again.
    /// Ranges that do not overlap may be scanned at the same time.
    fn scan(&self, range: PageRange, written: impl FnMut(PageRange)) -> io::Result<()>;
}
