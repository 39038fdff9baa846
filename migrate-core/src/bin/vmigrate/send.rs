//! `vmigrate send`: start a guest that keeps writing, migrate it, and hear what was proven.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::guest::stamped::{GuestSettings, ProofSettings};
use migrate_core::link::LinkSettings;
use migrate_core::link::address::HostPort;
use migrate_core::link::congestion::Congestion;
use migrate_core::link::tls::Side;
use migrate_core::policy::PolicyKind;
use migrate_core::report::RunReport;
use migrate_core::source::SourceSettings;
use migrate_core::trial::Trial;
use workload::line::PageFormat;
use workload::pipeline::Pipeline;
use workload::profile::Profile;
use workload::rate::{self, Unit};
use workload::run::RunId;
use workload::spec::WorkloadSpec;
use workload::units::{Bytes, Rate, parse_duration};
use workload::{exit, interrupt, say};

use crate::args::{LinkArgs, StateArgs, TellArgs};
use crate::console::Console;
use crate::documents;
use crate::engine::EngineArgs;
use crate::outcome;
use crate::output::{Kept, print_json};
use crate::require::Requirement;
use crate::show;

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
    /// Bytes of records the guest writes per second; unlimited for as fast as memory takes it; 0 for
    /// a VM that is idle but for ten records a second of each writer, by which it is seen to run
    #[arg(long, default_value = "100MB/s")]
    rate: Demand,
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
    /// Exit with 6 if the guest migrated and this does not hold: 'downtime<50ms'; may be given again
    #[arg(long, value_name = "WISH")]
    require: Vec<Requirement>,
    /// Keep heartbeats in this file
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    told: TellArgs,
    #[command(flatten)]
    pipeline: Pipeline,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// How fast the guest writes.
#[derive(Clone, Debug)]
enum Demand {
    Idle,
    As(rate::Demand),
}

impl FromStr for Demand {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "0" => Ok(Self::Idle),
            text => text.parse().map(Self::As),
        }
    }
}

impl Demand {
    /// In bytes of records per second; none for as fast as possible. What `workload run` knows beside
    /// has a course over time, which a guest does not take along to another host.
    fn of(&self, spec: &WorkloadSpec) -> anyhow::Result<Option<Rate>> {
        match self {
            Self::Idle => {
                Ok(Some(Rate(spec.workload.record.0 * u64::from(spec.writers) * IDLE_PER_S)))
            }
            Self::As(rate::Demand::Unlimited) => Ok(None),
            Self::As(rate::Demand::Scheduled { unit: Unit::Bytes, legs, .. })
                if legs.len() == 1 =>
            {
                let one = legs.iter().all(|leg| leg.from == leg.to && leg.length.is_none());
                anyhow::ensure!(one, "{ONE_RATE}");
                Ok(legs.first().map(|leg| Rate(leg.to as u64)))
            }
            Self::As(_) => anyhow::bail!("{ONE_RATE}"),
        }
    }
}

/// Records that each writer of an idle guest writes in a second.
const IDLE_PER_S: u64 = 10;
const ONE_RATE: &str = "a guest that is migrated has one rate in bytes, for example 100MB/s; ramps, steps and pages \
                        per second are for `workload run`";

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
    let rate = args.rate.of(&spec)?;
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
        peer_name: args.to.certified_name(),
        ..args.link.resolve(Side::Client)?
    };
    for address in args.to.addresses() {
        link.allow(*address)?;
    }
    let desk = args.state.desk()?;
    let trial = Trial {
        guest: GuestSettings {
            machine: engine.guest,
            rate,
            proof: ProofSettings { run_on: engine.run_on, audit: engine.audit },
            journal: args.journal.clone(),
            huge_pages: args.huge_pages,
            ..GuestSettings::of(spec)
        },
        tracker: engine.tracker,
        source: SourceSettings {
            bandwidth: args.bandwidth.map(|r| r.0 as f64),
            ..engine.source(args.to.clone(), link, policy, args.downtime, &args.state, desk)
        },
        wait: args.wait,
        retry: args.retry,
        linger: args.linger,
    };
    engine.check_guest()?;
    interrupt::install().context("cannot watch for Ctrl-C")?;
    let kept = Kept::open(args.told.out.as_deref(), "send");
    let detail = args.told.detail();
    let mut report = migrate(&trial, Console::new(detail))?;
    let unmet: Vec<String> = args.require.iter().filter_map(|wish| wish.unmet(&report)).collect();
    if !unmet.is_empty() && report.exit_code == exit::PROVEN {
        report.exit_code = exit::WISH;
    }
    if let Some(kept) = kept {
        kept.keep(&report);
        kept.draw();
    }
    let name = format!("{} to {}", documents::Case::of(&report).name(), args.to);
    args.pipeline.tell("vmigrate", "send", &[outcome::case(name, Vec::new(), &report, &unmet)]);
    say::report("vmigrate", |out| match args.told.json {
        true => print_json(out, &report),
        false => {
            show::run::print(out, &report, detail)?;
            unmet.iter().try_for_each(|unmet| show::sweep::unmet(out, unmet))
        }
    });
    Ok(report.exit_code)
}

/// Carries a trial out, saying on standard error what goes on.
pub(crate) fn migrate(trial: &Trial, mut console: Console) -> anyhow::Result<RunReport> {
    let report = trial.run(&mut console)?;
    console.clear();
    Ok(report)
}
