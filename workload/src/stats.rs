//! What one writer did and how long it took, mergeable across writers.

use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest latency told apart, in nanoseconds (one hour); longer ones count as this.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// Counts and latencies of one writer, or of several together.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Operations completed.
    pub operations: u64,
    /// Completed later than 1 ms after their intended start.
    pub late: u64,
    /// Never done: later than the catch-up bound.
    pub missed: u64,
    /// Never done: due while the host held the vCPU.
    pub held: u64,
    /// Operations that read and compared.
    pub reads: u64,
    /// Lines written.
    pub lines: u64,
    /// Records that the writers themselves found to be wrong.
    pub findings: u64,
    /// The first of them.
    pub first_finding: Option<Finding>,
    service: Histogram<u64>,
    intended: Histogram<u64>,
}

/// A record that was not what it had to be when its writer came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Which writer.
    pub writer: u32,
    /// The first line that was wrong.
    pub address: u64,
    /// The generation that the record had to be at.
    pub generation: u64,
}

/// Percentiles of a latency histogram, in nanoseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// 99.99th percentile.
    pub p9999_ns: u64,
    /// Largest seen.
    pub max_ns: u64,
}

impl Default for Stats {
    fn default() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
                .unwrap_or_else(|_| unreachable!("constant bounds are valid"))
        };
        Self {
            operations: 0,
            late: 0,
            missed: 0,
            held: 0,
            reads: 0,
            lines: 0,
            findings: 0,
            first_finding: None,
            service: histogram(),
            intended: histogram(),
        }
    }
}

impl Stats {
    /// Counts `operations` that together took `service_ns`, the first of them intended to end
    /// up done from `intended_ns` nanoseconds ago on.
    pub fn record(&mut self, operations: u64, service_ns: u64, intended_ns: u64) {
        self.operations += operations;
        if intended_ns > 1_000_000 {
            self.late += operations;
        }
        self.service.saturating_record_n(service_ns / operations.max(1), operations);
        self.intended.saturating_record_n(intended_ns, operations);
    }

    /// Counts a record that was wrong.
    pub fn finding(&mut self, finding: Finding) {
        self.findings += 1;
        self.first_finding.get_or_insert(finding);
    }

    /// Adds another writer's figures.
    pub fn merge(&mut self, other: &Self) {
        self.operations += other.operations;
        self.late += other.late;
        self.missed += other.missed;
        self.held += other.held;
        self.reads += other.reads;
        self.lines += other.lines;
        self.findings += other.findings;
        self.first_finding = self.first_finding.or(other.first_finding);
        self.service += &other.service;
        self.intended += &other.intended;
    }

    /// Time an operation took, from its actual start.
    pub fn service(&self) -> Latency {
        percentiles(&self.service)
    }

    /// Mean time an operation took, in nanoseconds; 0 if there was none.
    pub fn service_mean_ns(&self) -> f64 {
        if self.service.is_empty() { 0.0 } else { self.service.mean() }
    }

    /// Time until an operation was done, from its intended start.
    pub fn from_intended(&self) -> Latency {
        percentiles(&self.intended)
    }
}

fn percentiles(histogram: &Histogram<u64>) -> Latency {
    let at = |q| histogram.value_at_quantile(q);
    Latency {
        p50_ns: at(0.5),
        p90_ns: at(0.9),
        p99_ns: at(0.99),
        p999_ns: at(0.999),
        p9999_ns: at(0.9999),
        max_ns: histogram.max(),
    }
}
