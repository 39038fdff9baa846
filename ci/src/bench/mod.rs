//! `ci bench`: figures beside their peers or limits, taken side by side in one run.

mod convergence;
mod engine;
mod memory;
mod sys;

use std::io::Write;

use clap::{Args as ClapArgs, ValueEnum};
use workload::exit;

#[derive(ClapArgs)]
#[command(after_help = "Example:\n  ci/bench memory")]
pub(crate) struct Args {
    /// What to measure
    what: What,
    /// Shorter, and less exact
    #[arg(long)]
    quick: bool,
}

impl Args {
    /// Whether network namespaces are its business.
    pub(crate) fn makes_hosts(&self) -> bool {
        matches!(self.what, What::Engine)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Stamping, scanning, tracking, rates, hashing, replay: against the memory of this machine
    Memory,
    /// The engine against iperf3, QEMU and its own policies between two hosts
    Engine,
    /// Policies against each other on every pattern and dirty rate, simulated
    Convergence,
    /// What each number that `adaptive` is made of does on the same traces
    Constants,
}

/// One line of a table: a figure, what it is held against, and the limit.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) figure: String,
    pub(crate) peer: String,
    /// What is judged, mostly figure over peer; `None` where the machine lacks what it takes.
    pub(crate) value: Option<f64>,
    pub(crate) limit: Limit,
}

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtLeast(f64),
    AtMost(f64),
    /// A figure that others are read beside.
    None,
}

impl Row {
    fn passes(&self) -> bool {
        match (self.value, self.limit) {
            (None, _) | (_, Limit::None) => true,
            (Some(value), Limit::AtLeast(limit)) => value >= limit,
            (Some(value), Limit::AtMost(limit)) => value <= limit,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let rows = match args.what {
        What::Convergence => return convergence::run(args.quick),
        What::Constants => return convergence::constants(args.quick),
        What::Memory => memory::measure(args.quick)?,
        What::Engine => engine::measure(args.quick)?,
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<38} {:>13} {:>13} {:>7} {:>8}", "", "measured", "against", "value", "limit")?;
    for row in &rows {
        let (value, limit) = (
            row.value.map_or("-".to_owned(), |v| format!("{v:.3}")),
            match row.limit {
                Limit::AtLeast(limit) => format!(">= {}", (limit * 100.0).round() / 100.0),
                Limit::AtMost(limit) => format!("<= {limit}"),
                Limit::None => "-".to_owned(),
            },
        );
        let verdict = match (row.value, row.passes()) {
            (None, _) => "SKIPPED",
            _ if matches!(row.limit, Limit::None) => "beside",
            (_, true) => "pass",
            (_, false) => "SHORT",
        };
        writeln!(
            out,
            "{:<38} {:>13} {:>13} {value:>7} {limit:>8}  {verdict}",
            row.name, row.figure, row.peer
        )?;
    }
    let judged = rows.iter().filter(|row| !matches!(row.limit, Limit::None)).count();
    let short = rows.iter().filter(|row| !row.passes()).count();
    writeln!(out, "{} of {} rows pass", judged - short, judged)?;
    let code = if short == 0 { exit::PROVEN } else { exit::WRONG };
    drop(out);
    match args.what {
        // What a real link cannot show in minutes is simulated at full size.
        What::Engine => Ok(code.max(convergence::run(args.quick)?)),
        _ => Ok(code),
    }
}

/// The middle of several measurements.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
