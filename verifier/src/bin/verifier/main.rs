//! `verifier`: prove a region, or compare two.

mod compare;
mod journal;
mod scan;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use workload::exit;

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
    /// Hash a region: SHA-256 of 2 MiB leaves, and a root
    Manifest(compare::ManifestArgs),
    /// Compare two regions, or manifests of them
    Compare(compare::CompareArgs),
    /// Judge a journal by itself: rate over time, gaps, rollback, fork
    Journal(journal::JournalArgs),
    /// Follow a journal while it is written
    Watch(journal::WatchArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Scan(args) => scan::run(&args),
        Command::Manifest(args) => compare::manifest(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Journal(args) => journal::journal(&args),
        Command::Watch(args) => journal::watch(&args),
    };
    match result {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(e) => {
            eprintln!("verifier: {}", exit::one_line(e.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    }
}
