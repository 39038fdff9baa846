//! The page: the unit of tracking and of transfer.

use std::ops::{Add, Range, Sub};

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;

/// Number of a page, from 0, across all of a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(pub u64);

impl PageNumber {
    /// Its place in a slice that has an element for each page.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// It alone.
    pub fn alone(self) -> PageRange {
        self..self + 1
    }

    /// Where its bytes begin in memory.
    pub fn offset(self) -> u64 {
        self.0 * PAGE_BYTES
    }
}

impl Add<u64> for PageNumber {
    type Output = Self;

    fn add(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }
}

impl Sub for PageNumber {
    type Output = u64;

    fn sub(self, earlier: Self) -> u64 {
        self.0 - earlier.0
    }
}

impl std::fmt::Display for PageNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Pages that follow one another.
pub type PageRange = Range<PageNumber>;

/// All pages of memory of so many.
pub fn all(pages: u64) -> PageRange {
    PageNumber(0)..PageNumber(pages)
}

/// The pages of a range, ascending.
pub fn each(range: PageRange) -> impl Iterator<Item = PageNumber> + Clone {
    (range.start.0..range.end.0).map(PageNumber)
}
