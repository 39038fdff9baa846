//! Many runs beside each other: the 10-versus-40 GbE experiment.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use workload::provenance::Provenance;

use super::{RunReport, RunVerdict};
use crate::policy::PolicyKind;

/// A ratio of two migration times beside the model's and the paper's.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RatioReport {
    /// Who decided.
    pub policy: PolicyKind,
    /// Dirty rate over slow link bandwidth, as asked for.
    pub r_wanted: f64,
    /// As measured.
    pub r: f64,
    /// Fast link over slow link bandwidth, as measured.
    pub k: f64,
    /// Pages dirtied over pages sent under SDPS, as measured; null if it never throttled.
    pub beta: Option<f64>,
    /// Mean migration time over the slow link, milliseconds.
    pub slow_ms: f64,
    /// Mean migration time over the fast link, milliseconds.
    pub fast_ms: f64,
    /// Mean time that each vCPU was kept from running over the slow link, milliseconds.
    pub slow_lost_ms: f64,
    /// The same over the fast link.
    pub fast_lost_ms: f64,
    /// Slow over fast.
    pub measured: f64,
    /// Standard deviation of the ratio over iterations; null for one iteration.
    pub spread: Option<f64>,
    /// What the model says at the measured r, k and beta.
    pub model: f64,
    /// What the white paper reports; null for a rate of the user's own.
    pub paper: Option<f64>,
}

/// One migration of a bench.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BenchRun {
    /// Who decided.
    pub policy: PolicyKind,
    /// Dirty rate over slow link bandwidth, as asked for.
    pub r_wanted: f64,
    /// Bandwidth of the link, bytes per second.
    pub link: u64,
    /// From 1.
    pub iteration: u32,
    /// The run.
    pub run: RunReport,
}

/// A whole bench.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BenchReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it; null in documents of versions that did not say.
    #[serde(default)]
    pub provenance: Option<Provenance>,
    /// Which reading of the white paper: `sdps` or `unthrottled`.
    pub reading: String,
    /// Every migration.
    pub runs: Vec<BenchRun>,
    /// One per workload; empty if a migration failed.
    pub ratios: Vec<RatioReport>,
    /// Whether each ratio agrees with the model at the parameters that were measured, and is near the
    /// paper's; null where neither says anything.
    pub reproduced: Option<bool>,
    /// The worst verdict.
    pub verdict: RunVerdict,
    /// Exit code of the command.
    pub exit_code: u8,
}
