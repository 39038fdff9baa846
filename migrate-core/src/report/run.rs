//! One guest that proves itself, every attempt to migrate it, and what was shown about its memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use verifier::evidence::Gap;
use verifier::verdict::Verdict;
use workload::provenance::Provenance;
use workload::spec::WorkloadSpec;

use super::{MigrationReport, Status};
use crate::guest::stamped::proof::{Proof, Scanned, Testimony};
use crate::predict::bound::Optimality;

/// The one answer about a run.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum RunVerdict {
    /// The guest runs at the destination, and every byte of it is what it last wrote.
    #[serde(rename = "PROVEN")]
    Proven,
    /// It runs at the destination, and what a proof needs is missing.
    #[serde(rename = "INCONCLUSIVE")]
    Inconclusive,
    /// It does not run at the destination.
    #[serde(rename = "NOT MIGRATED")]
    NotMigrated,
    /// Its memory is wrong, wherever it runs.
    #[serde(rename = "WRONG")]
    Wrong,
}

impl RunVerdict {
    /// Of a guest that migrated or did not, and of whose memory this was shown.
    pub fn of(migrated: bool, memory: Verdict) -> Self {
        match (migrated, memory) {
            (_, Verdict::Wrong) => Self::Wrong,
            (false, _) => Self::NotMigrated,
            (true, Verdict::Inconclusive) => Self::Inconclusive,
            (true, Verdict::Proven) => Self::Proven,
        }
    }
}

impl std::fmt::Display for RunVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Proven => "PROVEN",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::NotMigrated => "NOT MIGRATED",
            Self::Wrong => "WRONG",
        })
    }
}

/// The way of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkReport {
    /// The receiver, as it was named.
    pub to: String,
    /// What kept others from the link: `mutual TLS`, `loopback` or `INSECURE`.
    pub protection: String,
    /// Most bytes per second that were allowed; null for what the link gives.
    pub bandwidth: Option<u64>,
}

/// One guest, and every attempt to migrate it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RunReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it; null in documents of versions that did not say.
    #[serde(default)]
    pub provenance: Option<Provenance>,
    /// Where the guest was to go, and over what; null in documents of versions that did not say.
    #[serde(default)]
    pub link: Option<LinkReport>,
    /// What the guest wrote.
    pub workload: WorkloadSpec,
    /// Bytes of records per second that were wanted; null for as fast as possible.
    pub rate_wanted: Option<u64>,
    /// Bytes of records per second that the guest wrote from the first page to the stun.
    pub rate_achieved: f64,
    /// Whether the guest runs at the destination.
    pub migrated: bool,
    /// `PROVEN`, `WRONG` or `INCONCLUSIVE`: what was shown about memory where the guest runs now.
    pub memory: Verdict,
    /// What the source's own evidence lacks or shows; what speaks against the proof stands there.
    pub reasons: Vec<String>,
    /// `PROVEN` only if it migrated and its memory is proven.
    pub verdict: RunVerdict,
    /// How it ended.
    pub status: Status,
    /// Exit code of the command.
    pub exit_code: u8,
    /// Every attempt, the last one last.
    pub attempts: Vec<MigrationReport>,
    /// The proof of the attempt that succeeded.
    pub proof: Option<Proof>,
    /// The scan at the source after the last attempt failed.
    pub source_scan: Option<Scanned>,
    /// How long the guest stood still at the change of hosts, by those who did not do it; null if it
    /// did not migrate.
    pub witnesses: Option<Witnesses>,
    /// What the migration cost its guest; null if there was none.
    pub guest: Option<GuestCost>,
    /// The migration beside what was possible; null if there was none.
    pub optimality: Option<Optimality>,
}

impl RunReport {
    /// The last attempt, by which the run is judged.
    pub fn last(&self) -> Option<&MigrationReport> {
        self.attempts.last()
    }
}

/// What was felt and seen of the change of hosts, without the proof that was made in it, and what else
/// was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Witnesses {
    /// From the last vCPU standing still to the first running, in milliseconds, by the hosts' wall
    /// clocks; null where those differ by more than that can have been.
    pub felt_ms: Option<f64>,
    /// Between the last heartbeat from the source and the first from the destination, in milliseconds,
    /// by the journal's clock; null where no journal heard both.
    pub seen_ms: Option<f64>,
    /// Longest time between two heartbeats that is not the change of hosts; null without a journal.
    pub longest_other_gap_ms: Option<f64>,
}

impl Witnesses {
    /// What the guest felt of a migration, as was testified.
    pub(crate) fn of(report: &RunReport) -> Self {
        let proof_ms = report.last().map_or(0.0, |m| m.downtime.proof_ms);
        let testimony = report.proof.as_ref().and_then(|proof| proof.testimony.as_ref());
        let felt = testimony.and_then(|testimony| testimony.felt_gap_ms);
        let felt_ms = felt.map(|felt| (felt - proof_ms).max(0.0));
        Self { felt_ms, seen_ms: None, longest_other_gap_ms: None }
    }

    /// What a journal's gaps show beside.
    pub(crate) fn see(&mut self, gaps: &[Gap], proof_ms: f64) {
        let longest = |changed: bool| {
            let gaps = gaps.iter().filter(|gap| gap.changed_epoch == changed);
            gaps.map(|gap| gap.length_ms).max_by(f64::total_cmp)
        };
        self.seen_ms = longest(true).map(|seen| (seen - proof_ms).max(0.0));
        self.longest_other_gap_ms = longest(false);
    }
}

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
    /// What it wrote over time; null in documents of versions that did not say.
    #[serde(default)]
    pub course: Option<Course>,
    /// How long records took, by percentile; empty where the guest's own code takes no times.
    #[serde(default)]
    pub latency: Vec<LatencyPoint>,
}

/// What a guest wrote over time, from before the migration until it went on elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Course {
    /// When the first window began, after the first page: negative, for it is looked at before.
    pub from_ms: f64,
    /// Length of a window.
    pub window_ms: f64,
    /// Bytes of records per second, window by window.
    pub bytes_per_s: Vec<f64>,
}

/// How long a record took at one percentile, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyPoint {
    /// Which: 50 is the median, 100 the longest.
    pub percentile: f64,
    /// Before the migration.
    pub before_us: f64,
    /// During it.
    pub during_us: f64,
}

/// What a receiver reports of a guest that came, or did not.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReceiveReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it; null in documents of versions that did not say.
    #[serde(default)]
    pub provenance: Option<Provenance>,
    /// What kept others from the link: `mutual TLS`, `loopback` or `INSECURE`.
    #[serde(default)]
    pub protection: String,
    /// The migration's id, 32 hexadecimal digits; null if none began.
    pub migration: Option<String>,
    /// Who sent it.
    pub peer: Option<String>,
    /// Hosts the guest has left; null if it is not known.
    pub epoch: Option<u64>,
    /// Pages received, zero pages and repeats included.
    pub pages: u64,
    /// Whether the guest runs, or ran, here.
    pub migrated: bool,
    /// `PROVEN`, `WRONG` or `INCONCLUSIVE`: what was shown about its memory.
    pub memory: Verdict,
    /// What speaks against a proof.
    pub reasons: Vec<String>,
    /// `PROVEN` only if both hold.
    pub verdict: RunVerdict,
    /// How it ended.
    pub status: Status,
    /// CPU time of the receiver while pages came in, in milliseconds.
    pub cpu_ms: f64,
    /// The scans; null if the guest did not come.
    pub testimony: Option<Testimony>,
    /// How it was passed on to another receiver, or could not be; null where that was not asked for.
    #[serde(default)]
    pub passed_on: Option<Box<RunReport>>,
    /// Exit code of the command.
    pub exit_code: u8,
}

impl ReceiveReport {
    /// Whether the guest runs at the next receiver by now.
    pub fn went_on(&self) -> bool {
        self.passed_on.as_ref().is_some_and(|on| on.migrated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_proven_of_a_migration_that_did_not_happen() {
        use Verdict::{Inconclusive, Proven, Wrong};
        let of = |migrated| [Proven, Inconclusive, Wrong].map(|m| RunVerdict::of(migrated, m));
        let (wrong, not) = (RunVerdict::Wrong, RunVerdict::NotMigrated);
        assert_eq!(of(false), [not, not, wrong]);
        assert_eq!(of(true), [RunVerdict::Proven, RunVerdict::Inconclusive, wrong]);
    }
}
