//! The kernel interfaces behind guests and trackers; the only unsafe code on this side.

use std::io;
use std::ops::Range;

use crate::memory::PageNumber;

pub(crate) mod fault;
pub(crate) mod uffd;
pub(crate) mod view;

/// One kernel interface that reports written pages and re-arms them.
pub(crate) trait Mechanism: Send {
    /// Name for reports.
    const NAME: &'static str;

    /// Marks every page clean.
    fn protect_all(&mut self) -> io::Result<()>;

    /// Tells `written` the runs of pages of `range` written since protected, protecting them again.
    fn scan(
        &mut self,
        range: Range<PageNumber>,
        written: impl FnMut(Range<PageNumber>),
    ) -> io::Result<()>;
}
