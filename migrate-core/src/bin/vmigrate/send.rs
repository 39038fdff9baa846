//! `vmigrate send`: start a guest that keeps writing, migrate it, and hear what was proven.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::Error;
use migrate_core::codec::{Checks, Compress, Delta, Encoding};
use migrate_core::guest::Guest;
use migrate_core::guest::stamped::cost::GuestCost;
use migrate_core::guest::stamped::gauge::Timeline;
use migrate_core::guest::stamped::proof::{self, Scanned, Testimony};
use migrate_core::guest::stamped::{MachineKind, ProofSettings, StampedGuest};
use migrate_core::guest::tracker::TrackerKind;
use migrate_core::link::LinkSettings;
use migrate_core::link::address::HostPort;
use migrate_core::link::congestion::Congestion;
use migrate_core::link::tls::Side;
use migrate_core::memory::{PAGE_BYTES, all, each};
use migrate_core::policy::{PolicyKind, Settings};
use migrate_core::predict::bound::Optimality;
use migrate_core::proto::hello::MigrationId;
use migrate_core::proto::{EARLIER_MAX, Epoch};
use migrate_core::report::MigrationReport;
use migrate_core::session::Failure;
use migrate_core::source::{self, Migrated, Notes, OverLimit, SourceSettings, Streams, Withdrawal};
use verifier::evidence;
use verifier::verdict::Verdict;
use workload::journal::Journal;
use workload::profile::Profile;
use workload::spec::WorkloadSpec;
use workload::units::{Bytes, Rate, parse_duration};
use workload::{interrupt, say};

use crate::args::{LinkArgs, StateArgs};
use crate::console::Console;
use crate::output::{RunReport, SCHEMA, exit_code, print_json, print_run};

/// The guest writes for this long before the migration begins, so that it is in full swing.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long a retry waits for a new receiver to listen.
const RETRY_WAIT: Duration = Duration::from_secs(30);
/// How long the destination may take for its proof, beyond the run-on time.
const TESTIMONY_TIMEOUT: Duration = Duration::from_secs(120);
/// It has a second more for so many bytes of the guest.
const TESTIMONY_BYTES_PER_S: u64 = 64 << 20;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate send --to 127.0.0.1:7400 --memory 1GiB --workload stream --rate 110MB/s\n  \
    vmigrate send --to 10.0.0.2:7400 --insecure --memory 4GiB --workload uniform \\\n      \
    --rate 500MB/s --policy precopy --downtime 300ms --retry 1 --json")]
pub(crate) struct Args {
    /// Where a `vmigrate receive` waits
    #[arg(long, value_name = "ADDR")]
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
    /// Determines every byte that is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
    /// Try again this often, with a new receiver, after a failed attempt
    #[arg(long, default_value_t = 0)]
    retry: u32,
    /// After a failed or cancelled migration the guest runs on here for this long
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    linger: Duration,
    /// Keep heartbeats in this file
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
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

/// Everything one guest's migration needs.
pub(crate) struct Plan {
    pub(crate) spec: WorkloadSpec,
    pub(crate) rate: Rate,
    pub(crate) machine: MachineKind,
    pub(crate) proof: ProofSettings,
    pub(crate) tracker: TrackerKind,
    pub(crate) source: SourceSettings,
    pub(crate) journal: Option<PathBuf>,
    pub(crate) retry: u32,
    pub(crate) linger: Duration,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut workload = args.workload.clone();
    workload.record = args.record.unwrap_or(workload.record);
    let spec =
        WorkloadSpec { seed: args.seed, memory: args.memory, writers: args.writers, workload };
    let engine = &args.engine;
    let policy = match engine.policy[..] {
        [] => PolicyKind::Adaptive,
        [policy] => policy,
        _ => anyhow::bail!("one migration has one --policy; several are for bench"),
    };
    engine.check(args.memory, args.bandwidth)?;
    args.congestion.check()?;
    let link =
        LinkSettings { congestion: args.congestion.clone(), ..args.link.resolve(Side::Client)? };
    for address in args.to.addresses() {
        link.allow(*address)?;
    }
    let plan = Plan {
        spec,
        rate: args.rate,
        machine: engine.guest,
        proof: ProofSettings { run_on: engine.run_on, audit: engine.audit },
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
            },
            over_limit: engine.over_limit(),
            epoch: Epoch(1),
            earlier: Vec::new(),
            state_directory: args.state.state_dir.clone(),
            resolve_timeout: args.state.resolve_timeout,
            give_up_after: args.state.give_up_after,
            operator: Some(args.state.desk()?),
        },
        journal: args.journal.clone(),
        retry: args.retry,
        linger: args.linger,
    };
    engine.check_guest()?;
    interrupt::install().context("cannot watch for Ctrl-C")?;
    let report = migrate(&plan)?;
    say::report("vmigrate", |out| match args.json {
        true => print_json(out, &report),
        false => print_run(out, &report),
    });
    Ok(report.exit_code)
}

/// Starts the guest, migrates it, and gathers what was proven.
pub(crate) fn migrate(plan: &Plan) -> anyhow::Result<RunReport> {
    let mut guest = StampedGuest::start_new(
        plan.machine,
        &plan.spec,
        Some(plan.rate),
        plan.proof,
        plan.journal.as_ref(),
    )?;
    std::thread::sleep(WARM_UP);
    let mut console = Console::new();
    let mut attempts: Vec<MigrationReport> = Vec::new();
    let (mut earlier, mut withdrawals): (Vec<MigrationId>, Vec<Withdrawal>) = (vec![], vec![]);
    let mut lost = 0;
    let waiting_since = Instant::now();
    let (mut began, mut began_at, mut gauge);
    // What a record takes when nobody migrates.
    let before = guest.lap()?;
    let mut result = loop {
        (began, began_at) = (guest.watermarks(), Instant::now());
        // Of earlier attempts nothing is kept.
        guest.lap()?;
        gauge = guest.gauge()?;
        let mut tracker = guest.tracker(plan.tracker)?;
        let settings = SourceSettings { earlier: earlier.clone(), ..plan.source.clone() };
        match source::migrate(&mut guest, &mut *tracker, &settings, &mut console) {
            Ok(Migrated { report, control }) => {
                attempts.push(report);
                break Ok(control);
            }
            Err(failed) => {
                let retryable = !matches!(
                    failed.error,
                    Error::Cancelled
                        | Error::GaveUp(_)
                        | Error::Settings(_)
                        | Error::Unresolved { .. }
                );
                // A receiver that is not there yet costs no retry while we may wait for one.
                let absent = matches!(
                    failed.error,
                    Error::Connect { .. } | Error::Session(Failure::Unreachable(_))
                ) && lost > 0;
                // While the guest runs here, what a failed attempt left there is withdrawn.
                withdrawals.extend(failed.withdrawal);
                if let Ok(id) = failed.report.id.parse() {
                    earlier.push(id);
                    earlier.drain(..earlier.len().saturating_sub(EARLIER_MAX));
                }
                let patient = absent && waiting_since.elapsed() < RETRY_WAIT * (lost + 1);
                if !retryable || (!patient && lost >= plan.retry) {
                    attempts.push(failed.report);
                    break Err(failed.error);
                }
                if !patient {
                    lost += 1;
                    console.say(&format!("{}; the guest runs on here, trying again", failed.error));
                    attempts.push(failed.report);
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    };
    let record = plan.spec.workload.record.0;
    let mut report = RunReport {
        schema: SCHEMA,
        workload: plan.spec.clone(),
        rate_wanted: Some(plan.rate.0),
        rate_achieved: 0.0,
        verdict: String::new(),
        reasons: Vec::new(),
        exit_code: 0,
        attempts,
        proof: None,
        source_scan: None,
        journal_gap_ms: None,
        guest: None,
        optimality: None,
    };
    let timeline = gauge.finish();
    let rate = |guest: &StampedGuest, seconds: f64| {
        let before: u64 = began.iter().sum();
        (guest.watermarks().iter().sum::<u64>() - before) as f64 * record as f64 / seconds
    };
    let verdict = match &mut result {
        Ok(control) => {
            let last = report.attempts.last();
            let seconds = last.map_or(0.0, |m| (m.total_ms - m.downtime.total_ms) / 1e3);
            report.rate_achieved = rate(&guest, seconds);
            let (verdict, proof) = hear(&guest, &began, control.as_mut(), plan, &console);
            report.proof = Some(proof);
            verdict
        }
        Err(Error::Unresolved { .. }) => Verdict::Inconclusive,
        Err(_) => {
            report.rate_achieved = rate(&guest, began_at.elapsed().as_secs_f64());
            let (verdict, scan) = run_on_here(&mut guest, plan, &console)?;
            report.source_scan = Some(scan);
            verdict
        }
    };
    console.clear();
    if result.is_ok() {
        report.optimality =
            report.attempts.last().and_then(|last| optimality(&guest, last, &timeline));
    }
    let ended = guest.stop();
    report.reasons.extend(ended.trouble.iter().map(ToString::to_string));
    let during = ended.stats;
    if let (Some(last), true) = (report.attempts.last(), result.is_ok()) {
        let per_s = plan.rate.0 as f64 / record as f64;
        let vcpus = plan.spec.writers as usize;
        let cost = GuestCost::of(last, (&before, &during), &timeline, Some(per_s), vcpus);
        report.guest = Some(cost);
    }
    let mut verdict = match report.reasons.is_empty() {
        true => verdict,
        false => verdict.and(Verdict::Inconclusive),
    };
    match plan.journal.as_deref().map(Journal::read) {
        Some(Ok(journal)) => {
            let evidence = evidence::judge(&journal);
            report.journal_gap_ms = Some(evidence.longest_gap_ms);
            for breach in &evidence.breaches {
                verdict = Verdict::Wrong;
                report.reasons.push(breach.to_string());
            }
        }
        Some(Err(error)) => {
            verdict = verdict.and(Verdict::Inconclusive);
            report.reasons.push(error.to_string());
        }
        None => {}
    }
    report.verdict = verdict.to_string();
    report.exit_code = exit_code(verdict, result.as_ref().err());
    Ok(report)
}

/// What this migration was beside what was possible; `None` if it sent too little to know the
/// bandwidth.
fn optimality(
    guest: &StampedGuest,
    report: &MigrationReport,
    timeline: &Timeline,
) -> Option<Optimality> {
    let bandwidth = report.bandwidth();
    if bandwidth <= 0.0 {
        return None;
    }
    let memory = guest.memory();
    let pages = each(all(memory.pages())).filter(|page| !memory.is_zero(*page)).count() as u64;
    let done = (report.page_bytes, report.migration_ms, report.downtime.total_ms);
    // Older writes cannot matter: all of memory could have been sent since.
    let horizon = (memory.pages() * PAGE_BYTES) as f64 / bandwidth;
    let ages = timeline.ages(guest.workload(), horizon);
    Some(Optimality::of(done, bandwidth, pages, ages))
}

/// Waits for the destination's testimony and judges it.
fn hear(
    guest: &StampedGuest,
    began: &[u64],
    control: Option<&mut Notes>,
    plan: &Plan,
    console: &Console,
) -> (Verdict, proof::Proof) {
    let stunned = guest.watermarks();
    let root = plan.proof.audit.then(|| proof::root(guest.region()));
    let reading = Duration::from_secs(guest.region().bytes() / TESTIMONY_BYTES_PER_S);
    let patience = TESTIMONY_TIMEOUT + reading + plan.proof.run_on;
    let testimony: Option<Testimony> = control.and_then(|notes| {
        let note = notes.receive(patience, &|| console.interrupted());
        match note.map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(testimony)) => Some(testimony),
            Ok(Err(error)) => {
                console.say(&format!("the destination's testimony cannot be read: {error}"));
                None
            }
            Err(error) => {
                console.say(&format!("the destination's testimony did not arrive: {error}"));
                None
            }
        }
    });
    proof::judge(guest.workload().lines(), began.to_vec(), stunned, root, testimony)
}

/// After a failure: the guest goes on here for a while, and is then checked.
fn run_on_here(
    guest: &mut StampedGuest,
    plan: &Plan,
    console: &Console,
) -> anyhow::Result<(Verdict, Scanned)> {
    let resumed = guest.watermarks();
    let interrupts = interrupt::count();
    console.say(&format!(
        "the guest runs on here for {:.1} s (Ctrl-C ends it now)",
        plan.linger.as_secs_f64()
    ));
    let start = Instant::now();
    while start.elapsed() < plan.linger && interrupt::count() == interrupts {
        std::thread::sleep(Duration::from_millis(20));
    }
    let scan = guest.scan()?;
    let advanced = scan.watermarks.iter().zip(&resumed).all(|(now, then)| now > then);
    let verdict = match (scan.first_fault(), advanced) {
        (Some(_), _) => Verdict::Wrong,
        (None, true) => Verdict::Proven,
        (None, false) => Verdict::Inconclusive,
    };
    Ok((verdict, scan))
}
