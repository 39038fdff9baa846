//! What a migration cost its guest, told apart by what it was: slower writes, throttle, stun.

use workload::stats::Stats;

use crate::guest::stamped::gauge::Timeline;
use crate::report::{Course, GuestCost, LatencyPoint, MigrationReport};

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
        record: f64,
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
            course: Some(course(report, timeline, record)),
            latency: if timed { latency(before, during) } else { Vec::new() },
        }
    }
}

fn course(report: &MigrationReport, timeline: &Timeline, record: f64) -> Course {
    let (window, rates) = timeline.course(WINDOW_S);
    Course {
        // Sampling begins as the attempt does.
        from_ms: -report.setup_ms,
        window_ms: window * 1e3,
        bytes_per_s: rates.iter().map(|operations| operations * record).collect(),
    }
}

fn latency(before: &Stats, during: &Stats) -> Vec<LatencyPoint> {
    let (before, during) = (before.service(), during.service());
    let points = [
        (50.0, before.p50_ns, during.p50_ns),
        (90.0, before.p90_ns, during.p90_ns),
        (99.0, before.p99_ns, during.p99_ns),
        (99.9, before.p999_ns, during.p999_ns),
        (99.99, before.p9999_ns, during.p9999_ns),
        (100.0, before.max_ns, during.max_ns),
    ];
    let us = |ns: u64| ns as f64 / 1e3;
    let point = |(percentile, before, during)| LatencyPoint {
        percentile,
        before_us: us(before),
        during_us: us(during),
    };
    points.map(point).to_vec()
}
