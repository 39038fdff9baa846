//! `verifier journal` and `verifier watch`: what the heartbeats say by themselves.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use verifier::evidence::{self, Evidence, Gap};
use verifier::report::{JournalReport, SCHEMA};
use verifier::verdict::Verdict;
use workload::interrupt;
use workload::journal::{Journal, JournalReader};
use workload::say;
use workload::say::{Out, Reader};
use workload::units::{Rate, parse_duration};

use crate::scan::read_journal;
use crate::show::notes;

/// Gaps shown as text; JSON has all of them.
const GAPS_SHOWN: usize = 20;

/// A guest clock that fell behind by more than this at once is worth a word.
const CLOCK_STOPPED_MS_MIN: f64 = 20.0;

#[derive(Args)]
#[command(after_help = "Example:\n  verifier journal journal --gap 50ms --step 1s")]
pub(crate) struct JournalArgs {
    /// Journal written by `workload run --journal`, or by a guest that was migrated
    journal: PathBuf,
    /// Show times without a heartbeat that were longer than this
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = parse_duration)]
    gap: Duration,
    /// Show the rate of writing in steps of this length
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    step: Duration,
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
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
    let journal = read_journal(&args.journal)?;
    let evidence = evidence::judge(&journal);
    let gaps = evidence::gaps(&journal, args.gap);
    let rates = evidence::rates(&journal, args.step);
    let verdict = evidence.verdict();
    let run = journal.run.to_string();
    let report = JournalReport { schema: SCHEMA, verdict, run, evidence, gaps, rates };
    say::report("verifier", |out| match args.json {
        true => {
            serde_json::to_writer(&mut *out, &report)?;
            writeln!(out)
        }
        false => print(&journal, &report, out),
    });
    Ok(verdict)
}

fn print(journal: &Journal, report: &JournalReport, out: &mut Out) -> std::io::Result<()> {
    let JournalReport { evidence, gaps, rates, verdict, .. } = report;
    writeln!(
        out,
        "run {}: {} of {}, {} writers, seed {}",
        journal.run,
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
    writeln!(out, "longest gap {:.1} ms: {verdict}", evidence.longest_gap_ms)
}

/// Follows a journal: a line a second, and each gap and breach as it is seen.
pub(crate) fn watch(args: &WatchArgs) -> anyhow::Result<Verdict> {
    interrupt::install()?;
    let mut reader = JournalReader::open(&args.journal)?;
    let mut watched = Watched::default();
    let (mut shown, mut judged_next) = (Instant::now(), Instant::now());
    loop {
        reader.read_more()?;
        let interrupted = interrupt::count() > 0;
        let Some(journal) = reader.so_far() else {
            // It may not have been started yet.
            anyhow::ensure!(!interrupted, "{} holds no run yet", args.journal.display());
            std::thread::sleep(PAUSE);
            continue;
        };
        let begin = Instant::now();
        if interrupted || begin >= judged_next {
            watched.judge(journal, args.gap);
            // A long history takes long to judge: a tenth of a core is enough for that.
            judged_next = begin + begin.elapsed() * 10;
        }
        let over = watched.at_rest() || interrupted;
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

/// Time between two looks at a journal that grows.
const PAUSE: Duration = Duration::from_millis(100);

/// What is known of a journal that is followed.
#[derive(Default)]
struct Watched {
    beats: usize,
    evidence: Option<Evidence>,
    gaps: Vec<Gap>,
    gaps_said: usize,
    breaches_said: usize,
}

impl Watched {
    /// Judges the journal again, if it has grown.
    fn judge(&mut self, journal: &Journal, gap: Duration) {
        let known = self.evidence.as_ref().map(|e| (self.beats, e.followed_by.is_some()));
        let beats = journal.beats.len();
        if known == Some((beats, journal.followed_by.is_some())) {
            return;
        }
        self.beats = beats;
        self.evidence = Some(evidence::judge(journal));
        self.gaps = evidence::gaps(journal, gap);
    }

    fn at_rest(&self) -> bool {
        self.evidence.as_ref().is_some_and(Evidence::at_rest)
    }

    fn verdict(&self) -> Verdict {
        self.evidence.as_ref().map_or(Verdict::Inconclusive, Evidence::verdict)
    }

    /// Says what is new; and how far the run is, if that is due.
    fn print(&mut self, out: &mut Out, due: bool, over: bool) -> std::io::Result<()> {
        for gap in self.gaps.iter().skip(self.gaps_said) {
            writeln!(out, "{gap}")?;
        }
        let breaches = self.evidence.as_ref().map_or(&[][..], |e| &e.breaches);
        for breach in breaches.iter().skip(self.breaches_said) {
            writeln!(out, "{breach}")?;
        }
        (self.gaps_said, self.breaches_said) = (self.gaps.len(), breaches.len());
        if due {
            let operations = self.evidence.as_ref().map_or(Vec::new(), Evidence::watermarks);
            writeln!(out, "operations {operations:?}, {} beats", self.beats)?;
        }
        match over {
            true => writeln!(out, "{}", self.verdict()),
            false => Ok(()),
        }
    }
}
