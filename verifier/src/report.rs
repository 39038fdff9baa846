//! What the commands report: serde types that read back what they write. Printing is not here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use workload::beat::said::Tag;
use workload::provenance::Provenance;

use crate::case::KnownRun;
use crate::evidence::{Evidence, Gap, Step};
use crate::extent::Faults;
use crate::held::Missing;
use crate::self_test::lies::Lie;
use crate::verdict::Verdict;

/// Version of every type of this module.
pub const SCHEMA: u32 = 1;

/// Every line of a region against its journal.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ScanReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it.
    pub provenance: Provenance,
    /// The answer.
    pub verdict: Verdict,
    /// What speaks against a proof.
    pub reasons: Vec<String>,
    /// How the writers stood: `at rest`, `stopped`, or `running`.
    pub moment: String,
    /// Operations completed, by writer.
    pub watermarks: Vec<u64>,
    /// Lines compared.
    pub lines: u64,
    /// Lines that changed while they were looked at.
    pub unstable_lines: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was wrong.
    pub faults: Faults,
    /// What the faults have in common.
    pub in_common: Vec<String>,
    /// Other runs that were heard, by which lines of theirs are known.
    pub known_runs: Vec<KnownRun>,
    /// What the journal says.
    pub journal: Evidence,
}

/// A page that is not where it was, or not where its neighbours are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// Page of the region.
    pub page: u64,
    /// Guest-physical address at which it lies.
    pub physical: u64,
    /// The one at which it should.
    pub expected_physical: u64,
}

/// Every line of a region found in a VM's memory image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it.
    pub provenance: Provenance,
    /// The answer.
    pub verdict: Verdict,
    /// What speaks against a proof.
    pub reasons: Vec<String>,
    /// Operations completed, by writer.
    pub watermarks: Vec<u64>,
    /// Pages of the region that were found.
    pub pages_found: u64,
    /// Those that were not.
    pub pages_missing: Vec<u64>,
    /// The same in runs, with what stands where they should be.
    pub missing: Vec<Missing>,
    /// Pages that must be zero, and so say nothing of themselves.
    pub pages_expected_zero: u64,
    /// Region page and guest-physical address of copies older than the newest.
    pub older_copies: Vec<(u64, u64)>,
    /// Pages that are not where the map says.
    pub moved: Vec<Moved>,
    /// Pages that are not where their neighbours are.
    pub out_of_order: Vec<Moved>,
    /// Lines compared.
    pub lines: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was wrong.
    pub faults: Faults,
    /// What the faults have in common.
    pub in_common: Vec<String>,
    /// Other runs that were heard, by which lines of theirs are known.
    pub known_runs: Vec<KnownRun>,
    /// What the journal says.
    pub journal: Evidence,
}

/// Two regions, or manifests of them, beside each other.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CompareReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it.
    pub provenance: Provenance,
    /// Whether every byte is the same.
    pub equal: bool,
    /// SHA-256 root of the first.
    pub left_root: String,
    /// Of the second.
    pub right_root: String,
    /// Ranges of bytes in which they differ: where each begins and ends, in whole leaves.
    pub differences: Vec<(u64, u64)>,
}

/// What the verifier says of itself.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SelfTestReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it.
    pub provenance: Provenance,
    /// PROVEN if each fault and each lie was told.
    pub verdict: Verdict,
    /// Faults planted into memory, each of which was found; null if one was not.
    pub faults: Option<u64>,
    /// What was not found of them.
    pub trouble: Option<String>,
    /// Lies of every kind.
    pub lies: Vec<Lie>,
}

/// A journal by itself.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JournalReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it.
    pub provenance: Provenance,
    /// The answer.
    pub verdict: Verdict,
    /// The run's id.
    pub run: String,
    /// What tells its beats from others'; journals of format 1 have none.
    pub tag: Option<Tag>,
    /// What it says.
    pub evidence: Evidence,
    /// Times without a heartbeat that were longer than asked for.
    pub gaps: Vec<Gap>,
    /// The rate of writing in steps.
    pub rates: Vec<Step>,
}
