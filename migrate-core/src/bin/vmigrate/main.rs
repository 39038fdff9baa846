//! `vmigrate`: move a running guest, measure it, prove it.

mod args;
mod bench;
mod check;
mod compare;
mod console;
mod documents;
mod engine;
mod outcome;
mod output;
mod page;
mod passing;
mod receive;
mod receiver;
mod report;
mod require;
mod resolve;
mod send;
mod show;
mod sweep;
mod tls_init;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use workload::manual::Manual;
use workload::{exit, interrupt, provenance, say};

#[derive(Parser)]
#[command(
    name = "vmigrate",
    version = provenance::version(),
    about = "iperf for live VM migration, with proof",
    after_help = exit::HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One host: the 10-versus-40 GbE experiment scaled to this machine, proven
    Bench(bench::Args),
    /// A matrix of migrations: rates, policies, workloads, repeats
    Sweep(Box<sweep::Args>),
    /// Two sets of runs beside each other, and whether the second is worse
    Compare(compare::Args),
    /// Runs as one HTML page with plots
    Report(report::Args),
    /// Start a guest that keeps writing and migrate it to a waiting receiver
    Send(Box<send::Args>),
    /// Wait for a guest, run it, and prove it
    Receive(receive::Args),
    /// How migrations under way stand
    Status(resolve::StatusArgs),
    /// End a migration, if that costs nothing: the guest runs on at its source
    Cancel(resolve::CancelArgs),
    /// Change the bandwidth or the downtime of a migration under way
    Set(resolve::SetArgs),
    /// Let the guest run at the destination before its memory is there
    Switch(resolve::CancelArgs),
    /// Decide where a guest runs whose handover nobody can finish
    Resolve(resolve::Args),
    /// What this machine can do, and what to do about the rest
    Check(check::Args),
    /// Make certificates for both sides of a link
    TlsInit(tls_init::Args),
    /// Print the JSON schema of a command's --json output
    Schema(output::SchemaArgs),
    /// Write man pages and shell completions
    Manual(Manual),
}

fn main() -> ExitCode {
    interrupt::outlive_file_size_limit();
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Receive(args) => receive::run(&args),
        Command::Status(args) => resolve::status(&args),
        Command::Cancel(args) => resolve::cancel(&args),
        Command::Set(args) => resolve::set(&args),
        Command::Switch(args) => resolve::switch(&args),
        Command::Resolve(args) => resolve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::TlsInit(args) => tls_init::run(&args),
        Command::Schema(args) => output::schema(&args),
        Command::Manual(manual) => {
            manual.write(Cli::command()).map(|()| exit::PROVEN).map_err(Into::into)
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            say!("vmigrate: {}", exit::one_line(e.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    }
}
