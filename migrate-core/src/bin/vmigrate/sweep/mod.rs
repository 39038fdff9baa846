//! `vmigrate sweep`: a matrix of migrations, each measured and proven, kept so that it can be gone on
//! with.

mod folder;
mod plan;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::codec::Encoding;
use migrate_core::guest::stamped::{GuestSettings, ProofSettings};
use migrate_core::link::LinkSettings;
use migrate_core::link::address::HostPort;
use migrate_core::link::tls::Side;
use migrate_core::operator::Desk;
use migrate_core::policy::PolicyKind;
use migrate_core::report::{RunReport, SCHEMA, StatusKind, SweepRun};
use migrate_core::source::SourceSettings;
use migrate_core::trial::Trial;
use verifier::verdict::Verdict;
use workload::line::PageFormat;
use workload::pipeline::{Case, Pipeline};
use workload::profile::Profile;
use workload::spec::WorkloadSpec;
use workload::units::{Bytes, Rate, parse_duration};
use workload::{exit, interrupt, machine, say};

use crate::args::{LinkArgs, StateArgs};
use crate::console::Console;
use crate::engine::EngineArgs;
use crate::outcome;
use crate::output::{dated, print_json_line};
use crate::receiver::{GIVE_UP_AFTER, Receiver};
use crate::require::Requirement;
use crate::send::migrate;
use crate::show;
use crate::show::Detail;
use folder::Folder;
pub(crate) use folder::RUNS;
use plan::{Paces, Plan, Wanted};

/// A run that ends for a reason that may pass is tried so often in all.
const TRIES_MAX: u32 = 3;
/// Time between two tries.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// How long a receiver that stays may take until it is there for the next guest.
const NEXT_GUEST: Duration = Duration::from_secs(20);
/// What a guest writes that is only to show what the link carries.
const NEARLY_NOTHING: Rate = Rate(64 << 10);

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate sweep --to 10.0.0.2 --insecure --rates 0.1..2.0/0.1 \\\n      \
    --policy adaptive,precopy,vmotion --repeat 2 --out study\n  \
    vmigrate sweep --plan study.toml --out study         goes on with what is in study\n  \
    vmigrate sweep --bandwidth 1gbit,4gbit --rates 50MB/s,100MB/s --require 'downtime<50ms'\n\n\
    A plan is a TOML file of the same lists: rates, policies, workloads, memories, downtimes,\n\
    bandwidths, seeds, repeat. A policy that gives a guest up is a finding and no failure.")]
pub(crate) struct Args {
    /// Where a `vmigrate receive` stays; without it, receivers on this host
    #[arg(long, value_name = "HOST[:PORT]")]
    to: Option<HostPort>,
    /// The matrix in a TOML file; options beside it are defaults for what it does not say
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// How fast the guest writes: shares of what the link carries (0.5, or FROM..TO/STEP), which is
    /// measured first where --bandwidth does not say it, or rates of their own (50MB/s)
    #[arg(long, value_name = "LIST", default_value = "0.25..1.5/0.25")]
    rates: Paces,
    /// The guest's memory
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "256MiB")]
    memory: Vec<Bytes>,
    /// What the guest writes; give it again for another one
    #[arg(long, value_name = "NAME|FILE", default_value = "stream,record=16KiB",
          value_parser = Profile::from_argument)]
    workload: Vec<Profile>,
    /// Most downtime: the switchover goal
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "300ms",
          value_parser = parse_duration)]
    downtime: Vec<Duration>,
    /// What the link is paced to
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    bandwidth: Vec<Rate>,
    /// What determines the bytes that are written
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    seed: Vec<u64>,
    /// Do everything this often
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    repeat: u32,
    /// Writers of each guest, one vCPU each
    #[arg(long, default_value_t = 2)]
    writers: u32,
    /// Where runs are kept, and gone on with [default: sweep-DATE-TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Exit with 6 where a guest that migrated does not fulfil this: 'downtime<50ms'; may be given
    /// again
    #[arg(long, value_name = "WISH")]
    require: Vec<Requirement>,
    /// Try a run again that ends so: connect, busy, link-lost, or any other kind of status
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "connect,busy,link-lost",
          value_parser = kind)]
    repeat_on: Vec<StatusKind>,
    /// Print a line of JSON for each run on standard output
    #[arg(long)]
    json: bool,
    /// Tell rounds, pages, decisions and the optimum of each run as well
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    pipeline: Pipeline,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    state: StateArgs,
}

fn kind(text: &str) -> Result<StatusKind, String> {
    serde_json::from_value(text.into()).map_err(|_| {
        format!(
            "no run ends with '{text}'; say for example connect, busy, link-lost, refused, failed"
        )
    })
}

impl Args {
    fn plan(&self) -> anyhow::Result<Plan> {
        let policies = match &self.engine.policy[..] {
            [] => vec![PolicyKind::Adaptive],
            policies => policies.to_vec(),
        };
        let bandwidths = match &self.bandwidth[..] {
            [] => vec![None],
            rates => rates.iter().copied().map(Some).collect(),
        };
        let plan = Plan {
            rates: self.rates.0.clone(),
            policies,
            workloads: self.workload.clone(),
            memories: self.memory.clone(),
            downtimes: self.downtime.clone(),
            bandwidths,
            seeds: self.seed.clone(),
            repeat: self.repeat,
        };
        let plan = match &self.plan {
            Some(path) => plan::read(path, plan)?,
            None => plan,
        };
        plan.check()?;
        Ok(plan)
    }

    /// What else decides about a run.
    fn settings(&self) -> String {
        format!("writers {}, {:?}, {:?}", self.writers, self.engine, self.link)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let plan = args.plan()?;
    let link = args.link.resolve(Side::Client)?;
    if let Some(to) = &args.to {
        for address in to.addresses() {
            link.allow(*address)?;
        }
    }
    let most = plan.memories.iter().max().copied().unwrap_or_default();
    let here = if args.to.is_some() { 1 } else { 2 };
    machine::require_memory(Bytes(most.0.saturating_mul(here)))?;
    for memory in &plan.memories {
        args.engine.check(*memory, plan.bandwidths.iter().flatten().min().copied())?;
    }
    args.engine.check_guest()?;
    let path = args.out.clone().unwrap_or_else(|| PathBuf::from(dated("sweep")));
    let to = args.to.as_ref().map(ToString::to_string);
    let folder = Folder::open(&path, &plan, to, args.settings())?;
    let desk = args.state.desk()?;
    interrupt::install().context("cannot watch for Ctrl-C")?;
    let mut sweep = Sweep { args, link, desk, folder };
    sweep.run(&plan)
}

struct Sweep<'a> {
    args: &'a Args,
    link: LinkSettings,
    desk: Arc<Desk>,
    folder: Folder,
}

impl Sweep<'_> {
    fn run(&mut self, plan: &Plan) -> anyhow::Result<u8> {
        let runs = plan.runs();
        let detail = Detail::of(self.args.verbose);
        let before = self.folder.done.len();
        self.tell(|out| show::sweep::plan(out, runs.len(), &plan.to_string(), before));
        let mut link = self.folder.link();
        if link.is_none() && plan.asks_for_the_link() && before < runs.len() {
            let Some(measured) = self.measure(&runs[0])? else { return Ok(exit::FAILED) };
            self.folder.keep_link(measured)?;
            self.tell(|out| show::sweep::link(out, measured));
            link = Some(measured);
        }
        let begin = Instant::now();
        for (number, wanted) in runs.iter().enumerate().skip(before) {
            let left = show::sweep::left(begin.elapsed(), number - before, runs.len() - number);
            let name = format!("{}/{}{left}", number + 1, runs.len());
            let (run, tries) = self.one(wanted, link, name)?;
            if interrupt::count() > 0 {
                break;
            }
            let case = wanted.case(link);
            let done = SweepRun { schema: SCHEMA, number: number + 1, case, tries, run };
            if self.args.json {
                say::report("vmigrate", |out| print_json_line(out, &done));
            }
            self.tell(|out| {
                show::sweep::line(out, runs.len(), &done)?;
                for unmet in self.unmet(&done.run) {
                    show::sweep::unmet(out, &unmet)?;
                }
                match detail {
                    Detail::All => show::details::print(out, &done.run),
                    Detail::Answer => Ok(()),
                }
            });
            self.folder.keep(done)?;
        }
        let table = self.folder.tabulate()?;
        let done = &self.folder.done;
        self.tell(|out| show::sweep::summary(out, done, &table));
        if done.len() < runs.len() {
            say!(
                "vmigrate: cancelled: {} of {} runs are kept; the same command goes on with them",
                done.len(),
                runs.len()
            );
            return Ok(exit::FAILED);
        }
        let code = self.exit_code();
        let cases: Vec<_> = done.iter().map(|done| self.outcome_of(done)).collect();
        self.args.pipeline.tell("vmigrate", "sweep", &cases);
        self.tell(|out| show::sweep::exit(out, code));
        Ok(code)
    }

    /// Says something on standard output, which is JSON's where that was asked for.
    fn tell(&self, write: impl FnOnce(&mut say::Out) -> std::io::Result<()>) {
        if !self.args.json {
            say::report("vmigrate", write);
        }
    }

    /// One run as pipelines read it.
    fn outcome_of(&self, done: &SweepRun) -> Case {
        let SweepRun { number, case, run, .. } = done;
        let labels = [
            ("policy", case.policy.name().to_owned()),
            ("rate", case.rate.clone()),
            ("workload", case.workload.clone()),
            ("memory", case.memory.to_string()),
            ("seed", case.seed.to_string()),
            ("repeat", case.repeat.to_string()),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let name = format!("{number}: {} at {}", case.policy.name(), case.rate);
        outcome::of_a_study(outcome::case(name, labels, run, &self.unmet(run)), run)
    }

    fn unmet(&self, run: &RunReport) -> Vec<String> {
        self.args.require.iter().filter_map(|wish| wish.unmet(run)).collect()
    }

    /// The worst thing that happened. That a policy gave a guest up is no failure of the sweep.
    fn exit_code(&self) -> u8 {
        let runs = || self.folder.done.iter().map(|done| &done.run);
        let any = |what: &dyn Fn(&RunReport) -> bool| runs().any(what);
        if any(&|run| run.memory == Verdict::Wrong) {
            exit::WRONG
        } else if any(&|run| run.status.kind == StatusKind::Unresolved) {
            exit::UNRESOLVED
        } else if any(&|run| !run.migrated && run.status.kind != StatusKind::GaveUp) {
            exit::FAILED
        } else if any(&|run| run.memory == Verdict::Inconclusive) {
            exit::INCONCLUSIVE
        } else if any(&|run| !self.unmet(run).is_empty()) {
            exit::WISH
        } else {
            exit::PROVEN
        }
    }

    /// What the link carries, by an idle guest of the first run's memory; nothing where none came
    /// across, which is said.
    fn measure(&self, first: &Wanted) -> anyhow::Result<Option<f64>> {
        let idle = Wanted {
            pace: plan::Pace::Absolute(NEARLY_NOTHING),
            policy: PolicyKind::StopAndCopy,
            bandwidth: None,
            downtime: Duration::from_secs(3600),
            ..first.clone()
        };
        let trial = |sweep: &Self, peer| {
            let mut trial = sweep.trial(&idle, None, peer);
            trial.source.encoding =
                Encoding { checks: sweep.args.engine.checks, ..Encoding::PLAIN };
            trial
        };
        let run = self.carry_out(&trial, "measuring the link".to_owned())?;
        let bandwidth = run.last().map_or(0.0, |m| m.bandwidth());
        if !run.migrated || bandwidth <= 0.0 {
            say!("vmigrate: cannot measure the link: {}", run.status.text);
            return Ok(None);
        }
        Ok(Some(bandwidth))
    }

    /// One run, tried again where its end may pass.
    fn one(
        &self,
        wanted: &Wanted,
        link: Option<f64>,
        name: String,
    ) -> anyhow::Result<(RunReport, u32)> {
        let trial = |sweep: &Self, peer| sweep.trial(wanted, link, peer);
        for tries in 1.. {
            let name = format!("{name}  {} {}", wanted.policy.name(), wanted.pace);
            let run = self.carry_out(&trial, name)?;
            let again = self.args.repeat_on.contains(&run.status.kind) && tries < TRIES_MAX;
            if !again || interrupt::count() > 0 {
                return Ok((run, tries));
            }
            say!("vmigrate: it is tried again: {}", run.status.text);
            std::thread::sleep(BETWEEN_TRIES);
        }
        unreachable!("numbers do not end")
    }

    fn carry_out(
        &self,
        trial: &dyn Fn(&Self, HostPort) -> Trial,
        name: String,
    ) -> anyhow::Result<RunReport> {
        let console = Console::of_one(Detail::of(self.args.verbose), name);
        if let Some(to) = &self.args.to {
            return migrate(&trial(self, to.clone()), console);
        }
        let receiver = Receiver::start(&self.args.state)?;
        migrate(&trial(self, receiver.address.into()), console)
    }

    fn trial(&self, wanted: &Wanted, link: Option<f64>, peer: HostPort) -> Trial {
        let engine = &self.args.engine;
        let settings = match &self.args.to {
            Some(to) => LinkSettings { peer_name: to.certified_name(), ..self.link.clone() },
            None => LinkSettings::default(),
        };
        let source = engine.source(
            peer,
            settings,
            wanted.policy,
            wanted.downtime,
            &self.args.state,
            self.desk.clone(),
        );
        Trial {
            guest: GuestSettings {
                machine: engine.guest,
                rate: Some(wanted.rate(link)),
                proof: ProofSettings { run_on: engine.run_on, audit: engine.audit },
                ..GuestSettings::of(WorkloadSpec {
                    format: PageFormat::fresh(),
                    seed: wanted.seed,
                    memory: wanted.memory,
                    writers: self.args.writers,
                    workload: wanted.workload.clone(),
                })
            },
            tracker: engine.tracker,
            source: SourceSettings {
                bandwidth: wanted.bandwidth.map(|rate| rate.0 as f64),
                // Nobody comes to decide about a sweep's guest.
                give_up_after: self.args.state.give_up_after.or(Some(GIVE_UP_AFTER)),
                ..source
            },
            wait: NEXT_GUEST,
            retry: 0,
            linger: Duration::from_millis(300),
        }
    }
}
