//! `workload list` and `workload show`: what a person needs to choose.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use workload::content::CONTENTS;
use workload::machine::MemorySize;
use workload::profile::{PATTERNS, Profile, info};
use workload::rate::{Demand, Unit};
use workload::say;
use workload::spec::WorkloadSpec;
use workload::unique;
use workload::units::Bytes;

use crate::guest;
use workload::line::PageFormat;

/// Times of the curve.
const TIMES_MS: [u64; 9] = [10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000];
/// Width of the curve's longest bar.
const BAR: usize = 36;

#[derive(Args)]
#[command(after_help = "Examples:\n  workload show fileio\n  \
    workload show zipf,theta=1.2,content=text --memory 4GiB --rate 500MB/s")]
pub(crate) struct ShowArgs {
    /// A name with settings, or a TOML file
    #[arg(value_name = "NAME")]
    workload: String,
    /// Memory that the curve is of
    #[arg(long, default_value = "1GiB")]
    memory: MemorySize,
    /// Rate that the curve is of
    #[arg(long, default_value = "200MB/s")]
    rate: Demand,
    /// Writers that share the memory and the rate
    #[arg(long, default_value_t = 1)]
    writers: u32,
    /// Seed of the run
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn list() -> anyhow::Result<()> {
    say::document(catalogue)?;
    Ok(())
}

fn catalogue(out: &mut say::Out) -> std::io::Result<()> {
    writeln!(out, "Workloads (see `workload show NAME`):")?;
    for info in &PATTERNS {
        writeln!(out, "  {:<13} {}", info.name, info.summary)?;
    }
    writeln!(out, "\nContent of the records (content=...):")?;
    for (name, what) in CONTENTS {
        writeln!(out, "  {name:<13} {what}")?;
    }
    writeln!(
        out,
        "\nSettings every workload has:\n  \
         record=4KiB   bytes per record, a power of two from 64 to 2MiB\n  \
         content=NAME  what the records hold\n  \
         on=1s,off=2s  bursts and pauses\n\n\
         Example: workload run --workload zipf,theta=0.99,record=4KiB,content=text\n\
         The same in a file, --workload w.toml:\n  \
         pattern = \"zipf\"\n  theta = 0.99\n  record = \"4KiB\"\n  content = \"text\""
    )
}

pub(crate) fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let mut text = Vec::new();
    describe(args, &mut text)?;
    say::document(|out| out.write_all(&text))?;
    Ok(())
}

fn describe(args: &ShowArgs, out: &mut impl Write) -> anyhow::Result<()> {
    // A name alone that needs settings is explained all the same.
    let profile = match (Profile::from_argument(&args.workload), info(&args.workload)) {
        (Ok(profile), _) => Some(profile),
        (Err(_), Some(_)) => None,
        (Err(e), None) => return Err(e.into()),
    };
    let about = profile.as_ref().map(|p| p.pattern.info()).or_else(|| info(&args.workload));
    let about = about.unwrap_or_else(|| unreachable!("one of them is there"));
    writeln!(out, "{}: {}\n\n{}\n", about.name, about.summary, about.choose)?;
    writeln!(out, "  {:<10} {:<12} meaning", "setting", "default")?;
    for (name, default, meaning) in about.settings {
        match default.len() > 12 {
            true => writeln!(out, "  {name:<10} {default}\n  {:<23} {meaning}", "")?,
            false => writeln!(out, "  {name:<10} {default:<12} {meaning}")?,
        }
    }
    writeln!(out, "  {:<10} {:<12} bytes per record", "record", about.record.exact())?;
    writeln!(out, "  {:<10} {:<12} what the records hold", "content", "random")?;
    let Some(profile) = profile else { return Ok(()) };
    writeln!(out, "\n{profile}")?;

    let spec = WorkloadSpec {
        format: PageFormat::fresh(),
        seed: args.seed,
        memory: args.memory.resolve().map_err(anyhow::Error::msg)?,
        writers: args.writers,
        workload: profile,
    };
    let workload = spec.resolve()?;
    let Some(plan) = guest::plan(&workload, &args.rate)? else {
        anyhow::bail!("a curve over time needs a rate, not 'unlimited'");
    };
    let times = TIMES_MS.map(Duration::from_millis);
    let points = unique::curve(&workload, &plan, &times);
    let pages = spec.memory.0 / workload::PAGE_BYTES;
    let Demand::Scheduled { unit, text, .. } = &args.rate else { return Ok(()) };
    let unit = if *unit == Unit::Bytes { "records at" } else { "pages at" };
    writeln!(
        out,
        "\nDistinct pages dirtied within t: U(t), of {} ({pages} pages), {unit} {text}",
        spec.memory
    )?;
    for (time, pages_dirty) in times.iter().zip(&points) {
        let share = *pages_dirty as f64 / pages as f64;
        writeln!(
            out,
            "  {:>7}  {pages_dirty:>10} pages  {:>10}  {:>5.1} %  {}",
            format!("{} s", time.as_secs_f64()),
            Bytes(pages_dirty * workload::PAGE_BYTES),
            share * 100.0,
            "#".repeat((share * BAR as f64).round() as usize)
        )?;
    }
    if points.len() < times.len() {
        writeln!(out, "  (longer times are more than {} operations)", unique::OPERATIONS_MAX)?;
    }
    Ok(())
}
