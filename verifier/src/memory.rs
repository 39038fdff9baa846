//! Memory as verifiers look at it, and how its writers stood then.

use std::ops::Range;
use std::sync::atomic::Ordering;

use workload::LINE_WORDS;
use workload::line::{Generation, Line, LineAddress, StampKey};
use workload::region::Region;

/// How far ahead of the comparison memory is asked for: the processor's own prefetching stops at
/// the end of a page, and computing a line leaves it little room to look ahead.
const PREFETCH_LINES: u64 = 32;

/// Memory that can be looked at line by line.
pub trait Memory: Sync {
    /// The line at an address.
    fn load(&self, address: LineAddress) -> Line;

    /// Whether `lines` are all plain stamps of `generation`: what nearly all memory is asked.
    #[inline]
    fn stands_at(&self, key: StampKey, lines: Range<LineAddress>, generation: Generation) -> bool {
        let mut different = 0;
        for address in lines {
            for (f, e) in self.load(address).iter().zip(key.line(address, generation)) {
                different |= f ^ e;
            }
        }
        different == 0
    }

    /// Whether the page is there at all; what is not there is left out.
    fn has(&self, page: u64) -> bool {
        let _ = page;
        true
    }
}

impl Memory for Region {
    #[inline(always)]
    fn load(&self, address: LineAddress) -> Line {
        Region::load(self, address)
    }

    #[inline]
    fn stands_at(&self, key: StampKey, lines: Range<LineAddress>, generation: Generation) -> bool {
        let mut different = [0; LINE_WORDS];
        let words = self.lines(lines.clone()).chunks_exact(LINE_WORDS);
        for (found, address) in words.zip(lines) {
            self.prefetch(address + PREFETCH_LINES);
            let expected = key.line(address, generation);
            for i in 0..LINE_WORDS {
                different[i] |= u64::from_le(found[i].load(Ordering::Relaxed)) ^ expected[i];
            }
        }
        different == [0; LINE_WORDS]
    }
}

/// How the writers stood when memory was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Stopped between operations, at exactly the given watermarks.
    Exact,
    /// Stopped anywhere: operation `watermark` of each writer may be a prefix of its record.
    Stopped,
    /// Running: at least the given watermarks.
    Running,
}
