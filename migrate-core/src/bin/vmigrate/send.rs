//! `vmigrate send`: start a guest that keeps writing, migrate it, and hear what was proven.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::codec::{Checks, Compress, Delta, Encoding};
use migrate_core::guest::stamped::{GuestSettings, MachineKind, ProofSettings};
use migrate_core::guest::tracker::TrackerKind;
use migrate_core::link::LinkSettings;
use migrate_core::link::address::HostPort;
use migrate_core::link::congestion::Congestion;
use migrate_core::link::tls::Side;
use migrate_core::memory::PAGE_BYTES;
use migrate_core::policy::{PolicyKind, Settings, Tuning};
use migrate_core::proto::Epoch;
use migrate_core::report::RunReport;
use migrate_core::source::{OverLimit, SourceSettings, Streams};
use migrate_core::trial::Trial;
use workload::line::PageFormat;
use workload::profile::Profile;
use workload::run::RunId;
use workload::spec::WorkloadSpec;
use workload::units::{Bytes, Rate, parse_duration};
use workload::{interrupt, say};

use crate::args::{LinkArgs, StateArgs, TellArgs};
use crate::console::Console;
use crate::output::{Kept, print_json};
use crate::show;
use crate::show::run::Way;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate send --to 127.0.0.1:7400 --memory 1GiB --workload stream --rate 110MB/s\n  \
    vmigrate send --to 10.0.0.2:7400 --insecure --memory 4GiB --workload uniform \\\n      \
    --rate 500MB/s --policy precopy --downtime 300ms --retry 1 --json")]
pub(crate) struct Args {
    /// Where a `vmigrate receive` waits: HOST, or HOST:PORT for another port than 7400
    #[arg(long, value_name = "HOST[:PORT]")]
    to: HostPort,
    /// The guest's memory
    #[arg(long, default_value = "512MiB")]
    memory: Bytes,
    /// What the guest writes: a name with settings, or a TOML file (see `workload list`)
    #[arg(long, value_name = "NAME|FILE", default_value = "stream,record=16KiB",
          value_parser = Profile::from_argument)]
    workload: Profile,
    /// Bytes of records the guest writes per second
    #[arg(long, default_value = "100MB/s")]
    rate: Rate,
    /// Writers, one vCPU each
    #[arg(long, default_value_t = 2)]
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
    #[command(flatten)]
    engine: EngineArgs,
    /// Most downtime: the switchover goal
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    downtime: Duration,
    /// Most bytes per second on the wire
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,
    /// Congestion control of the connections: auto (one that does not pace: cubic, else reno, else
    /// the system's), system, or a name: bbr, say, where packets get lost on a long way
    #[arg(long, value_name = "auto|system|NAME", default_value = "auto")]
    congestion: Congestion,
    /// Wait so long for a receiver that is not there yet
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    wait: Duration,
    /// Try again this often, with a new receiver, after a failed attempt
    #[arg(long, default_value_t = 0)]
    retry: u32,
    /// After a failed or cancelled migration the guest runs on here for this long
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    linger: Duration,
    /// Keep the guest's memory on huge pages, which must have been reserved
    #[arg(long)]
    huge_pages: bool,
    /// Keep heartbeats in this file
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    told: TellArgs,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// How the engine goes about it.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct EngineArgs {
    /// Who decides: adaptive, vmotion, precopy, auto-converge or stop-and-copy; bench takes
    /// several, one after the other [default: adaptive, for bench vmotion]
    #[arg(long, value_delimiter = ',')]
    pub(crate) policy: Vec<PolicyKind>,
    /// SDPS holds the dirty rate at this share of the send rate [default: 0.9, for bench 0.914]
    #[arg(long, value_parser = parse_beta)]
    pub(crate) beta: Option<f64>,
    /// Most rounds of precopy
    #[arg(long, default_value_t = 30)]
    pub(crate) rounds: u32,
    /// Give up after this long
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub(crate) time_limit: Duration,
    /// Give up after so many bytes of pages were sent
    #[arg(long, value_name = "BYTES")]
    pub(crate) byte_limit: Option<Bytes>,
    /// A stun that takes longer than the goal is called off, and copying goes on
    #[arg(long)]
    pub(crate) abort_over_limit: bool,
    /// Data streams: auto (one for each core, up to 8) or a number up to 64
    #[arg(long, value_name = "auto|N", default_value = "auto")]
    pub(crate) streams: Streams,
    /// Pack pages: auto (where it gets them across sooner), off, lz4 or zstd
    /// [default: auto, for bench off]
    #[arg(long, value_name = "HOW")]
    pub(crate) compress: Option<Compress>,
    /// Of pages that come again send only the lines that changed: auto (where it pays), on or off
    /// [default: auto, for bench off]
    #[arg(long, value_name = "WHEN")]
    pub(crate) delta: Option<Delta>,
    /// Most memory to remember for that what was sent; an eighth of the guest's remembers all
    #[arg(long, value_name = "BYTES", default_value = "1GiB")]
    pub(crate) delta_cache: Bytes,
    /// Check every page on arrival: on or off
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub(crate) checks: Checks,
    /// What runs the guest: process (threads) or kvm (a virtual machine whose own code writes)
    #[arg(long, value_name = "process|kvm", default_value = "process")]
    pub(crate) guest: MachineKind,
    /// Dirty tracker: auto, uffd or mprotect
    #[arg(long, default_value = "auto")]
    pub(crate) tracker: TrackerKind,
    /// How long the guest runs at the destination before it is proven again
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) run_on: Duration,
    /// Compare the SHA-256 roots of both hosts' memory as well
    #[arg(long)]
    pub(crate) audit: bool,
}

impl EngineArgs {
    pub(crate) fn pages_max(&self) -> u64 {
        self.byte_limit.map_or(u64::MAX, |bytes| bytes.0.div_ceil(PAGE_BYTES))
    }

    pub(crate) fn over_limit(&self) -> OverLimit {
        match self.abort_over_limit {
            true => OverLimit::GoBack,
            false => OverLimit::Accept,
        }
    }

    /// A guest that cannot run here is refused at once.
    pub(crate) fn check_guest(&self) -> anyhow::Result<()> {
        match self.guest.missing() {
            Some(why) => anyhow::bail!("{why}"),
            None => Ok(()),
        }
    }

    /// Budgets that contradict each other are refused before a guest is started.
    pub(crate) fn check(&self, memory: Bytes, bandwidth: Option<Rate>) -> anyhow::Result<()> {
        if let Some(limit) = self.byte_limit.filter(|limit| *limit < memory) {
            anyhow::bail!("--byte-limit {limit} is less than the guest's memory of {memory}");
        }
        if let Some(rate) = bandwidth {
            let least = memory.0 as f64 / rate.0 as f64;
            anyhow::ensure!(
                least <= self.time_limit.as_secs_f64() || self.compress != Some(Compress::Off),
                "--bandwidth {rate} takes {least:.0} s for {memory}, --time-limit allows {:.0} s",
                self.time_limit.as_secs_f64()
            );
        }
        Ok(())
    }

    /// What is set, and for the rest what `base` says.
    pub(crate) fn encoding(&self, base: Encoding) -> Encoding {
        Encoding {
            compress: self.compress.unwrap_or(base.compress),
            delta: self.delta.unwrap_or(base.delta),
            delta_cache_bytes: self.delta_cache.0,
            checks: self.checks,
        }
    }
}

fn parse_beta(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(beta) if beta > 0.0 && beta < 1.0 => Ok(beta),
        _ => Err("beta is a share above 0 and below 1, for example 0.9".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut workload = args.workload.clone();
    workload.record = args.record.unwrap_or(workload.record);
    let spec = WorkloadSpec {
        format: PageFormat::V2 { run: args.run.unwrap_or_else(RunId::fresh) },
        seed: args.seed,
        memory: args.memory,
        writers: args.writers,
        workload,
    };
    let engine = &args.engine;
    let policy = match engine.policy[..] {
        [] => PolicyKind::Adaptive,
        [policy] => policy,
        _ => anyhow::bail!("one migration has one --policy; several are for bench"),
    };
    engine.check(args.memory, args.bandwidth)?;
    args.congestion.check()?;
    let link = LinkSettings {
        congestion: args.congestion.clone(),
        // An address of IPv6 may have a scope, which no certificate has.
        peer_name: Some(args.to.host().to_owned()).filter(|host| !host.contains(':')),
        ..args.link.resolve(Side::Client)?
    };
    for address in args.to.addresses() {
        link.allow(*address)?;
    }
    let trial = Trial {
        guest: GuestSettings {
            machine: engine.guest,
            rate: Some(args.rate),
            proof: ProofSettings { run_on: engine.run_on, audit: engine.audit },
            journal: args.journal.clone(),
            huge_pages: args.huge_pages,
            ..GuestSettings::of(spec)
        },
        tracker: engine.tracker,
        source: SourceSettings {
            peer: args.to.clone(),
            link,
            streams: engine.streams,
            encoding: engine.encoding(Encoding::default()),
            bandwidth: args.bandwidth.map(|r| r.0 as f64),
            policy,
            limits: Settings {
                goal: args.downtime,
                beta: engine.beta.unwrap_or(Settings::default().beta),
                rounds_max: engine.rounds,
                time_max: engine.time_limit,
                pages_max: engine.pages_max(),
                tuning: Tuning::DEFAULT,
            },
            over_limit: engine.over_limit(),
            epoch: Epoch(1),
            earlier: Vec::new(),
            state_directory: args.state.state_dir.clone(),
            resolve_timeout: args.state.resolve_timeout,
            give_up_after: args.state.give_up_after,
            operator: Some(args.state.desk()?),
        },
        wait: args.wait,
        retry: args.retry,
        linger: args.linger,
    };
    engine.check_guest()?;
    interrupt::install().context("cannot watch for Ctrl-C")?;
    let kept = Kept::open(args.told.out.as_deref(), "send");
    let detail = args.told.detail();
    let report = migrate(&trial, Console::new(detail))?;
    if let Some(kept) = kept {
        kept.keep(&report);
    }
    let way = Way {
        to: args.to.to_string(),
        protection: args.link.protection(args.to.addresses()),
        bandwidth: args.bandwidth,
    };
    say::report("vmigrate", |out| match args.told.json {
        true => print_json(out, &report),
        false => show::run::print(out, &report, &way, detail),
    });
    Ok(report.exit_code)
}

/// Carries a trial out, saying on standard error what goes on.
pub(crate) fn migrate(trial: &Trial, mut console: Console) -> anyhow::Result<RunReport> {
    let report = trial.run(&mut console)?;
    console.clear();
    Ok(report)
}
