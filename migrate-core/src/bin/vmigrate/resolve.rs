//! What an operator asks and tells running migrations: `vmigrate status`, `cancel`, `set`, `switch`
//! and `resolve`, each answered at once by the program that holds the migration.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use migrate_core::link::address::HostPort;
use migrate_core::link::tls::Side;
use migrate_core::operator::record::{self, Found, Says};
use migrate_core::operator::{Request, Setting, StateDirectory, Status, desk};
use migrate_core::proto::hello::MigrationId;
use migrate_core::session::Word;
use migrate_core::session::record::SourceRecord;
use migrate_core::session::source::Arrival;
use migrate_core::source::{self, Outcome, TakeUp};
use serde_json::json;
use workload::units::{Bytes, Rate, parse_duration};
use workload::{exit, interrupt, say};

use crate::args::LinkArgs;
use crate::console::Console;

/// A handover that was taken up is spoken of again after so long without an answer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the programs are found.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct DirectoryArgs {
    /// The state directory of the programs that are asked
    #[arg(long, value_name = "DIR", default_value_os_t = StateDirectory::default_path())]
    state_dir: PathBuf,
}

impl DirectoryArgs {
    fn open(&self) -> anyhow::Result<StateDirectory> {
        anyhow::ensure!(
            self.state_dir.exists(),
            "there is no {}: no migration was started here, or with another --state-dir",
            self.state_dir.display()
        );
        Ok(StateDirectory::open(&self.state_dir)?)
    }
}

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  vmigrate status\n  vmigrate status --json")]
pub(crate) struct StatusArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(ClapArgs)]
#[command(
    after_help = "Examples:\n  vmigrate cancel\n  vmigrate cancel 0123456789abcdef0123456789abcdef"
)]
pub(crate) struct CancelArgs {
    /// Which migration; may be left out where one program has one
    migration: Option<MigrationId>,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(ClapArgs)]
#[command(
    after_help = "Examples:\n  vmigrate set bandwidth 100MB/s\n  vmigrate set bandwidth none\n  \
    vmigrate set downtime 500ms --migration 0123456789abcdef0123456789abcdef"
)]
pub(crate) struct SetArgs {
    /// What: bandwidth or downtime
    what: String,
    /// To what: a rate or `none`, or a time
    value: String,
    /// Which migration; may be left out where one program has one
    #[arg(long, value_name = "ID")]
    migration: Option<MigrationId>,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(ClapArgs)]
#[command(
    after_help = "Run it on the host that holds the stopped guest; `vmigrate status` names it.\n\n\
    At the source:\n  \
    vmigrate resolve ID --source-runs        the destination is asked to refuse; the guest goes on here\n  \
                                             when it has. If it cannot be reached: look there when told\n  \
                                             to, then say it again with --runs-nowhere-else\n  \
    vmigrate resolve ID --destination-runs   it runs there: this copy is dropped\n\n\
    At the destination:\n  \
    vmigrate resolve ID --destination-runs --source-is-gone\n  \
                                             the source's program and guest were ended for good, it did\n  \
                                             not run on after the stun, and runs nowhere else\n\n\
    At either:\n  \
    vmigrate resolve ID --give-up            what is held here is given up\n\n\
    Where the source's program is gone, and its record says that the guest is the destination's:\n  \
    vmigrate resolve ID --destination-runs   tells the destination to run the guest, and asks until it\n  \
                                             answers; with --to where it is reached in another way,\n  \
                                             and --tls-dir or --insecure as for `vmigrate send`"
)]
#[command(group = clap::ArgGroup::new("word").required(true))]
pub(crate) struct Args {
    /// The migration, as the stopped side names it
    migration: MigrationId,
    /// The guest runs, or shall run, at the destination
    #[arg(long, group = "word")]
    destination_runs: bool,
    /// The guest shall run at the source
    #[arg(long, group = "word")]
    source_runs: bool,
    /// Give up what is held here
    #[arg(long, group = "word")]
    give_up: bool,
    /// Sworn: it neither runs nor has run at the destination or beyond it, seen after this was asked
    /// for
    #[arg(long, requires = "source_runs")]
    runs_nowhere_else: bool,
    /// Sworn: the source's program and guest were ended for good, the guest did not run on after the
    /// stun, and runs nowhere else
    #[arg(long, requires = "destination_runs")]
    source_is_gone: bool,
    /// Where the destination is reached, if not where the record says
    #[arg(long, value_name = "HOST:PORT", requires = "destination_runs")]
    to: Option<HostPort>,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<u8> {
    let directory = args.directory.open()?;
    let (running, found) = (desk::status(&directory)?, record::all(&directory)?);
    let left: Vec<_> = found.iter().filter(|found| !found.owned).collect();
    say::report("vmigrate", |out| {
        if args.json {
            let document = json!({
                "schema": 1,
                "migrations": running.iter().map(document).collect::<Vec<_>>(),
                "records": left.iter().map(|found| json!({
                    "file": found.path.display().to_string(),
                    "says": said(found),
                })).collect::<Vec<_>>(),
            });
            return writeln!(out, "{document:#}");
        }
        for status in &running {
            writeln!(out, "{}", line(status))?;
        }
        for found in &left {
            writeln!(out, "record {}: {}", found.path.display(), said(found))?;
        }
        if running.is_empty() && left.is_empty() {
            writeln!(out, "no migration under way")?;
        }
        Ok(())
    });
    Ok(exit::PROVEN)
}

fn document(status: &Status) -> serde_json::Value {
    json!({
        "migration": status.migration,
        "role": status.role,
        "state": status.state,
        "connected": status.connected,
        "peer": status.peer,
        "memory_pages": status.memory_pages,
        "doing": status.doing,
        "done": status.done,
        "total": status.total,
    })
}

fn line(status: &Status) -> String {
    let Status { migration, role, state, peer, doing, done, total, .. } = status;
    let memory = Bytes(status.memory_pages * migrate_core::memory::PAGE_BYTES);
    let lost = if status.connected { "" } else { ", not connected" };
    let far = match total {
        0 => format!("{done}"),
        total => format!("{done} of {total}"),
    };
    format!("{migration} {role} of {memory}, peer {peer}{lost}: {state}; {doing} ({far})")
}

/// What a record that no program holds means.
fn said(found: &Found) -> String {
    match &found.contents {
        Err(why) => format!("cannot be used: {why}"),
        Ok(contents) => {
            let word = contents.says.word();
            let peer = &contents.peer;
            match contents.says {
                Says::Source(SourceRecord::Committed) => format!(
                    "{word}: its program and guest are gone; the guest is the destination's ({peer}): \
                     `vmigrate resolve {} --destination-runs` tells it to run the guest",
                    contents.migration
                ),
                _ => format!("{word}, peer {peer}; its program is gone"),
            }
        }
    }
}

/// Tells, and says what was answered; `None` if no program holds such a migration.
fn told(directory: &StateDirectory, request: Request) -> anyhow::Result<Option<u8>> {
    Ok(desk::tell(directory, request)?.map(|reply| {
        say!("vmigrate: {}", reply.text);
        if reply.taken { exit::PROVEN } else { exit::FAILED }
    }))
}

fn nobody(directory: &StateDirectory) -> anyhow::Error {
    anyhow::anyhow!(
        "no program with the state directory {} holds such a migration (see `vmigrate status`)",
        directory.path().display()
    )
}

fn tell(directory: &StateDirectory, request: Request) -> anyhow::Result<u8> {
    told(directory, request)?.ok_or_else(|| nobody(directory))
}

pub(crate) fn cancel(args: &CancelArgs) -> anyhow::Result<u8> {
    tell(&args.directory.open()?, Request::Word(args.migration, Word::Cancel))
}

pub(crate) fn switch(args: &CancelArgs) -> anyhow::Result<u8> {
    tell(&args.directory.open()?, Request::Switch(args.migration))
}

pub(crate) fn set(args: &SetArgs) -> anyhow::Result<u8> {
    let setting = match (args.what.as_str(), args.value.as_str()) {
        ("bandwidth", "none") => Setting::Bandwidth(None),
        ("bandwidth", rate) => {
            let rate: Rate = rate.parse().map_err(|e| anyhow::anyhow!("{rate}: {e}"))?;
            Setting::Bandwidth(Some(rate.0 as f64))
        }
        ("downtime", time) => {
            let time: Duration = parse_duration(time).map_err(anyhow::Error::msg)?;
            Setting::Downtime(time)
        }
        (other, _) => anyhow::bail!("'{other}' cannot be set; bandwidth and downtime can"),
    };
    tell(&args.directory.open()?, Request::Set(args.migration, setting))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let word = match (args.source_runs, args.destination_runs) {
        (true, _) => Word::SourceRuns { runs_nowhere_else: args.runs_nowhere_else },
        (_, true) => Word::DestinationRuns { source_is_gone: args.source_is_gone },
        _ => Word::GiveUp,
    };
    let directory = args.directory.open()?;
    if let Some(code) = told(&directory, Request::Word(Some(args.migration), word))? {
        return Ok(code);
    }
    let left = record::all(&directory)?.into_iter().find(|found| {
        let migration = found.contents.as_ref().map(|contents| contents.migration);
        !found.owned && migration == Ok(args.migration)
    });
    let left = left.ok_or_else(|| nobody(&directory))?;
    let committed = Says::Source(SourceRecord::Committed);
    let says = left.contents.as_ref().map(|contents| contents.says);
    if !args.destination_runs || says != Ok(committed) {
        say!("vmigrate: its program is gone; the record is {}", said(&left));
        return Ok(exit::FAILED);
    }
    take_up(args, &directory, &left)
}

/// Does what a program that is gone would have done: tells the destination to run the guest.
fn take_up(args: &Args, directory: &StateDirectory, left: &Found) -> anyhow::Result<u8> {
    interrupt::install()?;
    let settings = TakeUp {
        peer: args.to.clone(),
        link: args.link.resolve(Side::Client)?,
        resolve_timeout: RESOLVE_TIMEOUT,
    };
    say!("vmigrate: taking up {}; asking the destination until it answers", left.path.display());
    let mut console = Console::new(crate::show::Detail::Answer);
    match source::take_up(directory, &left.path, &settings, &mut console)? {
        Outcome::Arrived(Arrival::RanThere(standing)) => {
            say!("vmigrate: the guest ran at the destination, which answers {standing:?}");
            Ok(exit::PROVEN)
        }
        Outcome::Arrived(_) => {
            say!("vmigrate: the guest runs at the destination");
            Ok(exit::PROVEN)
        }
        Outcome::Lost(why) => {
            say!("vmigrate: the guest is LOST: {why}, and it is not here either");
            Ok(exit::FAILED)
        }
        Outcome::Left => {
            say!("vmigrate: no answer; the record stays, and the guest is the destination's");
            Ok(exit::UNRESOLVED)
        }
        Outcome::Owned => anyhow::bail!("another program has just taken the record up"),
    }
}
