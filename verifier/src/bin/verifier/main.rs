//! `verifier`: prove a region, or compare two.

mod compare;
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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Scan(args) => scan::run(&args),
        Command::Manifest(args) => compare::manifest(&args),
        Command::Compare(args) => compare::compare(&args),
    };
    match result {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(e) => {
            eprintln!("verifier: {}", exit::one_line(e.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    }
}
