//! One migration, as `send` tells it.

use std::io::{self, Write};

use migrate_core::memory::PAGE_BYTES;
use migrate_core::report::{MigrationReport, RunReport, StatusKind};
use verifier::verdict::Verdict;
use workload::say::Out;
use workload::units::{Bytes, Rate, number};

use super::{COLUMNS, Detail, details, spark, time, times, wrapped};

/// Prints what a migration came to.
pub(crate) fn print(out: &mut Out, run: &RunReport, detail: Detail) -> io::Result<()> {
    write!(out, "{}", wrapped(&headline(run), "", "  ", COLUMNS))?;
    if let Some(m) = run.last() {
        print_attempt(out, run, m)?;
    }
    if let Some(scan) = &run.source_scan {
        let state = scan.first_fault().unwrap_or_else(|| "clean".to_owned());
        writeln!(out, "  source     {} lines scanned: {state}", scan.lines)?;
    }
    for reason in reasons(run) {
        write!(out, "{}", wrapped(&reason, "  reason     ", "             ", COLUMNS))?;
    }
    match (detail, run.last()) {
        (Detail::All, _) => details::print(out, run),
        (Detail::Answer, Some(m)) if !m.rounds.is_empty() => {
            writeln!(out, "  {} and why: -v", rounds(m))
        }
        _ => Ok(()),
    }
}

pub(crate) fn rounds(m: &MigrationReport) -> String {
    match m.rounds.len() {
        1 => "1 round".to_owned(),
        n => format!("{n} rounds"),
    }
}

/// The answer.
fn headline(run: &RunReport) -> String {
    let memory = run.last().map_or(0, |m| m.memory_pages * PAGE_BYTES);
    let memory = Bytes(memory.max(run.workload.memory.0));
    match (run.migrated, run.last()) {
        (true, Some(m)) => format!(
            "MIGRATED {memory} to {} in {} (and {} of setup), memory {}",
            run.link.as_ref().map_or("its destination", |link| link.to.as_str()),
            time(m.migration_ms),
            time(m.setup_ms),
            run.memory
        ),
        _ if run.status.kind == StatusKind::Unresolved => {
            format!("UNRESOLVED: {}", run.status.text)
        }
        _ => {
            let memory = match run.memory {
                Verdict::Wrong => "its memory is WRONG",
                Verdict::Proven => "its memory proven",
                Verdict::Inconclusive => "of its memory nothing is proven",
            };
            format!("NOT MIGRATED: {}; the guest ran on here, {memory}", run.status.text)
        }
    }
}

fn print_attempt(out: &mut Out, run: &RunReport, m: &MigrationReport) -> io::Result<()> {
    if m.stun.is_some() {
        let over = if m.over_goal { ": OVER" } else { "" };
        let goal = time(m.downtime_goal_ms);
        write!(out, "  downtime   {} of {goal} allowed{over}", time(m.downtime.total_ms))?;
        if m.downtime.proof_ms > 0.0 {
            write!(out, " (and {} for the proof)", time(m.downtime.proof_ms))?;
        }
        writeln!(out)?;
    }
    if let Some(w) = &run.witnesses {
        let felt = match w.felt_ms {
            Some(felt) => format!("the guest felt {}", time(felt)),
            None => "what the guest felt is not known: the hosts' clocks differ".to_owned(),
        };
        let seen = w.seen_ms.map_or(String::new(), |seen| format!("; outside saw {}", time(seen)));
        let other = w.longest_other_gap_ms.map_or(String::new(), |gap| {
            format!("; longest silence at another time {}", time(gap))
        });
        let said = format!("{felt}{seen}{other}");
        write!(out, "{}", wrapped(&said, "  witnesses  ", "             ", COLUMNS))?;
    }
    let achieved = Rate(run.rate_achieved as u64);
    let wrote = match run.rate_wanted {
        Some(wanted) => {
            let slowed = (1.0 - run.rate_achieved / wanted as f64).max(0.0) * 100.0;
            format!("{achieved} of {} wanted: slowed by {slowed:.1} %", Rate(wanted))
        }
        None => achieved.to_string(),
    };
    if m.page_bytes > 0 {
        writeln!(out, "  guest      {wrote}")?;
    }
    if let Some(g) = &run.guest {
        let slowest = g
            .slowest_100ms_share
            .map_or(String::new(), |s| format!("; slowest 100 ms at {:.0} %", s * 100.0));
        let lost = format!(
            "lost {}: slower writes {}, throttle {}, stun {}{slowest}",
            time(g.lost_ms),
            time(g.slower_writes_ms),
            time(g.throttle_ms),
            time(g.stun_ms)
        );
        write!(out, "{}", wrapped(&lost, "             ", "             ", COLUMNS))?;
    }
    if m.send_rate() > 0.0 {
        let (most, protection) = match &run.link {
            Some(link) => (link.bandwidth, format!(", {}", link.protection)),
            None => (None, String::new()),
        };
        let share = most.map_or(String::new(), |most| {
            format!(", {:.0} % of {}", m.send_rate() / most as f64 * 100.0, Rate(most))
        });
        let streams = if m.streams == 1 { "stream" } else { "streams" };
        let link = format!(
            "{}{share}; {}, {} {streams}{protection}",
            Rate(m.send_rate() as u64),
            m.congestion,
            m.streams
        );
        write!(out, "{}", wrapped(&link, "  link       ", "             ", COLUMNS))?;
    }
    if m.page_bytes > 0 {
        let least = run.optimality.as_ref().map_or(String::new(), |o| {
            format!(", {} x the least that could have been", number(o.bytes_ratio, 2))
        });
        writeln!(out, "  sent       {}{least}", Bytes(m.wire_bytes))?;
    }
    let line = spark::left_to_send(m, 32);
    if !line.is_empty() {
        let begin = Bytes((m.memory_pages - m.untouched_pages) * PAGE_BYTES);
        let left = m.rounds.last().map_or(0, |r| r.owed_pages) * PAGE_BYTES;
        writeln!(out, "  left       {begin} {line} {} at {}", Bytes(left), time(m.migration_ms))?;
    }
    Ok(())
}

/// What speaks against a proof, of both sides.
pub(crate) fn reasons(run: &RunReport) -> Vec<String> {
    let of_proof = run.proof.iter().flat_map(|proof| &proof.reasons);
    of_proof.chain(&run.reasons).cloned().collect()
}

/// A run of a bench in a word: how its memory stands, or why it did not migrate.
pub(crate) fn short(run: &RunReport) -> String {
    match run.last() {
        Some(m) if run.migrated => format!(
            "{:>8}  down {:>6}  {:>10}  {}",
            time(m.migration_ms),
            time(m.downtime.total_ms),
            rounds(m),
            run.memory
        ),
        _ => format!("{}: {}", run.verdict, run.status.text),
    }
}

/// How often the guest's memory was sent, beside the least that could have been.
pub(crate) fn sent_over_least(run: &RunReport) -> String {
    run.optimality.as_ref().map_or("-".to_owned(), |o| times(o.bytes_ratio))
}
