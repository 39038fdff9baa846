//! What no migration can beat: lower bounds for bytes, time and downtime from the known writes.
//!
//! Each page that holds something crosses the link at least once, and after its last write. Let the
//! page written last have age a(1) at the stun, the one before a(2), and so on, and let a page take p
//! seconds on the link. The n pages written last can only be sent after the oldest of them was
//! written, so at the stun at least n p - a(n) of sending is left, for every n: the downtime is at
//! least the largest of these. A sender that knows the future reaches it, by sending each page once,
//! in the order of last writes. Fixed costs (pause, harvest, state, resume) come on top; the bound
//! leaves them out, so that it stays one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::PAGE_BYTES;

/// A migration beside what was possible, knowing all that the guest would write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Optimality {
    /// Least page data: every page that held something at the stun, once, in bytes.
    pub bytes_min: u64,
    /// Page data sent over that.
    pub bytes_ratio: f64,
    /// Least time: that data at the bandwidth that was measured, in milliseconds.
    pub time_min_ms: f64,
    /// Migration time over that.
    pub time_ratio: f64,
    /// Least downtime at that bandwidth, fixed costs left out, in milliseconds.
    pub downtime_min_ms: f64,
    /// Downtime over that; null where it could have been next to nothing.
    pub downtime_ratio: Option<f64>,
}

impl Optimality {
    /// Of a migration that sent `bytes` of page data in `time_ms` with `downtime_ms` of downtime,
    /// at `bytes_per_s`, of a guest with `pages` pages that hold something, of which those that
    /// were written at all have these ages at the stun, in seconds, ascending.
    pub fn of(
        (bytes, time_ms, downtime_ms): (u64, f64, f64),
        bytes_per_s: f64,
        pages: u64,
        ages: impl IntoIterator<Item = f64>,
    ) -> Self {
        let bytes_min = pages * PAGE_BYTES;
        let time_min_ms = bytes_min as f64 / bytes_per_s * 1e3;
        let downtime_min_ms = downtime_s(ages, PAGE_BYTES as f64 / bytes_per_s) * 1e3;
        let over = |value: f64, least: f64| if least > 0.0 { value / least } else { 1.0 };
        Self {
            bytes_min,
            bytes_ratio: over(bytes as f64, bytes_min as f64),
            time_min_ms,
            time_ratio: over(time_ms, time_min_ms),
            downtime_min_ms,
            // Beside fixed costs, a ratio to less than a tenth of a millisecond says nothing.
            downtime_ratio: (downtime_min_ms >= 0.1).then(|| downtime_ms / downtime_min_ms),
        }
    }
}

/// The least downtime in seconds when pages of these ages (seconds since each was last written,
/// ascending) are to be sent and each takes `page_s` seconds.
pub fn downtime_s(ages: impl IntoIterator<Item = f64>, page_s: f64) -> f64 {
    let pages = (1u64..).map(|n| n as f64 * page_s);
    ages.into_iter().zip(pages).map(|(age, send)| send - age).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The oracle replays a sender that knows the future: pages in the order of their last writes,
    /// each as soon as it was written for the last time and the link is free.
    fn replay(ages: &[f64], page_s: f64) -> f64 {
        let mut free_at = f64::NEG_INFINITY;
        for age in ages.iter().rev() {
            free_at = free_at.max(-age) + page_s;
        }
        free_at.max(0.0)
    }

    proptest! {
        #[test]
        fn the_bound_is_what_a_sender_that_knows_the_future_reaches(
            mut ages in prop::collection::vec(0.0..2.0f64, 0..300),
            page_s in 1e-4..0.05f64,
        ) {
            ages.sort_by(f64::total_cmp);
            let bound = downtime_s(ages.iter().copied(), page_s);
            prop_assert!((bound - replay(&ages, page_s)).abs() < 1e-9);
        }

        /// No other order does better.
        #[test]
        fn no_order_beats_it(
            ages in prop::collection::vec(0.0..2.0f64, 1..40),
            page_s in 1e-3..0.2f64,
        ) {
            let mut sorted = ages.clone();
            sorted.sort_by(f64::total_cmp);
            let bound = downtime_s(sorted, page_s);
            // The order in which they happen to stand.
            let mut free_at = f64::NEG_INFINITY;
            for age in &ages {
                free_at = free_at.max(-age) + page_s;
            }
            prop_assert!(free_at.max(0.0) >= bound - 1e-9);
        }
    }

    #[test]
    fn multiples() {
        // 1000 pages at 1000 pages a second; two written just before the stun.
        let rate = 1000.0 * PAGE_BYTES as f64;
        let bytes = 1500 * PAGE_BYTES;
        let optimality = Optimality::of((bytes, 2000.0, 10.0), rate, 1000, [0.0, 0.0]);
        assert_eq!((optimality.bytes_ratio, optimality.time_ratio), (1.5, 2.0));
        assert!((optimality.downtime_min_ms - 2.0).abs() < 1e-9);
        assert!((optimality.downtime_ratio.unwrap() - 5.0).abs() < 1e-9);
        assert_eq!(Optimality::of((0, 0.0, 1.0), rate, 0, []).downtime_ratio, None);
    }
}
