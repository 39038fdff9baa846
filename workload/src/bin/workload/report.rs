//! The summary of a run: for people in 80 columns, for programs as JSON.

use std::io::Write;

use serde::Serialize;
use workload::hiccup::Felt;
use workload::journal::RunId;
use workload::rate::{Demand, Plan};
use workload::spec::{Workload, WorkloadSpec};
use workload::stats::{Finding, Latency, Stats};
use workload::units::{Rate, number};

use crate::run::distinct;

/// Width of the timeline.
const COLUMNS: usize = 60;
/// Gaps and throttles shown as text; JSON has all of them.
const SHOWN: usize = 8;

/// How much had been done when.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Sample {
    /// Seconds from the start.
    pub(crate) seconds: f64,
    /// Bytes of records, reads included.
    pub(crate) bytes: u64,
}

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
}

/// Distinct pages dirtied per second.
#[derive(Debug, Serialize)]
pub(crate) struct PageRate {
    /// By the kernel's count, over windows of a second.
    kernel: f64,
    /// By the operations performed in the same windows; absent where they are too many to follow.
    operations: Option<f64>,
    /// Windows counted.
    windows: usize,
}

/// Everything about a run. Rates in bytes per second, times in seconds unless named otherwise.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    schema: u32,
    run: String,
    spec: WorkloadSpec,
    seconds: f64,
    rate_wanted: Demand,
    /// Bytes that the schedule asked for, per second; absent where there was none.
    rate_scheduled: Option<f64>,
    rate_achieved: f64,
    /// The largest deviation from the schedule in any window of a second, as a share of what was
    /// scheduled in it; absent without a schedule, in bursts, and in runs of less than a second.
    window_error_max: Option<f64>,
    operations: u64,
    reads: u64,
    bytes_stored: u64,
    late: u64,
    missed: u64,
    held: u64,
    /// Records that the writers themselves found wrong.
    findings: u64,
    first_finding: Option<Finding>,
    watermarks: Vec<u64>,
    distinct_pages_per_s: Option<PageRate>,
    heartbeats_refused: u64,
    service: Latency,
    from_intended: Latency,
    felt: Felt,
    timeline: Vec<Sample>,
}

impl Summary {
    pub(crate) fn new(
        what: &WhatRan<'_>,
        stats: &Stats,
        felt: Felt,
        samples: &[Sample],
        windows: &[Window],
        heartbeats_refused: u64,
        watermarks: Vec<u64>,
    ) -> Self {
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
        Self {
            schema: 1,
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

    pub(crate) fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let wanted = match (self.rate_scheduled, &self.rate_wanted) {
            (Some(rate), _) => format!("of {} scheduled", Rate(rate as u64)),
            (None, demand) => format!("({} wanted)", String::from(demand.clone())),
        };
        writeln!(
            out,
            "{} operations in {:.2} s: {} {wanted}",
            self.operations,
            self.seconds,
            Rate(self.rate_achieved as u64),
        )?;
        write!(out, "{} late (caught up), {} missed", self.late, self.missed)?;
        if self.held > 0 {
            write!(out, ", {} while paused", self.held)?;
        }
        if self.reads > 0 {
            write!(out, "; {} reads, all compared", self.reads)?;
        }
        if let Some(error) = self.window_error_max {
            write!(out, "; worst second {:.2} % off", error * 100.0)?;
        }
        writeln!(out)?;
        if let Some(pages) = &self.distinct_pages_per_s {
            let predicted =
                pages.operations.map_or(String::new(), |o| format!(", {o:.0} by its operations"));
            writeln!(
                out,
                "distinct pages per second: {:.0} by the kernel{predicted}",
                pages.kernel
            )?;
        }
        self.print_latencies(out)?;
        self.print_felt(out)?;
        self.print_timeline(out)?;
        if self.heartbeats_refused > 0 {
            writeln!(
                out,
                "note: {} heartbeats were not taken by the link",
                self.heartbeats_refused
            )?;
        }
        if let Some(first) = &self.first_finding {
            writeln!(
                out,
                "WRONG: {} records were not what their writer had last written; the first at \
                 {:#x} (writer {}, generation {})",
                self.findings,
                first.address * workload::LINE_BYTES,
                first.writer,
                first.generation
            )?;
        }
        Ok(())
    }

    fn print_latencies(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(
            out,
            "{:<20}{:>9}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "microseconds", "p50", "p90", "p99", "p99.9", "p99.99", "max"
        )?;
        for (name, l) in [("service", &self.service), ("from intended start", &self.from_intended)]
        {
            write!(out, "{name:<19}")?;
            for ns in [l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns, l.p9999_ns, l.max_ns] {
                // Of no operation there is no latency.
                let us = if self.operations > 0 { ns as f64 / 1e3 } else { f64::NAN };
                write!(out, " {:>9}", number(us, 1))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn print_felt(&self, out: &mut impl Write) -> std::io::Result<()> {
        let felt = &self.felt;
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
        for stun in felt.stuns.iter().take(SHOWN) {
            writeln!(out, "  stun at {:.3} s: {:.1} ms on all CPUs", stun.start_s, stun.length_ms)?;
        }
        for throttle in felt.throttles.iter().take(SHOWN) {
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
        for jump in felt.jumps.iter().take(SHOWN) {
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

    /// Rate and duty cycle over time, a column each for an equal part of the run.
    fn print_timeline(&self, out: &mut impl Write) -> std::io::Result<()> {
        let columns = COLUMNS.min(self.timeline.len().saturating_sub(1));
        if columns < 5 {
            return Ok(());
        }
        let end = self.timeline.last().map_or(0.0, |s| s.seconds);
        let bytes_at = |seconds: f64| {
            let after = self.timeline.partition_point(|s| s.seconds < seconds);
            match (self.timeline.get(after.saturating_sub(1)), self.timeline.get(after)) {
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
                let steps = &self.felt.duty;
                let first = index(edge(c)).min(steps.len().saturating_sub(1));
                let last = index(edge(c + 1)).clamp(first + 1, steps.len().max(first + 1));
                let part = steps.get(first..last).unwrap_or_default();
                part.iter().map(|d| f64::from(*d)).sum::<f64>() / part.len().max(1) as f64
            })
            .collect();
        writeln!(out, "rate  {} 0 to {}", bars(&rates, most), Rate(most as u64))?;
        writeln!(out, "ran   {} 0 to 100 %", bars(&duty, 1.0))
    }
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
