//! `ci namespaces`: one migration between two hosts over a shaped link, proven, its efficiency
//! measured against the rate the link was shaped to.

use std::io::Write;
use std::process::Stdio;

use anyhow::Context;
use clap::Args as ClapArgs;
use workload::exit;
use workload::units::{Bytes, Rate};

use crate::hosts::{Hosts, LinkShape};
use crate::programs::{beside, receiver, report_of};

#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  cargo run --release -p ci -- namespaces --link 1gbit --memory 512MiB"
)]
pub(crate) struct Args {
    /// What the link is shaped to
    #[arg(long, default_value = "1gbit")]
    link: Rate,
    /// The guest's memory
    #[arg(long, default_value = "512MiB")]
    memory: Bytes,
    /// Bytes of records the guest writes per second
    #[arg(long, default_value = "60MB/s")]
    rate: Rate,
    /// Least share of the shaped rate that must carry page data
    #[arg(long, default_value_t = 0.93)]
    efficiency: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let program = beside("vmigrate")?;
    let hosts = Hosts::new(LinkShape::ethernet(args.link))?;
    let (mut receiver, address) = receiver(&hosts, &[])?;
    let output = hosts
        .on(0, &program)
        .args(["send", "--give-up-after", "60s", "--insecure", "--json", "--to", &address])
        .args(["--memory", &args.memory.0.to_string(), "--rate", &format!("{}B/s", args.rate.0)])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run the sender")?;
    let report = report_of(&output)?;
    let _ = receiver.0.wait();
    let attempt = report.last().context("the sender tried nothing")?;
    // First rounds only: the last ones are shorter than the queues on the way are deep.
    let first = attempt.rounds.first().context("no round was sent")?;
    let whole = attempt.page_bytes as f64 / (attempt.migration_ms / 1e3);
    let efficiency = whole / args.link.0 as f64;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} over {} in {:.3} s, downtime {:.1} ms: {:.1} MB/s of pages from the first page to resume, \
         {:.1} % of the link (first round {:.1} %; at least {:.1} % wanted): {}",
        args.memory,
        args.link.as_bits(),
        attempt.migration_ms / 1e3,
        attempt.downtime.total_ms,
        whole / 1e6,
        efficiency * 100.0,
        first.send_rate / args.link.0 as f64 * 100.0,
        args.efficiency * 100.0,
        report.verdict,
    )?;
    let code = output.status.code().map_or(exit::FAILED, |code| code as u8);
    if code == exit::PROVEN && efficiency < args.efficiency {
        anyhow::bail!("too little of the link carried page data");
    }
    Ok(code)
}
