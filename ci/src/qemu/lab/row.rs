//! One migration of the lab as a row of its table, a line of JSON, and a case of a pipeline.

use std::io::Write;
use std::time::Duration;

use clap::Args as ClapArgs;
use schemars::JsonSchema;
use serde::Serialize;
use workload::exit;
use workload::pipeline::{Case, Counts, End, Figure, Pipeline};
use workload::provenance::Provenance;

use super::evidence::Evidence;
use crate::qemu::migration::Claim;

/// Version of the lab's JSON.
pub(crate) const SCHEMA: u32 = 1;

/// How a table is told.
#[derive(ClapArgs, Clone, Debug)]
pub(super) struct Told {
    /// Print a line of JSON for each migration on standard output, instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pipeline: Pipeline,
}

/// One migration by a hypervisor, judged. Times are milliseconds.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct LabReport {
    /// Version of this format.
    schema: u32,
    /// What made it.
    provenance: Provenance,
    /// Who migrated, with its version.
    hypervisor: String,
    /// In which way.
    mode: String,
    /// PROVEN, WRONG or INCONCLUSIVE; FAILED where no guest arrived.
    verdict: String,
    /// Why it failed; null where it did not.
    failure: Option<String>,
    /// What the hypervisor says of it.
    claim: Option<Claim>,
    /// What was seen of it.
    evidence: Option<Evidence>,
}

/// A table that is being told.
pub(super) struct Table<'a> {
    told: &'a Told,
    command: &'static str,
    hypervisor: String,
    provenance: Provenance,
    cases: Vec<Case>,
    code: u8,
}

impl<'a> Table<'a> {
    /// Begins the table of `command`; `title` stands above it.
    pub(super) fn begin(
        told: &'a Told,
        command: &'static str,
        hypervisor: String,
        title: &str,
    ) -> std::io::Result<Self> {
        if !told.json {
            let mut out = std::io::stdout();
            writeln!(out, "{hypervisor}, {title}; times in ms")?;
            super::print_header(&mut out)?;
        }
        let provenance = Provenance::here("ci");
        Ok(Self { told, command, hypervisor, provenance, cases: Vec::new(), code: exit::PROVEN })
    }

    /// One migration that was tried.
    pub(super) fn add(
        &mut self,
        mode: &str,
        tried: anyhow::Result<(Claim, Evidence)>,
    ) -> anyhow::Result<()> {
        if tried.is_err() {
            crate::interrupted()?;
        }
        let mut out = std::io::stdout();
        let (verdict, code, failure, claim, evidence) = match tried {
            Ok((claim, evidence)) => {
                let (verdict, code) = match evidence.verdict() {
                    "PROVEN" => ("PROVEN", exit::PROVEN),
                    "WRONG" => ("WRONG", exit::WRONG),
                    other => (other, exit::INCONCLUSIVE),
                };
                (verdict, code, None, Some(claim), Some(evidence))
            }
            Err(error) => {
                ("FAILED", exit::FAILED, Some(exit::one_line(error.as_ref())), None, None)
            }
        };
        self.code = self.code.max(code);
        let report = LabReport {
            schema: SCHEMA,
            provenance: self.provenance.clone(),
            hypervisor: self.hypervisor.clone(),
            mode: mode.to_owned(),
            verdict: verdict.to_owned(),
            failure,
            claim,
            evidence,
        };
        match (self.told.json, &report.claim, &report.evidence) {
            (true, _, _) => {
                serde_json::to_writer(&mut out, &report)?;
                writeln!(out)?;
            }
            (false, Some(claim), Some(evidence)) => super::print(&mut out, mode, claim, evidence)?,
            _ => {
                let why = report.failure.as_deref().unwrap_or_default();
                writeln!(out, "{mode:<17} FAILED: {why}")?;
            }
        }
        self.cases.push(case(&report));
        Ok(())
    }

    /// Tells pipelines; the exit code.
    pub(super) fn end(self) -> u8 {
        self.told.pipeline.tell("ci", self.command, &self.cases);
        self.code
    }

    /// Says something to people.
    pub(super) fn note(&self, text: &str) -> std::io::Result<()> {
        match self.told.json {
            true => Ok(()),
            false => writeln!(std::io::stdout(), "{text}"),
        }
    }
}

fn case(report: &LabReport) -> Case {
    let end = match (&report.failure, report.verdict.as_str()) {
        (Some(why), _) => End::Failed { kind: "failed".to_owned(), why: why.clone() },
        (None, "PROVEN") => End::Passed,
        (None, verdict) => {
            let evidence = report.evidence.iter();
            let looks = evidence.clone().flat_map(Evidence::faults);
            let breaches = evidence.flat_map(|evidence| evidence.breaches.iter());
            let why: Vec<_> = looks.chain(breaches).take(5).cloned().collect();
            End::Failed { kind: verdict.to_ascii_lowercase(), why: why.join("; ") }
        }
    };
    let figure = |name: &str, about: &str, ms: f64| Figure {
        name: name.to_owned(),
        about: about.to_owned(),
        counts: Counts::Seconds,
        value: ms / 1e3,
    };
    let mut figures = Vec::new();
    if let Some(claim) = &report.claim {
        figures.push(figure("total", "what the hypervisor says it took", claim.total_ms));
        figures.push(figure("claimed", "the downtime that it says", claim.downtime_ms));
    }
    if let Some(evidence) = &report.evidence {
        figures.extend(evidence.felt_ms.map(|felt| figure("felt", "what the guest felt", felt)));
        figures.push(figure("seen", "the longest silence of its heartbeats", evidence.seen_ms));
    }
    let took = report.claim.as_ref().map_or(0.0, |claim| claim.total_ms).max(0.0);
    Case {
        name: report.mode.clone(),
        took: Duration::from_secs_f64(took / 1e3),
        end,
        verdict: report.verdict.clone(),
        labels: vec![("hypervisor".to_owned(), report.hypervisor.clone())],
        figures,
    }
}
