//! The unique-dirty-pages curve U(t): how many distinct pages a workload writes in time t.
//!
//! What a pre-copy round of length t leaves to be sent again. Found by running the operations
//! themselves on a bitmap, so it holds for every pattern, and needs no formula.

use std::time::Duration;

use crate::pattern::Access;
use crate::rate::Plan;
use crate::spec::Workload;

/// Most operations that a curve follows.
pub const OPERATIONS_MAX: u64 = 200_000_000;

/// Counts the distinct pages that a writer's operations touch.
#[derive(Debug)]
pub struct Unique<'a> {
    workload: &'a Workload,
    writer: usize,
    /// One bit per page of the writer's share.
    seen: Vec<u64>,
    /// Operations followed so far.
    pub operations: u64,
    /// Distinct pages written by them.
    pub pages: u64,
}

impl<'a> Unique<'a> {
    /// Starts at operation `from` of a writer.
    pub fn starting_at(workload: &'a Workload, writer: usize, from: u64) -> Self {
        let pages = workload.shares()[writer].pages;
        let seen = vec![0; pages.div_ceil(64) as usize];
        Self { workload, writer, seen, operations: from, pages: 0 }
    }

    /// Forgets what was seen: from here on every page counts anew.
    pub fn restart(&mut self) {
        self.seen.fill(0);
        self.pages = 0;
    }

    /// Follows the next operation.
    #[inline]
    pub fn step(&mut self) {
        let share = &self.workload.shares()[self.writer];
        if let Access::Write(slot) = share.pattern.access(self.operations) {
            for page in self.workload.slot_pages(self.writer, slot) {
                let index = page - share.first_page;
                let bit = 1 << (index % 64);
                let word = &mut self.seen[(index / 64) as usize];
                self.pages += u64::from(*word & bit == 0);
                *word |= bit;
            }
        }
        self.operations += 1;
    }
}

/// Distinct pages written by all writers in each of the (ascending) times, when each of them
/// follows `plan`; shorter than `times` where that would take more than [`OPERATIONS_MAX`].
pub fn curve(workload: &Workload, plan: &Plan, times: &[Duration]) -> Vec<u64> {
    let writers = workload.shares().len();
    let mut writers: Vec<Unique<'_>> =
        (0..writers).map(|writer| Unique::starting_at(workload, writer, 0)).collect();
    let limit = OPERATIONS_MAX / writers.len() as u64;
    let mut points = Vec::new();
    for time in times {
        let due = plan.due(time.as_secs_f64()) as u64;
        if due > limit {
            break;
        }
        for writer in &mut writers {
            while writer.operations < due {
                writer.step();
            }
        }
        points.push(writers.iter().map(|w| w.pages).sum());
    }
    points
}

/// Operations per second of one writer so that it writes `pages` distinct pages in a second.
///
/// # Errors
/// The most that it can, where it cannot write so many.
pub fn operations_for_pages(workload: &Workload, writer: usize, pages: f64) -> Result<f64, u64> {
    let mut unique = Unique::starting_at(workload, writer, 0);
    let mut before = 0;
    while (unique.pages as f64) < pages {
        if unique.operations == OPERATIONS_MAX {
            return Err(unique.pages);
        }
        before = unique.pages;
        unique.step();
    }
    // The last operation may have gone beyond by part of a record.
    let part = (pages - before as f64) / (unique.pages - before).max(1) as f64;
    Ok((unique.operations - 1) as f64 + part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PageFormat;
    use crate::spec::WorkloadSpec;
    use crate::units::Bytes;

    fn workload(name: &str) -> Workload {
        let spec = WorkloadSpec {
            format: PageFormat::fresh(),
            seed: 4,
            memory: Bytes(4096 * 1000),
            writers: 2,
            workload: name.parse().unwrap(),
        };
        spec.resolve().unwrap()
    }

    #[test]
    fn curves_have_the_shapes_that_theory_says() {
        let times: Vec<_> = [0.1, 0.5, 1.0, 2.0].map(Duration::from_secs_f64).into();
        let plan = Plan::constant(500.0);
        assert_eq!(curve(&workload("stream"), &plan, &times), [100, 500, 1000, 1000]);
        assert_eq!(curve(&workload("touch"), &plan, &times), [100, 500, 1000, 1000]);
        assert_eq!(curve(&workload("stream,record=1KiB"), &plan, &times), [26, 126, 250, 500]);
        // Draws with replacement: U(t) = N (1 - exp(-rt/N)).
        for (pages, t) in curve(&workload("iid"), &plan, &times).into_iter().zip(&times) {
            let theory = 1000.0 * (1.0 - (-t.as_secs_f64()).exp());
            assert!((pages as f64 - theory).abs() < 40.0, "{pages} not {theory}");
        }
    }

    #[test]
    fn a_rate_of_pages_becomes_a_rate_of_operations() {
        let rate = |name, pages| operations_for_pages(&workload(name), 0, pages);
        assert_eq!(rate("stream", 400.0), Ok(400.0));
        assert_eq!(rate("stream,record=8KiB", 401.0), Ok(200.5));
        let iid = rate("iid", 250.0).unwrap();
        assert!((iid - 500.0 * std::f64::consts::LN_2).abs() < 40.0, "{iid}");
        assert_eq!(rate("stream", 501.0), Err(500));
    }
}
