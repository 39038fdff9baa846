//! `workload trace`: a hypervisor's dirty bitmaps become a trace.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use workload::say;
use workload::trace::Trace;
use workload::units::parse_duration;

#[derive(ClapArgs)]
#[command(
    after_help = "Bitmaps as KVM_GET_DIRTY_LOG fills them, one after the other in one file:\n\
    ceil(pages / 64) little-endian words of 64 bits each, bit p mod 64 of word p / 64 for page p.\n\n\
    Example:\n  \
    workload trace --bitmaps dirty.log --pages 65536 --interval 100ms --output vm.trace\n  \
    workload run --workload trace,file=vm.trace --memory 256MiB"
)]
pub(crate) struct Args {
    /// File of dirty bitmaps
    #[arg(long, value_name = "FILE")]
    bitmaps: PathBuf,
    /// Pages of 4 KiB that the VM has
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pages: u64,
    /// Time between two bitmaps
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    interval: Duration,
    /// Trace to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(!args.interval.is_zero(), "--interval must be more than zero");
    let interval_ns = u64::try_from(args.interval.as_nanos())?;
    let trace = Trace::from_bitmaps(&args.bitmaps, args.pages, interval_ns)?;
    anyhow::ensure!(
        trace.intervals.iter().any(|runs| !runs.is_empty()),
        "{} has no dirty page in it: there is nothing to replay",
        args.bitmaps.display()
    );
    trace.write(&args.output)?;
    say!(
        "workload: {} intervals, {:.0} dirty pages/s, in {}",
        trace.intervals.len(),
        trace.pages_per_s(),
        args.output.display()
    );
    Ok(())
}
