//! `verifier`: prove a region, or compare two.

mod collect;
mod compare;
mod image;
mod journal;
mod scan;
mod show;
mod sources;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use workload::{exit, interrupt, say};

#[derive(Parser)]
#[command(
    version,
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
    /// Plant faults in a small region and look for each: a verifier that looks away fails
    SelfTest,
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
        Command::SelfTest => Ok(self_test()),
    };
    match result {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(e) => {
            say!("verifier: {}", exit::one_line(e.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    }
}

fn self_test() -> verifier::verdict::Verdict {
    use std::io::Write;
    let scan = |region: &_, workload: &_, watermarks: &_| {
        verifier::scan::scan(region, workload, verifier::memory::Moment::Exact, watermarks, |_| {})
    };
    let (verdict, text) = match verifier::self_test::run(scan) {
        Ok(planted) => {
            let text = format!("{planted} faults planted, one after the other; each was found");
            (verifier::verdict::Verdict::Proven, text)
        }
        Err(reason) => (verifier::verdict::Verdict::Wrong, reason),
    };
    say::report("verifier", |out| writeln!(out, "{verdict}: {text}"));
    verdict
}
