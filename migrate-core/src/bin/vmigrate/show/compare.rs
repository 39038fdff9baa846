//! Two sets of runs, as `compare` tells them: the answer first, then a line a figure.

use std::io::{self, Write};

use migrate_core::report::metric::{Metric, Unit};
use migrate_core::report::{CompareReport, Compared};
use workload::say::Out;

use super::{COLUMNS, spread, wrapped};

pub(crate) fn print(out: &mut Out, report: &CompareReport) -> io::Result<()> {
    let worse = report.compared.iter().filter(|compared| compared.worse).count();
    let answer = match (report.compared.len(), worse) {
        (0, _) => "NOTHING IN COMMON: no case is in both".to_owned(),
        (all, 0) => format!(
            "NO WORSE: of {all} figures none is worse by more than {:.0} %",
            report.allowed * 100.0
        ),
        (all, worse) => {
            format!("WORSE: {worse} of {all} figures, by more than {:.0} %", report.allowed * 100.0)
        }
    };
    write!(out, "{}", wrapped(&answer, "", "  ", COLUMNS))?;
    writeln!(out, "  A {}\n  B {}", report.a, report.b)?;
    let mut case = "";
    for compared in &report.compared {
        if compared.case != case {
            case = &compared.case;
            writeln!(out, "\n{case}\n  {:<12} {:>24} {:>24}   B to A", "", "A", "B")?;
        }
        line(out, compared)?;
    }
    for (name, only) in [("A", &report.only_a), ("B", &report.only_b)] {
        if !only.is_empty() {
            let text = format!("only in {name}: {}", only.join("; "));
            write!(out, "\n{}", wrapped(&text, "", "  ", COLUMNS))?;
        }
    }
    Ok(())
}

fn line(out: &mut Out, compared: &Compared) -> io::Result<()> {
    let unit = Metric::named(&compared.metric).map_or(Unit::Share, |metric| metric.unit);
    let text = |of: &Option<_>| of.as_ref().map_or("none".to_owned(), |of| spread(unit, of));
    let change =
        compared.change.map_or("-".to_owned(), |change| format!("{:+.1} %", change * 100.0));
    let said = match (compared.worse, compared.overlap) {
        (true, _) => "  WORSE",
        (false, true) => "  overlap",
        (false, false) => "",
    };
    writeln!(
        out,
        "  {:<12} {:>24} {:>24} {change:>8}{said}",
        compared.metric,
        text(&compared.a),
        text(&compared.b)
    )
}
