//! Runs as pipelines read them.

use std::time::Duration;

use migrate_core::report::metric::{METRICS, Unit};
use migrate_core::report::{RunReport, RunVerdict, StatusKind};
use workload::pipeline::{Case, Counts, End, Figure};

/// A run, which ended as it should if it is proven and fulfils what was wished for.
pub(crate) fn case(
    name: String,
    labels: Vec<(String, String)>,
    run: &RunReport,
    unmet: &[String],
) -> Case {
    let end = match (run.verdict, unmet) {
        (RunVerdict::Proven, []) => End::Passed,
        (RunVerdict::Proven, unmet) => {
            End::Failed { kind: "unmet".to_owned(), why: unmet.join("; ") }
        }
        (verdict, _) => {
            let kind = serde_json::to_value(run.status.kind).unwrap_or_default();
            let kind = kind.as_str().unwrap_or("failed").to_owned();
            End::Failed { kind, why: format!("{verdict}: {}", run.status.text) }
        }
    };
    let took = run.last().map_or(0.0, |m| m.total_ms).max(0.0);
    Case {
        name,
        took: Duration::from_secs_f64(took / 1e3),
        end,
        verdict: run.verdict.to_string(),
        labels,
        figures: METRICS
            .iter()
            .filter_map(|metric| {
                let value = (metric.of)(run)?;
                let (counts, value) = match metric.unit {
                    Unit::Time => (Counts::Seconds, value / 1e3),
                    Unit::Size => (Counts::Bytes, value),
                    Unit::Rate => (Counts::BytesPerSecond, value),
                    Unit::Share => (Counts::Number, value),
                };
                let name = metric.name.replace('-', "_");
                Some(Figure { name, about: metric.about.to_owned(), counts, value })
            })
            .collect(),
    }
}

/// The same where a policy that gives a guest up is a finding and nobody's fault.
pub(crate) fn of_a_study(case: Case, run: &RunReport) -> Case {
    match (run.status.kind, case.end) {
        (StatusKind::GaveUp, End::Failed { why, .. }) => Case { end: End::Skipped { why }, ..case },
        (_, end) => Case { end, ..case },
    }
}
