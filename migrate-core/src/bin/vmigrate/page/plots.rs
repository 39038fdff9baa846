//! The plots of a report, each of runs alone, so that old ones can be drawn.

use std::ops::Range;

use migrate_core::memory::PAGE_BYTES;
use migrate_core::predict::closed_form;
use migrate_core::report::metric::Metric;
use migrate_core::report::{Downtime, MigrationReport, RunReport, Spread, StatusKind};
use plotters::prelude::*;
use workload::units::{Bytes, Rate, number};

use super::canvas::{self, Axis, COLOURS, INK, chart, colour, decades, failed, picture, up_to};
use crate::documents::{Case, Kept};
use crate::show::time;

/// Most curves in one plot.
const CURVES: usize = 6;
/// Most bars in one plot.
const BARS: usize = 24;

/// A plot with what is to be said about it.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) about: String,
    /// Colours by number, and what they stand for.
    pub(super) legend: Vec<(usize, String)>,
    pub(super) svg: String,
}

/// Every plot for which there is something to draw.
pub(super) fn all(runs: &[Kept]) -> anyhow::Result<Vec<Plot>> {
    let plots = [
        left_to_send(runs)?,
        over_rates(runs, "time", "Time over the dirty rate")?,
        over_rates(runs, "downtime", "Downtime over the dirty rate")?,
        throughput(runs)?,
        bytes_by_cause(runs)?,
        latency(runs)?,
        downtime_by_parts(runs)?,
        phase(runs)?,
        over_each_other(runs)?,
    ];
    Ok(plots.into_iter().flatten().collect())
}

/// Runs of different cases, as many as a plot takes, evenly from all that fit.
fn some(runs: &[Kept], most: usize, fits: impl Fn(&Kept) -> bool) -> Vec<&Kept> {
    let mut chosen: Vec<&Kept> = Vec::new();
    for kept in runs.iter().filter(|kept| fits(kept)) {
        if !chosen.iter().any(|other| other.case == kept.case) {
            chosen.push(kept);
        }
    }
    // One case alone, repeated: then each of its runs is told apart.
    if chosen.len() == 1 {
        chosen = runs.iter().filter(|kept| fits(kept)).collect();
    }
    let count = chosen.len();
    let step = count.div_ceil(most).max(1);
    chosen.into_iter().step_by(step).collect()
}

/// How a run is called in a legend.
fn name(kept: &Kept, runs: &[&Kept]) -> String {
    let name = kept.case.name();
    let alike = runs.iter().filter(|other| other.case == kept.case).count();
    match alike {
        0 | 1 => name,
        _ => {
            let number = runs.iter().take_while(|other| !std::ptr::eq(**other, kept));
            let number = number.filter(|other| other.case == kept.case).count() + 1;
            format!("{name} ({number})")
        }
    }
}

fn legend(runs: &[&Kept]) -> Vec<(usize, String)> {
    runs.iter().enumerate().map(|(number, kept)| (number, name(kept, runs))).collect()
}

/// How many are drawn of how many.
fn drawn(runs: &[&Kept], all: usize) -> String {
    match runs.len() == all {
        true => String::new(),
        false => format!(" {} of {all} runs are drawn.", runs.len()),
    }
}

/// Seconds, and bytes left then.
fn left(m: &MigrationReport) -> Vec<(f64, f64)> {
    let pages = |pages: u64| (pages * PAGE_BYTES) as f64;
    let mut points = vec![(0.0, pages(m.memory_pages - m.untouched_pages))];
    let of_round =
        m.rounds.iter().map(|r| ((r.start_ms + r.elapsed_ms) / 1e3, pages(r.owed_pages)));
    points.extend(of_round);
    points
}

fn seconds(value: f64) -> String {
    match value.abs() {
        v if v >= 10.0 || v == 0.0 => format!("{value:.0} s"),
        v if v >= 0.1 => format!("{value:.1} s"),
        _ => format!("{value:.2} s"),
    }
}

fn microseconds(value: f64) -> String {
    match value {
        v if v < 0.95 => format!("{v:.2} us"),
        v if v < 999.5 => format!("{v:.0} us"),
        v => time(v / 1e3),
    }
}

/// For axes that are divided by ten.
fn megabytes(value: f64) -> String {
    format!("{} MB", number(value / 1e6, if value.abs() < 5e6 { 1 } else { 0 }))
}

fn bytes(value: f64) -> String {
    Bytes(value.max(0.0) as u64).to_string()
}

fn left_to_send(runs: &[Kept]) -> anyhow::Result<Option<Plot>> {
    let has_rounds = |kept: &Kept| kept.run.last().is_some_and(|m| !m.rounds.is_empty());
    let chosen = some(runs, CURVES, has_rounds);
    let curves: Vec<_> = chosen.iter().filter_map(|kept| Some((kept.run.last()?, kept))).collect();
    if curves.is_empty() {
        return Ok(None);
    }
    let points = || curves.iter().flat_map(|(m, _)| left(m));
    let ends = curves.iter().map(|(m, _)| m.migration_ms / 1e3);
    let x = up_to(points().map(|(at, _)| at).chain(ends));
    let y = decades(points().map(|(_, left)| left));
    let floor = y.start;
    let svg = picture(360, |area| {
        let mut chart = chart(
            area,
            (x, Axis { name: "since the first page", value: &seconds }),
            (y.log_scale().base(2.0), Axis { name: "left to send", value: &bytes }),
        )?;
        for (number, (m, _)) in curves.iter().enumerate() {
            let points = left(m).into_iter().map(|(at, left)| (at, left.max(floor)));
            let line = LineSeries::new(points, colour(number).stroke_width(2));
            chart.draw_series(line).map_err(failed)?;
            if m.stun.is_some() {
                let last = left(m).last().copied().unwrap_or_default();
                let stun = (last.0, last.1.max(floor));
                let mark = Circle::new(stun, 4, colour(number).filled());
                chart.draw_series([mark]).map_err(failed)?;
            }
        }
        Ok(())
    })?;
    let about =
        "What was left to send at the end of each round. A dot marks the stun: where a line \
                 does not fall, the guest writes as fast as the link sends."
            .to_owned();
    Ok(Some(Plot {
        title: "Left to send",
        about: about + &drawn(&chosen, runs.len()),
        legend: legend(&chosen),
        svg,
    }))
}

/// Everything of a case but its rate.
fn line_of(case: &Case) -> Case {
    Case { r: None, rate: String::new(), ..case.clone() }
}

/// Runs of one line at one rate.
struct Point<'a> {
    r: f64,
    runs: Vec<&'a RunReport>,
}

/// Lines over the dirty rate, each with its points in order.
fn lines(runs: &[Kept]) -> Vec<(Case, Vec<Point<'_>>)> {
    let mut lines: Vec<(Case, Vec<Point<'_>>)> = Vec::new();
    for kept in runs {
        let Some(r) = kept.case.r else { continue };
        let case = line_of(&kept.case);
        let index = lines.iter().position(|(other, _)| *other == case).unwrap_or_else(|| {
            lines.push((case, Vec::new()));
            lines.len() - 1
        });
        let points = &mut lines[index].1;
        match points.iter_mut().find(|point| point.r == r) {
            Some(point) => point.runs.push(&kept.run),
            None => points.push(Point { r, runs: vec![&kept.run] }),
        }
    }
    for (_, points) in &mut lines {
        points.sort_by(|a, b| a.r.total_cmp(&b.r));
    }
    lines
}

fn over_rates(runs: &[Kept], figure: &str, title: &'static str) -> anyhow::Result<Option<Plot>> {
    let lines = lines(runs);
    let Some(metric) = Metric::named(figure) else { return Ok(None) };
    if !lines.iter().any(|(_, points)| points.len() > 1) {
        return Ok(None);
    }
    let lines = &lines[..lines.len().min(COLOURS.len())];
    let spreads = || {
        let points = lines.iter().flat_map(|(_, points)| points);
        points.filter_map(|point| Spread::of(metric, &point.runs))
    };
    if spreads().next().is_none() {
        return Ok(None);
    }
    let x = up_to(lines.iter().flat_map(|(_, points)| points).map(|point| point.r));
    let y = decades(spreads().flat_map(|s| [s.min / 1e3, s.max / 1e3]));
    let top = y.end * 0.95;
    let svg = picture(360, |area| {
        let mut chart = chart(
            area,
            (x, Axis { name: "dirty rate over link rate (r)", value: &|v| number(v, 1) }),
            (y.log_scale().base(2.0), Axis { name: metric.name, value: &|v| time(v * 1e3) }),
        )?;
        for (index, (_, points)) in lines.iter().enumerate() {
            let style = colour(index).stroke_width(2);
            let of = |point: &Point<'_>| Some((point.r, Spread::of(metric, &point.runs)?));
            let known: Vec<_> = points.iter().filter_map(of).collect();
            let medians = known.iter().map(|(r, s)| (*r, s.median / 1e3));
            chart.draw_series(LineSeries::new(medians.clone(), style)).map_err(failed)?;
            let dots = medians.map(|at| Circle::new(at, 3, colour(index).filled()));
            chart.draw_series(dots).map_err(failed)?;
            let spread = known
                .iter()
                .filter(|(_, s)| s.n > 1)
                .map(|(r, s)| PathElement::new(vec![(*r, s.min / 1e3), (*r, s.max / 1e3)], style));
            chart.draw_series(spread).map_err(failed)?;
            let gave_up = points
                .iter()
                .filter(|point| point.runs.iter().any(|run| run.status.kind == StatusKind::GaveUp));
            let crosses = gave_up.map(|point| Cross::new((point.r, top), 5, style));
            chart.draw_series(crosses).map_err(failed)?;
        }
        Ok(())
    })?;
    let legend = lines.iter().enumerate().map(|(index, (case, _))| {
        let policy = case.policy.map_or("?", |policy| policy.name());
        let pattern = case.workload.split(',').next().unwrap_or_default();
        let over =
            case.bandwidth.map_or(String::new(), |rate| format!(" over {}", Rate(rate).as_bits()));
        (index, format!("{policy}{over}, {pattern}, {}", Bytes(case.memory)))
    });
    Ok(Some(Plot {
        title,
        about: format!(
            "{}: {}. Dots are medians, bars reach from the least to the most of the repeats, \
             crosses at the top are runs that were given up.",
            metric.name, metric.about
        ),
        legend: legend.collect(),
        svg,
    }))
}

fn throughput(runs: &[Kept]) -> anyhow::Result<Option<Plot>> {
    let course = |kept: &Kept| kept.run.guest.as_ref().and_then(|guest| guest.course.clone());
    let chosen = some(runs, 4, |kept| course(kept).is_some_and(|c| c.bytes_per_s.len() > 1));
    let curves: Vec<(Vec<(f64, f64)>, &Kept)> = chosen
        .iter()
        .filter_map(|kept| {
            let course = course(kept)?;
            let at = |index: usize| (course.from_ms + index as f64 * course.window_ms) / 1e3;
            // A window is a step as wide as it is long.
            let steps = course.bytes_per_s.iter().enumerate();
            let points = steps.flat_map(|(i, rate)| [(at(i), *rate), (at(i + 1), *rate)]);
            Some((points.collect(), *kept))
        })
        .collect();
    if curves.is_empty() {
        return Ok(None);
    }
    let all = || curves.iter().flat_map(|(points, _)| points.iter().copied());
    let least = all().map(|(at, _)| at).fold(0.0, f64::min);
    let x = least..up_to(all().map(|(at, _)| at)).end;
    let y = up_to(all().map(|(_, rate)| rate));
    let top = y.end;
    let svg = picture(320, |area| {
        let mut chart = chart(
            area,
            (x, Axis { name: "since the first page", value: &seconds }),
            (y, Axis { name: "records written", value: &|v| Rate(v.max(0.0) as u64).to_string() }),
        )?;
        for (number, (points, kept)) in curves.iter().enumerate() {
            let line = LineSeries::new(points.iter().copied(), colour(number).stroke_width(2));
            chart.draw_series(line).map_err(failed)?;
            let Some(m) = kept.run.last().filter(|m| m.stun.is_some()) else { continue };
            // Where the guest stood still, as wide as it felt.
            let felt = kept.run.witnesses.as_ref().and_then(|w| w.felt_ms);
            let end = m.migration_ms / 1e3;
            let begin = end - felt.unwrap_or(m.downtime.total_ms) / 1e3;
            let gap = Rectangle::new([(begin, 0.0), (end, top)], colour(number).mix(0.2).filled());
            chart.draw_series([gap]).map_err(failed)?;
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        title: "What the guest wrote, before and during the migration",
        about:
            "In windows of a tenth of a second or longer, at the source. Before 0 the destination \
                makes its memory; the shaded time is the standstill."
                .to_owned()
                + &drawn(&chosen, runs.len()),
        legend: legend(&chosen),
        svg,
    }))
}

/// Bars of parts, one above the other, a bar a run.
fn bars(
    chosen: &[&Kept],
    unit: Axis<'_>,
    parts: &dyn Fn(&RunReport) -> Vec<f64>,
    limit: &dyn Fn(&RunReport) -> Option<f64>,
) -> anyhow::Result<String> {
    let totals = chosen.iter().map(|kept| parts(&kept.run).iter().sum::<f64>());
    let limits = chosen.iter().filter_map(|kept| limit(&kept.run));
    // A goal far above everything would press the bars flat.
    let most = up_to(totals).end;
    let y = 0.0..limits.filter(|limit| *limit < most * 3.0).fold(most, f64::max) * 1.02;
    let top = y.end;
    let x = -0.5..chosen.len() as f64 - 0.5;
    picture(340, |area| {
        let whole = |value: f64| match (value - value.round()).abs() < 1e-6 {
            true => format!("{:.0}", value + 1.0),
            false => String::new(),
        };
        let mut chart = chart(area, (x, Axis { name: "run", value: &whole }), (y, unit))?;
        for (index, kept) in chosen.iter().enumerate() {
            let (left, right) = (index as f64 - 0.35, index as f64 + 0.35);
            let mut from = 0.0;
            for (part, value) in parts(&kept.run).into_iter().enumerate() {
                let bar =
                    Rectangle::new([(left, from), (right, from + value)], colour(part).filled());
                chart.draw_series([bar]).map_err(failed)?;
                from += value;
            }
            if let Some(limit) = limit(&kept.run).filter(|limit| *limit <= top) {
                let (left, right) = (index as f64 - 0.45, index as f64 + 0.45);
                let line =
                    PathElement::new(vec![(left, limit), (right, limit)], INK.stroke_width(2));
                chart.draw_series([line]).map_err(failed)?;
            }
        }
        Ok(())
    })
}

/// Which bar is which run, in words.
fn numbered(chosen: &[&Kept]) -> String {
    let names = chosen.iter().enumerate();
    let names: Vec<_> =
        names.map(|(index, kept)| format!("{}: {}", index + 1, name(kept, chosen))).collect();
    names.join("; ")
}

/// Pages sent for the first time, sent again whole or packed, and as changed lines, over the least.
fn causes(run: &RunReport) -> Vec<f64> {
    let (Some(m), Some(o)) = (run.last(), &run.optimality) else { return Vec::new() };
    let least = o.bytes_min.max(1) as f64;
    let all = o.bytes_ratio;
    let changed = (m.contents.delta_pages * PAGE_BYTES) as f64 / least;
    let first = all.min(1.0);
    vec![first, (all - first - changed).max(0.0), changed.min(all - first)]
}

fn bytes_by_cause(runs: &[Kept]) -> anyhow::Result<Option<Plot>> {
    let chosen = some(runs, BARS, |kept| kept.run.migrated && kept.run.optimality.is_some());
    if chosen.is_empty() {
        return Ok(None);
    }
    let unit = Axis { name: "page data over the least", value: &|v| format!("{v:.1} x") };
    let svg = bars(&chosen, unit, &causes, &|_| Some(1.0))?;
    let names = ["first copy", "sent again", "sent again as changed lines"];
    Ok(Some(Plot {
        title: "What was sent, over the least that could have been",
        about: format!(
            "The line at 1 is every page that holds something, once: the least of a sender that \
             knows the future. Runs: {}.",
            numbered(&chosen)
        ),
        legend: names.iter().enumerate().map(|(i, name)| (i, (*name).to_owned())).collect(),
        svg,
    }))
}

fn latency(runs: &[Kept]) -> anyhow::Result<Option<Plot>> {
    let points = |kept: &Kept| kept.run.guest.as_ref().map_or(Vec::new(), |g| g.latency.clone());
    let chosen = some(runs, 3, |kept| !points(kept).is_empty());
    if chosen.is_empty() {
        return Ok(None);
    }
    // Each further nine is as far from the one before.
    let at = |percentile: f64| match percentile {
        p if p >= 100.0 => 5.0,
        p => -((100.0 - p) / 100.0).log10(),
    };
    let label = |value: f64| match value {
        v if (v - 1.0).abs() < 0.01 => "90 %".to_owned(),
        v if (v - 2.0).abs() < 0.01 => "99 %".to_owned(),
        v if (v - 3.0).abs() < 0.01 => "99.9 %".to_owned(),
        v if (v - 4.0).abs() < 0.01 => "99.99 %".to_owned(),
        v if (v - 5.0).abs() < 0.01 => "longest".to_owned(),
        _ => String::new(),
    };
    let all = || chosen.iter().flat_map(|kept| points(kept));
    let y = decades(all().flat_map(|p| [p.before_us, p.during_us]));
    let mut legend = Vec::new();
    let svg = picture(340, |area| {
        let mut chart = chart(
            area,
            (0.0..5.2, Axis { name: "percentile of records", value: &label }),
            (y.log_scale().base(2.0), Axis { name: "time of a record", value: &microseconds }),
        )?;
        for (index, kept) in chosen.iter().enumerate() {
            for (offset, which) in ["before", "during"].into_iter().enumerate() {
                let number = index * 2 + offset;
                let value = |p: &migrate_core::report::LatencyPoint| match offset {
                    0 => p.before_us,
                    _ => p.during_us,
                };
                let points = points(kept);
                let curve = points.iter().map(|p| (at(p.percentile), value(p).max(1e-3)));
                let line = LineSeries::new(curve, colour(number).stroke_width(2));
                chart.draw_series(line).map_err(failed)?;
                legend.push((number, format!("{which}: {}", name(kept, &chosen))));
            }
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        title: "How long a record took",
        about: "Time to write one record, before the migration and during it.".to_owned(),
        legend,
        svg,
    }))
}

fn downtime_by_parts(runs: &[Kept]) -> anyhow::Result<Option<Plot>> {
    let stunned = |kept: &Kept| kept.run.migrated && kept.run.last().is_some();
    let chosen = some(runs, BARS, stunned);
    if chosen.is_empty() {
        return Ok(None);
    }
    let downtime = |run: &RunReport| run.last().map_or(Downtime::default(), |m| m.downtime.clone());
    let parts = |run: &RunReport| {
        let d = downtime(run);
        vec![d.pause_ms, d.harvest_ms, d.send_ms, d.state_ms, d.resume_ms]
    };
    let goal = |run: &RunReport| run.last().map(|m| m.downtime_goal_ms);
    let svg = bars(&chosen, Axis { name: "downtime", value: &time }, &parts, &goal)?;
    let names = [
        "pausing",
        "last look for written pages",
        "sending the last pages",
        "device state, and the destination's word",
        "handover and first instruction there",
    ];
    Ok(Some(Plot {
        title: "Downtime by its parts",
        about: format!(
            "Without the proof. A black line is the goal, where it is near. Runs: {}.",
            numbered(&chosen)
        ),
        legend: names.iter().enumerate().map(|(i, name)| (i, (*name).to_owned())).collect(),
        svg,
    }))
}

/// The share at which SDPS holds the dirty rate, in the white paper, and its two workloads.
const PAPER: [(f64, f64, &str); 2] = [(1.0, 0.914, "paper: 38 x"), (3.565, 0.914, "paper: 5.5 x")];

/// How often as fast a link four times as fast is, by the closed form.
fn gain(r: f64, beta: f64) -> f64 {
    closed_form::time(1.0, 1.0, r, beta) / closed_form::time(1.0, 4.0, r, beta)
}

fn phase(runs: &[Kept]) -> anyhow::Result<Option<Plot>> {
    let point = |kept: &Kept| {
        let m = kept.run.last()?;
        Some((kept.case.r?, m.measured_beta()?))
    };
    let points: Vec<(f64, f64)> = runs.iter().filter_map(point).collect();
    if points.is_empty() {
        return Ok(None);
    }
    const STEPS: (usize, usize) = (80, 40);
    let x: Range<f64> = 0.0..4.0f64.max(points.iter().map(|(r, _)| *r).fold(0.0, f64::max) * 1.05);
    let y: Range<f64> = 0.5..1.0;
    let (wide, high) = (x.end / STEPS.0 as f64, 0.5 / STEPS.1 as f64);
    let svg = picture(400, |area| {
        let mut chart = chart(
            area,
            (
                x,
                Axis { name: "dirty rate over the slow link's rate (r)", value: &|v| number(v, 1) },
            ),
            (y, Axis { name: "share that SDPS leaves (beta)", value: &|v| number(v, 2) }),
        )?;
        let cells = (0..STEPS.0).flat_map(|i| (0..STEPS.1).map(move |j| (i, j)));
        let cells = cells.map(|(i, j)| {
            let (r, beta) = (i as f64 * wide, 0.5 + j as f64 * high);
            // 4 is what the link gives; 40 and more is as dark as it gets.
            let much = (gain(r + wide / 2.0, beta + high / 2.0) / 4.0).log10().clamp(0.0, 1.0);
            let corners = [(r, beta), (r + wide, beta + high)];
            Rectangle::new(corners, COLOURS[4].mix(much).filled())
        });
        chart.draw_series(cells).map_err(failed)?;
        let font = ("sans-serif", 13).into_font().color(&INK);
        for (r, beta, text) in PAPER {
            chart.draw_series([Cross::new((r, beta), 6, INK.stroke_width(2))]).map_err(failed)?;
            chart
                .draw_series([Text::new(text, (r + wide, beta + 3.0 * high), font.clone())])
                .map_err(failed)?;
        }
        let own = points.iter().map(|at| Circle::new(*at, 4, COLOURS[0].filled()));
        chart.draw_series(own).map_err(failed)?;
        Ok(())
    })?;
    Ok(Some(Plot {
        title: "Where a link four times as fast gains more than four times",
        about: "By the closed form of rounds under SDPS; a crossed mark is the white paper's, dots are \
                these runs at their rate and the share that was measured."
            .to_owned(),
        legend: vec![(4, "gains 40 times and more; clear: 4 times".into()), (0, "these runs".into())],
        svg,
    }))
}

/// What was left to send at a time, between the ends of rounds as on a straight line.
fn left_at(points: &[(f64, f64)], time: f64) -> f64 {
    let after = points.partition_point(|(at, _)| *at <= time);
    match (points.get(after.wrapping_sub(1)), points.get(after)) {
        (Some((t0, l0)), Some((t1, l1))) if t1 > t0 => l0 + (l1 - l0) * (time - t0) / (t1 - t0),
        (Some(_), None) => 0.0,
        (Some((_, left)), _) | (None, Some((_, left))) => *left,
        (None, None) => 0.0,
    }
}

/// Two runs alone: over each other, and their difference below.
fn over_each_other(runs: &[Kept]) -> anyhow::Result<Option<Plot>> {
    let [a, b] = runs else { return Ok(None) };
    let (Some(of_a), Some(of_b)) = (a.run.last(), b.run.last()) else { return Ok(None) };
    let (points_a, points_b) = (left(of_a), left(of_b));
    if points_a.len() < 2 || points_b.len() < 2 {
        return Ok(None);
    }
    let x = up_to([of_a.migration_ms / 1e3, of_b.migration_ms / 1e3].into_iter());
    let end = x.end;
    let y = up_to(points_a.iter().chain(&points_b).map(|(_, left)| *left));
    let steps = (0..=200).map(|step| f64::from(step) / 200.0 * end);
    let difference: Vec<(f64, f64)> =
        steps.map(|at| (at, left_at(&points_b, at) - left_at(&points_a, at))).collect();
    let far = difference.iter().map(|(_, by)| by.abs()).fold(1.0, f64::max) * 1.05;
    let svg = picture(480, |area| {
        let (above, below) = area.split_vertically(290);
        let since = "since the first page";
        let mut upper = chart(
            &above,
            (x.clone(), Axis { name: since, value: &seconds }),
            (y, Axis { name: "left to send", value: &megabytes }),
        )?;
        for (number, points) in [&points_a, &points_b].into_iter().enumerate() {
            let line = LineSeries::new(points.iter().copied(), colour(number).stroke_width(2));
            upper.draw_series(line).map_err(failed)?;
        }
        let mut lower = canvas::chart(
            &below,
            (x, Axis { name: since, value: &seconds }),
            (-far..far, Axis { name: "second less first", value: &megabytes }),
        )?;
        let line = LineSeries::new(difference.iter().copied(), colour(2).stroke_width(2));
        lower.draw_series(line).map_err(failed)?;
        Ok(())
    })?;
    let pair = [a, b];
    Ok(Some(Plot {
        title: "Two runs over each other",
        about: "What was left to send, and by how much more it was in the second run.".to_owned(),
        legend: legend(&pair).into_iter().chain([(2, "difference".to_owned())]).collect(),
        svg,
    }))
}
