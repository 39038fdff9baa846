//! Verdicts as pipelines read them.

use std::collections::BTreeMap;
use std::time::Duration;

use verifier::verdict::Verdict;
use workload::pipeline::{Case, Counts, End, Figure};

/// What was looked at, and what was found.
pub(crate) fn case(
    name: String,
    verdict: Verdict,
    reasons: &[String],
    seconds: f64,
    lines: u64,
    faults: &BTreeMap<String, u64>,
) -> Case {
    let end = match verdict {
        Verdict::Proven => End::Passed,
        Verdict::Wrong => End::Failed { kind: "wrong".to_owned(), why: reasons.join("; ") },
        Verdict::Inconclusive => {
            End::Failed { kind: "inconclusive".to_owned(), why: reasons.join("; ") }
        }
    };
    let figure = |name: &str, about: &str, value: u64| Figure {
        name: name.to_owned(),
        about: about.to_owned(),
        counts: Counts::Number,
        value: value as f64,
    };
    let mut figures = vec![
        figure("lines", "lines that were compared", lines),
        figure("faults", "lines that are wrong", faults.values().sum()),
    ];
    figures.extend(faults.iter().map(|(class, lines)| {
        let name = format!("faults_{}", class.to_ascii_lowercase().replace([' ', '-'], "_"));
        figure(&name, "lines that are wrong in this way", *lines)
    }));
    Case {
        name,
        took: Duration::from_secs_f64(seconds.max(0.0)),
        end,
        verdict: verdict.to_string(),
        labels: Vec::new(),
        figures,
    }
}
