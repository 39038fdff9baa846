//! Where a sweep is kept: its plan, and every run as a line of JSON, so that it can be gone on with.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use migrate_core::report::metric::METRICS;
use migrate_core::report::{SCHEMA, SweepRun};
use serde::{Deserialize, Serialize};
use workload::provenance::Provenance;
use workload::say;

use super::plan::Plan;

const PLAN: &str = "sweep.json";
pub(crate) const RUNS: &str = "runs.ndjson";
const TABLE: &str = "runs.csv";

/// What a sweep is, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Begun {
    schema: u32,
    provenance: Provenance,
    plan: Plan,
    /// The receiver that was named, if any.
    to: Option<String>,
    /// The other options, as the program read them: they must be the same to go on.
    settings: String,
    /// Page data per second that the link was measured to carry.
    link: Option<f64>,
}

/// A sweep's folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    begun: Begun,
    runs: File,
    /// What was done before.
    pub(super) done: Vec<SweepRun>,
}

impl Folder {
    /// Makes the folder, or goes on with the sweep that is in it if it is this one.
    pub(super) fn open(
        path: &Path,
        plan: &Plan,
        to: Option<String>,
        settings: String,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let kept = path.join(PLAN);
        let wanted = Begun {
            schema: SCHEMA,
            provenance: Provenance::here("vmigrate"),
            plan: plan.clone(),
            to,
            settings,
            link: None,
        };
        let begun = match std::fs::read(&kept) {
            Ok(text) => {
                let begun: Begun = serde_json::from_slice(&text)
                    .with_context(|| format!("{} is no sweep of this version", kept.display()))?;
                let same = (&begun.plan, &begun.to, &begun.settings)
                    == (&wanted.plan, &wanted.to, &wanted.settings);
                anyhow::ensure!(
                    same && begun.schema == SCHEMA,
                    "{} holds another sweep: take another folder, or its own options ({})",
                    path.display(),
                    begun.provenance.command.join(" ")
                );
                begun
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                keep(&kept, &wanted)?;
                wanted
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", kept.display()));
            }
        };
        let (runs, done) = take_up(&path.join(RUNS))?;
        Ok(Self { path: path.to_owned(), begun, runs, done })
    }

    /// What the link was measured to carry before.
    pub(super) fn link(&self) -> Option<f64> {
        self.begun.link
    }

    pub(super) fn keep_link(&mut self, link: f64) -> anyhow::Result<()> {
        self.begun.link = Some(link);
        keep(&self.path.join(PLAN), &self.begun)
    }

    pub(super) fn keep(&mut self, run: SweepRun) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&run)?;
        line.push(b'\n');
        self.runs
            .write_all(&line)
            .with_context(|| format!("cannot write {}", self.path.join(RUNS).display()))?;
        self.done.push(run);
        Ok(())
    }

    /// Writes all runs as a table for spreadsheets.
    pub(super) fn tabulate(&self) -> anyhow::Result<PathBuf> {
        let path = self.path.join(TABLE);
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        table(file, &self.done).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn keep(path: &Path, begun: &Begun) -> anyhow::Result<()> {
    let temporary = path.with_extension("json.tmp");
    std::fs::write(&temporary, serde_json::to_vec_pretty(begun)?)
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what is there; half a line, which a crash leaves, is cut off.
fn take_up(path: &Path) -> anyhow::Result<(File, Vec<SweepRun>)> {
    let opening = || format!("cannot open {}", path.display());
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(opening)?;
    let (mut done, mut whole) = (Vec::new(), 0u64);
    let mut lines = BufReader::new(&mut file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line).with_context(opening)?;
        if read == 0 {
            break;
        }
        if line.last() != Some(&b'\n') {
            say!("vmigrate: {}: half a run at its end is done again", path.display());
            break;
        }
        let number = done.len() + 1;
        let run: SweepRun = serde_json::from_slice(&line)
            .with_context(|| format!("{} line {number} is no run", path.display()))?;
        anyhow::ensure!(
            run.schema == SCHEMA,
            "{} line {number} is of schema {}; this program writes {SCHEMA}",
            path.display(),
            run.schema
        );
        done.push(run);
        whole += read as u64;
    }
    file.set_len(whole).with_context(opening)?;
    file.seek(std::io::SeekFrom::End(0)).with_context(opening)?;
    Ok((file, done))
}

/// Every run as a line: what it was to be, how it ended, its figures.
fn table(to: impl Write, runs: &[SweepRun]) -> csv::Result<()> {
    let mut table = csv::Writer::from_writer(to);
    let head = [
        "number",
        "policy",
        "rate",
        "r",
        "workload",
        "memory_bytes",
        "downtime_goal_ms",
        "bandwidth_bytes_per_s",
        "seed",
        "repeat",
        "tries",
        "verdict",
        "memory",
        "status",
    ];
    let units = METRICS.iter().map(|metric| {
        use migrate_core::report::metric::Unit;
        let unit = match metric.unit {
            Unit::Time => "_ms",
            Unit::Size => "_bytes",
            Unit::Rate => "_bytes_per_s",
            Unit::Share => "",
        };
        format!("{}{unit}", metric.name.replace('-', "_"))
    });
    table.write_record(head.iter().map(ToString::to_string).chain(units))?;
    for SweepRun { number, case, tries, run, .. } in runs {
        let some = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let kind = serde_json::to_value(run.status.kind).unwrap_or_default();
        let fixed = [
            number.to_string(),
            case.policy.name().to_owned(),
            case.rate.clone(),
            some(case.r),
            case.workload.clone(),
            case.memory.to_string(),
            case.downtime_goal_ms.to_string(),
            case.bandwidth.map_or(String::new(), |rate| rate.to_string()),
            case.seed.to_string(),
            case.repeat.to_string(),
            tries.to_string(),
            run.verdict.to_string(),
            run.memory.to_string(),
            kind.as_str().unwrap_or_default().to_owned(),
        ];
        let figures = METRICS.iter().map(|metric| some((metric.of)(run)));
        table.write_record(fixed.into_iter().chain(figures))?;
    }
    table.flush()?;
    Ok(())
}
