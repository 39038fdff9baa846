//! `workload`: fill a region with stamped lines and keep dirtying it at a chosen rate.

mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use workload::exit;

#[derive(Parser)]
#[command(
    version,
    about = "Dirties memory at a controlled rate with lines that prove themselves",
    after_help = exit::HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fill a region and dirty it until the duration is over or Ctrl-C
    Run(run::Args),
    /// List the patterns
    List,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::List => list(),
    };
    match result {
        Ok(()) => ExitCode::from(exit::PROVEN),
        Err(e) => {
            eprintln!("workload: {}", exit::one_line(e.as_ref()));
            ExitCode::from(exit::USAGE)
        }
    }
}

fn list() -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for (_, name, what) in workload::spec::PatternKind::ALL {
        writeln!(out, "{name:<10} {what}")?;
    }
    Ok(())
}
