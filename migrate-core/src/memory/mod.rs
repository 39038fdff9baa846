//! Guest memory as numbers: pages, groups of them, sets of them, and which stream carries which. No
//! I/O, no threads.

mod bitmap;
mod group;
mod page;
mod shard;

pub use bitmap::{Bitmap, Runs, SharedBitmap};
pub use group::{GROUP_PAGES, Group};
pub use page::{PAGE_BYTES, PageNumber, PageRange, all, each};
pub use shard::{CHUNK_PAGES, groups_of_shard, shard};
