//! Rounds, pages, decisions and the optimum of a run: what `-v` adds.

use std::io::{self, Write};

use migrate_core::memory::PAGE_BYTES;
use migrate_core::report::{MigrationReport, RunReport};
use workload::say::Out;
use workload::units::{Bytes, Rate, number};

use super::{COLUMNS, time, wrapped};

/// Rounds shown; JSON has all.
const ROUNDS_SHOWN: usize = 16;

pub(crate) fn print(out: &mut Out, run: &RunReport) -> io::Result<()> {
    for attempt in &run.attempts {
        print_attempt(out, attempt)?;
    }
    if let Some(g) = &run.guest
        && let (Some(during), Some(before)) = (g.write_p999_during_us, g.write_p999_before_us)
    {
        writeln!(out, "  record    {during:.0} us at p99.9, {before:.0} before")?;
    }
    if let Some(o) = &run.optimality {
        let downtime = match o.downtime_ratio {
            Some(ratio) => format!("downtime {} x {}", number(ratio, 1), time(o.downtime_min_ms)),
            None => "downtime could have been next to nothing".to_owned(),
        };
        let optimum = format!(
            "bytes {} x {}, time {} x {}, {downtime}",
            number(o.bytes_ratio, 3),
            Bytes(o.bytes_min),
            number(o.time_ratio, 2),
            time(o.time_min_ms)
        );
        write!(out, "{}", wrapped(&optimum, "  optimum   ", "            ", COLUMNS))?;
    }
    Ok(())
}

fn print_attempt(out: &mut Out, m: &MigrationReport) -> io::Result<()> {
    writeln!(
        out,
        "  migration {} of {}, {}, tracker {}",
        &m.id[..8],
        Bytes(m.memory_pages * PAGE_BYTES),
        m.policy.name(),
        m.tracker
    )?;
    let rate = match m.send_rate() > 0.0 {
        true => format!(" at {}", Rate(m.send_rate() as u64)),
        false => String::new(),
    };
    let share = m.wire_bytes as f64 / m.page_bytes as f64 * 100.0;
    let wire = match m.page_bytes > 0 {
        true => format!(", {} bytes on the wire for 100", number(share, 2)),
        false => String::new(),
    };
    writeln!(out, "  sent      {}{rate}{wire}", Bytes(m.page_bytes))?;
    let c = &m.contents;
    let forms = [
        (c.whole_pages, "whole".to_owned()),
        (c.zero_pages, "zero".to_owned()),
        (c.unchanged_pages, "unchanged".to_owned()),
        (c.packed_pages, format!("packed (to {})", Bytes(c.packed_bytes))),
        (c.delta_pages, format!("as changed lines ({})", Bytes(c.delta_bytes))),
    ];
    let forms: Vec<String> = forms
        .into_iter()
        .filter(|(pages, _)| *pages > 0)
        .map(|(pages, form)| format!("{pages} {form}"))
        .collect();
    if !forms.is_empty() {
        writeln!(out, "  pages     {}", forms.join(", "))?;
    }
    if m.stun.is_some() {
        let d = &m.downtime;
        let parts = format!(
            "pause {:.1}, harvest {:.1}, send {:.1} ({} pages), state {:.1}, resume {:.1} ms",
            d.pause_ms, d.harvest_ms, d.send_ms, d.pages, d.state_ms, d.resume_ms
        );
        write!(out, "{}", wrapped(&parts, "  downtime  ", "            ", COLUMNS))?;
    }
    for decision in &m.decisions {
        let head = format!("  decided   at {:.3} s: ", decision.at_ms / 1e3);
        write!(out, "{}", wrapped(&decision.what, &head, "            ", COLUMNS))?;
    }
    print_rounds(out, m)
}

fn print_rounds(out: &mut Out, m: &MigrationReport) -> io::Result<()> {
    if m.rounds.is_empty() {
        return Ok(());
    }
    writeln!(out, "  round      time        sent        owed    sent/s   dirtied/s  throttle")?;
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
            "  {:>5} {:>9} {:>11} {:>11} {:>9} {:>11} {:>7.1} %",
            r.round,
            time(r.elapsed_ms),
            Bytes((r.sent_pages + r.zero_pages) * PAGE_BYTES).to_string(),
            Bytes(r.owed_pages * PAGE_BYTES).to_string(),
            format!("{:.0} MB", r.send_rate / 1e6),
            format!("{:.0} MB", r.dirty_rate / 1e6),
            r.held_share * 100.0
        )?;
    }
    Ok(())
}
