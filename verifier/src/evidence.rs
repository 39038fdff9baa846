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
    /// journal's clock, with no beat lost between: the outside witness of a stun.
    pub longest_gap_ms: f64,
    /// Windows in which beats were sent and did not arrive: nothing is known of them.
    pub lost: Vec<Lost>,
    /// How far the guest's clock fell behind the journal's at most, from one beat of an epoch to
    /// the next, in milliseconds: it stood still while the guest did, so the guest felt no gap.
    pub clock_stopped_ms: f64,
}

/// A window in which the link lost heartbeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    /// When it began, seconds after the journal's first beat.
    pub start_s: f64,
    /// How long it was, by the journal's clock.
    pub length_ms: f64,
    /// Beats lost, all writers together.
    pub beats: u64,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>9.3} s  {} heartbeats lost in {:.1} ms: INCONCLUSIVE for that time",
            self.start_s, self.beats, self.length_ms
        )
    }
}

/// Judges the beats of a journal.
pub fn judge(journal: &Journal) -> Evidence {
    struct State {
        epoch: u64,
        watermark: u64,
        guest_ns: u64,
        journal_ns: u64,
    }
    let count = journal.spec.writers as usize;
    let mut writers: Vec<Option<WriterEvidence>> = vec![None; count];
    let mut states: Vec<Option<State>> = (0..count).map(|_| None).collect();
    let mut breaches = Vec::new();
    let mut longest_gap_ns = 0;
    let mut clock_stopped_ns = 0;
    let begin_ns = journal.beats.first().map_or(0, |b| b.journal_ns);
    let mut lost = Vec::new();
    // By epoch: the number and time of the last beat.
    let mut last_of_epoch = std::collections::HashMap::<u64, (u64, u64)>::new();
    for beat in &journal.beats {
        let before = last_of_epoch.insert(beat.epoch, (beat.number, beat.journal_ns));
        let (expected, since_ns) = before.map_or((0, beat.journal_ns), |(n, at)| (n + 1, at));
        let complete = beat.number <= expected;
        if !complete {
            lost.push(Lost {
                start_s: since_ns.saturating_sub(begin_ns) as f64 / 1e9,
                length_ms: beat.journal_ns.saturating_sub(since_ns) as f64 / 1e6,
                beats: beat.number - expected,
            });
        }
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
            if complete {
                let gap_ns = beat.journal_ns.saturating_sub(state.journal_ns);
                longest_gap_ns = longest_gap_ns.max(gap_ns);
                if beat.epoch == state.epoch {
                    let guest_ns = beat.guest_ns.saturating_sub(state.guest_ns);
                    clock_stopped_ns = clock_stopped_ns.max(gap_ns.saturating_sub(guest_ns));
                }
            }
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
            guest_ns: beat.guest_ns,
            journal_ns: beat.journal_ns,
        });
    }
    Evidence {
        writers,
        breaches,
        longest_gap_ms: longest_gap_ns as f64 / 1e6,
        lost,
        clock_stopped_ms: clock_stopped_ns as f64 / 1e6,
    }
}

/// A time without a heartbeat of one writer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Which writer.
    pub writer: u32,
    /// When it began, seconds after the journal's first beat.
    pub start_s: f64,
    /// How long it was, by the journal's clock.
    pub length_ms: f64,
    /// The guest changed hosts in it.
    pub changed_epoch: bool,
    /// Operations done between the two beats.
    pub operations: u64,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moved = if self.changed_epoch { ", the guest changed hosts" } else { "" };
        write!(
            f,
            "{:>9.3} s  writer {} silent for {:.1} ms ({} operations{moved})",
            self.start_s, self.writer, self.length_ms, self.operations
        )
    }
}

/// Gaps longer than `least`, in the order in which they ended.
pub fn gaps(journal: &Journal, least: std::time::Duration) -> Vec<Gap> {
    let Some(begin) = journal.beats.first().map(|b| b.journal_ns) else { return Vec::new() };
    let mut last: Vec<Option<&workload::journal::Beat>> = vec![None; journal.spec.writers as usize];
    let mut gaps = Vec::new();
    for beat in &journal.beats {
        if let Some(before) = last[beat.writer as usize].replace(beat) {
            let length_ns = beat.journal_ns.saturating_sub(before.journal_ns);
            if u128::from(length_ns) > least.as_nanos() {
                gaps.push(Gap {
                    writer: beat.writer,
                    start_s: before.journal_ns.saturating_sub(begin) as f64 / 1e9,
                    length_ms: length_ns as f64 / 1e6,
                    changed_epoch: beat.epoch != before.epoch,
                    operations: beat.watermark.saturating_sub(before.watermark),
                });
            }
        }
    }
    gaps
}

/// The rate of writing over one step of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When it begins, seconds after the journal's first beat.
    pub start_s: f64,
    /// Bytes of records written per second, all writers together.
    pub bytes_per_s: f64,
}

/// The rate of writing in steps of equal length; the last one may be shorter.
pub fn rates(journal: &Journal, step: std::time::Duration) -> Vec<Step> {
    let (Some(first), Some(last)) = (journal.beats.first(), journal.beats.last()) else {
        return Vec::new();
    };
    let step_ns = (step.as_nanos() as u64).max(1);
    let length_ns = last.journal_ns.saturating_sub(first.journal_ns);
    let mut written = std::collections::BTreeMap::<u64, u64>::new();
    let mut watermarks: Vec<Option<u64>> = vec![None; journal.spec.writers as usize];
    for beat in &journal.beats {
        let before = watermarks[beat.writer as usize].replace(beat.watermark);
        let operations = beat.watermark.saturating_sub(before.unwrap_or(beat.watermark));
        let index = beat.journal_ns.saturating_sub(first.journal_ns) / step_ns;
        *written.entry(index).or_default() += operations * journal.spec.workload.record.0;
    }
    written
        .into_iter()
        .map(|(index, bytes)| {
            let seconds =
                step_ns.min(length_ns.saturating_sub(index * step_ns)).max(1) as f64 / 1e9;
            Step { start_s: index as f64 * step.as_secs_f64(), bytes_per_s: bytes as f64 / seconds }
        })
        .collect()
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
    use workload::spec::WorkloadSpec;
    use workload::units::Bytes;

    fn journal(beats: &[(u64, u64)]) -> Journal {
        let beat = |(i, (epoch, watermark)): (usize, &(u64, u64))| Beat {
            motion: Motion::Running,
            epoch: *epoch,
            number: beats[..i].iter().filter(|(before, _)| before == epoch).count() as u64,
            writer: 0,
            watermark: *watermark,
            guest_ns: i as u64 * 10_000_000,
            journal_ns: i as u64 * 10_000_000,
        };
        Journal {
            run: RunId(1),
            spec: WorkloadSpec {
                seed: 1,
                memory: Bytes(1 << 20),
                writers: 1,
                workload: "stream".parse().unwrap(),
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
    fn gaps_and_rates_are_those_of_the_beats() {
        let mut journal = journal(&[(0, 0), (0, 5), (1, 5), (1, 9)]);
        journal.beats[3].journal_ns += 90_000_000;
        let gaps = gaps(&journal, std::time::Duration::from_millis(50));
        assert_eq!(gaps.len(), 1);
        assert_eq!((gaps[0].operations, gaps[0].changed_epoch), (4, false));
        assert!((gaps[0].length_ms - 100.0).abs() < 1e-9 && (gaps[0].start_s - 0.02).abs() < 1e-9);
        let rates = rates(&journal, std::time::Duration::from_millis(100));
        // Five records in the first 100 ms, four in the 20 ms that follow.
        let rates: Vec<_> = rates.iter().map(|s| s.bytes_per_s.round()).collect();
        assert_eq!(rates, [5.0 * 4096.0 / 0.1, 4.0 * 4096.0 / 0.02]);
    }

    /// A link that loses beats says nothing about the guest.
    #[test]
    fn lost_heartbeats_are_no_stun() {
        let mut journal = journal(&[(0, 0), (0, 5), (0, 50), (0, 55)]);
        journal.beats[2].number += 9;
        journal.beats[3].number += 9;
        journal.beats[2].journal_ns += 90_000_000;
        journal.beats[3].journal_ns += 90_000_000;
        let evidence = judge(&journal);
        assert_eq!(evidence.lost, [Lost { start_s: 0.01, length_ms: 100.0, beats: 9 }]);
        assert!((evidence.longest_gap_ms - 10.0).abs() < 1e-9);
        assert_eq!(evidence.verdict(), Verdict::Proven);
    }

    #[test]
    fn a_clock_that_stood_still_is_noticed() {
        let mut journal = journal(&[(0, 0), (0, 5), (0, 9)]);
        journal.beats[2].journal_ns += 300_000_000;
        assert!((judge(&journal).clock_stopped_ms - 300.0).abs() < 1e-9);
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
