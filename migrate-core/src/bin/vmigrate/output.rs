//! What the commands report: JSON with a schema, or text for people.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use migrate_core::memory::PAGE_BYTES;
use migrate_core::report::{BenchReport, MigrationReport, ReceiveReport, RunReport};
use serde::Serialize;
use workload::exit;
use workload::say;
use workload::say::Out;
use workload::units::{Bytes, Rate, number};

/// Rounds shown as text; JSON has all.
const ROUNDS_SHOWN: usize = 16;

/// Whose schema.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Document {
    Bench,
    Send,
    Receive,
}

#[derive(Args)]
pub(crate) struct SchemaArgs {
    /// Which command's output
    document: Document,
}

pub(crate) fn schema(args: &SchemaArgs) -> anyhow::Result<u8> {
    let schema = match args.document {
        Document::Bench => schemars::schema_for!(BenchReport),
        Document::Send => schemars::schema_for!(RunReport),
        Document::Receive => schemars::schema_for!(ReceiveReport),
    };
    say::document(|out| print_json(out, &schema))?;
    Ok(exit::PROVEN)
}

/// Prints a document.
pub(crate) fn print_json(out: &mut Out, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)
}

/// One migration as text.
pub(crate) fn print_run(out: &mut Out, run: &RunReport) -> io::Result<()> {
    for attempt in &run.attempts {
        print_attempt(out, attempt)?;
    }
    if let Some(wanted) = run.rate_wanted {
        let slowdown = (1.0 - run.rate_achieved / wanted as f64).max(0.0) * 100.0;
        writeln!(
            out,
            "  guest     {} of {} wanted: slowed by {slowdown:.1} %",
            Rate(run.rate_achieved as u64),
            Rate(wanted)
        )?;
    }
    if let Some(g) = &run.guest {
        let slowest = g
            .slowest_100ms_share
            .map_or(String::new(), |s| format!("; slowest 100 ms at {:.0} %", s * 100.0));
        writeln!(
            out,
            "            lost {:.1} ms: slower writes {:.1}, throttle {:.1}, stun {:.1}{slowest}",
            g.lost_ms, g.slower_writes_ms, g.throttle_ms, g.stun_ms
        )?;
        if let (Some(during), Some(before)) = (g.write_p999_during_us, g.write_p999_before_us) {
            writeln!(out, "            a record at p99.9 {during:.0} us, {before:.0} before")?;
        }
    }
    if let Some(o) = &run.optimality {
        let downtime = match o.downtime_ratio {
            Some(ratio) => format!("{}x of {:.2} ms", number(ratio, 1), o.downtime_min_ms),
            None => "could have been next to nothing".to_owned(),
        };
        writeln!(
            out,
            "  optimum   bytes {}x of {}, time {}x of {:.3} s, downtime {downtime}",
            number(o.bytes_ratio, 3),
            Bytes(o.bytes_min),
            number(o.time_ratio, 2),
            o.time_min_ms / 1e3
        )?;
    }
    if let Some(proof) = &run.proof {
        if let Some(t) = &proof.testimony {
            let journal = run
                .journal_gap_ms
                .map_or(String::new(), |gap| format!(", journal gap {gap:.1} ms"));
            match t.felt_gap_ms {
                Some(felt) => writeln!(
                    out,
                    "  witnesses guest felt {felt:.1} ms{journal} (both include the proof)"
                )?,
                None => writeln!(
                    out,
                    "  witnesses what the guest felt is not known: the hosts' clocks differ by more than \
                     it can be{journal}"
                )?,
            }
        }
        for reason in &proof.reasons {
            writeln!(out, "  reason    {reason}")?;
        }
    }
    if let Some(scan) = &run.source_scan {
        let state = scan.first_fault().unwrap_or_else(|| "clean".to_owned());
        writeln!(out, "  source    guest ran on here; {} lines scanned: {state}", scan.lines)?;
    }
    for reason in &run.reasons {
        writeln!(out, "  reason    {reason}")?;
    }
    writeln!(out, "  verdict   {}", run.verdict)
}

fn print_attempt(out: &mut Out, m: &MigrationReport) -> io::Result<()> {
    writeln!(
        out,
        "  migration {} of {} ({}, tracker {})",
        &m.id[..8],
        Bytes(m.memory_pages * PAGE_BYTES),
        m.policy.name(),
        m.tracker
    )?;
    if !m.is_done() {
        writeln!(out, "  failed    {}", m.status.text)?;
    }
    let rate = match m.send_rate() > 0.0 {
        true => Rate(m.send_rate() as u64).to_string(),
        false => "-".to_owned(),
    };
    writeln!(
        out,
        "  time      {:.3} s after {:.3} s of setup; {} at {rate}, {} bytes on the wire for 100",
        m.migration_ms / 1e3,
        m.setup_ms / 1e3,
        Bytes(m.page_bytes),
        number(m.wire_bytes as f64 / m.page_bytes as f64 * 100.0, 2)
    )?;
    let c = &m.contents;
    writeln!(
        out,
        "  pages     {} whole, {} zero, {} unchanged, {} packed (to {}), {} as changed lines ({})",
        c.whole_pages,
        c.zero_pages,
        c.unchanged_pages,
        c.packed_pages,
        Bytes(c.packed_bytes),
        c.delta_pages,
        Bytes(c.delta_bytes)
    )?;
    if m.stun.is_some() {
        let d = &m.downtime;
        let judged = match m.over_goal {
            true => format!("OVER the goal of {:.1} ms", m.downtime_goal_ms),
            false => format!("within the goal of {:.1} ms", m.downtime_goal_ms),
        };
        writeln!(
            out,
            "  downtime  {:.1} ms, {judged}; proof {:.1} ms apart\n            \
             pause {:.1}, harvest {:.1}, send {:.1} ({} pages), state {:.1}, resume {:.1}",
            d.total_ms,
            d.proof_ms,
            d.pause_ms,
            d.harvest_ms,
            d.send_ms,
            d.pages,
            d.state_ms,
            d.resume_ms
        )?;
    }
    for decision in &m.decisions {
        writeln!(out, "  decided   at {:.3} s: {}", decision.at_ms / 1e3, decision.what)?;
    }
    print_rounds(out, m)
}

fn print_rounds(out: &mut Out, m: &MigrationReport) -> io::Result<()> {
    if m.rounds.is_empty() {
        return Ok(());
    }
    writeln!(out, "  round        ms        sent        owed    sent/s  dirtied/s  throttle")?;
    let hidden = m.rounds.len().saturating_sub(ROUNDS_SHOWN);
    for (i, r) in m.rounds.iter().enumerate() {
        // The first and the last ones; the middle of a long series says little.
        if hidden > 0 && i == ROUNDS_SHOWN / 2 {
            writeln!(out, "  ... {hidden} rounds left out (see --json)")?;
        }
        if hidden > 0 && (ROUNDS_SHOWN / 2..ROUNDS_SHOWN / 2 + hidden).contains(&i) {
            continue;
        }
        writeln!(
            out,
            "  {:>5} {:>9.1} {:>11} {:>11} {:>9.1} {:>10.1} {:>7.1} %",
            r.round,
            r.elapsed_ms,
            Bytes((r.sent_pages + r.zero_pages) * PAGE_BYTES),
            Bytes(r.owed_pages * PAGE_BYTES),
            r.send_rate / 1e6,
            r.dirty_rate / 1e6,
            r.held_share * 100.0
        )?;
    }
    Ok(())
}
