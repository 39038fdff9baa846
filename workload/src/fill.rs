//! A region before the first operation.

use crate::PAGE_BYTES;
use crate::cores;
use crate::region::Region;
use crate::spec::Workload;
use crate::stamp;

/// Pages that are filled at a time.
const CHUNK_PAGES: u64 = 512;

/// Fills the workload's memory, the front of the region, at generation 0, all cores at work;
/// `progress` hears of bytes done.
///
/// # Panics
/// The region is smaller than its workload's memory.
pub fn fill(region: &Region, workload: &Workload, progress: impl Fn(u64) + Sync) {
    let bytes = workload.spec().memory.0;
    assert!(region.bytes() >= bytes, "the region holds its workload");
    let pages = bytes / PAGE_BYTES;
    cores::map(pages.div_ceil(CHUNK_PAGES), |chunk| {
        let end = ((chunk + 1) * CHUNK_PAGES).min(pages);
        for page in chunk * CHUNK_PAGES..end {
            for segment in workload.segments(workload.owner(page), page) {
                if workload.content(segment.place).is_plain() {
                    let first = segment.lines.start;
                    stamp::store(workload.key(), region.lines(segment.lines), first, 0);
                    continue;
                }
                for address in segment.lines {
                    region.store(address, &workload.line(segment.place, address, 0));
                }
            }
        }
        progress((end - chunk * CHUNK_PAGES) * PAGE_BYTES);
    });
}
