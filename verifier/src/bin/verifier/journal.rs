//! `verifier journal` and `verifier watch`: what the heartbeats say by themselves.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use verifier::case::Case;
use verifier::evidence::{self, Evidence, Gap};
use verifier::law::Demand;
use verifier::report::{JournalReport, SCHEMA};
use verifier::verdict::Verdict;
use workload::beat::books::{Books, Source};
use workload::beat::said::Tag;
use workload::interrupt;
use workload::journal::Journal;
use workload::pipeline::Pipeline;
use workload::provenance::Provenance;
use workload::say;
use workload::say::{Out, Reader};
use workload::units::{Rate, parse_duration};

use crate::outcome;
use crate::show::{heard, notes};
use crate::sources::{self, Expect};

/// Gaps shown as text; JSON has all of them.
const GAPS_SHOWN: usize = 20;

/// A guest clock that fell behind by more than this at once is worth a word.
const CLOCK_STOPPED_MS_MIN: f64 = 20.0;

#[derive(Args)]
#[command(after_help = "Example:\n  verifier journal journal --gap 50ms --step 1s")]
pub(crate) struct JournalArgs {
    /// Journals written by `workload run --heartbeat`, by guests that were migrated, or by `verifier
    /// collect`: all that several say of one run is judged as one
    #[arg(required = true, value_name = "FILE")]
    journal: Vec<PathBuf>,
    #[command(flatten)]
    expect: Expect,
    /// Show times without a heartbeat that were longer than this
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = parse_duration)]
    gap: Duration,
    /// Show the rate of writing in steps of this length
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    step: Duration,
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pipeline: Pipeline,
}

#[derive(Args)]
#[command(after_help = "Example:\n  verifier watch journal\n\n\
    Ends when every writer has come to rest, or at Ctrl-C.")]
pub(crate) struct WatchArgs {
    /// A journal that is being written
    journal: PathBuf,
    /// Say so when there was no heartbeat for this long
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = parse_duration)]
    gap: Duration,
}

pub(crate) fn journal(args: &JournalArgs) -> anyhow::Result<Verdict> {
    anyhow::ensure!(!args.step.is_zero(), "--step must be more than zero");
    let mut verdict = Verdict::Proven;
    let mut outcomes = Vec::new();
    for Case { journal, ruling } in sources::read(&args.journal, &args.expect)? {
        let case = Case { journal, ruling };
        let evidence = case.evidence();
        let report = JournalReport {
            schema: SCHEMA,
            provenance: Provenance::here("verifier"),
            verdict: evidence.verdict(),
            run: case.journal.run.to_string(),
            tag: case.journal.tag,
            gaps: evidence::gaps(&case.journal, args.gap),
            rates: evidence::rates(&case.journal, args.step),
            evidence,
        };
        verdict = verdict.and(report.verdict);
        outcomes.push(outcome::case(
            format!("run {}", report.run),
            report.verdict,
            &[report.evidence.wrong(), report.evidence.doubts()].concat(),
            heard_s(&case.journal),
            0,
            &BTreeMap::new(),
        ));
        say::report("verifier", |out| match args.json {
            true => {
                serde_json::to_writer(&mut *out, &report)?;
                writeln!(out)
            }
            false => print(&case.journal, &report, out),
        });
    }
    args.pipeline.tell("verifier", "journal", &outcomes);
    Ok(verdict)
}

/// Seconds from the first beat to the last.
fn heard_s(journal: &Journal) -> f64 {
    let times = journal.beats.iter().map(|beat| beat.journal_ns);
    let (first, last) = (times.clone().min(), times.max());
    first.zip(last).map_or(0.0, |(first, last)| (last - first) as f64 / 1e9)
}

fn print(journal: &Journal, report: &JournalReport, out: &mut Out) -> std::io::Result<()> {
    let JournalReport { evidence, gaps, rates, verdict, .. } = report;
    writeln!(
        out,
        "run {}{}: {} of {}, {} writers, seed {}",
        journal.run,
        journal.tag.map_or(String::new(), |tag| format!(" (tag {tag})")),
        journal.spec.workload,
        journal.spec.memory,
        journal.spec.writers,
        journal.spec.seed
    )?;
    for step in rates {
        writeln!(out, "{:>9.3} s  {:>12}", step.start_s, Rate(step.bytes_per_s as u64))?;
    }
    for gap in gaps.iter().take(GAPS_SHOWN) {
        writeln!(out, "{gap}")?;
    }
    if gaps.len() > GAPS_SHOWN {
        writeln!(out, "... and {} more gaps (see --json)", gaps.len() - GAPS_SHOWN)?;
    }
    for lost in evidence.lost.iter().take(GAPS_SHOWN) {
        writeln!(out, "{lost}")?;
    }
    if evidence.clock_stopped_ms > CLOCK_STOPPED_MS_MIN {
        writeln!(
            out,
            "the guest's clock stood still for up to {:.1} ms of the journal's: the guest cannot \
             have felt that gap",
            evidence.clock_stopped_ms
        )?;
    }
    for (index, writer) in evidence.writers.iter().enumerate() {
        match writer {
            None => writeln!(out, "writer {index}: no heartbeat")?,
            Some(w) => writeln!(
                out,
                "writer {index}: operations {} to {}{}, {} beats",
                w.first,
                w.last,
                if w.at_rest { " (at rest)" } else { "" },
                w.beats
            )?,
        }
    }
    for note in notes(evidence) {
        writeln!(out, "{note}")?;
    }
    writeln!(out, "longest gap {:.1} ms: {verdict}{}", evidence.longest_gap_ms, heard(evidence))
}

/// Follows a journal: a line a second, and each gap and fault as it is seen.
pub(crate) fn watch(args: &WatchArgs) -> anyhow::Result<Verdict> {
    interrupt::install()?;
    let mut source = Source::open(&args.journal)?;
    let mut books = Books::default();
    let mut watched = Watched::new();
    let mut heard = 0;
    let (mut shown, mut judged_next) = (Instant::now(), Instant::now());
    loop {
        let before = books.lines;
        source.read_more(&mut books)?;
        let interrupted = interrupt::count() > 0;
        if books.runs.values().all(|run| run.start.is_none() || run.heard.is_empty()) {
            // It may not have been started yet.
            anyhow::ensure!(!interrupted, "{} holds no run yet", args.journal.display());
            std::thread::sleep(PAUSE);
            continue;
        }
        let begin = Instant::now();
        watched.grown |= books.lines != before;
        let beats = books.runs.values().map(|run| run.heard.len()).sum();
        if std::mem::replace(&mut heard, beats) != beats {
            watched.heard_at = begin;
        }
        // At the end once more, grown or not: who wrote it may be gone, which is no line in it.
        if interrupted || (begin >= judged_next && watched.grown) {
            source.look_for_locks_again(&mut books);
            watched.judge(&mut books, args.gap)?;
            // A long history takes long to judge: a tenth of a core is enough for that.
            judged_next = begin + begin.elapsed() * 10;
        }
        let over = watched.is_ended() || interrupted;
        let due = over || shown.elapsed() >= Duration::from_secs(1);
        let reader = say::report("verifier", |out| watched.print(out, due, over));
        // Whoever watched is gone: there is nothing left to do but to say what was seen.
        if over || reader == Reader::Gone {
            return Ok(watched.verdict());
        }
        if due {
            shown = Instant::now();
        }
        std::thread::sleep(PAUSE);
    }
}

/// A journal that does not grow for so long is silent.
const SILENCE: Duration = Duration::from_secs(1);
/// Time between two looks at a journal that grows.
const PAUSE: Duration = Duration::from_millis(100);

/// What is known of a journal that is followed: of its last run.
struct Watched {
    grown: bool,
    heard_at: Instant,
    tag: Option<Tag>,
    beats: usize,
    evidence: Option<Evidence>,
    gaps: Vec<Gap>,
    gaps_said: usize,
    wrong_said: usize,
}

impl Watched {
    fn new() -> Self {
        Self {
            grown: false,
            heard_at: Instant::now(),
            tag: None,
            beats: 0,
            evidence: None,
            gaps: Vec::new(),
            gaps_said: 0,
            wrong_said: 0,
        }
    }

    fn judge(&mut self, books: &mut Books, gap: Duration) -> anyhow::Result<()> {
        books.settle()?;
        self.grown = false;
        let (cases, _) = Case::of_books(books, &Demand::default());
        let newest = |case: &&Case| case.journal.beats.iter().map(|beat| beat.journal_ns).max();
        let Some(case) = cases.iter().max_by_key(newest) else { return Ok(()) };
        if self.tag != case.journal.tag {
            *self = Self { tag: case.journal.tag, heard_at: self.heard_at, ..Self::new() };
        }
        self.beats = case.journal.beats.len();
        self.evidence = Some(case.evidence());
        self.gaps = evidence::gaps(&case.journal, gap);
        Ok(())
    }

    fn is_ended(&self) -> bool {
        self.evidence.as_ref().is_some_and(Evidence::ended)
    }

    fn verdict(&self) -> Verdict {
        self.evidence.as_ref().map_or(Verdict::Inconclusive, Evidence::verdict)
    }

    /// Says what is new; and how far the run is, if that is due.
    fn print(&mut self, out: &mut Out, due: bool, over: bool) -> std::io::Result<()> {
        for gap in self.gaps.iter().skip(self.gaps_said) {
            writeln!(out, "{gap}")?;
        }
        let wrong = self.evidence.as_ref().map_or(Vec::new(), Evidence::wrong);
        for wrong in wrong.iter().skip(self.wrong_said) {
            writeln!(out, "{wrong}")?;
        }
        (self.gaps_said, self.wrong_said) = (self.gaps.len(), wrong.len());
        if due {
            let operations = self.evidence.as_ref().map_or(Vec::new(), Evidence::watermarks);
            let quiet = self.heard_at.elapsed();
            let quiet = match quiet >= SILENCE {
                true => format!(", silent for {:.1} s", quiet.as_secs_f64()),
                false => String::new(),
            };
            writeln!(out, "operations {operations:?}, {} beats{quiet}", self.beats)?;
        }
        let Some(evidence) = self.evidence.as_ref().filter(|_| over) else { return Ok(()) };
        for doubt in evidence.doubts() {
            writeln!(out, "{doubt}")?;
        }
        writeln!(out, "{}{}", self.verdict(), heard(evidence))
    }
}
