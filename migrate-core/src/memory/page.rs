//! The page: the unit of tracking and of transfer.

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;

/// Number of a page, from 0, across all of a guest's memory.
pub type PageNumber = u64;
