//! What a journal proves by itself: liveness, no rollback, no fork.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::beat::said::Kind;
use workload::journal::{Beat, Follower, Journal};

use crate::extent::Faults;
use crate::law::{Reason, Ruling};
use crate::verdict::Verdict;

/// What the heartbeats say about one writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
        epoch: u32,
        /// The older epoch that still advanced.
        still: u32,
    },
    /// One beat was said in two ways: two guests are the same one.
    Twin {
        /// Of which epoch.
        epoch: u32,
        /// Which beat of it.
        number: u64,
    },
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rollback { writer, before, after } => {
                write!(f, "ROLLBACK: writer {writer} was at operation {before} and then at {after}")
            }
            Self::Twin { epoch, number } => write!(
                f,
                "FORK: beat {number} of epoch {epoch} was said in two ways: two guests beat as this one"
            ),
            Self::Fork { writer, epoch, still } => write!(
                f,
                "FORK: writer {writer} advanced in epoch {still} after epoch {epoch} had begun"
            ),
        }
    }
}

/// What a whole journal says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// By writer; `None` for one that never beat.
    pub writers: Vec<Option<WriterEvidence>>,
    /// Rules broken, in a journal of format 1.
    pub breaches: Vec<Breach>,
    /// Longest time between two neighbouring beats, in milliseconds of the journal's clock, with no
    /// beat lost between: the outside witness of a stun.
    pub longest_gap_ms: f64,
    /// Windows in which beats were sent and did not arrive: nothing is known of them.
    pub lost: Vec<Lost>,
    /// How far the guest's clock fell behind the journal's at most, from one beat of an epoch to
    /// the next, in milliseconds: it stood still while the guest did, so the guest felt no gap.
    pub clock_stopped_ms: f64,
    /// Another run that began where this one was heard: of what came after, and of memory, this
    /// journal proves nothing.
    pub followed_by: Option<Follower>,
    /// What the law says of the run, where its journal is of format 2.
    pub ruling: Option<Ruling>,
}

/// A window in which the link lost heartbeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

/// Judges the beats of a journal. Beats are told apart and put in order by what the guest put into
/// them, its epoch and the number of the beat: in which order they were heard, and how often, means
/// nothing.
pub fn judge(journal: &Journal) -> Evidence {
    let count = journal.spec.writers as usize;
    let (beats, two_places) = distinct(journal);
    let mut by_writer: Vec<Vec<&Beat>> = vec![Vec::new(); count];
    beats.iter().for_each(|beat| by_writer[beat.writer as usize].push(beat));
    let mut breaches = two_places;
    breaches.extend(by_writer.iter().flat_map(|beats| contradictions(beats)));
    let (longest_gap_ns, clock_stopped_ns) = silences(&beats, journal);
    Evidence {
        writers: by_writer.iter().map(|beats| WriterEvidence::of(beats)).collect(),
        breaches,
        longest_gap_ms: longest_gap_ns as f64 / 1e6,
        lost: lost(&beats, journal),
        clock_stopped_ms: clock_stopped_ns as f64 / 1e6,
        followed_by: journal.followed_by,
        ruling: None,
    }
}

/// What the guest put into a beat; the clock of whoever heard it is not among it.
fn content(beat: &Beat) -> (u32, u64, u16, u64, u64, Kind) {
    (beat.epoch, beat.number, beat.writer, beat.watermark, beat.guest_ns, beat.kind)
}

/// What the numbers of a beat count in: its epoch in format 1, the run in format 2.
fn counted_in(journal: &Journal, beat: &Beat) -> u64 {
    if journal.tag.is_some() { 0 } else { u64::from(beat.epoch) }
}

/// Every beat once, by epoch and number; and the first that was said in two ways.
fn distinct(journal: &Journal) -> (Vec<&Beat>, Vec<Breach>) {
    let mut beats: Vec<&Beat> = journal.beats.iter().collect();
    // Of one that was heard twice the first counts.
    beats.sort_by_key(|beat| (content(beat), beat.journal_ns));
    beats.dedup_by_key(|beat| content(beat));
    let same = |pair: &&[&Beat]| (pair[0].epoch, pair[0].number) == (pair[1].epoch, pair[1].number);
    let twice = beats.windows(2).find(same);
    let twin = twice.map(|pair| Breach::Twin { epoch: pair[0].epoch, number: pair[0].number });
    // The first is enough to know it.
    let twins = twin.into_iter().collect();
    (beats, twins)
}

/// What one writer's beats, in order, cannot all be of one guest.
fn contradictions(beats: &[&Beat]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let mut most: Option<&Beat> = None;
    for beat in beats {
        match most {
            Some(before) if before.watermark > beat.watermark => {
                let (writer, epoch) = (u32::from(beat.writer), beat.epoch);
                // Who was ahead and in an earlier epoch: gone, or still there?
                let overlaps = before.epoch < epoch && before.journal_ns > beat.journal_ns;
                breaches.push(match overlaps {
                    true => Breach::Fork { writer, epoch, still: before.epoch },
                    false => {
                        Breach::Rollback { writer, before: before.watermark, after: beat.watermark }
                    }
                });
                most = Some(beat);
            }
            _ => most = Some(beat),
        }
    }
    breaches
}

/// The longest silence with no beat lost in it, and by how much the guest's clock fell behind the
/// journal's at most, in nanoseconds.
fn silences(beats: &[&Beat], journal: &Journal) -> (u64, u64) {
    let (mut longest, mut stopped) = (0, 0);
    for pair in beats.windows(2) {
        let (before, beat) = (pair[0], pair[1]);
        let complete = match counted_in(journal, before) == counted_in(journal, beat) {
            true => beat.number <= before.number + 1,
            false => beat.number == 0,
        };
        // Two hosts' clocks say nothing of a time between them.
        if !complete || before.clock != beat.clock {
            continue;
        }
        let gap = beat.journal_ns.saturating_sub(before.journal_ns);
        longest = longest.max(gap);
        if beat.epoch == before.epoch {
            let guest = beat.guest_ns.saturating_sub(before.guest_ns);
            stopped = stopped.max(gap.saturating_sub(guest));
        }
    }
    (longest, stopped)
}

/// Windows in which numbers are missing.
fn lost(beats: &[&Beat], journal: &Journal) -> Vec<Lost> {
    let begin_ns = journal.beats.first().map_or(0, |beat| beat.journal_ns);
    let mut lost = Vec::new();
    let mut before: Option<&Beat> = None;
    for beat in beats {
        let (expected, since_ns) = match before
            .filter(|before| counted_in(journal, before) == counted_in(journal, beat))
        {
            Some(before) => (before.number + 1, before.journal_ns),
            None => (0, beat.journal_ns),
        };
        if beat.number > expected {
            lost.push(Lost {
                start_s: since_ns.saturating_sub(begin_ns) as f64 / 1e9,
                length_ms: beat.journal_ns.saturating_sub(since_ns) as f64 / 1e6,
                beats: beat.number - expected,
            });
        }
        before = Some(beat);
    }
    lost
}

impl WriterEvidence {
    /// By the beats of one writer, in order; `None` if there are none.
    fn of(beats: &[&Beat]) -> Option<Self> {
        let (first, last) = (beats.first()?, beats.last()?);
        Some(Self {
            first: first.watermark,
            last: beats.iter().map(|beat| beat.watermark).max()?,
            at_rest: last.kind != Kind::Running,
            beats: beats.len() as u64,
        })
    }
}

/// A time without a heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// When it began, seconds after the journal's first beat.
    pub start_s: f64,
    /// How long it was, by the journal's clock.
    pub length_ms: f64,
    /// The guest changed hosts in it.
    pub changed_epoch: bool,
    /// It began by one host's clock and ended by another's: it is as long as they agree.
    pub two_clocks: bool,
    /// Operations done between the last beats of the writers before it and their first after it.
    pub operations: u64,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moved = if self.changed_epoch { ", the guest changed hosts" } else { "" };
        let clocks = if self.two_clocks { ", by two hosts' clocks" } else { "" };
        write!(
            f,
            "{:>9.3} s  silent for {:.1} ms ({} operations{moved}{clocks})",
            self.start_s, self.length_ms, self.operations
        )
    }
}

/// Gaps longer than `least`, in the order in which they ended.
pub fn gaps(journal: &Journal, least: std::time::Duration) -> Vec<Gap> {
    let beats = &journal.beats;
    let Some(begin) = beats.first().map(|b| b.journal_ns) else { return Vec::new() };
    let mut last: Vec<Option<u64>> = vec![None; journal.spec.writers as usize];
    let mut gaps = Vec::new();
    for (i, beat) in beats.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| &beats[i]);
        if let Some(before) = before {
            let length_ns = beat.journal_ns.saturating_sub(before.journal_ns);
            if u128::from(length_ns) > least.as_nanos() {
                gaps.push(Gap {
                    start_s: before.journal_ns.saturating_sub(begin) as f64 / 1e9,
                    length_ms: length_ns as f64 / 1e6,
                    changed_epoch: beat.epoch != before.epoch,
                    two_clocks: beat.clock != before.clock,
                    operations: done(&beats[i..], &last),
                });
            }
        }
        last[beat.writer as usize] = Some(beat.watermark);
    }
    gaps
}

/// Operations that the writers' first beats of these have more than their last ones before.
fn done(beats: &[Beat], before: &[Option<u64>]) -> u64 {
    let mut left = before.to_vec();
    // Writers beat in turn, or all at once.
    let soon = beats.iter().take(4 * left.len());
    let of = |beat: &Beat| Some(beat.watermark.saturating_sub(left[beat.writer as usize].take()?));
    soon.filter_map(of).sum()
}

/// The rate of writing over one step of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

/// How far memory is beyond what was heard, and for how long it was not heard.
pub fn silence(journal: &Journal, journalled: &[u64], inferred: &[u64]) -> String {
    let beyond: u64 = inferred.iter().zip(journalled).map(|(i, j)| i.saturating_sub(*j)).sum();
    let at = match last_rate(journal) {
        Some(rate) if beyond > 0 => format!(
            ", which took some {:.3} s if the writers went on as fast as they were last heard",
            beyond as f64 / rate
        ),
        _ => String::new(),
    };
    format!(
        "the journal does not say where the writers stopped; memory shows {beyond} operations after the \
         last heartbeats{at}"
    )
}

/// How long before the last heartbeat the rate of writing is looked at.
const LAST_NS: u64 = 10_000_000_000;

/// Operations per second of all writers together at the end of a journal.
fn last_rate(journal: &Journal) -> Option<f64> {
    let end = journal.beats.last()?.journal_ns;
    let since = end.saturating_sub(LAST_NS);
    let mut first: Vec<Option<u64>> = vec![None; journal.spec.writers as usize];
    let (mut begin, mut operations) = (end, 0);
    for beat in journal.beats.iter().filter(|beat| beat.journal_ns >= since) {
        begin = begin.min(beat.journal_ns);
        let first = &mut first[beat.writer as usize];
        let before = first.replace(beat.watermark).unwrap_or(beat.watermark);
        operations += beat.watermark.saturating_sub(before);
    }
    (operations > 0 && begin < end).then(|| operations as f64 * 1e9 / (end - begin) as f64)
}

impl Evidence {
    /// The last watermark of each writer of the guest that goes on; 0 for one that never beat.
    pub fn watermarks(&self) -> Vec<u64> {
        match &self.ruling {
            Some(ruling) => ruling.watermarks.clone(),
            None => self.writers.iter().map(|w| w.as_ref().map_or(0, |w| w.last)).collect(),
        }
    }

    /// Whether every writer said that it rests.
    pub fn at_rest(&self) -> bool {
        self.writers.iter().all(|w| w.as_ref().is_some_and(|w| w.at_rest))
    }

    /// Whether the guest was ended by its owner.
    pub fn ended(&self) -> bool {
        self.ruling.as_ref().map_or_else(|| self.at_rest(), |ruling| ruling.ended)
    }

    /// How the run contradicts itself, in words.
    pub fn wrong(&self) -> Vec<String> {
        match &self.ruling {
            None => self.breaches.iter().map(ToString::to_string).collect(),
            Some(ruling) if ruling.kinds.is_empty() => Vec::new(),
            Some(Ruling { kinds, because, .. }) => {
                let kinds: Vec<_> = kinds.iter().map(ToString::to_string).collect();
                let because = because.as_deref().unwrap_or("beats contradict each other");
                vec![format!("{}: {because}", kinds.join(" or "))]
            }
        }
    }

    /// What keeps the run from being proven, in words.
    pub fn doubts(&self) -> Vec<String> {
        let Some(Ruling { reasons, because, .. }) = &self.ruling else {
            let idle = self.idle_writers().into_iter();
            let mut doubts: Vec<String> =
                idle.map(|writer| format!("writer {writer} was never seen to advance")).collect();
            if let Some(Follower { run, key }) = self.followed_by {
                let key = key.map_or(String::new(), |key| format!(" (key {key})"));
                doubts.push(format!(
                    "run {run}{key} began where this one was heard: the guest started again, or \
                     another one beats into the same link; collect each run into a journal of its own"
                ));
            }
            return doubts;
        };
        let word = |reason: &Reason| match (reason, because) {
            (Reason::Contradiction, Some(because)) => format!("{reason}: {because}"),
            _ => reason.to_string(),
        };
        // Of a run that contradicts itself it is clear why its beats are not of one line.
        let wrong = self.verdict() == Verdict::Wrong;
        reasons.iter().filter(|reason| !wrong || **reason != Reason::NotJoined).map(word).collect()
    }

    /// Writers that were never seen to advance.
    pub fn idle_writers(&self) -> Vec<usize> {
        let advanced = |w: &Option<WriterEvidence>| w.as_ref().is_some_and(|w| w.last > w.first);
        (0..self.writers.len()).filter(|w| !advanced(&self.writers[*w])).collect()
    }

    /// What such memory makes of the verdict. Lines of the run that began here are no fault: memory is
    /// its, and this journal's run has ended. Where lines of the journal are missing, memory of another
    /// moment may be lawful.
    pub fn with_memory(&self, faults: &Faults) -> Verdict {
        let next = self.followed_by.and_then(|follower| follower.key);
        let is_next = next.is_some_and(|key| faults.are_of(key));
        let Some(ruling) = &self.ruling else {
            let is_right = faults.is_empty() || is_next;
            return if is_right { self.verdict() } else { Verdict::Wrong };
        };
        let doubtful = ruling.reasons.iter().any(Reason::counts_for_memory);
        if ruling.verdict == Verdict::Wrong || !(faults.is_empty() || doubtful && faults.are_aged())
        {
            Verdict::Wrong
        } else if doubtful {
            Verdict::Inconclusive
        } else {
            Verdict::Proven
        }
    }

    /// What the journal alone allows to conclude.
    pub fn verdict(&self) -> Verdict {
        if let Some(ruling) = &self.ruling {
            ruling.verdict
        } else if !self.breaches.is_empty() {
            Verdict::Wrong
        } else if !self.idle_writers().is_empty() || self.followed_by.is_some() {
            Verdict::Inconclusive
        } else {
            Verdict::Proven
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::line::PageFormat;
    use workload::run::RunId;
    use workload::spec::WorkloadSpec;
    use workload::units::Bytes;

    fn journal(beats: &[(u32, u64)]) -> Journal {
        let beat = |(i, (epoch, watermark)): (usize, &(u32, u64))| Beat {
            kind: Kind::Running,
            epoch: *epoch,
            number: beats[..i].iter().filter(|(before, _)| before == epoch).count() as u64,
            writer: 0,
            watermark: *watermark,
            guest_ns: i as u64 * 10_000_000,
            journal_ns: i as u64 * 10_000_000,
            clock: 0,
        };
        Journal {
            run: RunId(1),
            tag: None,
            spec: WorkloadSpec {
                format: PageFormat::V2 { run: RunId(1) },
                seed: 1,
                memory: Bytes(1 << 20),
                writers: 1,
                workload: "stream".parse().unwrap(),
            },
            beats: beats.iter().enumerate().map(beat).collect(),
            followed_by: None,
        }
    }

    #[test]
    fn another_run_makes_a_journal_inconclusive_and_a_breach_stays_wrong() {
        let mut followed = journal(&[(0, 0), (0, 5), (0, 9)]);
        assert_eq!(judge(&followed).verdict(), Verdict::Proven);
        followed.followed_by = Some(Follower { run: RunId(2), key: None });
        assert_eq!(judge(&followed).verdict(), Verdict::Inconclusive);
        let mut rollback = journal(&[(0, 0), (0, 9), (1, 7)]);
        rollback.followed_by = followed.followed_by;
        assert_eq!(judge(&rollback).verdict(), Verdict::Wrong);
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

    /// C22: from one host's clock to another's nothing is measured.
    #[test]
    fn a_silence_is_told_in_time() {
        // 3 operations in 30 ms.
        let journal = journal(&[(0, 1), (0, 2), (0, 3), (0, 4)]);
        let said = silence(&journal, &[4], &[24]);
        assert!(said.contains("20 operations after") && said.contains("some 0.200 s"), "{said}");
        let said = silence(&journal, &[4], &[4]);
        assert!(said.ends_with("0 operations after the last heartbeats"), "{said}");
    }

    #[test]
    fn a_gap_between_two_clocks_is_said_to_be_one() {
        let mut journal = journal(&[(0, 0), (0, 5), (1, 5), (1, 9)]);
        for beat in &mut journal.beats[2..] {
            (beat.clock, beat.journal_ns) = (1, beat.journal_ns + 30_000_000_000);
        }
        assert!((judge(&journal).longest_gap_ms - 10.0).abs() < 1e-9);
        let gaps = gaps(&journal, std::time::Duration::from_millis(50));
        assert_eq!(gaps.iter().map(|gap| gap.two_clocks).collect::<Vec<_>>(), [true]);
        assert!(gaps[0].to_string().ends_with("the guest changed hosts, by two hosts' clocks)"));
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

    /// C20, C24: a datagram that comes late, or twice, is the beat that it is.
    #[test]
    fn order_and_repetition_mean_nothing() {
        let good = journal(&[(0, 0), (0, 5), (0, 9), (1, 9), (1, 12), (1, 20)]);
        let wanted = judge(&good);
        assert_eq!(wanted.verdict(), Verdict::Proven);
        let mut late = good.clone();
        // The third is heard after the sixth, and the second once more.
        late.beats[2].journal_ns = 61_000_000;
        late.beats.push(Beat { journal_ns: 70_000_000, ..late.beats[1] });
        late.beats.sort_by_key(|beat| beat.journal_ns);
        let found = judge(&late);
        assert_eq!((found.verdict(), &found.breaches), (Verdict::Proven, &vec![]));
        assert_eq!((found.watermarks(), &found.lost), (wanted.watermarks(), &wanted.lost));
        assert_eq!(found.writers, wanted.writers);
        for shift in [1, 5] {
            let mut twice = good.clone();
            let again: Vec<_> = good
                .beats
                .iter()
                .map(|beat| Beat { journal_ns: beat.journal_ns + shift * 10_000_000, ..*beat })
                .collect();
            twice.beats.extend(again);
            twice.beats.sort_by_key(|beat| beat.journal_ns);
            assert_eq!(judge(&twice).breaches, [], "shifted by {shift}");
        }
    }

    /// A number that two guests have said, with other content, is two places.
    #[test]
    fn a_number_said_twice_with_other_content_is_a_fork() {
        let mut twin = journal(&[(0, 0), (0, 5), (0, 9)]);
        twin.beats.push(Beat { watermark: 8, ..twin.beats[2] });
        let breaches = judge(&twin).breaches;
        assert!(breaches.contains(&Breach::Twin { epoch: 0, number: 2 }), "{breaches:?}");
    }
}
