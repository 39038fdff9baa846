//! `ci workloads`: every pattern with every content, run at a rate, counted by the kernel, and
//! proven afterwards.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use clap::Args as ClapArgs;
use verifier::report::ScanReport;
use verifier::verdict::Verdict;
use workload::exit;
use workload::profile::PATTERNS;
use workload::report::Summary;
use workload::units::{Bytes, Rate, parse_duration};

use crate::programs::{beside, report};
use crate::samples::CONTENTS;

/// Most deviation from the rate asked for.
const RATE_ERROR_MAX: f64 = 0.005;
/// Most deviation of the operations' distinct pages from the kernel's count.
const PAGES_ERROR_MAX: f64 = 0.02;

#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  cargo run --release -p ci -- workloads --each 3s --rate 200MB/s"
)]
pub(crate) struct Args {
    /// How long each workload runs; less than 2s counts no pages
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    each: Duration,
    /// How fast
    #[arg(long, default_value = "200MB/s")]
    rate: Rate,
    /// On how much memory
    #[arg(long, default_value = "256MiB")]
    memory: Bytes,
    /// Each pattern with one content instead of with all
    #[arg(long)]
    quick: bool,
}

/// How often a row is measured whose figures are off: another program may have had the cores.
/// A verdict is never asked for again.
const MEASURED_MAX: usize = 3;

/// What came of one workload.
struct Outcome {
    rate_error: f64,
    /// Distinct pages per second by the kernel, and how far off the operations' own count is.
    pages: Option<(f64, f64)>,
    /// Operations that were left out because they came too late.
    missed: u64,
    /// The guest's own account of times in which it was not run.
    held: String,
    verdict: Verdict,
}

impl Outcome {
    fn proven(&self) -> bool {
        self.verdict == Verdict::Proven
    }

    fn exact(&self) -> bool {
        let pages_exact = self.pages.is_none_or(|(_, error)| error <= PAGES_ERROR_MAX);
        self.rate_error <= RATE_ERROR_MAX && pages_exact
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let directory = scratch()?;
    let trace = record_trace(args, directory.path())?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<13} {:<28} {:>9} {:>10} {:>9}  verdict",
        "pattern", "content", "rate off", "pages/s", "pages off"
    )?;
    let (mut good, mut all) = (0, 0);
    for (number, info) in PATTERNS.iter().enumerate() {
        for (index, content) in CONTENTS.iter().enumerate() {
            if args.quick && index != number % CONTENTS.len() {
                continue;
            }
            let name = match info.name {
                // A record of a line has no lines to choose from.
                "touch" if content.starts_with("delta") => continue,
                "trace" => format!("trace,file={}", trace.display()),
                name => name.to_owned(),
            };
            let name = format!("{name},content={content}");
            let mut outcome = one(args, args.rate, directory.path(), &name)?;
            for again in 2..=MEASURED_MAX {
                if outcome.exact() || !outcome.proven() {
                    break;
                }
                writeln!(
                    out,
                    "{:<13} rate off {:.2} %, {} operations missed, {}: measured again ({again} of \
                     {MEASURED_MAX})",
                    info.name,
                    outcome.rate_error * 100.0,
                    outcome.missed,
                    outcome.held,
                )?;
                outcome = one(args, args.rate, directory.path(), &name)?;
            }
            // Operations that are left out are those that the machine is too slow for; whether a rate is
            // kept to shows at one that it can give.
            let slower = Rate(args.rate.0 / 2);
            for _ in 0..MEASURED_MAX {
                if outcome.exact() || !outcome.proven() || outcome.missed == 0 {
                    break;
                }
                writeln!(
                    out,
                    "{:<13} this machine is too slow for {}, {} operations missed: measured at {slower}",
                    info.name, args.rate, outcome.missed
                )?;
                outcome = one(args, slower, directory.path(), &name)?;
            }
            let fine = outcome.exact() && outcome.proven();
            (good, all) = (good + u64::from(fine), all + 1);
            let (pages, error) =
                outcome.pages.map_or(("-".into(), "-".into()), |(pages, error)| {
                    (format!("{pages:.0}"), format!("{:.2} %", error * 100.0))
                });
            writeln!(
                out,
                "{:<13} {content:<28} {:>7.2} % {pages:>10} {error:>9}  {}{}",
                info.name,
                outcome.rate_error * 100.0,
                outcome.verdict,
                if fine { "" } else { "  SHORT" }
            )?;
        }
    }
    writeln!(
        out,
        "{good} of {all} workloads PROVEN, within {:.1} % of their rate and {:.0} % of the \
         kernel's count of distinct pages",
        RATE_ERROR_MAX * 100.0,
        PAGES_ERROR_MAX * 100.0
    )?;
    Ok(if good == all { exit::PROVEN } else { exit::WRONG })
}

/// A directory in memory: a region file on a disk would measure the disk.
fn scratch() -> anyhow::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let directory =
        if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    directory.context("cannot make a directory")
}

/// A trace of a hot set, recorded by the workload itself.
fn record_trace(args: &Args, directory: &Path) -> anyhow::Result<PathBuf> {
    let trace = directory.join("trace");
    let output = Command::new(beside("workload")?)
        .args(["run", "--workload", "hotset,p=0.8,f=0.2", "--duration", "1s"])
        .args(["--rate", &format!("{}B/s", args.rate.0)])
        .args(["--memory", &args.memory.0.to_string(), "--record-trace"])
        .arg(&trace)
        .output()
        .context("cannot run the workload")?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "no trace was recorded: {error}");
    Ok(trace)
}

fn one(args: &Args, rate: Rate, directory: &Path, name: &str) -> anyhow::Result<Outcome> {
    let (region, journal) = (directory.join("region"), directory.join("journal"));
    let mut command = Command::new(beside("workload")?);
    command
        .args(["run", "--json", "--workload", name, "--rate", &format!("{}B/s", rate.0)])
        .args(["--memory", &args.memory.0.to_string()])
        .args(["--duration", &format!("{}ms", args.each.as_millis())])
        .arg("--file")
        .arg(&region)
        .arg("--journal")
        .arg(&journal);
    if args.each >= Duration::from_secs(2) {
        command.arg("--count-pages");
    }
    let output = command.output().context("cannot run the workload")?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{name}: {error}");
    let summary: Summary = report(&output)?;
    let pages = summary.distinct_pages_per_s.as_ref().map(|pages| {
        let operations = pages.operations.unwrap_or(f64::NAN);
        (pages.kernel, (operations / pages.kernel - 1.0).abs())
    });
    let output = Command::new(beside("verifier")?)
        .args(["scan", "--json", "--journal"])
        .arg(&journal)
        .arg(&region)
        .output()
        .context("cannot run the verifier")?;
    let scan: ScanReport = report(&output)?;
    let (stuns, throttles) = (summary.felt.stuns.len(), summary.felt.throttles.len());
    Ok(Outcome {
        rate_error: (summary.rate_achieved / rate.0 as f64 - 1.0).abs(),
        pages,
        missed: summary.missed,
        held: format!("{stuns} stuns and {throttles} throttles felt"),
        verdict: scan.verdict,
    })
}
