//! `vmigrate report`: runs as one HTML page.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args as ClapArgs;
use workload::{exit, say};

use crate::documents;
use crate::page;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate report bench-20261125-101500.json -o report.html\n  \
    vmigrate report study -o study.html          a sweep's folder\n  \
    vmigrate report before.json after.json       two runs over each other")]
pub(crate) struct Args {
    /// JSON of `send` or `bench`, or a sweep's folder
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page that is written; - for standard output
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// What the page is called
    #[arg(long, default_value = "Live migration, measured and proven")]
    title: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let runs = documents::read_all(&args.runs)?;
    let page = page::of(&args.title, &runs)?;
    if args.output == Path::new("-") {
        say::document(|out| out.write_all(page.as_bytes()))?;
        return Ok(exit::PROVEN);
    }
    // A page that is there is replaced by a whole one, or stays.
    let temporary = args.output.with_extension("html.tmp");
    let written =
        std::fs::write(&temporary, page).and_then(|()| std::fs::rename(&temporary, &args.output));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", args.output.display()))?;
    say!("vmigrate: {} of {} runs is written", args.output.display(), runs.len());
    Ok(exit::PROVEN)
}
