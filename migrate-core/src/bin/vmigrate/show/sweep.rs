//! A matrix of migrations, as `sweep` tells it: a line a run, then tables over the rates.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use migrate_core::policy::PolicyKind;
use migrate_core::report::metric::Metric;
use migrate_core::report::{RunReport, RunVerdict, Spread, StatusKind, SweepCase, SweepRun};
use workload::say::Out;
use workload::units::{Bytes, Rate};

use super::{COLUMNS, about, run, time, wrapped};

/// Policies beside each other in a table of 80 columns.
const BESIDE: usize = 3;
/// The figures that have a table.
const TABLES: [&str; 3] = ["time", "downtime", "lost"];

pub(crate) fn plan(out: &mut Out, runs: usize, what: &str, before: usize) -> io::Result<()> {
    writeln!(out, "vmigrate {} sweep", env!("CARGO_PKG_VERSION"))?;
    let gone_on = match before {
        0 => String::new(),
        done => format!("; {done} of them are done"),
    };
    writeln!(out, "{}", wrapped(&format!("{runs} migrations: {what}{gone_on}"), "", "", COLUMNS))
}

pub(crate) fn link(out: &mut Out, rate: f64) -> io::Result<()> {
    let rate = Rate(rate as u64);
    writeln!(out, "  the link carries {rate} of pages ({}): r = 1\n", rate.as_bits())
}

/// How long the rest may take, at the pace of what was done.
pub(crate) fn left(elapsed: Duration, done: usize, rest: usize) -> String {
    match done {
        0 => String::new(),
        done => format!("  {} left", about(elapsed.mul_f64(rest as f64 / done as f64))),
    }
}

pub(crate) fn line(out: &mut Out, of: usize, done: &SweepRun) -> io::Result<()> {
    let head = format!(
        "  {:>4}/{of}  {:<14} {:>6}",
        done.number,
        done.case.policy.name(),
        pace(&done.case)
    );
    let text = run::short(&done.run);
    match done.run.migrated {
        true => writeln!(out, "{head} {text}")?,
        false => write!(out, "{}", wrapped(&text, &format!("{head}  "), "           ", COLUMNS))?,
    }
    for reason in run::reasons(&done.run) {
        write!(out, "{}", wrapped(&reason, "           reason: ", "           ", COLUMNS))?;
    }
    Ok(())
}

pub(crate) fn unmet(out: &mut Out, what: &str) -> io::Result<()> {
    write!(out, "{}", wrapped(what, "           UNMET: ", "           ", COLUMNS))
}

pub(crate) fn exit(out: &mut Out, code: u8) -> io::Result<()> {
    writeln!(out, "exit {code}: {}", workload::exit::meaning(code))
}

/// A rate as it was asked for.
fn pace(case: &SweepCase) -> String {
    match case.rate.strip_suffix("B/s").and_then(|rate| rate.parse().ok()) {
        Some(rate) => Rate(rate).to_string(),
        None => case.rate.clone(),
    }
}

/// What differs beside rate and policy, in words; empty where nothing does.
fn surroundings(case: &SweepCase, all: &[SweepRun]) -> String {
    let varies = |differs: fn(&SweepCase, &SweepCase) -> bool| {
        all.iter().any(|run| differs(&run.case, case))
    };
    let mut said = Vec::new();
    if varies(|a, b| a.workload != b.workload) {
        said.push(case.workload.clone());
    }
    if varies(|a, b| a.memory != b.memory) {
        said.push(Bytes(case.memory).to_string());
    }
    if varies(|a, b| a.bandwidth != b.bandwidth) {
        said.push(case.bandwidth.map_or("unpaced".to_owned(), |rate| Rate(rate).as_bits()));
    }
    if varies(|a, b| a.downtime_goal_ms != b.downtime_goal_ms) {
        said.push(format!("goal {}", time(case.downtime_goal_ms)));
    }
    said.join(", ")
}

/// Tables of what was done, and where it is kept.
pub(crate) fn summary(out: &mut Out, runs: &[SweepRun], table: &Path) -> io::Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let mut policies: Vec<PolicyKind> = Vec::new();
    let mut groups: Vec<String> = Vec::new();
    for run in runs {
        let group = surroundings(&run.case, runs);
        if !policies.contains(&run.case.policy) {
            policies.push(run.case.policy);
        }
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    for group in &groups {
        let of: Vec<&SweepRun> =
            runs.iter().filter(|run| surroundings(&run.case, runs) == *group).collect();
        let heading = if group.is_empty() { String::new() } else { format!("  {group}") };
        for metric in TABLES.iter().filter_map(|name| Metric::named(name)) {
            for policies in policies.chunks(BESIDE) {
                figures(out, metric, policies, &of, &heading)?;
            }
        }
        diagram(out, &policies, &of, &heading)?;
    }
    proof(out, runs)?;
    writeln!(out, "KEPT    {}", table.display())?;
    let folder = table.parent().unwrap_or(table);
    writeln!(out, "NEXT    vmigrate report {} -o report.html    plots", folder.display())
}

/// Every rate once, slowest first.
fn paces(runs: &[&SweepRun]) -> Vec<String> {
    let mut paces: Vec<(f64, String)> = Vec::new();
    for run in runs {
        let pace = pace(&run.case);
        if !paces.iter().any(|(_, other)| *other == pace) {
            let rate = run.case.r.or(run.run.rate_wanted.map(|rate| rate as f64));
            paces.push((rate.unwrap_or(0.0), pace));
        }
    }
    paces.sort_by(|a, b| a.0.total_cmp(&b.0));
    paces.into_iter().map(|(_, pace)| pace).collect()
}

fn figures(
    out: &mut Out,
    metric: &Metric,
    policies: &[PolicyKind],
    runs: &[&SweepRun],
    heading: &str,
) -> io::Result<()> {
    writeln!(out, "\n{}{heading}: median (least to most)", metric.name.to_uppercase())?;
    write!(out, "  {:<8}", "rate")?;
    for policy in policies {
        write!(out, " {:>22}", policy.name())?;
    }
    writeln!(out)?;
    for pace in paces(runs) {
        write!(out, "  {pace:<8}")?;
        for policy in policies {
            let cell: Vec<&RunReport> = cell(runs, &pace, *policy);
            write!(out, " {:>22}", spread(metric, &cell))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn cell<'a>(runs: &[&'a SweepRun], wanted: &str, policy: PolicyKind) -> Vec<&'a RunReport> {
    let of = runs.iter().filter(|run| run.case.policy == policy && pace(&run.case) == wanted);
    of.map(|run| &run.run).collect()
}

/// `6.5 s (6.1s to 7.0s)`, and how many of how many where some have none.
fn spread(metric: &Metric, runs: &[&RunReport]) -> String {
    match Spread::of(metric, runs) {
        Some(spread) => super::spread(metric.unit, &spread),
        None if runs.is_empty() => "-".to_owned(),
        None => format!("{} {}x", ended(runs), runs.len()),
    }
}

/// How runs without a figure ended.
fn ended(runs: &[&RunReport]) -> &'static str {
    match runs.first().map(|run| run.status.kind) {
        Some(StatusKind::GaveUp) => "gave up",
        Some(StatusKind::Done) => "none",
        _ => "failed",
    }
}

/// Where it converges: a letter for each policy and rate.
fn diagram(
    out: &mut Out,
    policies: &[PolicyKind],
    runs: &[&SweepRun],
    heading: &str,
) -> io::Result<()> {
    let paces = paces(runs);
    if paces.len() < 2 {
        return Ok(());
    }
    writeln!(
        out,
        "\nWHERE IT CONVERGES{heading}: rates {} to {} from left to right",
        paces[0],
        paces[paces.len() - 1]
    )?;
    for policy in policies {
        let marks: String =
            paces.iter().map(|pace| format!(" {}", mark(&cell(runs, pace, *policy)))).collect();
        writeln!(out, "  {:<14}{marks}", policy.name())?;
    }
    writeln!(out, "  o done  ~ done, over its downtime goal  x gave up  ! failed  / some of each")
}

fn mark(runs: &[&RunReport]) -> char {
    let of = |run: &&RunReport| match (run.migrated, run.status.kind) {
        (true, _) if run.last().is_some_and(|m| m.over_goal) => '~',
        (true, _) => 'o',
        (false, StatusKind::GaveUp) => 'x',
        (false, _) => '!',
    };
    let mut marks = runs.iter().map(of);
    match marks.next() {
        None => ' ',
        Some(first) if marks.all(|mark| mark == first) => first,
        Some(_) => '/',
    }
}

fn proof(out: &mut Out, runs: &[SweepRun]) -> io::Result<()> {
    let count = |verdict| runs.iter().filter(|run| run.run.verdict == verdict).count();
    let moved = runs.iter().filter(|run| run.run.migrated).count();
    let proven = count(RunVerdict::Proven);
    let gave_up = runs.iter().filter(|run| run.run.status.kind == StatusKind::GaveUp).count();
    let mut text = format!(
        "{proven} of {moved} guests that migrated arrived whole; {gave_up} of {} were given up",
        runs.len()
    );
    for (verdict, what) in [
        (RunVerdict::Wrong, "with WRONG memory"),
        (RunVerdict::Inconclusive, "of which nothing is proven"),
    ] {
        if count(verdict) > 0 {
            text += &format!("; {} {what}", count(verdict));
        }
    }
    let failed = runs.len() - moved - gave_up;
    if failed > 0 {
        text += &format!("; {failed} failed for other reasons");
    }
    writeln!(out)?;
    write!(out, "{}", wrapped(&text, "PROOF   ", "        ", COLUMNS))
}
