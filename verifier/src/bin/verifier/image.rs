//! `verifier image`: prove a guest from the outside, by an image of its physical memory.

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args as ClapArgs;
use verifier::case::{Case, KnownRun};
use verifier::evidence::{Evidence, silence};
use verifier::extent::regularity;
use verifier::held::Missing;
use verifier::image::{Found, Image};
use verifier::infer::infer_watermarks;
use verifier::map::Map;
use verifier::memory::Moment;
use verifier::report::{ImageReport, Moved, SCHEMA};
use verifier::scan::{Scan, scan_against};
use verifier::verdict::Verdict;
use workload::pipeline::Pipeline;
use workload::provenance::Provenance;
use workload::say;
use workload::spec::Workload;
use workload::units::Bytes;
use workload::work::Watch;
use workload::{PAGE_BYTES, PAGE_LINES};

use crate::outcome;
use crate::show::{Progress, faults, heard, notes};
use crate::sources::{Computing, Sources};

/// Pages shown of each kind as text; JSON has all.
const PAGES_SHOWN: usize = 10;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    (QEMU monitor) stop; pmemsave 0 0x20000000 guest.mem\n  \
    verifier image guest.mem --journal journal\n\n  \
    verifier image source.mem --journal journal --write-map map.json\n  \
    verifier image destination.mem --journal journal --map map.json\n\n\
    Raw images (pmemsave, snapshot memory files, .vmem) and ELF cores (dump-guest-memory).\n\
    Which page is which is read from the pages themselves. A map, made from a dump of the same\n\
    guest before, also proves that each page is where it was: a guest does not notice a\n\
    migration, so its pages keep their physical addresses.")]
pub(crate) struct Args {
    /// Image of the guest's physical memory
    image: PathBuf,
    #[command(flatten)]
    sources: Sources,
    /// Compare the pages' places with this map
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Write down where the pages were found
    #[arg(long, value_name = "FILE")]
    write_map: Option<PathBuf>,
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
    let cases = args.sources.read()?;
    let image = Image::open(&args.image)?;
    let case = &cases[whose(&cases, &image)];
    let journal = &case.journal;
    let workload = journal.spec.resolve()?;
    let progress = Progress::default();
    progress.expect(image.pages() * PAGE_LINES);
    let found = image.find(&workload, |pages| progress.done(pages * PAGE_LINES))?;
    let evidence = case.evidence();
    let journalled = evidence.watermarks();
    let expected = args.computing.expected(&workload, &journalled, &progress)?;
    let mut unheard = None;
    let (moment, expected) = match evidence.at_rest() {
        true => (Moment::Exact, expected),
        false => {
            let watermarks = infer_watermarks(&found, &workload, &expected);
            unheard = Some(silence(journal, &journalled, &watermarks));
            (Moment::Stopped, expected.forward(&watermarks, &progress)?)
        }
    };
    let scan = scan_against(&found, &workload, moment, expected, &progress)?;
    drop(progress);
    let pages = 0..workload.spec().memory.0 / PAGE_BYTES;
    let map = Map::new(journal.run.to_string(), pages.map(|page| found.physical(page)).collect());
    if let Some(path) = &args.write_map {
        std::fs::write(path, serde_json::to_string(&map)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let before = args
        .map
        .as_ref()
        .map(|path| Map::read(path, &map).with_context(|| format!("map {}", path.display())));
    let before = before.transpose()?;
    let moved = before.as_ref().map_or(Vec::new(), |before| before.moved(&map));
    let known: Vec<KnownRun> = cases.iter().filter_map(Case::known).collect();
    let mut report = conclude(&workload, &found, evidence, scan, moved, before.is_some());
    report.missing = found.instead(&workload, &report.pages_missing, before.as_ref(), &known);
    report.known_runs = known;
    report.reasons.extend(unheard);
    let unplaced = before.as_ref().map_or(0, |before| before.unplaced(&map));
    if unplaced > 0 {
        report.verdict = report.verdict.and(Verdict::Inconclusive);
        report.reasons.push(format!("of {unplaced} pages the map does not say where they were"));
    }
    if found.pages() == 0 && args.map.is_none() {
        report.verdict = Verdict::Inconclusive;
        report.reasons.push(format!(
            "it holds no page of run {} (seed {}): is it the memory of another guest?",
            journal.run, journal.spec.seed
        ));
    }
    say::report("verifier", |out| match args.json {
        true => {
            serde_json::to_writer(&mut *out, &report)?;
            writeln!(out)
        }
        false => print_all(out, &image, &found, &workload, &report),
    });
    args.pipeline.tell(
        "verifier",
        "image",
        &[outcome::case(
            args.image.display().to_string(),
            report.verdict,
            &report.reasons,
            report.seconds,
            report.lines,
            &report.faults.lines,
        )],
    );
    Ok(report.verdict)
}

/// Which of several runs the image is of: the one most of whose pages are in it, or the last.
fn whose(cases: &[Case], image: &Image) -> usize {
    let pages = |case: &Case| {
        let workload = case.journal.spec.resolve().ok()?;
        Some(image.find(&workload, |_| {}).ok()?.pages())
    };
    match cases {
        [_] => 0,
        _ => (0..cases.len()).max_by_key(|place| pages(&cases[*place])).unwrap_or(0),
    }
}

/// Draws the conclusions from what was found.
fn conclude(
    workload: &Workload,
    found: &Found<'_>,
    evidence: Evidence,
    scan: Scan,
    moved: Vec<Moved>,
    has_map: bool,
) -> ImageReport {
    let (missing, zero_pages) = found.missing(workload, &scan.expected);
    let mut verdict = evidence.with_memory(&scan.faults);
    let mut reasons = notes(&evidence);
    if !missing.is_empty() {
        reasons.push(format!("{} pages are MISSING", missing.len()));
    }
    if !moved.is_empty() {
        reasons.push(format!("{} pages are MISPLACED against the map", moved.len()));
    }
    for (class, lines) in &scan.faults.lines {
        reasons.push(format!("{lines} lines are {class}"));
    }
    if !(missing.is_empty() && moved.is_empty()) {
        verdict = Verdict::Wrong;
    }
    let copies = found.copies.len();
    if copies > 0 {
        reasons.push(format!(
            "{copies} older copies of pages lie elsewhere in the image (freed memory)"
        ));
    }
    if zero_pages > 0 {
        reasons.push(format!(
            "{zero_pages} pages must be all zero, and are not in the image as anything else"
        ));
    }
    let out_of_order = found.out_of_order().into_iter();
    let out_of_order = out_of_order.map(|(page, physical, expected_physical)| Moved {
        page,
        physical,
        expected_physical,
    });
    let out_of_order: Vec<Moved> = out_of_order.collect();
    // Of pages that lie at each other's places a map alone can tell who put them there.
    let places: HashSet<u64> = out_of_order.iter().map(|moved| moved.expected_physical).collect();
    let swapped = out_of_order.iter().filter(|moved| places.contains(&moved.physical)).count();
    if swapped > 0 && !has_map {
        verdict = verdict.and(Verdict::Inconclusive);
        reasons.push(format!(
            "{swapped} pages lie at each other's places: the guest put them there, or they were swapped \
             on the way; a map tells (--write-map of an image from before the move, --map)"
        ));
    }
    ImageReport {
        schema: SCHEMA,
        provenance: Provenance::here("verifier"),
        verdict,
        reasons,
        watermarks: scan.expected.watermarks(),
        pages_found: found.pages(),
        pages_missing: missing,
        missing: Vec::new(),
        pages_expected_zero: zero_pages,
        older_copies: found.copies.clone(),
        moved,
        out_of_order,
        lines: scan.lines,
        seconds: scan.elapsed.as_secs_f64(),
        in_common: scan.faults.in_common(workload),
        known_runs: Vec::new(),
        faults: scan.faults,
        journal: evidence,
    }
}

fn print_all(
    out: &mut impl Write,
    image: &Image,
    found: &Found<'_>,
    workload: &Workload,
    report: &ImageReport,
) -> std::io::Result<()> {
    print_faults(out, found, workload, report)?;
    print_pages(out, &report.missing, &report.moved, &report.out_of_order)?;
    for reason in &report.reasons {
        writeln!(out, "note: {reason}")?;
    }
    let memory = workload.spec().memory;
    writeln!(
        out,
        "{}: {} of {} pages ({memory}) found in an image of {}, watermarks {:?}{}",
        report.verdict,
        report.pages_found,
        memory.0 / PAGE_BYTES,
        Bytes(image.pages() * PAGE_BYTES),
        report.watermarks,
        heard(&report.journal)
    )
}

fn print_faults(
    out: &mut impl Write,
    found: &Found<'_>,
    workload: &Workload,
    report: &ImageReport,
) -> std::io::Result<()> {
    faults(out, &report.faults, workload, &report.known_runs, |address| {
        let physical = found.physical(address / PAGE_BYTES).unwrap_or(0) + address % PAGE_BYTES;
        format!(", guest-physical {physical:#x}")
    })
}

fn print_pages(
    out: &mut impl Write,
    missing: &[Missing],
    moved: &[Moved],
    out_of_order: &[Moved],
) -> std::io::Result<()> {
    for pages in missing.iter().take(PAGES_SHOWN) {
        writeln!(out, "{pages}")?;
    }
    let places: Vec<(u64, u64)> =
        missing.iter().map(|m| (m.page * PAGE_BYTES, m.pages * PAGE_BYTES)).collect();
    for fact in regularity(&places) {
        writeln!(out, "missing pages have in common: {fact}")?;
    }
    for Moved { page, physical, expected_physical } in moved.iter().take(PAGES_SHOWN) {
        writeln!(
            out,
            "page {page} (region {:#x}): MISPLACED, at guest-physical {physical:#x}, was at \
             {expected_physical:#x}",
            page * PAGE_BYTES
        )?;
    }
    // Of a shuffled image nothing is out of order, and of few pages it may be by chance.
    for Moved { page, physical, expected_physical } in out_of_order.iter().take(PAGES_SHOWN) {
        writeln!(
            out,
            "page {page} (region {:#x}): at guest-physical {physical:#x}, but its neighbours lie \
             around {expected_physical:#x}; a guest may have put it there (see --map)",
            page * PAGE_BYTES
        )?;
    }
    let hidden = [missing.len(), moved.len(), out_of_order.len()];
    let hidden: usize = hidden.iter().map(|count| count.saturating_sub(PAGES_SHOWN)).sum();
    match hidden {
        0 => Ok(()),
        more => writeln!(out, "... and {more} more pages (see --json)"),
    }
}
