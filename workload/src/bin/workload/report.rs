//! The summary of a run: for people in 80 columns, for programs as JSON.

use std::io::Write;

use workload::hiccup::Felt;
use workload::provenance::Provenance;
use workload::rate::{Demand, Plan};
use workload::report::{PageRate, SCHEMA, Sample, Summary};
use workload::run::RunId;
use workload::spec::Workload;
use workload::stats::Stats;
use workload::unique::{OPERATIONS_MAX, Unique};
use workload::units::{Rate, number};

/// Width of the timeline.
const COLUMNS: usize = 60;
/// Gaps and throttles shown as text; JSON has all of them.
const SHOWN: usize = 8;

/// A window in which the kernel counted dirty pages.
pub(crate) struct Window {
    /// The watermarks at its end.
    pub(crate) watermarks: Vec<u64>,
    /// Distinct pages dirtied in it.
    pub(crate) pages: u64,
}

/// The frame of a run.
pub(crate) struct WhatRan<'a> {
    pub(crate) run: RunId,
    pub(crate) workload: &'a Workload,
    pub(crate) rate: &'a Demand,
    pub(crate) plan: Option<Plan>,
    pub(crate) seconds: f64,
    pub(crate) provenance: Provenance,
}

/// Draws the sum of a run.
pub(crate) fn summary(
    what: &WhatRan<'_>,
    stats: &Stats,
    felt: Felt,
    samples: &[Sample],
    windows: &[Window],
    heartbeats_refused: u64,
    watermarks: Vec<u64>,
) -> Summary {
    let spec = what.workload.spec().clone();
    let bytes_per_operation = spec.workload.record.0 as f64 * f64::from(spec.writers);
    let scheduled = |seconds: f64| {
        // Bursts: their schedule is not the plan's alone.
        let plan = what.plan.as_ref().filter(|_| spec.workload.timing.is_none())?;
        Some(plan.due(seconds) * bytes_per_operation)
    };
    let counted = windows.len() as f64;
    let distinct_pages_per_s = (!windows.is_empty()).then(|| PageRate {
        kernel: windows.iter().map(|w| w.pages).sum::<u64>() as f64 / counted,
        operations: distinct(what.workload, windows).map(|pages| pages as f64 / counted),
        windows: windows.len(),
    });
    Summary {
        schema: SCHEMA,
        provenance: what.provenance.clone(),
        run: what.run.to_string(),
        seconds: what.seconds,
        rate_wanted: what.rate.clone(),
        rate_scheduled: scheduled(what.seconds).map(|bytes| bytes / what.seconds),
        rate_achieved: (stats.operations * spec.workload.record.0) as f64 / what.seconds,
        window_error_max: window_error_max(samples, scheduled),
        operations: stats.operations,
        reads: stats.reads,
        bytes_stored: stats.lines * workload::LINE_BYTES,
        late: stats.late,
        missed: stats.missed,
        held: stats.held,
        findings: stats.findings,
        first_finding: stats.first_finding,
        watermarks,
        distinct_pages_per_s,
        heartbeats_refused,
        service: stats.service(),
        from_intended: stats.from_intended(),
        felt,
        timeline: samples.to_vec(),
        spec,
    }
}

pub(crate) fn print(summary: &Summary, out: &mut impl Write) -> std::io::Result<()> {
    let wanted = match (summary.rate_scheduled, &summary.rate_wanted) {
        (Some(rate), _) => format!("of {} scheduled", Rate(rate as u64)),
        (None, demand) => format!("({} wanted)", String::from(demand.clone())),
    };
    writeln!(
        out,
        "{} operations in {:.2} s: {} {wanted}",
        summary.operations,
        summary.seconds,
        Rate(summary.rate_achieved as u64),
    )?;
    write!(out, "{} late (caught up), {} missed", summary.late, summary.missed)?;
    if summary.held > 0 {
        write!(out, ", {} while paused", summary.held)?;
    }
    if summary.reads > 0 {
        write!(out, "; {} reads, all compared", summary.reads)?;
    }
    if let Some(error) = summary.window_error_max {
        write!(out, "; worst second {:.2} % off", error * 100.0)?;
    }
    writeln!(out)?;
    if let Some(pages) = &summary.distinct_pages_per_s {
        let predicted =
            pages.operations.map_or(String::new(), |o| format!(", {o:.0} by its operations"));
        writeln!(out, "distinct pages per second: {:.0} by the kernel{predicted}", pages.kernel)?;
    }
    print_latencies(summary, out)?;
    print_felt(summary, out)?;
    print_timeline(summary, out)?;
    if summary.heartbeats_refused > 0 {
        writeln!(
            out,
            "note: {} heartbeats were not taken by the link",
            summary.heartbeats_refused
        )?;
    }
    if let Some(first) = &summary.first_finding {
        writeln!(
            out,
            "WRONG: {} records were not what their writer had last written; the first at \
             {:#x} (writer {}, generation {})",
            summary.findings,
            first.address * workload::LINE_BYTES,
            first.writer,
            first.generation
        )?;
    }
    Ok(())
}

fn print_latencies(summary: &Summary, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{:<20}{:>9}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "microseconds", "p50", "p90", "p99", "p99.9", "p99.99", "max"
    )?;
    for (name, l) in
        [("service", &summary.service), ("from intended start", &summary.from_intended)]
    {
        write!(out, "{name:<19}")?;
        for ns in [l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns, l.p9999_ns, l.max_ns] {
            // Of no operation there is no latency.
            let us = if summary.operations > 0 { ns as f64 / 1e3 } else { f64::NAN };
            write!(out, " {:>9}", number(us, 1))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn print_felt(summary: &Summary, out: &mut impl Write) -> std::io::Result<()> {
    let felt = &summary.felt;
    let lost: f32 = felt.duty.iter().map(|d| 1.0 - d).sum();
    let duty = 1.0 - f64::from(lost) / felt.duty.len() as f64;
    writeln!(
        out,
        "felt on {} CPUs ({}): ran {} % of the time, {} stuns, {} throttles",
        felt.cpus,
        felt.clock,
        number(duty * 100.0, 1),
        felt.stuns.len(),
        felt.throttles.len()
    )?;
    // Of many the longest, in the order in which they came.
    for stun in longest(&felt.stuns, |stun| stun.length_ms) {
        writeln!(out, "  stun at {:.3} s: {:.1} ms on all CPUs", stun.start_s, stun.length_ms)?;
    }
    for throttle in longest(&felt.throttles, |throttle| throttle.length_s) {
        writeln!(
            out,
            "  throttle at {:.3} s for {:.2} s: duty cycle {:.0} %, {} gaps on {} CPUs",
            throttle.start_s,
            throttle.length_s,
            throttle.duty * 100.0,
            throttle.gaps,
            throttle.cpus
        )?;
    }
    for jump in longest(&felt.jumps, |jump| jump.by_ms.abs()) {
        writeln!(
            out,
            "  clock jump at {:.3} s: the wall clock moved {:+.1} ms against {}; a stun of \
             that length may hide in it",
            jump.start_s, jump.by_ms, felt.clock
        )?;
    }
    let hidden = [felt.stuns.len(), felt.throttles.len(), felt.jumps.len()]
        .map(|count| count.saturating_sub(SHOWN));
    match hidden.iter().sum::<usize>() {
        0 => Ok(()),
        more => writeln!(out, "  ... and {more} more (see --json)"),
    }
}

/// The longest few, in their own order.
fn longest<T>(all: &[T], length: impl Fn(&T) -> f64) -> Vec<&T> {
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|a, b| length(&all[*b]).total_cmp(&length(&all[*a])));
    order.truncate(SHOWN);
    order.sort_unstable();
    order.into_iter().map(|index| &all[index]).collect()
}

/// Rate and duty cycle over time, a column each for an equal part of the run.
fn print_timeline(summary: &Summary, out: &mut impl Write) -> std::io::Result<()> {
    let columns = COLUMNS.min(summary.timeline.len().saturating_sub(1));
    if columns < 5 {
        return Ok(());
    }
    let end = summary.timeline.last().map_or(0.0, |s| s.seconds);
    let bytes_at = |seconds: f64| {
        let after = summary.timeline.partition_point(|s| s.seconds < seconds);
        match (summary.timeline.get(after.saturating_sub(1)), summary.timeline.get(after)) {
            (Some(a), Some(b)) if b.seconds > a.seconds => {
                let part = (seconds - a.seconds) / (b.seconds - a.seconds);
                a.bytes as f64 + part * (b.bytes - a.bytes) as f64
            }
            (Some(a), _) => a.bytes as f64,
            _ => 0.0,
        }
    };
    let edge = |column: usize| end * column as f64 / columns as f64;
    let rates: Vec<f64> = (0..columns)
        .map(|c| (bytes_at(edge(c + 1)) - bytes_at(edge(c))) * columns as f64 / end)
        .collect();
    let most = rates.iter().copied().fold(0.0, f64::max);
    let duty: Vec<f64> = (0..columns)
        .map(|c| {
            let index = |seconds: f64| (seconds * 10.0) as usize;
            let steps = &summary.felt.duty;
            let first = index(edge(c)).min(steps.len().saturating_sub(1));
            let last = index(edge(c + 1)).clamp(first + 1, steps.len().max(first + 1));
            let part = steps.get(first..last).unwrap_or_default();
            part.iter().map(|d| f64::from(*d)).sum::<f64>() / part.len().max(1) as f64
        })
        .collect();
    writeln!(out, "rate  {} 0 to {}", bars(&rates, most), Rate(most as u64))?;
    writeln!(out, "ran   {} 0 to 100 %", bars(&duty, 1.0))
}

fn bars(values: &[f64], most: f64) -> String {
    const STEPS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let step = |value: &f64| (value / most.max(1e-9) * 8.0).round().clamp(0.0, 8.0) as usize;
    values.iter().map(|value| STEPS[step(value)]).collect()
}

/// The largest deviation from the schedule in any window of a second.
fn window_error_max(samples: &[Sample], scheduled: impl Fn(f64) -> Option<f64>) -> Option<f64> {
    let mut worst = None;
    for (i, start) in samples.iter().enumerate() {
        let Some(end) = samples[i..].iter().find(|s| s.seconds - start.seconds >= 1.0) else {
            break;
        };
        let wanted = scheduled(end.seconds)? - scheduled(start.seconds)?;
        // Where nothing was due there is no share of it.
        if wanted <= 0.0 {
            continue;
        }
        let error = ((end.bytes - start.bytes) as f64 - wanted).abs() / wanted;
        worst = Some(error.max(worst.unwrap_or(0.0)));
    }
    worst
}

/// Distinct pages that the operations performed in the windows dirtied, each window by itself;
/// `None` where that are too many operations to follow.
fn distinct(workload: &Workload, windows: &[Window]) -> Option<u64> {
    let last = windows.last()?;
    if last.watermarks.iter().sum::<u64>() > OPERATIONS_MAX {
        return None;
    }
    let mut pages = 0;
    for writer in 0..workload.shares().len() {
        let mut unique = Unique::starting_at(workload, writer, 0);
        for window in windows {
            unique.restart();
            while unique.operations < window.watermarks[writer] {
                unique.step();
            }
            pages += unique.pages;
        }
    }
    Some(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_the_longest_are_shown_in_their_order() {
        let all: Vec<f64> = (0..20).map(|n| f64::from(n * 7 % 20)).collect();
        let shown: Vec<f64> = longest(&all, |length| *length).into_iter().copied().collect();
        assert_eq!(shown.len(), SHOWN);
        assert!(shown.iter().all(|length| *length >= 12.0), "{shown:?}");
        let places = shown.iter().map(|length| all.iter().position(|other| other == length));
        assert!(places.is_sorted(), "{shown:?}");
    }
}
