//! What was proven about a guest, and how the two hosts tell each other.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use verifier::expected::Expected;
use verifier::extent::Faults;
use verifier::memory::Moment;
use verifier::scan::scan_watched;
use verifier::verdict::Verdict;
use workload::region::Region;
use workload::spec::Workload;
use workload::work::{Cancelled, Unwatched, Watch, to_its_end};

/// Extents that travel in a note.
const EXTENTS_MAX: usize = 64;

/// A scan of a guest that stood still.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Scanned {
    /// Operations completed, by writer.
    pub watermarks: Vec<u64>,
    /// Lines compared.
    pub lines: u64,
    /// How long it took.
    pub elapsed_ms: f64,
    /// What was wrong, at most 64 extents.
    pub faults: Faults,
}

impl Scanned {
    /// Checks every line of a region whose writers stand at these watermarks.
    pub fn of(
        region: &Region,
        workload: &Workload,
        moment: Moment,
        watermarks: Vec<u64>,
    ) -> (Self, Expected) {
        to_its_end(Self::watched(region, workload, moment, watermarks, &Unwatched))
    }

    /// The same, watched.
    ///
    /// # Errors
    /// Whoever watches called it off.
    pub fn watched(
        region: &Region,
        workload: &Workload,
        moment: Moment,
        watermarks: Vec<u64>,
        watch: &dyn Watch,
    ) -> Result<(Self, Expected), Cancelled> {
        let scan = scan_watched(region, workload, moment, &watermarks, watch)?;
        let mut faults = scan.faults;
        faults.extents.truncate(EXTENTS_MAX);
        let elapsed_ms = scan.elapsed.as_secs_f64() * 1e3;
        Ok((Self { watermarks, lines: scan.lines, elapsed_ms, faults }, scan.expected))
    }

    /// The first fault in words, and how many lines there are of each class.
    pub fn first_fault(&self) -> Option<String> {
        let extent = self.faults.extents.first()?;
        let counts: Vec<_> =
            self.faults.lines.iter().map(|(class, lines)| format!("{lines} {class}")).collect();
        Some(format!(
            "{} at {:#x} (page {}, writer {}); lines: {}",
            extent.class,
            extent.address,
            extent.page,
            extent.writer,
            counts.join(", ")
        ))
    }
}

/// What the destination proved, as sent to the source in a note (JSON).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Testimony {
    /// All lines, before any writer ran.
    pub before_resume: Scanned,
    /// All lines, after the writers ran on for a while; null if they could not be looked at.
    pub after_run: Option<Scanned>,
    /// What went wrong with the guest there, or with its evidence.
    #[serde(default)]
    pub trouble: Vec<String>,
    /// SHA-256 root of memory before any writer ran, in audit mode.
    pub root: Option<String>,
    /// From the last vCPU standing still to the first running, by the hosts' wall clocks; null where those
    /// differ by more than that can have been.
    pub felt_gap_ms: Option<f64>,
}

impl Testimony {
    /// What no guest can have felt is the difference of two hosts' clocks, and not stated: `most` is what
    /// the source's own clock says from before its pause until it heard that the guest runs.
    pub fn with_clocks_held_against(mut self, most: Duration) -> Self {
        let most_ms = most.as_secs_f64() * 1e3;
        self.felt_gap_ms = self.felt_gap_ms.filter(|felt| *felt > 0.0 && *felt <= most_ms);
        self
    }
}

/// The whole proof of one migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Proof {
    /// The answer.
    pub verdict: Verdict,
    /// What speaks against a proof; empty if proven.
    pub reasons: Vec<String>,
    /// Watermarks at the source when the attempt began and at the stun.
    pub source_watermarks: [Vec<u64>; 2],
    /// SHA-256 root of the source's memory at the stun, in audit mode.
    pub source_root: Option<String>,
    /// What the destination found; `None` if it was not heard.
    pub testimony: Option<Testimony>,
}

/// Judges a migration by what both hosts saw; `lines` is how many memory has.
pub fn judge(
    lines: u64,
    began: Vec<u64>,
    stunned: Vec<u64>,
    source_root: Option<String>,
    testimony: Option<Testimony>,
) -> Proof {
    let mut verdict = Verdict::Proven;
    let mut reasons = Vec::new();
    let mut object = |against: Verdict, reason: String| {
        verdict = verdict.and(against);
        reasons.push(reason);
    };
    let idle = |from: &[u64], to: &[u64]| -> Vec<usize> {
        (0..from.len()).filter(|w| to.get(*w) <= from.get(*w)).collect()
    };
    for writer in idle(&began, &stunned) {
        object(Verdict::Inconclusive, format!("writer {writer} wrote nothing before the stun"));
    }
    match &testimony {
        None => object(Verdict::Inconclusive, "the destination was not heard".to_owned()),
        Some(t) => {
            let first = &t.before_resume.watermarks;
            if *first != stunned {
                let rollback = first.iter().zip(&stunned).any(|(d, s)| d < s);
                let name = if rollback { "ROLLBACK" } else { "FORK" };
                object(
                    Verdict::Wrong,
                    format!("{name}: stopped at {stunned:?}, went on from {first:?}"),
                );
            }
            for trouble in &t.trouble {
                object(Verdict::Inconclusive, format!("at the destination: {trouble}"));
            }
            for (when, scanned) in [
                ("before resume", Some(&t.before_resume)),
                ("after running on", t.after_run.as_ref()),
            ] {
                let looked_at = scanned.map_or(0, |scanned| scanned.lines);
                if looked_at != lines {
                    let what = format!("{when}: {looked_at} of {lines} lines were looked at");
                    object(Verdict::Inconclusive, what);
                }
                if let Some(fault) = scanned.and_then(Scanned::first_fault) {
                    object(Verdict::Wrong, format!("{when}: {fault}"));
                }
            }
            let last = t.after_run.as_ref().map_or(first, |scanned| &scanned.watermarks);
            for writer in idle(first, last) {
                object(
                    Verdict::Inconclusive,
                    format!("writer {writer} wrote nothing at the destination"),
                );
            }
            if source_root.is_some() && t.root != source_root {
                object(Verdict::Wrong, "the SHA-256 roots of both hosts differ".to_owned());
            }
        }
    }
    Proof { verdict, reasons, source_watermarks: [began, stunned], source_root, testimony }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C22: a receiver whose clock is half a minute ahead or behind.
    #[test]
    fn the_difference_of_two_clocks_is_nothing_that_a_guest_felt() {
        let scanned = Scanned {
            watermarks: vec![1],
            lines: 1,
            elapsed_ms: 1.0,
            faults: verifier::extent::Faults::default(),
        };
        let felt = |felt_gap_ms| {
            let testimony = Testimony {
                before_resume: scanned.clone(),
                after_run: None,
                trouble: Vec::new(),
                root: None,
                felt_gap_ms: Some(felt_gap_ms),
            };
            testimony.with_clocks_held_against(Duration::from_millis(20)).felt_gap_ms
        };
        assert_eq!([felt(15.0), felt(30_013.8), felt(0.0)], [Some(15.0), None, None]);
    }
}
