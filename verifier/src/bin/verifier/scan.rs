//! `verifier scan`: every line of a region file against its journal.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use serde::Serialize;
use verifier::evidence::{self, Evidence};
use verifier::extent::Faults;
use verifier::scan::{Moment, Scan, infer_watermarks, scan};
use verifier::verdict::Verdict;
use workload::journal::{Journal, JournalError};
use workload::region::Region;
use workload::spec::Workload;

/// Longest wait for a running writer's next heartbeat.
const HEARTBEAT_WAIT: Duration = Duration::from_secs(5);
/// Extents shown as text; JSON has all that were kept.
const EXTENTS_SHOWN: usize = 40;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    verifier scan region --journal journal\n  \
    verifier scan region --journal journal --json\n\n\
    A region whose generator still runs is checked while it changes: no line may be older than\n\
    the journal, and what is newer must be accounted for by the heartbeats that follow.")]
pub(crate) struct Args {
    /// Region file written by `workload run --file`
    region: PathBuf,
    /// Journal written by `workload run --journal`
    #[arg(long)]
    journal: PathBuf,
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// The report, as printed with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    verdict: Verdict,
    reasons: &'a [String],
    moment: &'static str,
    watermarks: &'a [u64],
    lines: u64,
    unstable_lines: u64,
    seconds: f64,
    faults: &'a Faults,
    in_common: Vec<String>,
    journal: &'a Evidence,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let journal = match read_journal(&args.journal) {
        Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            eprintln!(
                "verifier: journal {} does not exist, so nothing can be proven; \
                 run the workload with --journal",
                args.journal.display()
            );
            return Ok(Verdict::Inconclusive);
        }
        other => other?,
    };
    let workload = journal.spec.resolve()?;
    let region = Region::open(&args.region, journal.spec.memory)?;
    let outcome = match region.is_live() {
        true => scan_running(args, &workload, &region)?,
        false => scan_at_rest(&journal, &workload, &region),
    };
    print(args, &workload, &outcome)?;
    Ok(outcome.verdict)
}

/// Reads a journal that may be growing: a cut last line is looked at again before it is an error.
pub(crate) fn read_journal(path: &Path) -> Result<Journal, JournalError> {
    for _ in 0..20 {
        match Journal::read(path) {
            Err(JournalError::Cut { .. }) => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
    Journal::read(path)
}

struct Outcome {
    verdict: Verdict,
    reasons: Vec<String>,
    moment: &'static str,
    watermarks: Vec<u64>,
    scan: Scan,
    evidence: Evidence,
}

fn scan_at_rest(journal: &Journal, workload: &Workload, region: &Region) -> Outcome {
    let evidence = evidence::judge(journal);
    let journalled = evidence.watermarks();
    let mut reasons = Vec::new();
    let (moment, name) = if evidence.at_rest() {
        (Moment::Exact(journalled.clone()), "at rest")
    } else {
        let inferred = infer_watermarks(region, workload, &journalled);
        let beyond: u64 = inferred.iter().zip(&journalled).map(|(i, j)| i - j).sum();
        reasons.push(format!(
            "the journal does not say where the writers stopped; memory shows {beyond} operations after the last heartbeats"
        ));
        (Moment::Stopped(inferred), "stopped without a last word")
    };
    let scan = scan(region, workload, &moment, |_| {});
    let watermarks = match moment {
        Moment::Exact(w) | Moment::Stopped(w) | Moment::Running(w) => w,
    };
    conclude(evidence, scan, name, watermarks, reasons)
}

fn scan_running(args: &Args, workload: &Workload, region: &Region) -> anyhow::Result<Outcome> {
    let before = evidence::judge(&read_journal(&args.journal)?).watermarks();
    let scan = scan(region, workload, &Moment::Running(before.clone()), |_| {});
    let mut reasons = Vec::new();
    // Everything seen must be accounted for by a watermark that was journalled later.
    let start = Instant::now();
    let evidence = loop {
        let evidence = evidence::judge(&read_journal(&args.journal)?);
        let accounted = Some(evidence).filter(|e| {
            // One operation may be in flight behind a watermark.
            e.watermarks().iter().zip(&scan.newest).all(|(last, newest)| last + 1 >= *newest)
        });
        match accounted {
            Some(evidence) => break evidence,
            None if start.elapsed() > HEARTBEAT_WAIT => {
                reasons.push("memory is newer than any heartbeat that followed".to_owned());
                break evidence::judge(&read_journal(&args.journal)?);
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let unaccounted = !reasons.is_empty();
    let mut outcome = conclude(evidence, scan, "running", before, reasons);
    if unaccounted {
        outcome.verdict = outcome.verdict.and(Verdict::Inconclusive);
    }
    Ok(outcome)
}

fn conclude(
    evidence: Evidence,
    scan: Scan,
    moment: &'static str,
    watermarks: Vec<u64>,
    mut reasons: Vec<String>,
) -> Outcome {
    let mut verdict = evidence.verdict();
    reasons.extend(evidence.breaches.iter().map(ToString::to_string));
    for writer in evidence.idle_writers() {
        reasons.push(format!("writer {writer} was never seen to advance"));
    }
    if !scan.faults.is_empty() {
        verdict = Verdict::Wrong;
        for (class, lines) in &scan.faults.lines {
            reasons.push(format!("{lines} lines are {class}"));
        }
    }
    Outcome { verdict, reasons, moment, watermarks, scan, evidence }
}

fn print(args: &Args, workload: &Workload, outcome: &Outcome) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let scan = &outcome.scan;
    let in_common = scan.faults.in_common(workload);
    if args.json {
        let report = Report {
            schema: 1,
            verdict: outcome.verdict,
            reasons: &outcome.reasons,
            moment: outcome.moment,
            watermarks: &outcome.watermarks,
            lines: scan.lines,
            unstable_lines: scan.unstable_lines,
            seconds: scan.elapsed.as_secs_f64(),
            faults: &scan.faults,
            in_common,
            journal: &outcome.evidence,
        };
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    for extent in scan.faults.extents.iter().take(EXTENTS_SHOWN) {
        let found = extent.found.map_or("none".to_owned(), |g| g.to_string());
        writeln!(
            out,
            "{:#014x}  {:>8} bytes  page {:<8} writer {:<3} expected generation {}, found {found}: {}, first wrong byte at {:#x}",
            extent.address,
            extent.bytes,
            extent.page,
            extent.writer,
            extent.expected,
            extent.class,
            extent.first_wrong_byte
        )?;
    }
    let hidden = scan.faults.extents.len().saturating_sub(EXTENTS_SHOWN);
    if hidden > 0 {
        writeln!(out, "... and {hidden} more extents (see --json)")?;
    }
    for fact in in_common {
        writeln!(out, "in common: {fact}")?;
    }
    for reason in &outcome.reasons {
        writeln!(out, "note: {reason}")?;
    }
    let gigabytes = (scan.lines * workload::LINE_BYTES) as f64 / 1e9;
    writeln!(
        out,
        "{}: {} lines, {} ({:.1} GB/s), watermarks {:?}",
        outcome.verdict,
        scan.lines,
        outcome.moment,
        gigabytes / scan.elapsed.as_secs_f64(),
        outcome.watermarks
    )?;
    Ok(())
}
