//! What a run reports: serde types that read back what they write. Printing is not here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hiccup::Felt;
use crate::provenance::Provenance;
use crate::rate::Demand;
use crate::spec::WorkloadSpec;
use crate::stats::{Finding, Latency};

/// Version of every type of this module.
pub const SCHEMA: u32 = 1;

/// How much had been done when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// Seconds from the start.
    pub seconds: f64,
    /// Bytes of records, reads included.
    pub bytes: u64,
}

/// Distinct pages dirtied per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PageRate {
    /// By the kernel's count, over windows of a second.
    pub kernel: f64,
    /// By the operations performed in the same windows; null where they are too many to follow.
    pub operations: Option<f64>,
    /// Windows counted.
    pub windows: usize,
}

/// Everything about a run. Rates in bytes per second, times in seconds unless named otherwise.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Version of this format.
    pub schema: u32,
    /// What made it.
    pub provenance: Provenance,
    /// The run's id, as in journals.
    pub run: String,
    /// What was written.
    pub spec: WorkloadSpec,
    /// How long it went on.
    pub seconds: f64,
    /// How fast it was to go, as it was typed.
    pub rate_wanted: Demand,
    /// Bytes that the schedule asked for, per second; null where there was none.
    pub rate_scheduled: Option<f64>,
    /// Bytes of records per second, reads included.
    pub rate_achieved: f64,
    /// The largest deviation from the schedule in any window of a second, as a share of what was
    /// scheduled in it; null without a schedule, in bursts, and in runs of less than a second.
    pub window_error_max: Option<f64>,
    /// Operations performed.
    pub operations: u64,
    /// Of them, reads.
    pub reads: u64,
    /// Bytes of lines that were stored.
    pub bytes_stored: u64,
    /// Operations that began late and were caught up with.
    pub late: u64,
    /// Operations that were left out because they came too late.
    pub missed: u64,
    /// Operations that fell into pauses.
    pub held: u64,
    /// Records that the writers themselves found wrong.
    pub findings: u64,
    /// The first of them.
    pub first_finding: Option<Finding>,
    /// Operations completed, by writer.
    pub watermarks: Vec<u64>,
    /// Distinct pages dirtied; null where nobody counted.
    pub distinct_pages_per_s: Option<PageRate>,
    /// Heartbeats that the way out did not take.
    pub heartbeats_refused: u64,
    /// How long operations took.
    pub service: Latency,
    /// How long they took from the moment at which they were due.
    pub from_intended: Latency,
    /// What the guest felt of not being run.
    pub felt: Felt,
    /// The course of it.
    pub timeline: Vec<Sample>,
}
