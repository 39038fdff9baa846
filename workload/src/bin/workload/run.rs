//! `workload run`: one guest on this machine, from fill to final summary.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use serde::Serialize;
use workload::heartbeat::{self, Heart};
use workload::interrupt;
use workload::journal::{JournalWriter, Motion, RunId};
use workload::machine;
use workload::region::Region;
use workload::spec::{ContentKind, PatternKind, WorkloadSpec};
use workload::stats::{Latency, Stats};
use workload::units::{Bytes, Rate, parse_duration};
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    workload run --memory 512MiB --pattern stream --rate 200MB/s --writers 2 --seed 7 \\\n      \
    --duration 30s --file region --journal journal\n  \
    verifier scan region --journal journal")]
pub(crate) struct Args {
    /// Size of the region
    #[arg(long, default_value = "512MiB")]
    memory: Bytes,
    /// Order of writing (see `workload list`)
    #[arg(long, default_value = "stream")]
    pattern: PatternKind,
    /// Bytes of records written per second by all writers together, or `unlimited`
    #[arg(long, default_value = "100MB/s")]
    rate: Demand,
    /// Writers, one thread each
    #[arg(long, default_value_t = 1)]
    writers: u32,
    /// Bytes per record: a power of two from 64 to 2MiB
    #[arg(long, default_value = "4KiB")]
    record: Bytes,
    /// Determines every byte that is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after this long; without it, at Ctrl-C
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Keep the region in this file (on tmpfs for memory speed) instead of anonymous memory
    #[arg(long)]
    file: Option<PathBuf>,
    /// Write heartbeats to this file or pipe; `verifier scan` needs them
    #[arg(long)]
    journal: Option<PathBuf>,
    /// Print the summary as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// How fast to write.
#[derive(Clone, Copy)]
enum Demand {
    Limited(Rate),
    Unlimited,
}

impl std::str::FromStr for Demand {
    type Err = workload::units::UnitError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "unlimited" => Ok(Self::Unlimited),
            rate => rate.parse().map(Self::Limited),
        }
    }
}

/// The summary, as printed with `--json`. Rates in bytes per second, times in seconds.
#[derive(Serialize)]
struct Summary {
    schema: u32,
    run: String,
    spec: WorkloadSpec,
    seconds: f64,
    rate_wanted: Option<Rate>,
    rate_achieved: f64,
    operations: u64,
    late: u64,
    missed: u64,
    watermarks: Vec<u64>,
    service: Latency,
    from_intended: Latency,
}

/// Runs freely until told to stop.
struct ThreadVcpu {
    stop: Arc<AtomicBool>,
}

impl Vcpu for ThreadVcpu {
    fn checkpoint(&mut self) -> Checkpoint {
        match self.stop.load(Ordering::Relaxed) {
            true => Checkpoint::Stop,
            false => Checkpoint::Go { held: Duration::ZERO },
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let spec = WorkloadSpec {
        seed: args.seed,
        memory: args.memory,
        writers: args.writers,
        record: args.record,
        pattern: args.pattern,
        content: ContentKind::Random,
    };
    let workload = Arc::new(spec.resolve()?);
    machine::require_memory(spec.memory)?;
    interrupt::install().context("cannot watch for Ctrl-C")?;

    let region = Arc::new(match &args.file {
        Some(path) => Region::create(path, spec.memory)?,
        None => Region::anonymous(spec.memory)?,
    });
    let run_id = RunId::random();
    let mut journal = match &args.journal {
        Some(path) => Some(JournalWriter::create(path, run_id, &spec)?),
        None => None,
    };
    eprintln!("workload: filling {} with seed {}", spec.memory, spec.seed);
    region.fill(&workload, |_| {});

    let watermarks = Watermarks::new(&vec![0; spec.writers as usize]);
    if let Some(journal) = &mut journal {
        heartbeat::beat(&watermarks, 0, Motion::Running, journal)?;
    }
    let heart = match journal {
        Some(journal) => Some(Heart::start(watermarks.clone(), 0, journal)?),
        None => None,
    };
    let start = Instant::now();
    let stats = write_until_done(args, &workload, &region, &watermarks)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(heart) = heart {
        let mut journal = heart.stop().context("the journal is not complete")?;
        heartbeat::beat(&watermarks, 0, Motion::AtRest, &mut journal)?;
    }
    let summary = Summary {
        schema: 1,
        run: run_id.to_string(),
        seconds,
        rate_wanted: match args.rate {
            Demand::Limited(rate) => Some(rate),
            Demand::Unlimited => None,
        },
        rate_achieved: (stats.operations * spec.record.0) as f64 / seconds,
        operations: stats.operations,
        late: stats.late,
        missed: stats.missed,
        watermarks: watermarks.read(),
        service: stats.service(),
        from_intended: stats.from_intended(),
        spec,
    };
    print(args, &summary)
}

fn write_until_done(
    args: &Args,
    workload: &Arc<workload::spec::Workload>,
    region: &Arc<Region>,
    watermarks: &Watermarks,
) -> anyhow::Result<Stats> {
    let pace = match args.rate {
        Demand::Limited(rate) => Pace::BytesPerSecond(rate.0 as f64 / f64::from(args.writers)),
        Demand::Unlimited => Pace::Unlimited,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..args.writers as usize)
        .map(|index| {
            let mut writer =
                Writer::new(workload.clone(), region.clone(), watermarks.clone(), index);
            let mut vcpu = ThreadVcpu { stop: stop.clone() };
            std::thread::Builder::new()
                .name(format!("writer-{index}"))
                .spawn(move || writer.run(pace, &mut vcpu, u64::MAX))
        })
        .collect::<Result<_, _>>()
        .context("cannot start the writers")?;

    let start = Instant::now();
    let record = args.record.0;
    let (mut shown, mut shown_bytes) = (start, 0);
    let step = if std::io::stderr().is_terminal() { 1 } else { 5 };
    while interrupt::count() == 0 && args.duration.is_none_or(|d| start.elapsed() < d) {
        let rest = args.duration.map_or(Duration::MAX, |d| d.saturating_sub(start.elapsed()));
        std::thread::sleep(rest.min(Duration::from_millis(50)));
        if shown.elapsed() >= Duration::from_secs(step) {
            let bytes = watermarks.read().iter().sum::<u64>() * record;
            let rate = (bytes - shown_bytes) as f64 / shown.elapsed().as_secs_f64();
            eprintln!(
                "workload: {:>4.0} s  {:>10} written  {:>12}",
                start.elapsed().as_secs_f64(),
                Bytes(bytes),
                Rate(rate as u64)
            );
            (shown, shown_bytes) = (Instant::now(), bytes);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut stats = Stats::default();
    for thread in threads {
        let one = thread.join().map_err(|_| anyhow::anyhow!("a writer died"))?;
        stats.merge(&one);
    }
    Ok(stats)
}

fn print(args: &Args, summary: &Summary) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, summary)?;
        writeln!(out)?;
        return Ok(());
    }
    let us = |ns: u64| format!("{:.1} us", ns as f64 / 1e3);
    let wanted = summary.rate_wanted.map_or("unlimited".to_owned(), |r| r.to_string());
    writeln!(
        out,
        "{} operations in {:.2} s: {} written per second, {wanted} wanted",
        summary.operations,
        summary.seconds,
        Rate(summary.rate_achieved as u64),
    )?;
    writeln!(out, "{} late (caught up), {} missed", summary.late, summary.missed)?;
    for (name, l) in
        [("service", &summary.service), ("from intended start", &summary.from_intended)]
    {
        writeln!(
            out,
            "{name:<20} p50 {:>10}  p99 {:>10}  p99.9 {:>10}  max {:>10}",
            us(l.p50_ns),
            us(l.p99_ns),
            us(l.p999_ns),
            us(l.max_ns)
        )?;
    }
    Ok(())
}
