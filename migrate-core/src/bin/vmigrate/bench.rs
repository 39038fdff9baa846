//! `vmigrate bench`: the 10-versus-40 GbE experiment on one host, scaled, proven.
//!
//! Streaming records at two dirty rates, each migrated over a slow link and over one four times
//! faster. Source and destination are two processes on loopback; the link is paced by the sender.
//! The ratio of the two times is printed beside the model's at the measured parameters, and
//! beside the white paper's.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use migrate_core::codec::Encoding;
use migrate_core::guest::stamped::{GuestSettings, ProofSettings};
use migrate_core::link::LinkSettings;
use migrate_core::memory::PAGE_BYTES;
use migrate_core::operator::Desk;
use migrate_core::policy::{PolicyKind, Settings};
use migrate_core::predict::closed_form;
use migrate_core::report::{
    BenchReport, BenchRun, MigrationReport, RatioReport, RunReport, RunVerdict, SCHEMA,
};
use migrate_core::source::SourceSettings;
use migrate_core::trial::Trial;
use workload::pipeline::{Case, Pipeline};
use workload::profile::{PatternSpec, Profile};
use workload::provenance::Provenance;
use workload::spec::WorkloadSpec;
use workload::units::{Bytes, Rate};
use workload::{exit, interrupt, machine, say};

use crate::args::{StateArgs, TellArgs};
use crate::console::Console;
use crate::engine::EngineArgs;
use crate::outcome;
use crate::output::{Kept, print_json};
use crate::receiver::{GIVE_UP_AFTER, Receiver};
use crate::send::migrate;
use crate::show;
use crate::show::Detail;
use crate::show::bench::Plan;
use workload::line::PageFormat;

/// The SDPS share that explains both of the white paper's figures.
const BETA: f64 = 0.914;
/// Memory of the default run and of the short one.
const MEMORY: Bytes = Bytes(512 << 20);
const MEMORY_QUICK: Bytes = Bytes(128 << 20);
/// The white paper's smaller VM: its switchover goal is scaled by the time its memory takes.
const PAPER_MEMORY: f64 = (128u64 << 30) as f64;
const PAPER_LINK: f64 = 10e9 / 8.0;
const PAPER_GOAL_S: f64 = 0.5;

/// How the white paper's figures are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reading {
    /// SDPS was active on the slow link: r = 1.0 and r = 3.565
    Sdps,
    /// Nothing was throttled: r = 0.919 and r = 0.333
    Unthrottled,
}

impl Reading {
    /// Dirty rate over slow bandwidth, and the white paper's ratio.
    fn workloads(self) -> [(f64, Option<f64>); 2] {
        match self {
            Self::Sdps => [(1.0, Some(38.0)), (3.565, Some(5.5))],
            Self::Unthrottled => [(0.919, Some(38.0)), (0.333, Some(5.5))],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sdps => "sdps",
            Self::Unthrottled => "unthrottled",
        }
    }
}

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate bench                 about two minutes\n  \
    vmigrate bench --quick         about half a minute, less exact\n  \
    vmigrate bench --policy vmotion,adaptive          beside each other, same seeds\n  \
    vmigrate bench --reading unthrottled --policy precopy --rounds 500\n  \
    vmigrate bench --memory 1GiB --links 1gbit,4gbit --iterations 3 --json")]
pub(crate) struct Args {
    /// The guest's memory
    #[arg(long)]
    memory: Option<Bytes>,
    /// The slow and the fast link
    #[arg(long, value_name = "SLOW,FAST", value_delimiter = ',', default_value = "1gbit,4gbit")]
    links: Vec<Rate>,
    /// One dirty rate instead of the two of the reading
    #[arg(long)]
    rate: Option<Rate>,
    /// How the white paper is read
    #[arg(long, value_enum, default_value = "sdps")]
    reading: Reading,
    /// Less memory, in about half a minute
    #[arg(long)]
    quick: bool,
    /// Do everything this often
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    iterations: u32,
    /// Determines every byte that is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArgs,
    /// Exit with 6 where a ratio does not agree with the model and the paper
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    told: TellArgs,
    #[command(flatten)]
    pipeline: Pipeline,
    #[command(flatten)]
    state: StateArgs,
}

impl Args {
    fn policies(&self) -> Vec<PolicyKind> {
        match self.reading {
            Reading::Sdps if self.engine.policy.is_empty() => vec![PolicyKind::Vmotion],
            Reading::Sdps => self.engine.policy.clone(),
            Reading::Unthrottled => vec![PolicyKind::Precopy],
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let [slow, fast] = args.links[..] else {
        anyhow::bail!("--links takes two rates, for example 1gbit,4gbit");
    };
    anyhow::ensure!(slow < fast, "--links takes the slow link first");
    let memory = args.memory.unwrap_or(if args.quick { MEMORY_QUICK } else { MEMORY });
    // Source and destination live on this one machine.
    machine::require_memory(Bytes(memory.0.saturating_mul(2)))?;
    args.engine.check(memory, Some(slow))?;
    args.engine.check_guest()?;
    let desk = args.state.desk()?;
    interrupt::install().context("cannot watch for Ctrl-C")?;
    let kept = Kept::open(args.told.out.as_deref(), "bench");
    let workloads = match args.rate {
        Some(rate) => vec![(rate.0 as f64 / slow.0 as f64, None)],
        None => args.reading.workloads().to_vec(),
    };
    let mut report = BenchReport {
        schema: SCHEMA,
        provenance: Some(Provenance::here("vmigrate")),
        reading: args.reading.name().to_owned(),
        runs: Vec::new(),
        ratios: Vec::new(),
        reproduced: None,
        verdict: RunVerdict::Inconclusive,
        exit_code: exit::PROVEN,
    };
    let policies = args.policies();
    let cases = workloads.len() * policies.len() * args.iterations as usize * 2;
    let expected = workloads.iter().flat_map(|(r, _)| [slow, fast].map(|link| (*r, link)));
    let expected: f64 = expected.map(|(r, link)| expected_s(memory, r, slow, link)).sum();
    let plan = Plan {
        migrations: cases,
        memory,
        links: [slow, fast],
        expected: Duration::from_secs_f64(
            expected * policies.len() as f64 * f64::from(args.iterations),
        ),
    };
    if !args.told.json {
        say::report("vmigrate", |out| show::bench::plan(out, &plan));
    }
    for (r, paper) in workloads {
        for policy in policies.iter().copied() {
            for iteration in 1..=args.iterations {
                for link in [slow, fast] {
                    let number = report.runs.len() + 1;
                    let rate = Rate((r * slow.0 as f64) as u64);
                    let who = (policies.len() > 1).then_some(policy);
                    let name = show::bench::name(number, cases, rate, link, who);
                    let wanted = One { policy, memory, rate, slow, link, name: name.clone() };
                    let journal =
                        kept.as_ref().map(|kept| kept.path(&format!(".{number}.journal")));
                    let run = one(args, &desk, &wanted, journal.as_deref())?;
                    let link = link.0;
                    let done = BenchRun { policy, r_wanted: r, link, iteration, run };
                    if !args.told.json {
                        say::report("vmigrate", |out| {
                            show::bench::line(out, &name, &done)?;
                            match args.told.detail() {
                                Detail::All => show::details::print(out, &done.run),
                                Detail::Answer => Ok(()),
                            }
                        });
                    }
                    report.exit_code = worse(report.exit_code, done.run.exit_code);
                    report.runs.push(done);
                    if let Some(kept) = &kept {
                        kept.keep_quietly(&report);
                    }
                    if interrupt::count() > 0 {
                        say!("vmigrate: cancelled");
                        return Ok(exit::FAILED);
                    }
                }
            }
            report.ratios.extend(ratio(&report.runs, policy, r, slow, fast, paper));
        }
    }
    report.verdict =
        report.runs.iter().map(|run| run.run.verdict).max().unwrap_or(RunVerdict::Inconclusive);
    report.reproduced = report.ratios.iter().filter_map(show::bench::agrees).reduce(|a, b| a && b);
    if args.strict && report.exit_code == exit::PROVEN && report.reproduced == Some(false) {
        report.exit_code = exit::WISH;
    }
    if let Some(kept) = &kept {
        kept.keep(&report);
        kept.draw();
    }
    let cases: Vec<_> = report.runs.iter().map(outcome_of).collect();
    args.pipeline.tell("vmigrate", "bench", &cases);
    say::report("vmigrate", |out| match args.told.json {
        true => print_json(out, &report),
        false => {
            show::bench::summary(out, &report, [slow, fast])?;
            writeln!(out, "exit {}: {}", report.exit_code, exit::meaning(report.exit_code))
        }
    });
    Ok(report.exit_code)
}

/// One migration as pipelines read it.
fn outcome_of(done: &BenchRun) -> Case {
    let label = |name: &str, value: String| (name.to_owned(), value);
    let labels = vec![
        label("policy", done.policy.name().to_owned()),
        label("r", done.r_wanted.to_string()),
        label("link", Rate(done.link).as_bits()),
        label("iteration", done.iteration.to_string()),
    ];
    let name = format!(
        "{} at r = {} over {} ({})",
        done.policy.name(),
        done.r_wanted,
        Rate(done.link).as_bits(),
        done.iteration
    );
    outcome::case(name, labels, &done.run, &[])
}

/// Seconds that one migration should take by the model, with what goes before and comes after it.
fn expected_s(memory: Bytes, r: f64, slow: Rate, link: Rate) -> f64 {
    const BESIDE_S: f64 = 3.0;
    let dirtied = r * slow.0 as f64;
    closed_form::time(memory.0 as f64, link.0 as f64, dirtied, BETA) + BESIDE_S
}

/// One is wrong before one failed before one proved nothing.
fn worse(a: u8, b: u8) -> u8 {
    let rank = |code| match code {
        exit::PROVEN => 0,
        exit::INCONCLUSIVE => 1,
        exit::FAILED => 2,
        exit::UNRESOLVED => 3,
        _ => 4,
    };
    if rank(a) >= rank(b) { a } else { b }
}

/// One migration of the experiment.
struct One {
    policy: PolicyKind,
    memory: Bytes,
    rate: Rate,
    slow: Rate,
    link: Rate,
    name: String,
}

/// Carries it out, to a receiver process of its own; the journal may be kept.
fn one(
    args: &Args,
    desk: &Arc<Desk>,
    wanted: &One,
    journal: Option<&Path>,
) -> anyhow::Result<RunReport> {
    let One { policy, memory, rate, slow, link, .. } = *wanted;
    let receiver = Receiver::start(&args.state)?;
    let goal = PAPER_GOAL_S * (memory.0 as f64 / PAPER_MEMORY) * (PAPER_LINK / slow.0 as f64);
    let engine = &args.engine;
    let source = engine.source(
        receiver.address.into(),
        LinkSettings::default(),
        policy,
        Duration::from_secs_f64(goal),
        &args.state,
        desk.clone(),
    );
    let trial = Trial {
        guest: GuestSettings {
            machine: engine.guest,
            rate: Some(rate),
            proof: ProofSettings { run_on: engine.run_on, audit: engine.audit },
            journal: Some(receiver.journal.clone()),
            ..GuestSettings::of(WorkloadSpec {
                format: PageFormat::fresh(),
                seed: args.seed,
                memory,
                writers: 2,
                workload: Profile { record: Bytes(16 << 10), ..Profile::new(PatternSpec::Stream) },
            })
        },
        tracker: engine.tracker,
        source: SourceSettings {
            // The experiment's engine sent whole pages.
            encoding: engine.encoding(Encoding::PLAIN),
            bandwidth: Some(link.0 as f64),
            limits: Settings {
                beta: engine.beta.unwrap_or(BETA),
                // At r = 0.919 each round still sends 92 % of the one before.
                rounds_max: engine.rounds.max(500),
                ..source.limits
            },
            // Nobody comes to decide about a bench's guest.
            give_up_after: args.state.give_up_after.or(Some(GIVE_UP_AFTER)),
            ..source
        },
        wait: Duration::ZERO,
        retry: 0,
        linger: Duration::from_millis(500),
    };
    let console = Console::of_one(args.told.detail(), wanted.name.clone());
    let report = migrate(&trial, console);
    if let Some(path) = journal
        && let Err(error) = std::fs::copy(&receiver.journal, path)
    {
        say!("vmigrate: cannot keep {}: {error}", path.display());
    }
    report
}

/// Means over the iterations of one workload; `None` if any migration of it failed.
fn ratio(
    runs: &[BenchRun],
    policy: PolicyKind,
    r: f64,
    slow: Rate,
    fast: Rate,
    paper: Option<f64>,
) -> Option<RatioReport> {
    let of = |link: Rate| -> Option<Vec<_>> {
        runs.iter()
            .filter(|run| run.policy == policy && run.r_wanted == r && run.link == link.0)
            .map(|run| run.run.attempts.last().filter(|m| m.is_done()))
            .collect()
    };
    let (slow_runs, fast_runs) = (of(slow)?, of(fast)?);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let over = |runs: &[&MigrationReport], f: fn(&MigrationReport) -> f64| {
        mean(&runs.iter().map(|m| f(m)).collect::<Vec<_>>())
    };
    let (b_slow, b_fast) =
        (over(&slow_runs, |m| m.send_rate()), over(&fast_runs, |m| m.send_rate()));
    let (d_slow, d_fast) =
        (over(&slow_runs, |m| m.free_dirty_rate()), over(&fast_runs, |m| m.free_dirty_rate()));
    let (slow_ms, fast_ms) =
        (over(&slow_runs, |m| m.migration_ms), over(&fast_runs, |m| m.migration_ms));
    let beta_slow = mean_of_some(slow_runs.iter().map(|m| m.measured_beta()));
    let memory = slow_runs.first().map_or(0, |m| m.memory_pages * PAGE_BYTES) as f64;
    let ratios: Vec<f64> =
        slow_runs.iter().zip(&fast_runs).map(|(s, f)| s.migration_ms / f.migration_ms).collect();
    let measured = slow_ms / fast_ms;
    let spread = (ratios.len() > 1).then(|| {
        let squares = ratios.iter().map(|x| (x - mean(&ratios)).powi(2)).sum::<f64>();
        (squares / (ratios.len() - 1) as f64).sqrt()
    });
    // A fast run that needed no throttle says nothing of beta; the controller is the same.
    let beta = beta_slow.unwrap_or(1.0);
    let model = closed_form::time(memory, b_slow, d_slow, beta)
        / closed_form::time(memory, b_fast, d_fast, beta);
    Some(RatioReport {
        policy,
        slow_lost_ms: over(&slow_runs, |m| m.guest_lost_ms()),
        fast_lost_ms: over(&fast_runs, |m| m.guest_lost_ms()),
        r_wanted: r,
        // In the throttled slow run a saturated first round hides the guest's demand, so r is
        // taken where the guest ran free.
        r: d_fast / b_slow,
        k: b_fast / b_slow,
        beta: beta_slow,
        slow_ms,
        fast_ms,
        measured,
        spread,
        model,
        paper,
    })
}

fn mean_of_some(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.flatten().collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
