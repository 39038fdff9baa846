//! `vmigrate check`: what this machine can do, and what to do about what it cannot.

use std::io::Write;
use std::time::SystemTime;

use clap::Args as ClapArgs;
use migrate_core::guest::stamped::{GuestSettings, MachineKind, StampedGuest};
use migrate_core::guest::tracker::TrackerKind;
use migrate_core::link::congestion::Congestion;
use migrate_core::link::tls::{Identity, Side, in_days};
use migrate_core::operator::StateDirectory;
use rustix::process::{Resource, getrlimit};
use schemars::JsonSchema;
use serde::Serialize;
use workload::heartbeat::End;
use workload::line::PageFormat;
use workload::profile::{PatternSpec, Profile};
use workload::provenance::Provenance;
use workload::spec::WorkloadSpec;
use workload::units::Bytes;
use workload::{exit, machine, say};

use crate::output::print_json;
use crate::show::{COLUMNS, wrapped};

/// Version of the answer.
pub(crate) const SCHEMA: u32 = 1;
/// Memory of the guest that is tried.
const TRIED: Bytes = Bytes(1 << 20);
/// Fewer threads than this do not carry a guest with many writers and streams.
const THREADS_MIN: u64 = 256;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate check\n  \
    vmigrate check --tls-dir /etc/vmigrate/tls --json\n\n\
    Exit code 0: guests can be migrated here, if less well than on other machines; 3: they cannot.")]
pub(crate) struct Args {
    /// Look at the certificates in this directory, too
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<std::path::PathBuf>,
    /// Where handover records are to be kept
    #[arg(long, value_name = "DIR", default_value_os_t = StateDirectory::default_path())]
    state_dir: std::path::PathBuf,
    /// Print the answer as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As it should be.
    Good,
    /// It goes without, but not as well.
    Less,
    /// Nothing goes without.
    Missing,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Item {
    what: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Answer {
    schema: u32,
    /// What made it.
    provenance: Provenance,
    /// Whether guests can be migrated here.
    able: bool,
    items: Vec<Item>,
}

fn good(what: &'static str, found: impl Into<String>) -> Item {
    Item { what, state: State::Good, found: found.into(), remedy: None }
}

fn less(what: &'static str, found: impl Into<String>, remedy: &'static str) -> Item {
    Item { what, state: State::Less, found: found.into(), remedy: Some(remedy) }
}

fn missing(what: &'static str, found: impl Into<String>, remedy: &'static str) -> Item {
    Item { what, state: State::Missing, found: found.into(), remedy: Some(remedy) }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut items = vec![system(), memory()];
    items.extend(guests());
    items.push(kvm());
    items.push(threads());
    items.push(congestion());
    items.push(state(args));
    items.extend(tls(args));
    let able = items.iter().all(|item| item.state != State::Missing);
    let answer = Answer { schema: SCHEMA, provenance: Provenance::here("vmigrate"), able, items };
    say::report("vmigrate", |out| match args.json {
        true => print_json(out, &answer),
        false => {
            for Item { what, state, found, remedy } in &answer.items {
                let state = match state {
                    State::Good => "ok",
                    State::Less => "less",
                    State::Missing => "MISSING",
                };
                let head = format!("{state:<8} {what:<16} ");
                let rest = " ".repeat(head.len());
                write!(out, "{}", wrapped(found, &head, &rest, COLUMNS))?;
                if let Some(remedy) = remedy {
                    write!(out, "{}", wrapped(remedy, &format!("{rest}-> "), &rest, COLUMNS))?;
                }
            }
            let able = if able { "can" } else { "can NOT" };
            writeln!(out, "guests {able} be migrated from and to this machine")
        }
    });
    Ok(if able { exit::PROVEN } else { exit::FAILED })
}

fn system() -> Item {
    let name = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = name.release().to_string_lossy();
    let machine = name.machine().to_string_lossy();
    let found = format!("Linux {kernel}, {machine}, {cores} cores for this process");
    match cores {
        1 => less("system", found, "a guest and its migration share one core; give two or more"),
        _ => good("system", found),
    }
}

fn memory() -> Item {
    let what = "memory";
    match machine::available_memory() {
        Some(bytes) if bytes.0 < 256 << 20 => less(
            what,
            format!("{bytes} available"),
            "guests of a few MiB only; free some, or raise the limit",
        ),
        Some(bytes) => good(what, format!("{bytes} available, control groups counted")),
        None => less(what, "this kernel does not say how much is available", "mount /proc"),
    }
}

/// A small guest is started, and its writes are tracked in each way.
fn guests() -> Vec<Item> {
    let spec = WorkloadSpec {
        format: PageFormat::fresh(),
        seed: 1,
        memory: TRIED,
        writers: 1,
        workload: Profile::new(PatternSpec::Stream),
    };
    let guest = match StampedGuest::start_new(&GuestSettings::of(spec)) {
        Ok(guest) => guest,
        Err(error) => {
            return vec![missing(
                "guest",
                error.to_string(),
                "see the reason; nothing runs without",
            )];
        }
    };
    let uffd = guest.tracker(TrackerKind::Userfaultfd).map(drop);
    let fault = guest.tracker(TrackerKind::Mprotect).map(drop);
    let _ = guest.stop(End::ByOwner);
    let what = "dirty tracking";
    vec![match (uffd, fault) {
        (Ok(()), _) => good(what, "userfaultfd with asynchronous write protection"),
        (Err(why), Ok(())) => less(
            what,
            format!("mprotect alone: {why}"),
            "a first write costs microseconds instead of less than one; Linux 6.7 or newer, as root or \
             with sysctl vm.unprivileged_userfaultfd=1",
        ),
        (Err(_), Err(why)) => missing(
            what,
            why.to_string(),
            "allow userfaultfd or mprotect: a seccomp filter or a container may forbid them",
        ),
    }]
}

fn kvm() -> Item {
    match MachineKind::Kvm.missing() {
        None => good("kvm", "guests may be virtual machines (--guest kvm)"),
        Some(why) => {
            less("kvm", why, "guests are made of threads; /dev/kvm must be there and writable")
        }
    }
}

fn threads() -> Item {
    match getrlimit(Resource::Nproc).current {
        Some(most) if most < THREADS_MIN => less(
            "threads",
            format!("{most} at most for this user"),
            "a guest takes one for each writer, each stream and each core; raise ulimit -u",
        ),
        Some(most) => good("threads", format!("{most} at most for this user")),
        None => good("threads", "as many as wanted"),
    }
}

fn congestion() -> Item {
    let what = "congestion";
    let has = |name: &str| Congestion::Named(name.to_owned()).check().is_ok();
    match ["cubic", "reno"].into_iter().find(|name| has(name)) {
        Some(name) => good(what, format!("{name}, which does not pace")),
        None => less(
            what,
            "neither cubic nor reno may be used",
            "the system's is used; sysctl net.ipv4.tcp_allowed_congestion_control",
        ),
    }
}

fn state(args: &Args) -> Item {
    match StateDirectory::open(&args.state_dir) {
        Ok(directory) => good("state directory", directory.path().display().to_string()),
        Err(error) => missing(
            "state directory",
            error.to_string(),
            "name one that is yours alone and on a disk that keeps what is written: --state-dir",
        ),
    }
}

fn tls(args: &Args) -> Vec<Item> {
    let Some(directory) = &args.tls_dir else {
        return vec![good("tls", "not asked for; `vmigrate tls-init` makes certificates")];
    };
    let identity = Identity::in_directory(directory);
    let side = |(what, side)| match identity.check(side, SystemTime::now()) {
        Ok(expiries) => {
            let rest = expiries.iter().map(|expiry| expiry.rest).min().unwrap_or_default();
            good(what, format!("valid for {}", in_days(rest)))
        }
        Err(error) => {
            less(what, error.to_string(), "needed by that side alone; `vmigrate tls-init`")
        }
    };
    [("tls to send", Side::Client), ("tls to receive", Side::Server)].map(side).into()
}
