//! What a migration cost its guest, told apart by what it was: slower writes, throttle, stun.

use workload::stats::Stats;

use crate::guest::stamped::gauge::Timeline;
use crate::report::{GuestCost, MigrationReport};

/// Length of the windows of which the slowest is reported, in seconds.
const WINDOW_S: f64 = 0.1;

impl GuestCost {
    /// Of a migration, by what the writers did before and during it.
    pub(super) fn of(
        report: &MigrationReport,
        (before, during): (&Stats, &Stats),
        timeline: &Timeline,
        operations_per_s: Option<f64>,
        vcpus: usize,
    ) -> Self {
        let slower_ns = during.service_mean_ns() - before.service_mean_ns();
        let slower = (slower_ns * during.operations as f64 / 1e6 / vcpus as f64).max(0.0);
        let slower_writes_ms = if before.operations == 0 { 0.0 } else { slower };
        let throttle_ms = report.rounds.iter().map(|r| r.held_share * r.elapsed_ms).sum::<f64>();
        let stun_ms = report.guest_lost_ms() - throttle_ms;
        let slowest = timeline.slowest(WINDOW_S, report.setup_ms / 1e3);
        let timed = before.operations > 0 && during.operations > 0;
        let us = |stats: &Stats| timed.then(|| stats.service().p999_ns as f64 / 1e3);
        Self {
            lost_ms: slower_writes_ms + throttle_ms + stun_ms,
            slower_writes_ms,
            throttle_ms,
            stun_ms,
            slowest_100ms_share: slowest.zip(operations_per_s).map(|(s, wanted)| s / wanted),
            write_p999_before_us: us(before),
            write_p999_during_us: us(during),
        }
    }
}
