//! What a journal proves by itself: liveness, no rollback, no fork.

use serde::{Deserialize, Serialize};
use workload::journal::{Journal, Motion};

use crate::verdict::Verdict;

/// What the heartbeats say about one writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterEvidence {
    /// Watermark of the first beat.
    pub first: u64,
    /// Watermark of the last beat.
    pub last: u64,
    /// Whether the last beat said that the writer rests at exactly that watermark.
    pub at_rest: bool,
    /// Beats journalled.
    pub beats: u64,
}

/// A rule that the journal breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "breach")]
pub enum Breach {
    /// A watermark went back: an older state of the guest went on.
    Rollback {
        /// Which writer.
        writer: u32,
        /// Journalled before.
        before: u64,
        /// Journalled after it.
        after: u64,
    },
    /// Two hosts ran the guest at the same time.
    Fork {
        /// Which writer.
        writer: u32,
        /// The epoch that had begun.
        epoch: u64,
        /// The older epoch that still advanced.
        still: u64,
    },
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rollback { writer, before, after } => {
                write!(f, "ROLLBACK: writer {writer} was at operation {before} and then at {after}")
            }
            Self::Fork { writer, epoch, still } => write!(
                f,
                "FORK: writer {writer} advanced in epoch {still} after epoch {epoch} had begun"
            ),
        }
    }
}

/// What a whole journal says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// By writer; `None` for one that never beat.
    pub writers: Vec<Option<WriterEvidence>>,
    /// Rules broken.
    pub breaches: Vec<Breach>,
    /// Longest time between two neighbouring beats of any one writer, in milliseconds of the
    /// journal's clock: the outside witness of a stun.
    pub longest_gap_ms: f64,
}

/// Judges the beats of a journal.
pub fn judge(journal: &Journal) -> Evidence {
    struct State {
        epoch: u64,
        watermark: u64,
        journal_ns: u64,
    }
    let count = journal.spec.writers as usize;
    let mut writers: Vec<Option<WriterEvidence>> = vec![None; count];
    let mut states: Vec<Option<State>> = (0..count).map(|_| None).collect();
    let mut breaches = Vec::new();
    let mut longest_gap_ns = 0;
    for beat in &journal.beats {
        let w = beat.writer as usize;
        let evidence = writers[w].get_or_insert(WriterEvidence {
            first: beat.watermark,
            last: beat.watermark,
            at_rest: false,
            beats: 0,
        });
        evidence.beats += 1;
        evidence.at_rest = beat.motion == Motion::AtRest;
        if let Some(state) = &states[w] {
            longest_gap_ns = longest_gap_ns.max(beat.journal_ns.saturating_sub(state.journal_ns));
            if beat.epoch < state.epoch && beat.watermark > state.watermark {
                breaches.push(Breach::Fork {
                    writer: beat.writer,
                    epoch: state.epoch,
                    still: beat.epoch,
                });
            } else if beat.watermark < state.watermark {
                breaches.push(Breach::Rollback {
                    writer: beat.writer,
                    before: state.watermark,
                    after: beat.watermark,
                });
            }
        }
        evidence.last = evidence.last.max(beat.watermark);
        states[w] = Some(State {
            epoch: beat.epoch,
            watermark: beat.watermark,
            journal_ns: beat.journal_ns,
        });
    }
    Evidence { writers, breaches, longest_gap_ms: longest_gap_ns as f64 / 1e6 }
}

impl Evidence {
    /// The last watermark of each writer; 0 for one that never beat.
    pub fn watermarks(&self) -> Vec<u64> {
        self.writers.iter().map(|w| w.as_ref().map_or(0, |w| w.last)).collect()
    }

    /// Whether every writer said that it rests.
    pub fn at_rest(&self) -> bool {
        self.writers.iter().all(|w| w.as_ref().is_some_and(|w| w.at_rest))
    }

    /// Writers that were never seen to advance.
    pub fn idle_writers(&self) -> Vec<usize> {
        let advanced = |w: &Option<WriterEvidence>| w.as_ref().is_some_and(|w| w.last > w.first);
        (0..self.writers.len()).filter(|w| !advanced(&self.writers[*w])).collect()
    }

    /// What the journal alone allows to conclude.
    pub fn verdict(&self) -> Verdict {
        if !self.breaches.is_empty() {
            Verdict::Wrong
        } else if !self.idle_writers().is_empty() {
            Verdict::Inconclusive
        } else {
            Verdict::Proven
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::journal::{Beat, RunId};
    use workload::spec::{ContentKind, PatternKind, WorkloadSpec};
    use workload::units::Bytes;

    fn journal(beats: &[(u64, u64)]) -> Journal {
        let beat = |(i, (epoch, watermark)): (usize, &(u64, u64))| Beat {
            motion: Motion::Running,
            epoch: *epoch,
            writer: 0,
            watermark: *watermark,
            guest_ns: 0,
            journal_ns: i as u64 * 10_000_000,
        };
        Journal {
            run: RunId(1),
            spec: WorkloadSpec {
                seed: 1,
                memory: Bytes(1 << 20),
                writers: 1,
                record: Bytes(4096),
                pattern: PatternKind::Stream,
                content: ContentKind::Random,
            },
            beats: beats.iter().enumerate().map(beat).collect(),
        }
    }

    #[test]
    fn a_live_journal_is_good() {
        let evidence = judge(&journal(&[(0, 0), (0, 5), (1, 5), (1, 9)]));
        assert_eq!(evidence.verdict(), Verdict::Proven);
        assert_eq!(evidence.watermarks(), [9]);
        assert!((evidence.longest_gap_ms - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_writer_that_never_ran_proves_nothing() {
        assert_eq!(judge(&journal(&[])).verdict(), Verdict::Inconclusive);
        assert_eq!(judge(&journal(&[(0, 4), (0, 4)])).verdict(), Verdict::Inconclusive);
    }

    #[test]
    fn rollback_and_fork_are_told_apart() {
        let rollback = judge(&journal(&[(0, 0), (0, 9), (1, 7)]));
        assert_eq!(rollback.breaches, [Breach::Rollback { writer: 0, before: 9, after: 7 }]);
        let fork = judge(&journal(&[(0, 0), (0, 9), (1, 10), (0, 11)]));
        assert_eq!(fork.breaches, [Breach::Fork { writer: 0, epoch: 1, still: 0 }]);
        assert_eq!(fork.verdict(), Verdict::Wrong);
    }
}
