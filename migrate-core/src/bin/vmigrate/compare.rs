//! `vmigrate compare`: two sets of runs beside each other, and whether the second is worse.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use migrate_core::report::metric::Metric;
use migrate_core::report::{CompareReport, Compared, RunReport, SCHEMA};
use workload::provenance::Provenance;
use workload::{exit, say};

use crate::documents::{self, Case, Kept};
use crate::output::print_json;
use crate::show;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate compare before.json after.json\n  \
    vmigrate compare study-1 study-2 --worse-by 5% --metric time,downtime,lost\n\n\
    Runs of one case, which is policy, rate, workload, memory and link, are held against each\n\
    other; two documents of one run each always are.")]
pub(crate) struct Args {
    /// JSON of `send` or `bench`, or a sweep's folder
    a: PathBuf,
    /// The one that may be worse
    b: PathBuf,
    /// Figures that are compared
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "time,downtime,lost,sent",
          value_parser = Metric::wanted)]
    metric: Vec<&'static Metric>,
    /// Exit with 6 where a median is worse by more than this and the spreads do not overlap
    #[arg(long, value_name = "SHARE", default_value = "10%", value_parser = share)]
    worse_by: f64,
    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    share
        .ok()
        .filter(|share| (0.0..=100.0).contains(share))
        .ok_or_else(|| format!("'{text}' is no share; say for example 10%"))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let read = |path: &PathBuf| documents::read_all(std::slice::from_ref(path));
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    let report = compare(args, &a, &b);
    say::report("vmigrate", |out| match args.json {
        true => print_json(out, &report),
        false => show::compare::print(out, &report),
    });
    Ok(report.exit_code)
}

fn compare(args: &Args, a: &[Kept], b: &[Kept]) -> CompareReport {
    let mut report = CompareReport {
        schema: SCHEMA,
        provenance: Provenance::here("vmigrate"),
        a: args.a.display().to_string(),
        b: args.b.display().to_string(),
        allowed: args.worse_by,
        compared: Vec::new(),
        only_a: Vec::new(),
        only_b: Vec::new(),
        worse: false,
        exit_code: exit::PROVEN,
    };
    let alone = a.len() == 1 && b.len() == 1;
    for case in cases(a) {
        let (in_a, in_b) = (of(a, case, alone), of(b, case, alone));
        if in_b.is_empty() {
            report.only_a.push(case.name());
            continue;
        }
        for metric in &args.metric {
            let compared = Compared::of(&case.name(), metric, &in_a, &in_b, args.worse_by);
            // Of runs none of which ever has the figure there is nothing to say.
            if compared.a.is_some() || compared.b.is_some() {
                report.compared.push(compared);
            }
        }
    }
    let unmatched = cases(b).into_iter().filter(|case| of(a, case, alone).is_empty());
    report.only_b = unmatched.map(Case::name).collect();
    report.worse = report.compared.iter().any(|compared| compared.worse);
    if report.worse {
        report.exit_code = exit::WISH;
    }
    report
}

/// The runs of a case; all of them where each set is one run alone.
fn of<'a>(set: &'a [Kept], case: &Case, alone: bool) -> Vec<&'a RunReport> {
    let like = set.iter().filter(|kept| alone || kept.case == *case);
    like.map(|kept| &kept.run).collect()
}

/// Every case once, in the order in which they come.
fn cases(set: &[Kept]) -> Vec<&Case> {
    let mut cases: Vec<&Case> = Vec::new();
    for kept in set {
        if !cases.contains(&&kept.case) {
            cases.push(&kept.case);
        }
    }
    cases
}
