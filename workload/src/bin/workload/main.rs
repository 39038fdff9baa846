//! `workload`: fill a region with stamped lines and keep dirtying it at a chosen rate.

mod control;
mod guest;
mod init;
mod list;
mod report;
mod run;
mod trace;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use workload::manual::Manual;
use workload::report::{SCHEMA, Summary};
use workload::{document, exit, interrupt, provenance, say};

#[derive(Parser)]
#[command(
    name = "workload",
    version = provenance::version(),
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
    Run(Box<run::Args>),
    /// List the workloads, contents and rates
    List,
    /// Show a workload's settings and how many distinct pages it dirties over time
    Show(list::ShowArgs),
    /// Print the JSON schema of `run --json`
    Schema,
    /// Write man pages and shell completions
    Manual(Manual),
    /// Make a trace from the dirty bitmaps that a hypervisor logged
    Trace(trace::Args),
}

fn main() -> ExitCode {
    interrupt::outlive_file_size_limit();
    if std::process::id() == 1 {
        init::run();
    }
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::List => list::list().map(|()| exit::PROVEN),
        Command::Show(args) => list::show(&args).map(|()| exit::PROVEN),
        Command::Manual(manual) => {
            manual.write(Cli::command()).map(|()| exit::PROVEN).map_err(Into::into)
        }
        Command::Schema => schema().map(|()| exit::PROVEN),
        Command::Trace(args) => trace::run(&args).map(|()| exit::PROVEN),
    };
    ExitCode::from(result.unwrap_or_else(|e| {
        say!("workload: {}", exit::one_line(e.as_ref()));
        exit::USAGE
    }))
}

fn schema() -> anyhow::Result<()> {
    let schema = document::schema::<Summary>("workload", "run", SCHEMA);
    say::document(|out| {
        serde_json::to_writer_pretty(&mut *out, &schema)?;
        writeln!(out)
    })?;
    Ok(())
}
