//! The verifier's own test: faults planted one after the other, each of which must be found at its
//! address, and a clean region, in which nothing must be.
//!
//! A scan whose cursor does not move, that leaves out the end, or that forgets to compare, fails.

pub mod lies;

use workload::fill::fill;
use workload::region::Region;
use workload::spec::{Workload, WorkloadSpec};
use workload::units::Bytes;
use workload::{LINE_BYTES, PAGE_BYTES};

use crate::scan::Scan;
use workload::line::PageFormat;

/// More than one task's worth of pages, and an odd number of them.
const PAGES: u64 = 1031;

/// Tests a scan; returns how many faults were planted.
///
/// # Errors
/// What was not found, or found where nothing was.
pub fn run(scan: impl Fn(&Region, &Workload, &[u64]) -> Scan) -> Result<u64, String> {
    let spec = WorkloadSpec {
        format: PageFormat::fresh(),
        seed: 1,
        memory: Bytes(PAGES * PAGE_BYTES),
        writers: 3,
        workload: "stream".parse().map_err(|e| format!("{e}"))?,
    };
    let workload = spec.resolve().map_err(|e| e.to_string())?;
    let region = Region::anonymous(spec.memory).map_err(|e| e.to_string())?;
    fill(&region, &workload, |_| {});
    let watermarks = [0; 3];
    let faults = |region: &Region| {
        let scan = scan(region, &workload, &watermarks);
        if scan.lines != workload.lines() {
            return Err(format!(
                "only {} of {} lines were looked at",
                scan.lines,
                workload.lines()
            ));
        }
        Ok(scan.faults.extents)
    };
    if let Some(extent) = faults(&region)?.first() {
        return Err(format!("a clean region is wrong at {:#x}", extent.address));
    }
    let mut planted = 0;
    // Every page is the first, the last or some page of a task at some time; so is every line.
    for page in (0..PAGES).step_by(7).chain([511, 512, PAGES - 1]) {
        let address = page * workload::PAGE_LINES + page % workload::PAGE_LINES;
        let good = region.load(address);
        let mut bad = good;
        bad[(page % 8) as usize] ^= 1 << (page % 64);
        region.store(address, &bad);
        let found = faults(&region)?;
        region.store(address, &good);
        planted += 1;
        let at = found.iter().map(|e| e.address).collect::<Vec<_>>();
        if at != [address * LINE_BYTES] {
            return Err(format!("a fault at {:#x} was reported at {at:x?}", address * LINE_BYTES));
        }
    }
    Ok(planted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Memory, Moment};
    use crate::scan::scan;

    /// A memory whose cursor does not move: every address shows the first page.
    struct Stuck<'a>(&'a Region, &'a Workload);
    impl Memory for Stuck<'_> {
        fn load(&self, address: u64) -> workload::line::Line {
            // What the first page holds, as if it were the page asked for.
            let first = self.0.load(address % workload::PAGE_LINES);
            match first == self.1.line(0, address % workload::PAGE_LINES, 0) {
                true => self.1.line(address, address, 0),
                false => first,
            }
        }
    }

    #[test]
    fn the_scan_passes() {
        let exact = |r: &Region, w: &Workload, m: &[u64]| scan(r, w, Moment::Exact, m, |_| {});
        assert!(run(exact).unwrap() > 100);
    }

    #[test]
    fn scans_that_look_away_fail() {
        let stuck =
            |r: &Region, w: &Workload, m: &[u64]| scan(&Stuck(r, w), w, Moment::Exact, m, |_| {});
        assert!(run(stuck).is_err());
        let blind = |r: &Region, w: &Workload, m: &[u64]| {
            let mut scan = scan(r, w, Moment::Exact, m, |_| {});
            scan.faults = crate::extent::Faults::default();
            scan
        };
        assert!(run(blind).is_err());
        let short = |r: &Region, w: &Workload, m: &[u64]| {
            let mut scan = scan(r, w, Moment::Exact, m, |_| {});
            scan.lines -= 64;
            scan
        };
        assert!(run(short).unwrap_err().contains("looked at"));
    }
}
