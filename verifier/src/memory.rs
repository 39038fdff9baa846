//! Memory as verifiers look at it, and how its writers stood then.

use std::ops::Range;

use workload::line::{Generation, Line, LineAddress, StampKey};
use workload::region::Region;
use workload::stamp;

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
        let first = lines.start;
        stamp::stands(key, self.lines(lines), first, generation)
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
