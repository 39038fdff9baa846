//! A matrix of runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RunReport;
use crate::policy::PolicyKind;

/// What one run of a sweep was to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SweepCase {
    /// Who decided.
    pub policy: PolicyKind,
    /// How fast the guest was to write, as it was asked for: `0.9` of the link, or `110MB/s`.
    pub rate: String,
    /// The same as a share of the link; null where the link's rate is not known.
    pub r: Option<f64>,
    /// What the guest wrote, as it was asked for.
    pub workload: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// Most downtime wanted.
    pub downtime_goal_ms: f64,
    /// Most bytes per second that were allowed; null for what the link gives.
    pub bandwidth: Option<u64>,
    /// What determined its bytes.
    pub seed: u64,
    /// Which repetition, from 1.
    pub repeat: u32,
}

impl SweepCase {
    /// Whether another run differs in nothing but chance: seed and repetition.
    pub fn is_like(&self, other: &Self) -> bool {
        let alone = |case: &Self| Self { seed: 0, repeat: 0, ..case.clone() };
        alone(self) == alone(other)
    }
}

/// One run of a sweep: one line of its output.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SweepRun {
    /// Version of this format.
    pub schema: u32,
    /// Which of the matrix, from 1.
    pub number: usize,
    /// What it was to be.
    pub case: SweepCase,
    /// How often it was tried; the last try counts.
    pub tries: u32,
    /// What came of it.
    pub run: RunReport,
}
