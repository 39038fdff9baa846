//! `vmigrate bench`: the 10-versus-40 GbE experiment on one host, scaled, proven.
//!
//! Streaming records at two dirty rates, each migrated over a slow link and over one four times
//! faster. Source and destination are two processes on loopback; the link is paced by the sender.
//! The ratio of the two times is printed beside the model's at the measured parameters, and
//! beside the white paper's.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use migrate_core::codec::Encoding;
use migrate_core::guest::stamped::{GuestSettings, ProofSettings};
use migrate_core::link::LinkSettings;
use migrate_core::memory::PAGE_BYTES;
use migrate_core::operator::Desk;
use migrate_core::policy::{PolicyKind, Settings, Tuning};
use migrate_core::proto::Epoch;
use migrate_core::report::{
    BenchReport, BenchRun, MigrationReport, RatioReport, RunReport, RunVerdict, SCHEMA,
};
use migrate_core::source::SourceSettings;
use migrate_core::trial::Trial;
use workload::profile::{PatternSpec, Profile};
use workload::say::Out;
use workload::spec::WorkloadSpec;
use workload::units::{Bytes, Rate, number};
use workload::{exit, interrupt, machine, say};

use crate::args::StateArgs;
use crate::output::{print_json, print_run};
use crate::send::{EngineArgs, migrate};
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

/// A handover of a bench that is unresolved for so long is given up: nobody comes to decide.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

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
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
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
    let workloads = match args.rate {
        Some(rate) => vec![(rate.0 as f64 / slow.0 as f64, None)],
        None => args.reading.workloads().to_vec(),
    };
    let mut report = BenchReport {
        schema: SCHEMA,
        reading: args.reading.name().to_owned(),
        runs: Vec::new(),
        ratios: Vec::new(),
        verdict: RunVerdict::Inconclusive,
        exit_code: exit::PROVEN,
    };
    for (r, paper) in workloads {
        for policy in args.policies() {
            for iteration in 1..=args.iterations {
                for link in [slow, fast] {
                    let run = one(args, &desk, policy, memory, r, slow, link)?;
                    if !args.json {
                        say::report("vmigrate", |out| {
                            title(out, r, link, iteration)?;
                            print_run(out, &run)
                        });
                    }
                    report.exit_code = worse(report.exit_code, run.exit_code);
                    let link = link.0;
                    report.runs.push(BenchRun { policy, r_wanted: r, link, iteration, run });
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
    say::report("vmigrate", |out| match args.json {
        true => print_json(out, &report),
        false => summary(out, &report),
    });
    Ok(report.exit_code)
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

fn title(out: &mut Out, r: f64, link: Rate, iteration: u32) -> io::Result<()> {
    writeln!(out, "stream at r = {r:.3} over {}, iteration {iteration}", link.as_bits())
}

/// One migration to a receiver process of its own.
fn one(
    args: &Args,
    desk: &Arc<Desk>,
    policy: PolicyKind,
    memory: Bytes,
    r: f64,
    slow: Rate,
    link: Rate,
) -> anyhow::Result<RunReport> {
    let directory = std::env::temp_dir().join(format!("vmigrate-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let result = Receiver::start(&directory, &args.state).and_then(|receiver| {
        let goal = PAPER_GOAL_S * (memory.0 as f64 / PAPER_MEMORY) * (PAPER_LINK / slow.0 as f64);
        let engine = &args.engine;
        let trial = Trial {
            guest: GuestSettings {
                machine: engine.guest,
                rate: Some(Rate((r * slow.0 as f64) as u64)),
                proof: ProofSettings { run_on: engine.run_on, audit: engine.audit },
                journal: Some(receiver.journal.clone()),
                ..GuestSettings::of(WorkloadSpec {
                    format: PageFormat::fresh(),
                    seed: args.seed,
                    memory,
                    writers: 2,
                    workload: Profile {
                        record: Bytes(16 << 10),
                        ..Profile::new(PatternSpec::Stream)
                    },
                })
            },
            tracker: engine.tracker,
            source: SourceSettings {
                peer: receiver.address.into(),
                link: LinkSettings::default(),
                streams: engine.streams,
                // The experiment's engine sent whole pages.
                encoding: engine.encoding(Encoding::PLAIN),
                bandwidth: Some(link.0 as f64),
                policy,
                limits: Settings {
                    goal: Duration::from_secs_f64(goal),
                    beta: engine.beta.unwrap_or(BETA),
                    // At r = 0.919 each round still sends 92 % of the one before.
                    rounds_max: engine.rounds.max(500),
                    time_max: engine.time_limit,
                    pages_max: engine.pages_max(),
                    tuning: Tuning::DEFAULT,
                },
                over_limit: engine.over_limit(),
                epoch: Epoch(1),
                earlier: Vec::new(),
                state_directory: args.state.state_dir.clone(),
                resolve_timeout: args.state.resolve_timeout,
                // Nobody comes to decide about a bench's guest.
                give_up_after: args.state.give_up_after.or(Some(GIVE_UP_AFTER)),
                operator: Some(desk.clone()),
            },
            retry: 0,
            linger: Duration::from_millis(500),
        };
        migrate(&trial)
    });
    let _ = std::fs::remove_dir_all(&directory);
    result
}

/// A `vmigrate receive` that ends with this value.
struct Receiver {
    child: Child,
    address: std::net::SocketAddr,
    journal: std::path::PathBuf,
}

impl Receiver {
    fn start(directory: &Path, state: &StateArgs) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let journal = directory.join("journal");
        let mut child = Command::new(program)
            .args(["receive", "--listen", "127.0.0.1:0", "--announce", "--json", "--wait", "60s"])
            .arg("--journal")
            .arg(&journal)
            .arg("--state-dir")
            .arg(&state.state_dir)
            .arg("--give-up-after")
            .arg(format!("{}s", GIVE_UP_AFTER.as_secs()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the receiver")?;
        let mut first = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            stdout.read_line(&mut first).context("the receiver does not answer")?;
            // The rest is drained so that the receiver never waits for us to read it.
            std::thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
        }
        match first.trim().parse() {
            Ok(address) => Ok(Self { child, address, journal }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                anyhow::bail!("the receiver did not start listening")
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It ends by itself after its report; if it does not, it has nothing left to do.
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
    let model = model_time(memory, b_slow, d_slow, beta) / model_time(memory, b_fast, d_fast, beta);
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

/// Time to migrate `m` bytes at bandwidth `b` with dirty rate `d`: a full round that leaves
/// min(1, d/b) of memory, then rounds that each leave min(d/b, beta) of what they sent. Below
/// beta this is M/(B-D), at d >= b it is (M/B)(1 + 1/(1-beta)).
fn model_time(m: f64, b: f64, d: f64, beta: f64) -> f64 {
    let rho = d / b;
    m / b * (1.0 + rho.min(1.0) / (1.0 - rho.min(beta)))
}

fn summary(out: &mut Out, report: &BenchReport) -> io::Result<()> {
    writeln!(out)?;
    if !report.ratios.is_empty() {
        writeln!(
            out,
            "    r (asked)     k    beta     slow      fast    ratio   model   paper  ratio/model"
        )?;
    }
    // Who decided is said where there is more than one.
    let several = report.ratios.iter().any(|x| x.policy != report.ratios[0].policy);
    for x in &report.ratios {
        let beta = x.beta.map_or("   -".to_owned(), |b| format!("{b:.3}"));
        let paper = x.paper.map_or("-".to_owned(), |paper| format!("{paper:.1}x"));
        writeln!(
            out,
            "{:>5} ({:.3}) {:>5} {beta:>7} {:>7.2} s {:>7.2} s {:>7}x {:>6}x {paper:>7} {:>10}",
            number(x.r, 3),
            x.r_wanted,
            number(x.k, 2),
            x.slow_ms / 1e3,
            x.fast_ms / 1e3,
            number(x.measured, 2),
            number(x.model, 2),
            number(x.measured / x.model, 2)
        )?;
        if several {
            writeln!(
                out,
                "    {}: the guest lost {:.2} s over the slow link, {:.2} s over the fast one",
                x.policy.name(),
                x.slow_lost_ms / 1e3,
                x.fast_lost_ms / 1e3
            )?;
        }
        if let Some(spread) = x.spread {
            writeln!(out, "    spread of the ratio over iterations: {spread:.2}")?;
        }
    }
    // Of one that did not happen the source's memory may be proven; the migration is not.
    let proven = report.runs.iter().filter(|r| r.run.exit_code == exit::PROVEN).count();
    writeln!(out, "{proven} of {} migrations PROVEN: {}", report.runs.len(), report.verdict)
}
