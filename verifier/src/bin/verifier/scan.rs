//! `verifier scan`: every line of a region file against its journal.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use verifier::case::{Case, KnownRun};
use verifier::evidence::{Evidence, silence};
use verifier::expected::Expected;
use verifier::infer::infer_watermarks;
use verifier::memory::Moment;
use verifier::report::{SCHEMA, ScanReport};
use verifier::scan::{self, Scan};
use verifier::verdict::Verdict;
use workload::beat::books::BooksError;
use workload::journal::JournalError;
use workload::pipeline::Pipeline;
use workload::provenance::Provenance;
use workload::region::Region;
use workload::say;
use workload::say::Out;
use workload::spec::Workload;
use workload::work::Unwatched;

use crate::outcome;
use crate::show::{self, Progress};
use crate::sources::{Computing, Sources};

/// Longest wait for a running writer's next heartbeat.
const HEARTBEAT_WAIT: Duration = Duration::from_secs(5);
/// Time after which wrong memory at rest is looked at again.
const SECOND_LOOK: Duration = Duration::from_millis(50);

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    verifier scan region --journal journal\n  \
    verifier scan region --journal journal --json\n\n\
    A region whose generator still runs is checked while it changes: no line may be older than\n\
    the journal, and what is newer must be accounted for by the heartbeats that follow.")]
pub(crate) struct Args {
    /// Region file written by `workload run --file`
    region: PathBuf,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    computing: Computing,
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pipeline: Pipeline,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Verdict> {
    args.computing.apply()?;
    let cases = match args.sources.read() {
        Err(error) if is_missing(&error) => {
            say!(
                "verifier: {error}: nothing can be proven; run the workload with --heartbeat FILE"
            );
            return Ok(Verdict::Inconclusive);
        }
        other => other?,
    };
    let known: Vec<KnownRun> = cases.iter().filter_map(Case::known).collect();
    let size = std::fs::metadata(&args.region).map_or(0, |metadata| metadata.len());
    let fits = |case: &Case| case.journal.spec.memory.0 == size;
    let cases = match cases.iter().any(fits) {
        true => cases.into_iter().filter(fits).collect(),
        false => cases,
    };
    let memory = cases.last().context("the journals hold no run")?.journal.spec.memory;
    let region = Region::open(&args.region, memory)?;
    let case = &cases[Case::whose(&cases, &region, region.pages())];
    let workload = case.journal.spec.resolve()?;
    let evidence = case.evidence();
    // A generator that holds its writers still has said so in the journal.
    let running = region.is_live() && !evidence.at_rest();
    let again = || same(args, case);
    let outcome = match running {
        true => scan_running(args, &again, &workload, &region)?,
        false => scan_at_rest(args, &again, case, evidence, &workload, &region)?,
    };
    say::report("verifier", |out| print(args, &workload, &outcome, &known, out));
    let scan = &outcome.scan;
    args.pipeline.tell(
        "verifier",
        "scan",
        &[outcome::case(
            args.region.display().to_string(),
            outcome.verdict,
            &outcome.reasons,
            scan.elapsed.as_secs_f64(),
            scan.lines,
            &scan.faults.lines,
        )],
    );
    Ok(outcome.verdict)
}

fn is_missing(error: &JournalError) -> bool {
    match error {
        JournalError::Io { source, .. } | JournalError::Books(BooksError::Io { source, .. }) => {
            source.kind() == std::io::ErrorKind::NotFound
        }
        _ => false,
    }
}

/// The same run, as far as it is heard by now.
fn same(args: &Args, case: &Case) -> anyhow::Result<Case> {
    let is_same = |other: &Case| {
        (other.journal.tag, other.journal.run) == (case.journal.tag, case.journal.run)
    };
    args.sources.read()?.into_iter().find(is_same).context("the journal's run is gone from it")
}

struct Outcome {
    verdict: Verdict,
    reasons: Vec<String>,
    moment: &'static str,
    watermarks: Vec<u64>,
    scan: Scan,
    evidence: Evidence,
}

fn scan_at_rest(
    args: &Args,
    again: &dyn Fn() -> anyhow::Result<Case>,
    case: &Case,
    evidence: Evidence,
    workload: &Workload,
    region: &Region,
) -> anyhow::Result<Outcome> {
    let journalled = evidence.watermarks();
    let progress = Progress::default();
    let expected = args.computing.expected(workload, &journalled, &progress)?;
    let mut reasons = Vec::new();
    let (moment, expected, name) = if evidence.at_rest() {
        (Moment::Exact, expected, "at rest")
    } else {
        let inferred = infer_watermarks(region, workload, &expected);
        reasons.push(silence(&case.journal, &journalled, &inferred));
        let expected = expected.forward(&inferred, &progress)?;
        (Moment::Stopped, expected, "stopped without a last word")
    };
    let watermarks = expected.watermarks();
    let scan = scan::scan_against(region, workload, moment, expected, &progress)?;
    drop(progress);
    let mut changed = again()?.journal.beats.len() != case.journal.beats.len();
    if !scan.faults.is_empty() {
        // What is wrong and at rest is still wrong in the same way a moment later.
        std::thread::sleep(SECOND_LOOK);
        let second =
            scan::scan_against(region, workload, moment, scan.expected.clone(), &Unwatched)?;
        changed |= second.faults != scan.faults;
    }
    let mut outcome = conclude(workload, evidence, scan, name, watermarks, reasons);
    if changed {
        outcome.verdict = Verdict::Inconclusive;
        outcome.reasons.push("the region changed while it was scanned as being at rest".to_owned());
    }
    Ok(outcome)
}

fn scan_running(
    args: &Args,
    again: &dyn Fn() -> anyhow::Result<Case>,
    workload: &Workload,
    region: &Region,
) -> anyhow::Result<Outcome> {
    let before = again()?.evidence().watermarks();
    let progress = Progress::default();
    let expected: Expected = args.computing.expected(workload, &before, &progress)?;
    let scan = scan::scan_against(region, workload, Moment::Running, expected, &progress)?;
    drop(progress);
    let mut reasons = Vec::new();
    // Everything seen must be accounted for by a watermark that was journalled later.
    let start = Instant::now();
    let evidence = loop {
        let evidence = again()?.evidence();
        let accounted = Some(evidence).filter(|e| {
            // One operation may be in flight behind a watermark.
            e.watermarks().iter().zip(&scan.newest).all(|(last, newest)| last + 1 >= *newest)
        });
        match accounted {
            Some(evidence) => break evidence,
            None if start.elapsed() > HEARTBEAT_WAIT => {
                reasons.push("memory is newer than any heartbeat that followed".to_owned());
                break again()?.evidence();
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let unaccounted = !reasons.is_empty();
    let mut outcome = conclude(workload, evidence, scan, "running", before, reasons);
    if unaccounted {
        outcome.verdict = outcome.verdict.and(Verdict::Inconclusive);
    }
    Ok(outcome)
}

fn conclude(
    workload: &Workload,
    evidence: Evidence,
    scan: Scan,
    moment: &'static str,
    watermarks: Vec<u64>,
    mut reasons: Vec<String>,
) -> Outcome {
    let mut verdict = evidence.with_memory(&scan.faults);
    reasons.extend(show::notes(&evidence));
    let lines_wanted = workload.lines();
    if scan.lines != lines_wanted {
        verdict = verdict.and(Verdict::Inconclusive);
        reasons.push(format!("only {} of {lines_wanted} lines were looked at", scan.lines));
    }
    for (class, lines) in &scan.faults.lines {
        reasons.push(format!("{lines} lines are {class}"));
    }
    Outcome { verdict, reasons, moment, watermarks, scan, evidence }
}

fn print(
    args: &Args,
    workload: &Workload,
    outcome: &Outcome,
    known: &[KnownRun],
    out: &mut Out,
) -> std::io::Result<()> {
    let scan = &outcome.scan;
    if args.json {
        let report = ScanReport {
            schema: SCHEMA,
            provenance: Provenance::here("verifier"),
            verdict: outcome.verdict,
            reasons: outcome.reasons.clone(),
            moment: outcome.moment.to_owned(),
            watermarks: outcome.watermarks.clone(),
            lines: scan.lines,
            unstable_lines: scan.unstable_lines,
            seconds: scan.elapsed.as_secs_f64(),
            faults: scan.faults.clone(),
            in_common: scan.faults.in_common(workload),
            known_runs: known.to_vec(),
            journal: outcome.evidence.clone(),
        };
        serde_json::to_writer(&mut *out, &report)?;
        return writeln!(out);
    }
    show::faults(out, &scan.faults, workload, known, |_| String::new())?;
    for reason in &outcome.reasons {
        writeln!(out, "note: {reason}")?;
    }
    let gigabytes = (scan.lines * workload::LINE_BYTES) as f64 / 1e9;
    writeln!(
        out,
        "{}: {} lines, {} ({:.1} GB/s), watermarks {:?}{}",
        outcome.verdict,
        scan.lines,
        outcome.moment,
        gigabytes / scan.elapsed.as_secs_f64(),
        outcome.watermarks,
        show::heard(&outcome.evidence)
    )
}
