//! `vmigrate resolve`: an operator's word on a handover nobody else can decide.

use clap::Args as ClapArgs;
use migrate_core::proto::hello::MigrationId;
use migrate_core::source::handover::{Resolution, decide};
use workload::{exit, say};

use crate::args::StateArgs;

#[derive(ClapArgs)]
#[command(after_help = "Run it on the host that holds the stopped guest.\n\nExamples:\n  \
    vmigrate resolve 0123456789abcdef0123456789abcdef --destination-runs\n  \
    vmigrate resolve 0123456789abcdef0123456789abcdef --source-runs")]
pub(crate) struct Args {
    /// The migration, as the stopped side names it
    migration: MigrationId,
    /// The guest runs at the destination, or shall: release it here
    #[arg(long, required_unless_present = "source_runs", conflicts_with = "source_runs")]
    destination_runs: bool,
    /// The destination is certainly dead: run the guest here
    #[arg(long)]
    source_runs: bool,
    #[command(flatten)]
    state: StateArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let resolution = match args.source_runs {
        true => Resolution::SourceRuns,
        false => Resolution::DestinationRuns,
    };
    decide(&args.state.state_dir, args.migration, resolution)?;
    say!("vmigrate: told the process that holds migration {}", args.migration);
    Ok(exit::PROVEN)
}
