//! `vmigrate receive`: take guests as they come, run each, prove it, say so to its source.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::Error;
use migrate_core::destination::{Arrived, DestinationSettings, Host};
use migrate_core::guest::stamped::proof::{Testimony, judge};
use migrate_core::guest::stamped::{StampedFactory, StampedGuest, StampedShadow};
use migrate_core::link::LinkSettings;
use migrate_core::link::address::HostPort;
use migrate_core::link::endpoint::Endpoint;
use migrate_core::link::tls::Side;
use migrate_core::report::{ReceiveReport, RunVerdict, SCHEMA, Status};
use migrate_core::source::Notes;
use verifier::verdict::Verdict;
use workload::heartbeat::End;
use workload::provenance::Provenance;
use workload::units::parse_duration;
use workload::{exit, interrupt, say};

use crate::args::{LinkArgs, StateArgs, TellArgs};
use crate::console::{Arriving, Console};
use crate::output::{Kept, print_json, print_json_line};
use crate::passing::{PassArgs, Passing};
use crate::show;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate receive                                 at 127.0.0.1:7400, until Ctrl-C\n  \
    vmigrate receive --listen 0.0.0.0 --tls-dir /etc/vmigrate/tls --once\n  \
    vmigrate receive --json >> guests.ndjson         one document a line, failed ones as well\n\n  \
    to and fro between two hosts, eight hours long:\n  \
    a$ vmigrate receive --listen 0.0.0.0 --insecure --on-to b --for 8h --json > a.ndjson\n  \
    b$ vmigrate receive --listen 0.0.0.0 --insecure --on-to a --for 8h --json > b.ndjson\n  \
    c$ vmigrate send --to a --insecure --memory 4GiB --rate 200MB/s\n\n\
    Who comes while as many guests as may come (--guests) are on their way is told with what this\n\
    is busy, and may come again.\n\
    With --once the exit code is that guest's; otherwise that of the worst memory that came.")]
pub(crate) struct Args {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    listen: HostPort,
    /// Take one guest, and end
    #[arg(long)]
    once: bool,
    /// Take up to so many guests at once, as far as memory goes
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "once",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    guests: u32,
    /// End if no guest came after this long
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    wait: Option<Duration>,
    /// Go on with this journal of heartbeats
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Look here for the traces that guests replay: by checksum, under any name
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
    /// Keep guests' memory on huge pages, which must have been reserved
    #[arg(long)]
    huge_pages: bool,
    #[command(flatten)]
    told: TellArgs,
    /// Print the address that is listened on as the first line of standard output
    #[arg(long, hide = true)]
    announce: bool,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    pass: PassArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let link = args.link.resolve(Side::Server)?;
    let detail = args.told.detail();
    let desk = args.state.desk()?;
    // It calls the next receiver as a client.
    let onward = match args.pass.is_wanted() {
        true => args.link.resolve(Side::Client)?,
        false => link.clone(),
    };
    let passing = Passing::of(&args.pass, &onward, &args.state, &desk)?;
    let endpoint = Arc::new(listen(&args.listen, &link)?);
    interrupt::install().context("cannot watch for Ctrl-C")?;
    let address = endpoint.address();
    if args.announce {
        say::report("vmigrate", |out| writeln!(out, "{address}"));
    }
    Console::new(detail).say(&format!("listening on {address}"));
    anyhow::ensure!(
        args.guests == 1 || args.journal.is_none(),
        "--journal is the journal of one guest at a time; leave it out, or --guests"
    );
    let settings = DestinationSettings {
        arrival_timeout: args.wait,
        resolve_timeout: args.state.resolve_timeout,
        give_up_after: args.state.give_up_after,
        state_directory: args.state.state_dir.clone(),
        operator: Some(desk),
    };
    let factory = StampedFactory {
        journal: args.journal.clone(),
        traces: args.traces.clone(),
        huge_pages: args.huge_pages,
    };
    let host = Host::open(&endpoint, &settings, args.guests as usize)?;
    let protection = link.protection(&[address]);
    let house = House {
        args,
        host,
        factory,
        passing,
        protection,
        came: Mutex::default(),
        is_over: AtomicBool::new(false),
    };
    house.open()
}

/// Everything that threads which each wait for a guest share.
struct House<'a> {
    args: &'a Args,
    host: Host,
    factory: StampedFactory,
    passing: Option<Passing>,
    protection: &'static str,
    came: Mutex<Came>,
    is_over: AtomicBool,
}

impl House<'_> {
    /// Takes guests, side by side, until it is over; the exit code.
    fn open(&self) -> anyhow::Result<u8> {
        let ends = std::thread::scope(|scope| {
            let rooms: Vec<_> = (1..self.args.guests)
                .map(|number| {
                    std::thread::Builder::new()
                        .name(format!("room {number}"))
                        .spawn_scoped(scope, || self.room())
                })
                .collect();
            let first = self.room();
            let others = rooms.into_iter().map(|room| match room {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                Err(error) => Err(anyhow::Error::new(error).context("cannot start a thread")),
            });
            let others: anyhow::Result<Vec<Over>> = others.collect();
            first.and_then(|first| others.map(|_| first))
        })?;
        match ends {
            Over::Once(code) => Ok(code),
            Over::Stays(why) => Ok(self.came().end(&why)),
        }
    }

    fn came(&self) -> MutexGuard<'_, Came> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one guest after the other.
    fn room(&self) -> anyhow::Result<Over> {
        let (args, detail) = (self.args, self.args.told.detail());
        let mut factory = self.factory.clone();
        loop {
            let mut console = Console::new(detail);
            let provenance = Provenance::here("vmigrate");
            let rest = self.passing.as_ref().and_then(Passing::rest);
            let patience = args.wait.into_iter().chain(rest).min();
            let mut report = match self.host.receive(&mut factory, patience, &mut console) {
                Ok(arrived) => live(arrived, self.passing.as_ref(), &mut console)?,
                Err(error) => {
                    // Nobody is there: it is over, as was asked for, or nobody ever can come.
                    let over = !args.once && console.arriving().migration.is_none();
                    // That is said once, and goes without saying where it was asked for.
                    let said = over && self.is_over.swap(true, Ordering::Relaxed);
                    let asked = rest.is_some() && matches!(error, Error::NobodyCame(_));
                    if !said && !asked {
                        say!("vmigrate: {error}");
                    }
                    if over {
                        return Ok(Over::Stays(error));
                    }
                    did_not_come(&error, console.arriving())
                }
            };
            console.clear();
            report.provenance = Some(provenance);
            report.protection = self.protection.to_owned();
            if let Some(kept) = Kept::open(args.told.out.as_deref(), "receive") {
                kept.keep(&report);
            }
            say::report("vmigrate", |out| match (args.told.json, args.once) {
                (true, true) => print_json(out, &report),
                (true, false) => print_json_line(out, &report),
                (false, _) => show::received::print(out, &report, detail),
            });
            if args.once {
                return Ok(Over::Once(report.exit_code));
            }
            self.came().add(&report);
            let moved = report.epoch.unwrap_or(0) + u64::from(report.went_on());
            let is_over = |passing: &Passing| report.migrated && passing.is_over(moved);
            if self.passing.as_ref().is_some_and(is_over) || interrupt::count() > 0 {
                return Ok(Over::Stays(Error::Cancelled));
            }
        }
    }
}

/// How waiting for guests ended.
enum Over {
    /// With the exit code of the one guest.
    Once(u8),
    /// Nobody comes any more.
    Stays(Error),
}

/// What came to a receiver that stays.
#[derive(Default)]
struct Came {
    migrated: u32,
    failed: u32,
    passed_on: u32,
    /// Attempts to pass guests on that failed, and were made again or not.
    attempts_failed: usize,
    downtimes_ms: Vec<f64>,
    memory: Option<Verdict>,
}

impl Came {
    fn add(&mut self, report: &ReceiveReport) {
        if !report.migrated {
            self.failed += 1;
            return;
        }
        self.migrated += 1;
        let before = self.memory.unwrap_or(report.memory);
        self.memory = Some(before.and(report.memory));
        let Some(on) = &report.passed_on else { return };
        self.memory = self.memory.map(|memory| memory.and(on.memory));
        self.attempts_failed += on.attempts.iter().filter(|m| !m.is_done()).count();
        if let Some(last) = on.last().filter(|_| on.migrated) {
            self.passed_on += 1;
            self.downtimes_ms.push(last.downtime.total_ms);
        }
    }

    /// Says what it was in all; the exit code.
    fn end(&mut self, why: &Error) -> u8 {
        let Self { migrated, failed, memory, .. } = self;
        let worst = memory.map_or(String::new(), |memory| format!(", memory {memory}"));
        say!("vmigrate: {migrated} guests came{worst}; {failed} migrations failed");
        self.downtimes_ms.sort_by(f64::total_cmp);
        if let (Some(longest), middle) = (self.downtimes_ms.last(), self.downtimes_ms.len() / 2) {
            say!(
                "vmigrate: {} were passed on, after {} attempts that failed; downtime {} in the \
                 middle, {} at most",
                self.passed_on,
                self.attempts_failed,
                show::time(self.downtimes_ms[middle]),
                show::time(*longest)
            );
        }
        match (self.memory, why) {
            (Some(memory), _) => memory.exit_code(),
            // Whoever ended a receiver to which nobody came wanted no more than that.
            (None, Error::Cancelled) => exit::PROVEN,
            (None, _) => exit::FAILED,
        }
    }
}

/// What there is to say where no guest runs.
fn did_not_come(error: &Error, arriving: &Arriving) -> ReceiveReport {
    let unresolved = matches!(error, Error::Unresolved { .. });
    ReceiveReport {
        schema: SCHEMA,
        provenance: None,
        protection: String::new(),
        migration: arriving.migration.clone(),
        peer: arriving.peer.clone(),
        epoch: None,
        pages: 0,
        migrated: false,
        memory: Verdict::Inconclusive,
        reasons: Vec::new(),
        verdict: RunVerdict::NotMigrated,
        status: Status::of(error, arriving.phase),
        cpu_ms: 0.0,
        testimony: None,
        passed_on: None,
        exit_code: if unresolved { exit::UNRESOLVED } else { exit::FAILED },
    }
}

/// Listens on the first address of `endpoint` that can be listened on. Which are not listened on is
/// said, because callers may try them.
fn listen(endpoint: &HostPort, settings: &LinkSettings) -> anyhow::Result<Endpoint> {
    for address in endpoint.addresses() {
        settings.allow(*address)?;
    }
    let mut failures = Vec::new();
    let bound = endpoint.addresses().iter().find_map(|address| {
        Endpoint::bind(*address, settings.clone()).map_err(|e| failures.push(e.to_string())).ok()
    });
    let Some(bound) = bound else { anyhow::bail!(failures.join("; ")) };
    for failure in &failures {
        say!("vmigrate: {failure}");
    }
    for address in &endpoint.addresses()[failures.len() + 1..] {
        say!("vmigrate: not listening on {address}, which {endpoint} also is");
    }
    Ok(bound)
}

/// How long the source may take to hear of the proof: it may have to find its way back.
const NOTE_PATIENCE: Duration = Duration::from_secs(20);

/// A guest that came and was proven, and what its source still reaches it by.
struct Proven {
    guest: StampedGuest,
    control: Notes,
}

/// Proves a guest that came; then it is passed on, or ends.
fn live(
    arrived: Arrived<StampedShadow>,
    passing: Option<&Passing>,
    console: &mut Console,
) -> anyhow::Result<ReceiveReport> {
    let epoch = arrived.epoch.0;
    let wanted = passing.filter(|passing| !passing.is_over(epoch));
    let (mut report, proven) = prove(arrived, wanted.is_some(), console)?;
    let (Some(passing), Some(Proven { guest, control })) = (wanted, proven) else {
        return Ok(report);
    };
    let mut stayed = Some(guest);
    // A guest that is not what it must be goes no further.
    if report.memory == Verdict::Proven
        && interrupt::count() == 0
        && let Some(guest) = stayed.take()
    {
        console.say(&format!("passing the guest on to {}", passing.next()));
        let (on, here) = passing.trial(&guest).pass_on(guest, console)?;
        if on.migrated {
            control.gone_on();
        }
        report.exit_code = on.exit_code;
        report.passed_on = Some(Box::new(on));
        stayed = here;
    }
    let ended = stayed.map(|guest| guest.stop(End::ByOwner));
    if let Some(first) = ended.as_ref().and_then(|ended| ended.trouble.first()) {
        report.reasons.push(first.to_string());
        report.memory = report.memory.and(Verdict::Inconclusive);
        report.verdict = RunVerdict::of(true, report.memory);
        report.exit_code = report.memory.exit_code();
    }
    Ok(report)
}

/// Lets the guest run on, looks again, and tells the source; the guest, if it `goes_on`.
fn prove(
    mut arrived: Arrived<StampedShadow>,
    goes_on: bool,
    console: &Console,
) -> anyhow::Result<(ReceiveReport, Option<Proven>)> {
    let mut shadow = arrived.guest;
    // What goes wrong with the guest from here on is told, and never ends it.
    let mut trouble: Vec<String> =
        shadow.await_running().err().iter().map(ToString::to_string).collect();
    let mut guest = shadow.guest.context("the guest does not run")?;
    let run_on = Duration::from_millis(shadow.description.run_on_ms);
    let start = Instant::now();
    // Once the guest runs here, the first interrupt is not its owner's word yet.
    let end_now = interrupt::count() + 2;
    while start.elapsed() < run_on && interrupt::count() < end_now {
        std::thread::sleep(Duration::from_millis(20).min(run_on));
    }
    let after_run = guest.scan().map_err(|error| trouble.push(error.to_string())).ok();
    let lines = guest.workload().lines();
    // One that ends here has no more to say afterwards.
    let guest = match goes_on {
        true => Some(guest),
        false => {
            let ended = guest.stop(End::ByOwner);
            trouble.extend(ended.trouble.iter().map(ToString::to_string));
            None
        }
    };
    let testimony = Testimony {
        before_resume: shadow.first_scan.context("the guest was not inspected")?,
        after_run,
        trouble,
        root: shadow.root,
        felt_gap_ms: shadow.felt_gap.map(|gap| gap.as_secs_f64() * 1e3),
    };
    let note = serde_json::to_vec(&testimony)?;
    let unwanted = || interrupt::count() >= end_now;
    if arrived.source_is_gone {
        console.say("nobody is left at the source to hear of the proof");
    } else if let Err(error) = arrived.control.send(&note, NOTE_PATIENCE, &unwanted) {
        console.say(&format!("the source will not hear of the proof: {error}"));
    }
    // How far the writers came while they were moved is the source's to judge; here each must have
    // written at all, be whole, and go on writing.
    let first = testimony.before_resume.watermarks.clone();
    let began = first.iter().map(|w| w.saturating_sub(1)).collect();
    let proof = judge(lines, began, first.clone(), None, Some(testimony.clone()));
    let memory = proof.verdict;
    let report = ReceiveReport {
        schema: SCHEMA,
        provenance: None,
        protection: String::new(),
        migration: Some(arrived.migration.to_string()),
        peer: Some(arrived.peer.to_string()),
        epoch: Some(arrived.epoch.0),
        pages: arrived.pages,
        migrated: true,
        memory,
        verdict: RunVerdict::of(true, memory),
        status: Status::of_memory(memory, proof.reasons.join("; ")),
        reasons: proof.reasons,
        cpu_ms: arrived.cpu_ms,
        testimony: Some(testimony),
        passed_on: None,
        exit_code: memory.exit_code(),
    };
    let control = arrived.control;
    Ok((report, guest.map(|guest| Proven { guest, control })))
}
