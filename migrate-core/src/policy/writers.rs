//! Which vCPUs are held, and how long each: those that write, and of them the busiest first.
//!
//! A policy says by what share the guest is to dirty less. That is met with the least harm by one
//! cap on what a vCPU may write per second (max-min fairness): a vCPU that writes less than the cap,
//! a reader above all, is not held at all; the others are held down to it.

use std::time::Duration;

/// Longest share of time that a vCPU is held: it must be able to answer the host.
pub(crate) const HELD_SHARE_MAX: f64 = 0.99;
/// Weight of the newest window in what a vCPU writes.
const WEIGHT: f64 = 0.3;
/// Shorter windows are gathered until they are this long.
const WINDOW_MIN: Duration = Duration::from_millis(20);

/// What each vCPU would write per second if it were not held, and how it is held.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Writers {
    demands: Vec<f64>,
    written: Vec<u64>,
    elapsed: Duration,
    held_shares: Vec<f64>,
}

impl Writers {
    /// Of a guest with so many vCPUs that have written so much (empty: not known).
    pub(crate) fn new(vcpus: usize, written: Vec<u64>) -> Self {
        Self {
            demands: vec![0.0; vcpus],
            written,
            elapsed: Duration::ZERO,
            held_shares: vec![0.0; vcpus],
        }
    }

    /// How many there are.
    pub(crate) fn vcpus(&self) -> usize {
        self.demands.len()
    }

    /// Takes in what each has written by now, `elapsed` after the last time.
    pub(crate) fn observe(&mut self, written: Vec<u64>, elapsed: Duration) {
        self.elapsed += elapsed;
        if self.elapsed < WINDOW_MIN || written.len() != self.demands.len() {
            return;
        }
        let seconds = self.elapsed.as_secs_f64();
        let before = std::mem::replace(&mut self.written, written);
        let pairs = before.iter().zip(&self.written).zip(&self.held_shares);
        for (demand, ((before, now), held)) in self.demands.iter_mut().zip(pairs) {
            let free = now.saturating_sub(*before) as f64 / seconds / (1.0 - held);
            *demand = if *demand == 0.0 { free } else { *demand + WEIGHT * (free - *demand) };
        }
        self.elapsed = Duration::ZERO;
    }

    /// The share of time to hold each vCPU so that all together write `held_share` less.
    pub(crate) fn hold(&mut self, held_share: f64) -> &[f64] {
        self.held_shares = split(&self.demands, held_share);
        &self.held_shares
    }

    /// The share of time that a vCPU is held, on average.
    pub(crate) fn mean_held_share(&self) -> f64 {
        self.held_shares.iter().sum::<f64>() / self.held_shares.len().max(1) as f64
    }
}

/// The shares of time to hold vCPUs of these demands, so that what is left of the demands sums up
/// to `1 - held_share` of all. Where nothing is known of the demands all are held alike.
pub(crate) fn split(demands: &[f64], held_share: f64) -> Vec<f64> {
    let held_share = held_share.clamp(0.0, HELD_SHARE_MAX);
    let total: f64 = demands.iter().sum();
    if total <= 0.0 || held_share == 0.0 {
        return vec![held_share; demands.len()];
    }
    let mut sorted = demands.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Those below the cap keep what they write; the cap is what the others share.
    let (mut left, mut others) = ((1.0 - held_share) * total, sorted.len() as f64);
    for demand in &sorted {
        if demand * others >= left {
            break;
        }
        left -= demand;
        others -= 1.0;
    }
    let cap = left / others.max(1.0);
    demands.iter().map(|d| (1.0 - cap / d).clamp(0.0, HELD_SHARE_MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Nobody below the cap is held, everybody above is held to it, and the sum is met.
        #[test]
        fn the_sum_is_met_and_readers_are_free(
            demands in prop::collection::vec(prop_oneof![Just(0.0), 1.0..1e6f64], 1..9),
            held in 0.0..0.98f64,
        ) {
            let shares = split(&demands, held);
            let left: Vec<f64> = demands.iter().zip(&shares).map(|(d, s)| d * (1.0 - s)).collect();
            let (total, sum): (f64, f64) = (demands.iter().sum(), left.iter().sum());
            if total > 0.0 && held > 0.0 {
                prop_assert!((sum - (1.0 - held) * total).abs() <= 0.011 * total, "{shares:?}");
                // Who is held as long as can be may write more than the cap.
                let clamped = |share: f64| share >= HELD_SHARE_MAX;
                let capped = left.iter().zip(&shares).filter(|(_, share)| !clamped(**share));
                let cap = capped.map(|(left, _)| *left).fold(0.0, f64::max);
                for (demand, share) in demands.iter().zip(&shares) {
                    prop_assert!(clamped(*share) || *share == 0.0 || (demand * (1.0 - share) / cap - 1.0).abs() < 1e-6);
                    prop_assert!(*demand > 0.0 || *share == 0.0, "a reader is not held");
                }
            }
        }
    }

    #[test]
    fn what_is_not_known_is_held_alike() {
        let mut writers = Writers::new(3, vec![]);
        writers.observe(vec![], Duration::from_secs(1));
        assert_eq!(writers.hold(0.4), [0.4; 3]);
        assert!((writers.mean_held_share() - 0.4).abs() < 1e-12);
    }

    #[test]
    fn demands_are_what_was_written_over_the_time_run() {
        let mut writers = Writers::new(2, vec![0, 0]);
        writers.observe(vec![1000, 10], Duration::from_secs(1));
        assert_eq!(writers.hold(0.5).to_vec(), [1.0 - 495.0 / 1000.0, 0.0]);
        // Held to half it writes half, and still asks for as much.
        writers.observe(vec![1000 + 495, 20], Duration::from_secs(1));
        assert!((writers.hold(0.5)[0] - 0.505).abs() < 1e-9);
    }
}
