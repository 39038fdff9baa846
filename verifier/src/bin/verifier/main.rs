//! `verifier`: prove a region, or compare two.

mod collect;
mod compare;
mod image;
mod journal;
mod outcome;
mod scan;
mod show;
mod sources;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use verifier::report::{
    CompareReport, ImageReport, JournalReport, SCHEMA, ScanReport, SelfTestReport,
};
use verifier::self_test::lies;
use verifier::verdict::Verdict;
use workload::manual::Manual;
use workload::provenance::Provenance;
use workload::{document, exit, interrupt, provenance, say};

#[derive(Parser)]
#[command(
    name = "verifier",
    version = provenance::version(),
    about = "Proves that memory holds exactly what its writers last wrote",
    after_help = exit::HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check every line of a region against its journal
    Scan(scan::Args),
    /// Find a region in an image of a VM's physical memory, and check every line of it
    Image(image::Args),
    /// Hash a region: SHA-256 of 2 MiB leaves, and a root
    Manifest(compare::ManifestArgs),
    /// Compare two regions, or manifests of them
    Compare(compare::CompareArgs),
    /// Judge a journal by itself: rate over time, gaps, rollback, fork
    Journal(journal::JournalArgs),
    /// Follow a journal while it is written
    Watch(journal::WatchArgs),
    /// Collect heartbeats from UDP, a Unix socket or a serial line into a journal
    Collect(collect::Args),
    /// Plant faults and lies, and look for each: a verifier that looks away fails
    SelfTest(SelfTestArgs),
    /// Print the JSON schema of a command's --json output
    Schema(SchemaArgs),
    /// Write man pages and shell completions
    Manual(Manual),
}

fn main() -> ExitCode {
    interrupt::outlive_file_size_limit();
    interrupt::explain_cut_files();
    let result = match Cli::parse().command {
        Command::Scan(args) => scan::run(&args),
        Command::Manifest(args) => compare::manifest(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Journal(args) => journal::journal(&args),
        Command::Watch(args) => journal::watch(&args),
        Command::Image(args) => image::run(&args),
        Command::Collect(args) => collect::run(&args),
        Command::SelfTest(args) => self_test(&args),
        Command::Schema(args) => schema(&args),
        Command::Manual(manual) => {
            manual.write(Cli::command()).map(|()| Verdict::Proven).map_err(Into::into)
        }
    };
    match result {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(e) => {
            say!("verifier: {}", exit::one_line(e.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    }
}

/// Whose schema.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Document {
    Scan,
    Image,
    Compare,
    Journal,
    SelfTest,
}

#[derive(clap::Args)]
struct SchemaArgs {
    /// Which command's output
    document: Document,
}

fn schema(args: &SchemaArgs) -> anyhow::Result<Verdict> {
    let program = "verifier";
    let schema = match args.document {
        Document::Scan => document::schema::<ScanReport>(program, "scan", SCHEMA),
        Document::Image => document::schema::<ImageReport>(program, "image", SCHEMA),
        Document::Compare => document::schema::<CompareReport>(program, "compare", SCHEMA),
        Document::Journal => document::schema::<JournalReport>(program, "journal", SCHEMA),
        Document::SelfTest => document::schema::<SelfTestReport>(program, "self-test", SCHEMA),
    };
    say::document(|out| {
        serde_json::to_writer_pretty(&mut *out, &schema)?;
        writeln!(out)
    })?;
    Ok(Verdict::Proven)
}

#[derive(clap::Args)]
struct SelfTestArgs {
    /// Print the report as JSON on standard output
    #[arg(long)]
    json: bool,
}

fn self_test(args: &SelfTestArgs) -> anyhow::Result<Verdict> {
    let scan = |region: &_, workload: &_, watermarks: &_| {
        verifier::scan::scan(region, workload, verifier::memory::Moment::Exact, watermarks, |_| {})
    };
    let planted = verifier::self_test::run(scan);
    let lies = lies::all().map_err(anyhow::Error::msg)?;
    let missed = lies.iter().filter(|lie| !lie.found).count();
    let verdict = match (&planted, missed) {
        (Ok(_), 0) => Verdict::Proven,
        _ => Verdict::Wrong,
    };
    say::report("verifier", |out| {
        if args.json {
            let (faults, trouble) =
                (planted.as_ref().ok().copied(), planted.as_ref().err().cloned());
            let provenance = Provenance::here("verifier");
            let report =
                SelfTestReport { schema: SCHEMA, provenance, verdict, faults, trouble, lies };
            serde_json::to_writer(&mut *out, &report)?;
            return writeln!(out);
        }
        for lie in &lies {
            let found = if lie.found { "told" } else { "MISSED" };
            writeln!(out, "{found:<6}  {}\n        {}", lie.planted, lie.told)?;
        }
        let text = match &planted {
            Ok(planted) => {
                format!("{planted} faults planted, one after the other; each was found")
            }
            Err(reason) => reason.clone(),
        };
        writeln!(out, "{verdict}: {text}; {} lies, {missed} missed", lies.len())
    });
    Ok(verdict)
}
