//! The lab: two hosts on this machine, a real link between them, and our programs on both.
//!
//! Everything made here (namespaces, links, processes) is ours, is named after this process, and
//! is removed again in every case.

mod bench;
mod faults;
mod hops;
mod hosts;
mod links;
mod migrate;
mod migrations;
mod programs;
mod qemu;
mod recipe;
mod samples;
mod workloads;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What the test harness understands as "could not run here".
const EXIT_SKIPPED: u8 = 77;

#[derive(Parser)]
#[command(version, about = "The lab that vmigrate is tested in")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Migrate between two network namespaces over a veth pair shaped by tc tbf
    Namespaces(migrate::Args),
    /// Links that stall or slow down, and guests that write too fast
    Links(links::Args),
    /// One guest to and fro between two hosts, the link cut now and then, each hop proven
    Hops(hops::Args),
    /// Plant faults of every class by the thousand, and see each found and named
    Faults(faults::Args),
    /// Run every pattern with every content at a rate, and prove each
    Workloads(workloads::Args),
    /// Migrate random guests over random links, and prove each
    Migrations(migrations::Args),
    /// Boot a VM whose init is the workload, and prove it from inside and outside
    Vm(qemu::Args),
    /// Run the recipe of docs/in-your-vm.md, word for word
    Recipe,
    /// Migrate real VMs by QEMU, in any of its ways, and judge them from inside and outside
    Qemu(qemu::LabArgs),
    /// Restore VMs, meant and not, run two from one snapshot, reset them: what the law says of each
    Lives,
    /// Migrations between two libvirt daemons, judged likewise
    Libvirt(qemu::libvirt::Args),
    /// Print the JSON schema of `qemu --json` and `libvirt --json`
    Schema,
    /// Measure, side by side with peers and limits (see ci/bench)
    Bench(bench::Args),
}

impl Command {
    /// Whether network namespaces are its business.
    fn makes_hosts(&self) -> bool {
        match self {
            Self::Namespaces(_) | Self::Links(_) | Self::Hops(_) => true,
            Self::Qemu(_) | Self::Libvirt(_) => true,
            Self::Bench(args) => args.makes_hosts(),
            Self::Faults(_) | Self::Workloads(_) | Self::Migrations(_) => false,
            Self::Vm(_) | Self::Recipe | Self::Lives | Self::Schema => false,
        }
    }
}

/// An error once the user has asked us to stop: whoever waits ends, and what was made goes with it.
fn interrupted() -> anyhow::Result<()> {
    anyhow::ensure!(workload::interrupt::count() == 0, "cancelled");
    Ok(())
}

fn main() -> ExitCode {
    workload::interrupt::outlive_file_size_limit();
    if let Err(e) = workload::interrupt::install() {
        workload::say!("ci: cannot watch for Ctrl-C: {e}");
        return ExitCode::from(workload::exit::USAGE);
    }
    let command = Cli::parse().command;
    if command.makes_hosts() {
        hosts::enter_own_world();
    }
    let result = match command {
        Command::Namespaces(args) => match hosts::missing() {
            Some(reason) => return skipped("migration between namespaces", &reason),
            None => migrate::run(&args),
        },
        Command::Links(args) => match hosts::missing() {
            Some(reason) => return skipped("bad links between namespaces", &reason),
            None => links::run(&args),
        },
        Command::Hops(args) => match hosts::missing() {
            Some(reason) => return skipped("hops between namespaces", &reason),
            None => hops::run(&args),
        },
        Command::Vm(args) => match qemu::missing() {
            Some(reason) => return skipped("a VM", &reason),
            None => qemu::run(&args),
        },
        Command::Recipe => match qemu::missing().or_else(recipe::missing) {
            Some(reason) => return skipped("the recipe of the docs", &reason),
            None => recipe::run(),
        },
        Command::Lives => match qemu::missing() {
            Some(reason) => return skipped("the lives of a VM", &reason),
            None => qemu::run_lives(),
        },
        Command::Qemu(args) => match qemu::missing().or_else(hosts::missing) {
            Some(reason) => return skipped("QEMU's migrations", &reason),
            None => qemu::run_lab(&args),
        },
        Command::Libvirt(args) => {
            match qemu::missing().or_else(hosts::missing).or_else(qemu::libvirt::missing) {
                Some(reason) => return skipped("libvirt's migrations", &reason),
                None => qemu::libvirt::run(&args),
            }
        }
        Command::Faults(args) => faults::run(&args),
        Command::Workloads(args) => workloads::run(&args),
        Command::Migrations(args) => migrations::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Schema => schema(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            workload::say!("ci: {}", workload::exit::one_line(e.as_ref()));
            ExitCode::from(workload::exit::USAGE)
        }
    }
}

fn schema() -> anyhow::Result<u8> {
    let schema = workload::document::schema::<qemu::LabReport>("ci", "lab", qemu::SCHEMA);
    workload::say::document(|out| {
        serde_json::to_writer_pretty(&mut *out, &schema)?;
        writeln!(out)
    })?;
    Ok(workload::exit::PROVEN)
}

fn skipped(what: &str, reason: &str) -> ExitCode {
    workload::say!("SKIPPED: {what}: {reason}");
    ExitCode::from(EXIT_SKIPPED)
}
