//! The memory of this machine, as fast as it goes, and a count of allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use workload::region::Region;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted.
struct Counting;

// SAFETY: hands everything to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this process so far.
pub(super) fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Fills a region with one byte, by memset.
pub(super) fn memset(region: &mut Region, byte: u8) {
    // SAFETY: the whole of a mapping that nobody else can use while it is borrowed as ours.
    unsafe { std::ptr::write_bytes(region.as_ptr(), byte, region.bytes() as usize) }
}

/// The words of a region that nobody writes.
fn words(region: &mut Region) -> &[u64] {
    let words = region.bytes() as usize / 8;
    // SAFETY: a page-aligned mapping of that length, which nobody else can write while it is
    // borrowed as ours; any bits are a valid word.
    unsafe { std::slice::from_raw_parts(region.as_ptr().cast(), words) }
}

/// Reads every word of a region as fast as plain loads go.
pub(super) fn read(region: &mut Region) -> u64 {
    words(region).iter().fold(0, |sum, word| sum ^ word)
}

/// The same by two threads.
pub(super) fn read_in_halves(region: &mut Region) -> u64 {
    let words = words(region);
    let (low, high) = words.split_at(words.len() / 2);
    let fold = |words: &[u64]| words.iter().fold(0, |sum, word| sum ^ word);
    let (low, high) = rayon::join(|| fold(low), || fold(high));
    low ^ high
}
