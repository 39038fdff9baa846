//! `workload run`: one guest on this machine, from fill to final summary.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use workload::beat::writer::JournalWriter;
use workload::dirty::DirtyPages;
use workload::fill::fill;
use workload::heartbeat::{self, End, Heart};
use workload::hiccup::Watch;
use workload::line::PageFormat;
use workload::machine::{self, MemorySize};
use workload::outlet::OutletAddress;
use workload::profile::Profile;
use workload::provenance::Provenance;
use workload::rate::{Demand, Unit};
use workload::region::Region;
use workload::report::Sample;
use workload::run::RunId;
use workload::say;
use workload::schedule::CatchUp;
use workload::spec::WorkloadSpec;
use workload::stamp::IsaChoice;
use workload::trace::TraceWriter;
use workload::units::{Bytes, Rate, parse_duration};
use workload::writer::{BeforeWrite, Watermarks};
use workload::{exit, interrupt};

use crate::control::{Control, ControlAddress};
use crate::guest::{self, Guest};
use crate::report::{WhatRan, Window, print, summary};

/// How often the watermarks are looked at, for the timeline and for commands.
const SAMPLE: Duration = Duration::from_millis(100);
/// Length of the windows in which the kernel's dirty pages are counted.
const WINDOW: Duration = Duration::from_secs(1);

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    workload run --memory 512MiB --workload stream --rate 200MB/s --writers 2 --seed 7 \\\n      \
    --duration 30s --file region --heartbeat journal\n  \
    verifier scan region --journal journal\n\n  \
    workload run --workload zipf,theta=0.99,content=text --rate 100MB/s..1GB/s/10s\n  \
    workload run --workload touch --memory 50% --rate 20000pages/s --heartbeat udp:10.0.0.1:7007\n\n\
    In a VM, as init: workload.memory=50% workload.rate=100MB/s on the kernel command line;\n\
    heartbeats and commands (pause, scan, resume, rate R, stop) then go over /dev/ttyS0.")]
pub(crate) struct Args {
    /// What to write: a name with settings, or a TOML file (see `workload list`)
    #[arg(long, alias = "pattern", value_name = "NAME|FILE", default_value = "stream",
          value_parser = Profile::from_argument)]
    workload: Profile,
    /// Size of the region, in bytes or as a share of the available memory (50%)
    #[arg(long, default_value = "512MiB", value_name = "SIZE|SHARE")]
    memory: MemorySize,
    /// How fast all writers together write: 100MB/s, 20000pages/s, a ramp 100MB/s..1GB/s/10s,
    /// steps 100MB/s/5s,1GB/s/5s, or unlimited
    #[arg(long, default_value = "100MB/s")]
    rate: Demand,
    /// Work that is late: skip, bounded[:TIME] (made up for while at most so late), unbounded
    #[arg(long, default_value = "bounded")]
    catch_up: CatchUp,
    /// Writers, one thread each
    #[arg(long, default_value_t = 1)]
    writers: u32,
    /// Bytes per record: a power of two from 64 to 2MiB [default: the workload's]
    #[arg(long)]
    record: Option<Bytes>,
    /// Determines, with the run, every byte that is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The run that lines name, 16 hexadecimal digits, to write the very same bytes again
    /// [default: drawn anew]
    #[arg(long, value_name = "ID")]
    run: Option<RunId>,
    /// What lines are computed with: auto, avx512, avx2 or portable. A VM that moves between
    /// processors needs one that all of them have
    #[arg(long, value_name = "NAME", default_value_t)]
    isa: IsaChoice,
    /// Stop after this long; without it, at Ctrl-C
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Keep the region in this file (on tmpfs for memory speed) instead of anonymous memory
    #[arg(long)]
    file: Option<PathBuf>,
    /// Use huge pages, which must have been reserved
    #[arg(long, conflicts_with = "file")]
    huge_pages: bool,
    /// Lock the region into memory
    #[arg(long)]
    lock: bool,
    /// Where heartbeats go: FILE, udp:HOST:PORT, unix:PATH, stream:PATH, vsock:CID:PORT (the host is
    /// CID 2) or serial:TTY; `verifier` needs them
    #[arg(long, alias = "journal", value_name = "WHERE")]
    heartbeat: Option<OutletAddress>,
    /// Time between two heartbeats, which writers say in turn, each at least once a second
    /// [default: 5ms, less for more than 200 writers]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    heartbeat_interval: Option<Duration>,
    /// Take commands from stdin, a named pipe or serial:TTY
    #[arg(long, value_name = "WHERE")]
    control: Option<ControlAddress>,
    /// Compare each record with what it must hold before it is overwritten
    #[arg(long)]
    check_before_write: bool,
    /// Count distinct dirty pages by the kernel's own information (implied by a rate in pages/s)
    #[arg(long)]
    count_pages: bool,
    /// Record which pages get dirty, for `--workload trace,file=FILE`
    #[arg(long, value_name = "FILE")]
    record_trace: Option<PathBuf>,
    /// Interval of the recorded trace
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    trace_interval: Duration,
    /// Print the summary as JSON on standard output
    #[arg(long)]
    json: bool,
}

impl Args {
    fn spec(&self) -> anyhow::Result<WorkloadSpec> {
        let mut profile = self.workload.clone();
        profile.record = self.record.unwrap_or(profile.record);
        let memory = self.memory.resolve().map_err(anyhow::Error::msg)?;
        let format = PageFormat::V2 { run: self.run.unwrap_or_else(RunId::fresh) };
        Ok(WorkloadSpec {
            format,
            seed: self.seed,
            memory,
            writers: self.writers,
            workload: profile,
        })
    }

    /// What is wrong beyond what the parser sees.
    fn check(&self) -> anyhow::Result<()> {
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(10));
        for (name, interval) in [
            ("--heartbeat-interval", self.heartbeat_interval.unwrap_or(least)),
            ("--trace-interval", self.trace_interval),
        ] {
            let fits = (least..=most).contains(&interval);
            anyhow::ensure!(fits, "{name} must be at least 1ms and at most 10s");
        }
        let turn = self.heartbeat_interval.map(|interval| interval.saturating_mul(self.writers));
        anyhow::ensure!(
            turn.is_none_or(|turn| turn <= heartbeat::TURN_MAX),
            "--heartbeat-interval: {} writers in turn are each heard at least once a second with {:?} \
             at most",
            self.writers,
            heartbeat::TURN_MAX / self.writers.max(1)
        );
        anyhow::ensure!(
            !(self.record_trace.is_some() && self.counts_pages()),
            "--record-trace and counting pages both take the kernel's dirty information; choose one"
        );
        Ok(())
    }

    fn counts_pages(&self) -> bool {
        self.count_pages || matches!(self.rate, Demand::Scheduled { unit: Unit::Pages, .. })
    }

    fn region(&self, memory: Bytes) -> anyhow::Result<Region> {
        let region = match &self.file {
            Some(path) => Region::create(path, memory)?,
            None if self.huge_pages => Region::huge(memory)?,
            None => Region::anonymous(memory)?,
        };
        if self.lock {
            region.lock()?;
        }
        Ok(region)
    }
}

/// Runs to the end; the exit code says whether the writers found memory right.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let provenance = Provenance::here("workload");
    args.check()?;
    args.isa.apply().map_err(anyhow::Error::msg).context("--isa")?;
    let spec = args.spec()?;
    let run_id = spec.run().unwrap_or_else(RunId::fresh);
    let workload = Arc::new(spec.resolve()?);
    let spec = workload.spec().clone();
    // Says what cannot be before memory is filled.
    let plan = guest::plan(&workload, &args.rate)?;
    machine::require_memory(spec.memory)?;
    interrupt::install().context("cannot watch for Ctrl-C")?;
    let mut control = args.control.as_ref().map(Control::open).transpose()?;

    let region = Arc::new(args.region(spec.memory)?);
    let journal = match &args.heartbeat {
        Some(address) => {
            let usual = heartbeat::interval(spec.writers);
            let interval = args.heartbeat_interval.unwrap_or(usual);
            Some(JournalWriter::start(address, &spec, interval)?)
        }
        None => None,
    };
    say!("workload: filling {} with seed {}: {}", spec.memory, spec.seed, spec.workload);
    fill(&region, &workload, |_| {});

    let before_write = match args.check_before_write {
        true => BeforeWrite::Check,
        false => BeforeWrite::Trust,
    };
    let mut pages = Pages::watch(args, &region)?;
    let watch = Watch::start().context("cannot watch for hiccups")?;
    let start = Instant::now();
    let watermarks = Watermarks::new(&vec![0; spec.writers as usize]);
    // It says where the writers stand before they start.
    let heart = journal.map(|journal| Heart::start(watermarks.clone(), 0, journal)).transpose()?;
    let (rate, catch_up) = (&args.rate, args.catch_up);
    let guest = Guest::start(
        workload.clone(),
        region,
        watermarks.clone(),
        rate,
        catch_up,
        before_write,
        heart,
    )?;
    let observed = observe(args, &guest, start, &mut control, &mut pages)?;
    let (stats, ended, heart) = guest.stop()?;
    let seconds = ended.duration_since(start).as_secs_f64();
    let felt = watch.stop();
    let (refused, incomplete) = match heart {
        Some(heart) => {
            let (refused, complete) = heart.stop(End::ByOwner);
            let incomplete = complete.err();
            (refused + incomplete.as_ref().map_or(0, |i| i.lost), incomplete)
        }
        None => (0, None),
    };
    let windows = pages.finish()?;
    let what =
        WhatRan { run: run_id, workload: &workload, rate: &args.rate, plan, seconds, provenance };
    let summary = summary(&what, &stats, felt, &observed, &windows, refused, watermarks.read());
    say::report("workload", |out| match args.json {
        true => {
            serde_json::to_writer(&mut *out, &summary)?;
            writeln!(out)
        }
        false => print(&summary, out),
    });
    if let Some(incomplete) = &incomplete {
        say!("workload: {incomplete}");
    }
    Ok(match incomplete {
        _ if stats.findings > 0 => exit::WRONG,
        Some(_) => exit::INCONCLUSIVE,
        None => exit::PROVEN,
    })
}

/// Watches the guest until it is over: samples for the timeline, commands, progress.
fn observe(
    args: &Args,
    guest: &Guest,
    start: Instant,
    control: &mut Option<Control>,
    pages: &mut Pages,
) -> anyhow::Result<Vec<Sample>> {
    let record = guest.workload.spec().workload.record.0;
    let mut line = Line::new(args);
    let mut samples = vec![Sample::default()];
    let mut next = start + SAMPLE;
    loop {
        let end = args.duration.map(|d| start + d);
        let wake = end.map_or(next, |end| next.min(end)).min(pages.next());
        std::thread::sleep(wake.saturating_duration_since(Instant::now()));
        pages.look(guest)?;
        let stop = control.as_mut().is_some_and(|control| control.obey(guest));
        let now = Instant::now();
        let over = stop || interrupt::count() > 0 || end.is_some_and(|end| now >= end);
        if now >= next || over {
            let operations: u64 = guest.watermarks.read().iter().sum();
            let seconds = start.elapsed().as_secs_f64();
            samples.push(Sample { seconds, bytes: operations * record });
            line.show(&samples);
            next = (next + SAMPLE).max(now);
        }
        if over {
            line.end();
            return Ok(samples);
        }
    }
}

/// What the kernel says about dirty pages, for the count or for a trace.
enum Pages {
    Unwatched,
    Counted { dirty: DirtyPages, next: Instant, windows: Vec<Window> },
    Recorded { dirty: DirtyPages, next: Instant, interval: Duration, trace: Box<TraceWriter> },
}

impl Pages {
    fn watch(args: &Args, region: &Arc<Region>) -> anyhow::Result<Self> {
        if !args.counts_pages() && args.record_trace.is_none() {
            return Ok(Self::Unwatched);
        }
        let dirty = DirtyPages::watch(region.clone()).context(
            "cannot ask the kernel for dirty pages (needs Linux 6.7, and no --file on a disk)",
        )?;
        Ok(match &args.record_trace {
            None => Self::Counted { dirty, next: Instant::now() + WINDOW, windows: Vec::new() },
            Some(path) => {
                let interval = args.trace_interval;
                let nanoseconds = u64::try_from(interval.as_nanos())?;
                let trace = TraceWriter::create(path, region.pages(), nanoseconds)?;
                let trace = Box::new(trace);
                Self::Recorded { dirty, next: Instant::now() + interval, interval, trace }
            }
        })
    }

    fn next(&self) -> Instant {
        match self {
            Self::Unwatched => Instant::now() + SAMPLE,
            Self::Counted { next, .. } | Self::Recorded { next, .. } => *next,
        }
    }

    fn look(&mut self, guest: &Guest) -> anyhow::Result<()> {
        if Instant::now() < self.next() {
            return Ok(());
        }
        let count = |dirty: &mut DirtyPages| dirty.harvest().context("cannot count dirty pages");
        match self {
            Self::Unwatched => {}
            Self::Counted { dirty, next, windows } => {
                // Before and after, because writers go on during the look; the truth lies between.
                let before = guest.watermarks.read();
                let pages = count(dirty)?.iter().map(|run| run.end - run.start).sum();
                let after = guest.watermarks.read();
                let middle = before.iter().zip(&after).map(|(b, a)| b + (a - b) / 2).collect();
                windows.push(Window { watermarks: middle, pages });
                *next += WINDOW;
            }
            Self::Recorded { dirty, next, interval, trace } => {
                trace.interval(&count(dirty)?)?;
                *next += *interval;
            }
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Vec<Window>> {
        match self {
            Self::Unwatched => Ok(Vec::new()),
            Self::Counted { windows, .. } => Ok(windows),
            Self::Recorded { trace, .. } => {
                trace.finish()?;
                Ok(Vec::new())
            }
        }
    }
}

/// The live line: one that changes on a terminal, one every five seconds elsewhere.
struct Line {
    /// The console of a VM is nobody's progress bar.
    silent: bool,
    terminal: bool,
    duration: Option<Duration>,
    shown_s: f64,
}

impl Line {
    fn new(args: &Args) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let silent = std::process::id() == 1;
        Self { silent, terminal, duration: args.duration, shown_s: 0.0 }
    }

    fn show(&mut self, samples: &[Sample]) {
        let Some(last) = samples.last().filter(|_| !self.silent) else { return };
        let step = if self.terminal { 0.5 } else { 5.0 };
        if last.seconds - self.shown_s < step {
            return;
        }
        self.shown_s = last.seconds;
        // The rate over the last second.
        let earlier = samples.iter().rev().find(|s| last.seconds - s.seconds >= 0.99);
        let earlier = earlier.copied().unwrap_or_default();
        let rate = (last.bytes - earlier.bytes) as f64 / (last.seconds - earlier.seconds).max(1e-9);
        let of = self.duration.map_or(String::new(), |d| format!(" of {:.0} s", d.as_secs_f64()));
        let text = format!(
            "workload: {:>4.0} s{of}  {:>10} written  {:>12}",
            last.seconds,
            Bytes(last.bytes),
            Rate(rate as u64)
        );
        match self.terminal {
            true => say::status(&text),
            false => say!("{text}"),
        }
    }

    fn end(&self) {
        if self.terminal && !self.silent {
            say::status("");
        }
    }
}
