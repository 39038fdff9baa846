//! The experiment, as `bench` tells it: its plan, a line a migration, the answer, what it cost.

use std::io::{self, Write};
use std::time::Duration;

use migrate_core::policy::PolicyKind;
use migrate_core::report::{BenchReport, BenchRun, Downtime, RatioReport, RunVerdict};
use workload::say::Out;
use workload::units::{Bytes, Rate, number};

use super::{COLUMNS, about, run, spark, time, times, wrapped};

/// Measured over model, and measured over what was asked for, beyond which something is said.
const MODEL_TOLERANCE: f64 = 0.10;
const LINK_TOLERANCE: f64 = 0.03;
const RATE_TOLERANCE: f64 = 0.05;
/// Beyond this from the paper's figure a ratio is another one: the figure is one measurement of one
/// machine, read from a chart.
const PAPER_TOLERANCE: f64 = 0.15;

/// What is going to be done.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) migrations: usize,
    pub(crate) memory: Bytes,
    pub(crate) links: [Rate; 2],
    /// How long all of them should take.
    pub(crate) expected: Duration,
}

pub(crate) fn plan(out: &mut Out, plan: &Plan) -> io::Result<()> {
    writeln!(
        out,
        "vmigrate {} bench: does a faster link help a VM that never stops writing?",
        env!("CARGO_PKG_VERSION")
    )?;
    let [slow, fast] = plan.links;
    let text = format!(
        "{} migrations of {} on this machine, links paced to {} and {}: {}",
        plan.migrations,
        plan.memory,
        slow.as_bits(),
        fast.as_bits(),
        about(plan.expected)
    );
    write!(out, "{}", wrapped(&text, "", "", COLUMNS))?;
    writeln!(out)
}

/// The head of one migration's line.
pub(crate) fn name(
    number: usize,
    of: usize,
    rate: Rate,
    link: Rate,
    policy: Option<PolicyKind>,
) -> String {
    let policy = policy.map_or(String::new(), |policy| format!("  {}", policy.name()));
    format!("{number}/{of}  {rate:>10} over {}{policy}", link.as_bits())
}

/// A migration that was done, and what is odd about it.
pub(crate) fn line(out: &mut Out, name: &str, done: &BenchRun) -> io::Result<()> {
    let text = run::short(&done.run);
    match done.run.migrated {
        true => writeln!(out, "  {name} {text}")?,
        false => write!(out, "{}", wrapped(&text, &format!("  {name}  "), "       ", COLUMNS))?,
    }
    for note in notes(done) {
        write!(out, "{}", wrapped(&note, "       note: ", "             ", COLUMNS))?;
    }
    for reason in run::reasons(&done.run) {
        write!(out, "{}", wrapped(&reason, "       reason: ", "             ", COLUMNS))?;
    }
    Ok(())
}

/// What is odd, with what it means.
fn notes(done: &BenchRun) -> Vec<String> {
    let mut notes = Vec::new();
    let Some(m) = done.run.last().filter(|_| done.run.migrated) else { return notes };
    let share = m.send_rate() / done.link as f64;
    // A run of one short round is no measure of a link.
    if share < 1.0 - LINK_TOLERANCE && m.rounds.len() > 1 {
        notes.push(format!(
            "the link carried {} of {} asked for: this machine was busy, or is too slow for it",
            Rate(m.send_rate() as u64).as_bits(),
            Rate(done.link).as_bits()
        ));
    }
    if let Some(wanted) = done.run.rate_wanted {
        let dirtied = m.free_dirty_rate();
        let r = dirtied / wanted as f64;
        if dirtied > 0.0 && (r - 1.0).abs() > RATE_TOLERANCE && m.rounds.len() > 1 {
            notes.push(format!(
                "the guest dirtied {} of {} asked for while nothing held it",
                Rate(dirtied as u64),
                Rate(wanted)
            ));
        }
    }
    if m.over_goal {
        notes.push(format!(
            "the downtime's goal of {} was passed, most of it by {}",
            time(m.downtime_goal_ms),
            longest_part(&m.downtime)
        ));
    }
    notes
}

/// What took most of a downtime, in words.
fn longest_part(d: &Downtime) -> String {
    let parts = [
        (d.pause_ms, "pausing the guest".to_owned()),
        (d.harvest_ms, "the last look for written pages".to_owned()),
        (d.send_ms, format!("sending the last {} pages", d.pages)),
        (d.state_ms, "the device state and the destination's word".to_owned()),
        (d.resume_ms, "the handover and the first instruction there".to_owned()),
    ];
    let longest = parts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
    longest.map_or(String::new(), |(ms, what)| format!("{what}: {}", time(ms)))
}

/// Whether the model is of what this policy does.
fn is_modelled(policy: PolicyKind) -> bool {
    matches!(policy, PolicyKind::Vmotion | PolicyKind::Precopy)
}

/// Whether a ratio is what the model says at the measured parameters, and near the paper's; `None`
/// where neither says anything about it.
pub(crate) fn agrees(x: &RatioReport) -> Option<bool> {
    is_modelled(x.policy).then(|| {
        let near = |share: f64, tolerance: f64| (share - 1.0).abs() <= tolerance;
        let paper = x.paper.is_none_or(|paper| near(x.measured / paper, PAPER_TOLERANCE));
        near(x.measured / x.model, MODEL_TOLERANCE) && paper
    })
}

/// The answer, and all that belongs to it.
pub(crate) fn summary(out: &mut Out, report: &BenchReport, links: [Rate; 2]) -> io::Result<()> {
    writeln!(out)?;
    write!(out, "{}", wrapped(&result(report, links), "RESULT: ", "  ", COLUMNS))?;
    if !report.ratios.is_empty() {
        ratios(out, report, links)?;
    }
    cost(out, report)?;
    pictures(out, report)?;
    proof(out, report)?;
    let next = match report.ratios.iter().any(|x| x.policy == PolicyKind::Adaptive) {
        true => "vmigrate bench -v    with rounds, pages and decisions",
        false => "vmigrate bench --policy vmotion,adaptive    beside our own policy",
    };
    writeln!(out, "NEXT    {next}")
}

fn result(report: &BenchReport, links: [Rate; 2]) -> String {
    let k = links[1].0 as f64 / links[0].0 as f64;
    let Some(first) = report.ratios.first() else {
        return "no ratio: a migration of each pair did not happen".to_owned();
    };
    let paper = first.paper.map_or(String::new(), |paper| format!(" (paper: {paper:.0}x)"));
    let mut text = format!(
        "a link {}x as fast migrated a VM that never stops writing {}x as fast{paper}",
        number(k, 1).trim_end_matches(".0"),
        number(first.measured, 1)
    );
    if report.ratios.iter().any(|x| agrees(x) == Some(false)) {
        text += "; NOT all of it agrees with the model and the paper";
    }
    text
}

fn ratios(out: &mut Out, report: &BenchReport, links: [Rate; 2]) -> io::Result<()> {
    // Who decided is said where there is more than one.
    let several = report.ratios.iter().any(|x| x.policy != report.ratios[0].policy);
    writeln!(
        out,
        "\n  guest writes {:>12} {:>11} {:>10} {:>8} {:>7}",
        links[0].as_bits(),
        links[1].as_bits(),
        "faster by",
        "model",
        "paper"
    )?;
    for x in &report.ratios {
        let model = if is_modelled(x.policy) { times(x.model) } else { "-".to_owned() };
        let paper = match (x.paper, is_modelled(x.policy)) {
            (Some(paper), true) => times(paper),
            _ => "-".to_owned(),
        };
        let verdict = match agrees(x) {
            Some(true) => "  agrees",
            Some(false) => "  DIFFERS",
            None => "",
        };
        let who = if several { x.policy.name() } else { "" };
        writeln!(
            out,
            "  {:<12} {:>12} {:>11} {:>10} {model:>8} {paper:>7}{verdict}",
            Rate((x.r_wanted * links[0].0 as f64) as u64).to_string(),
            time(x.slow_ms),
            time(x.fast_ms),
            times(x.measured)
        )?;
        let spread =
            x.spread.map_or(String::new(), |s| format!("  +- {} in the ratio", number(s, 2)));
        if !who.is_empty() || !spread.is_empty() {
            writeln!(out, "    {who}{spread}")?;
        }
    }
    if let Some(why) = why(report) {
        write!(out, "\n{}", wrapped(&why, "  why   ", "        ", COLUMNS))?;
    }
    Ok(())
}

/// What a round left, of the first pair.
fn why(report: &BenchReport) -> Option<String> {
    let x = report.ratios.first().filter(|x| is_modelled(x.policy))?;
    let of = |slow: bool| {
        let links = report.runs.iter().map(|run| run.link);
        let link = if slow { links.min() } else { links.max() };
        let mut same =
            report.runs.iter().filter(|r| r.policy == x.policy && r.r_wanted == x.r_wanted);
        same.find(|r| Some(r.link) == link)
    };
    let tell = |done: &BenchRun| {
        let m = done.run.last()?;
        let mut left: Vec<f64> = m
            .rounds
            .iter()
            .map(|r| r.owed_pages as f64 / (r.sent_pages + r.zero_pages).max(1) as f64)
            .collect();
        left.sort_by(f64::total_cmp);
        let median = *left.get(left.len() / 2)?;
        let sent = m.page_bytes as f64 / (m.memory_pages * migrate_core::memory::PAGE_BYTES) as f64;
        Some(format!(
            "a round leaves {:.0} % of what it sent, so memory is sent {} times in {}",
            median * 100.0,
            number(sent, 1),
            run::rounds(m)
        ))
    };
    let (slow, fast) = (of(true)?, of(false)?);
    let bits = |done: &BenchRun| Rate(done.link).as_bits();
    Some(format!("over {} {}; over {} {}", bits(slow), tell(slow)?, bits(fast), tell(fast)?))
}

fn cost(out: &mut Out, report: &BenchReport) -> io::Result<()> {
    let moved: Vec<&BenchRun> = report.runs.iter().filter(|r| r.run.migrated).collect();
    if moved.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\nWHAT IT COST THE GUEST {:>28} {:>12} {:>14}",
        "downtime", "lost", "sent / least"
    )?;
    for done in moved {
        let Some(m) = done.run.last() else { continue };
        let rate = done.run.rate_wanted.map_or("-".to_owned(), |rate| Rate(rate).to_string());
        let over = if m.over_goal { ": OVER" } else { "" };
        let goal = format!("(goal {}{over})", time(m.downtime_goal_ms));
        writeln!(
            out,
            "  {:<11}{:<9}{:>8} {:<20} {:>12} {:>14}",
            rate,
            Rate(done.link).as_bits(),
            time(m.downtime.total_ms),
            goal,
            done.run.guest.as_ref().map_or("-".to_owned(), |g| time(g.lost_ms)),
            run::sent_over_least(&done.run)
        )?;
    }
    Ok(())
}

/// What was left to send over time, a line a migration.
fn pictures(out: &mut Out, report: &BenchReport) -> io::Result<()> {
    let mut head = "\n  left to send\n";
    for done in report.runs.iter().filter(|r| r.run.migrated) {
        let Some(m) = done.run.last() else { continue };
        let line = spark::left_to_send(m, 40);
        if line.is_empty() {
            continue;
        }
        let rate = done.run.rate_wanted.map_or("-".to_owned(), |rate| Rate(rate).to_string());
        writeln!(
            out,
            "{head}  {:<11}{:<9} {line} {}",
            rate,
            Rate(done.link).as_bits(),
            time(m.migration_ms)
        )?;
        head = "";
    }
    Ok(())
}

fn proof(out: &mut Out, report: &BenchReport) -> io::Result<()> {
    let all = report.runs.len();
    let proven = report.runs.iter().filter(|r| r.run.verdict == RunVerdict::Proven).count();
    let testimonies = report.runs.iter().filter_map(|r| r.run.proof.as_ref()?.testimony.as_ref());
    let scans: Vec<u64> = testimonies
        .flat_map(|t| [Some(t.before_resume.lines), t.after_run.as_ref().map(|s| s.lines)])
        .flatten()
        .collect();
    let scanned = match scans.first() {
        Some(lines) => format!("{} scans of {lines} lines of 64 bytes", scans.len()),
        None => "nothing was scanned".to_owned(),
    };
    let verdict = match (proven == all, report.verdict) {
        (true, _) => "none wrong".to_owned(),
        (false, verdict) => verdict.to_string(),
    };
    let text = format!("{proven} of {all} migrations arrived whole: {scanned}, {verdict}");
    writeln!(out)?;
    write!(out, "{}", wrapped(&text, "PROOF   ", "        ", COLUMNS))
}
