//! What a migration cost its guest, told apart by what it was: slower writes, throttle, stun.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::stats::Stats;

use super::gauge::Timeline;
use crate::report::MigrationReport;

/// Length of the windows of which the slowest is reported, in seconds.
const WINDOW_S: f64 = 0.1;

/// What a migration cost its guest. Times are per vCPU, on average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GuestCost {
    /// Time that the guest lost in all, in milliseconds: the sum of the next three.
    pub lost_ms: f64,
    /// By writes that took longer than before the migration: tracking faults, and contention for
    /// CPU and memory with the migration itself.
    pub slower_writes_ms: f64,
    /// Held by the throttle.
    pub throttle_ms: f64,
    /// Standing still at stuns, called off or not.
    pub stun_ms: f64,
    /// What it wrote in the slowest 100 ms before the stun, as a share of what was wanted; null if
    /// it was over sooner or as much as possible was wanted.
    pub slowest_100ms_share: Option<f64>,
    /// 99.9th percentile of the time a record took before the migration, in microseconds; null where
    /// the guest's own code takes no times.
    pub write_p999_before_us: Option<f64>,
    /// The same during the migration.
    pub write_p999_during_us: Option<f64>,
}

impl GuestCost {
    /// Of a migration, by what the writers did before and during it.
    pub fn of(
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
