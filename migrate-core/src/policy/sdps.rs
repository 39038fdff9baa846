//! SDPS, stun during page send: holds vCPUs so that the guest dirties pages at a share `beta` of
//! the rate at which they are sent.
//!
//! Each window gives the guest's demand: what it dirtied, divided by the share of time it ran.
//! The share it may run is then `beta * send rate / demand`. What was dirtied too much or too
//! little so far is worked off over a horizon, so that the ratio of sums comes out at `beta` and
//! not only its average over windows.

use super::{Tuning, Window};
use crate::memory::PAGE_BYTES;

/// Least share of time a vCPU runs: it must be able to answer the host.
const RUN_SHARE_MIN: f64 = 0.01;
/// The controller; starts free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sdps {
    tuning: Tuning,
    beta: f64,
    run_share: f64,
    demand: Option<f64>,
    /// Pages that may still be dirtied (or, below zero, were too many) to be at `beta` overall.
    credit_pages: f64,
}

impl Sdps {
    pub(super) fn new(beta: f64, tuning: &Tuning) -> Self {
        Self { tuning: *tuning, beta, run_share: 1.0, demand: None, credit_pages: 0.0 }
    }

    /// What the guest would dirty per second if it were not held, once known.
    pub(super) fn demand(&self) -> Option<f64> {
        self.demand
    }

    /// A controller for another share, with what this one knows of the guest.
    pub(super) fn at_share(&self, beta: f64) -> Self {
        Self { beta, credit_pages: 0.0, ..*self }
    }

    /// The same for a guest that is let go.
    pub(super) fn released(&self, beta: f64) -> Self {
        Self { run_share: 1.0, ..self.at_share(beta) }
    }

    pub(super) fn at_limit(&self) -> bool {
        self.run_share <= RUN_SHARE_MIN
    }

    /// Learns the demand; called for every window, also before throttling starts.
    pub(super) fn observe(&mut self, window: &Window) {
        let demand =
            (window.dirtied * PAGE_BYTES) as f64 / window.elapsed.as_secs_f64() / self.run_share;
        self.demand = Some(
            self.demand.map_or(demand, |old| old + self.tuning.demand_weight * (demand - old)),
        );
    }

    /// The share of time to hold the vCPUs from now on, given the smoothed send rate.
    pub(super) fn held_share(&mut self, window: &Window, send_bytes_per_s: f64) -> f64 {
        let Some(demand) = self.demand.filter(|d| *d > 0.0) else { return 1.0 - self.run_share };
        if self.run_share < 1.0 {
            self.credit_pages += self.beta * window.sent as f64 - window.dirtied as f64;
        }
        let target = self.beta * send_bytes_per_s;
        let correction = self.credit_pages * PAGE_BYTES as f64 / self.tuning.horizon_s;
        let bound = self.tuning.correction_max * target;
        let wanted = (target + correction.clamp(-bound, bound)) / demand;
        self.run_share = wanted.clamp(RUN_SHARE_MIN, 1.0);
        if self.run_share == 1.0 {
            // An unthrottled guest earns no credit to spend in a burst later.
            self.credit_pages = 0.0;
        }
        1.0 - self.run_share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Steady demands at several ratios: the sums must come out at beta.
    #[test]
    fn sums_come_out_at_beta() {
        for (demand_over_send, beta) in [(1.0, 0.914), (3.565, 0.914), (20.0, 0.5), (0.95, 0.9)] {
            let mut sdps = Sdps::new(beta, &Tuning::DEFAULT);
            let send_pages_per_s = 30_000.0;
            let (mut held, mut sent, mut dirtied) = (0.0, 0, 0);
            for i in 0..200 {
                let window = Window {
                    elapsed: Duration::from_millis(50),
                    sent: (send_pages_per_s * 0.05) as u64,
                    // The guest under-delivers what is asked of it by 3 %, as real ones may.
                    dirtied: (send_pages_per_s * demand_over_send * 0.05 * (1.0 - held) * 0.97)
                        as u64,
                    fresh: 0,
                    pending: 0,
                };
                if i > 20 {
                    sent += window.sent;
                    dirtied += window.dirtied;
                }
                sdps.observe(&window);
                held = sdps.held_share(&window, send_pages_per_s * PAGE_BYTES as f64);
            }
            let ratio = dirtied as f64 / sent as f64;
            assert!((ratio / beta - 1.0).abs() < 0.01, "{ratio} for {demand_over_send}, {beta}");
        }
    }

    #[test]
    fn a_slow_guest_is_left_alone() {
        let mut sdps = Sdps::new(0.9, &Tuning::DEFAULT);
        let window = Window {
            elapsed: Duration::from_millis(50),
            sent: 1000,
            dirtied: 800,
            fresh: 0,
            pending: 0,
        };
        sdps.observe(&window);
        assert_eq!(sdps.held_share(&window, 1000.0 * 20.0 * PAGE_BYTES as f64), 0.0);
    }
}
