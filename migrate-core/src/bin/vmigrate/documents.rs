//! Runs that were kept: documents of `send` and `bench`, folders and lines of `sweep`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use migrate_core::policy::PolicyKind;
use migrate_core::report::{BenchReport, RunReport, SCHEMA, SweepRun};
use serde::Deserialize;
use workload::units::{Bytes, Rate};

use crate::sweep::RUNS;

/// A document that is larger is none of ours.
const BYTES_MAX: u64 = 1 << 32;

/// A run, with what it was to be.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) case: Case,
    pub(crate) run: RunReport,
}

/// What runs that may be held against each other have in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) policy: Option<PolicyKind>,
    /// Dirty rate over link bandwidth, if it is known.
    pub(crate) r: Option<f64>,
    pub(crate) rate: String,
    pub(crate) workload: String,
    pub(crate) memory: u64,
    pub(crate) bandwidth: Option<u64>,
    pub(crate) downtime_goal_ms: Option<f64>,
}

impl Case {
    /// What a run says of itself.
    pub(crate) fn of(run: &RunReport) -> Self {
        let bandwidth = run.link.as_ref().and_then(|link| link.bandwidth);
        let rate = run.rate_wanted;
        Self {
            policy: run.last().map(|m| m.policy),
            r: rate.zip(bandwidth).map(|(rate, bandwidth)| rate as f64 / bandwidth as f64),
            rate: rate.map_or("unlimited".to_owned(), |rate| Rate(rate).to_string()),
            workload: run.workload.workload.to_string(),
            memory: run.workload.memory.0,
            bandwidth,
            downtime_goal_ms: run.last().map(|m| m.downtime_goal_ms),
        }
    }

    /// In words.
    pub(crate) fn name(&self) -> String {
        let policy = self.policy.map_or("?", |policy| policy.name());
        let mut said = format!("{policy} {}", self.rate);
        if let Some(bandwidth) = self.bandwidth {
            said += &format!(" over {}", Rate(bandwidth).as_bits());
        }
        let pattern = self.workload.split(',').next().unwrap_or_default();
        said + &format!(", {pattern}, {}", Bytes(self.memory))
    }
}

/// Which schema a document claims to be of.
#[derive(Deserialize)]
struct Claim {
    schema: u32,
    runs: Option<serde_json::Value>,
    case: Option<serde_json::Value>,
    workload: Option<serde_json::Value>,
}

/// The first schema whose documents can be read.
const SCHEMA_MIN: u32 = 5;

/// Reads every run of a file or a sweep's folder.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Kept>> {
    let path = match path.is_dir() {
        true => path.join(RUNS),
        false => path.to_owned(),
    };
    let text = text(&path)?;
    let refused = || format!("cannot read {}", path.display());
    if path.extension().is_some_and(|ending| ending == "ndjson") {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let mut kept = Vec::new();
        for (number, line) in lines {
            // A sweep that was cut off leaves half a line at its end, which is done again.
            let cut_off = !text.ends_with('\n') && number + 1 == text.lines().count();
            match document(line) {
                Err(_) if cut_off => {}
                read => kept.extend(read.with_context(|| {
                    format!("cannot read {} line {}", path.display(), number + 1)
                })?),
            }
        }
        return Ok(kept);
    }
    document(&text).with_context(refused)
}

/// Reads all of several, each of which has a run.
pub(crate) fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for path in paths {
        let kept = read(path)?;
        anyhow::ensure!(!kept.is_empty(), "{} holds no run", path.display());
        all.extend(kept);
    }
    Ok(all)
}

fn text(path: &Path) -> anyhow::Result<String> {
    let reading = || format!("cannot read {}", path.display());
    let meta = std::fs::metadata(path).with_context(reading)?;
    anyhow::ensure!(meta.is_file(), "{} is no file and no sweep's folder", path.display());
    anyhow::ensure!(meta.len() <= BYTES_MAX, "{} is too large for a report", path.display());
    std::fs::read_to_string(path).with_context(reading)
}

fn document(text: &str) -> anyhow::Result<Vec<Kept>> {
    let claim: Claim = serde_json::from_str(text)
        .context("it is no document of `send`, `bench` or `sweep` (--json, or kept by --out)")?;
    anyhow::ensure!(
        (SCHEMA_MIN..=SCHEMA).contains(&claim.schema),
        "it is of schema {}; this program reads {SCHEMA_MIN} to {SCHEMA}",
        claim.schema
    );
    Ok(match (claim.runs, claim.case, claim.workload) {
        (Some(_), _, _) => {
            let bench: BenchReport = serde_json::from_str(text)?;
            let kept = bench.runs.into_iter().map(|done| Kept {
                case: Case { bandwidth: Some(done.link), ..Case::of(&done.run) },
                run: done.run,
            });
            kept.map(|kept| Kept { case: with_r(kept.case, &kept.run), run: kept.run }).collect()
        }
        (_, Some(_), _) => {
            let SweepRun { case, run, .. } = serde_json::from_str(text)?;
            let case = Case {
                policy: Some(case.policy),
                r: case.r,
                rate: case.rate,
                workload: case.workload,
                memory: case.memory,
                bandwidth: case.bandwidth,
                downtime_goal_ms: Some(case.downtime_goal_ms),
            };
            vec![Kept { case, run }]
        }
        (_, _, Some(_)) => {
            let run: RunReport = serde_json::from_str(text)?;
            vec![Kept { case: Case::of(&run), run }]
        }
        _ => anyhow::bail!("it holds no run: documents of receivers cannot be compared or drawn"),
    })
}

fn with_r(case: Case, run: &RunReport) -> Case {
    let r = run.rate_wanted.zip(case.bandwidth).map(|(rate, link)| rate as f64 / link as f64);
    Case { r, ..case }
}
