//! What the commands report to programs: JSON with a schema, printed, or kept in a folder.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use clap::{Args, ValueEnum};
use migrate_core::report::{
    BenchReport, CompareReport, ReceiveReport, RunReport, SCHEMA, SweepRun,
};
use serde::Serialize;
use workload::document;
use workload::exit;
use workload::say;
use workload::say::Out;

use crate::check::{self, Answer};
use crate::{documents, page};

/// Whose schema.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Document {
    Bench,
    Send,
    Sweep,
    Compare,
    Receive,
    Check,
}

#[derive(Args)]
pub(crate) struct SchemaArgs {
    /// Which command's output
    document: Document,
}

pub(crate) fn schema(args: &SchemaArgs) -> anyhow::Result<u8> {
    let schema = match args.document {
        Document::Bench => document::schema::<BenchReport>("vmigrate", "bench", SCHEMA),
        Document::Send => document::schema::<RunReport>("vmigrate", "send", SCHEMA),
        Document::Sweep => document::schema::<SweepRun>("vmigrate", "sweep", SCHEMA),
        Document::Compare => document::schema::<CompareReport>("vmigrate", "compare", SCHEMA),
        Document::Check => document::schema::<Answer>("vmigrate", "check", check::SCHEMA),
        Document::Receive => document::schema::<ReceiveReport>("vmigrate", "receive", SCHEMA),
    };
    say::document(|out| print_json(out, &schema))?;
    Ok(exit::PROVEN)
}

/// Prints a document.
pub(crate) fn print_json(out: &mut Out, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)
}

/// Prints a document on a line of its own, for those who take one after the other.
pub(crate) fn print_json_line(out: &mut Out, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, document)?;
    writeln!(out)
}

/// A name for what a command keeps that starts now.
pub(crate) fn dated(command: &str) -> String {
    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let at: String = at.chars().filter(|c| !"-:Z".contains(*c)).collect();
    format!("{command}-{}", at.replace('T', "-"))
}

/// A folder in which what a command found is kept, under names that begin with the command and the
/// time.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    folder: PathBuf,
    name: String,
}

impl Kept {
    /// Names of what a command keeps that starts now; `None` where the folder cannot be written, which
    /// is said and ends nothing.
    pub(crate) fn open(folder: Option<&Path>, command: &str) -> Option<Self> {
        let folder = folder?;
        let name = dated(command);
        // Two that start in one second are told apart.
        let free = |name: &str| !folder.join(format!("{name}.json")).exists();
        let names = (2..).map(|number| format!("{name}.{number}"));
        let made = std::fs::create_dir_all(folder).and_then(|()| {
            let name = std::iter::once(name.clone()).chain(names).find(|name| free(name));
            let name = name.unwrap_or_else(|| unreachable!("numbers do not end"));
            File::create_new(folder.join(format!("{name}.json"))).map(|_| name)
        });
        match made {
            Ok(name) => Some(Self { folder: folder.to_owned(), name }),
            Err(error) => {
                say!("vmigrate: nothing is kept in {}: {error}", folder.display());
                None
            }
        }
    }

    /// A file of this command's that ends so.
    pub(crate) fn path(&self, end: &str) -> PathBuf {
        self.folder.join(format!("{}{end}", self.name))
    }

    /// Keeps the document. Whether it could be is said.
    pub(crate) fn keep(&self, document: &impl Serialize) {
        if self.keep_quietly(document) {
            say!("vmigrate: kept {}", self.path(".json").display());
        }
    }

    /// Draws what was kept as a page beside it. That it cannot be is said, and ends nothing.
    pub(crate) fn draw(&self) {
        let page = self.path(".html");
        let drawn = documents::read(&self.path(".json"))
            .and_then(|runs| page::of(&self.name, &runs))
            .and_then(|html| Ok(std::fs::write(&page, html)?))
            .with_context(|| format!("cannot keep {}", page.display()));
        if let Err(error) = drawn {
            say!("vmigrate: {error:#}");
        }
    }

    /// Keeps the document of a command that goes on; that it cannot be kept is said.
    pub(crate) fn keep_quietly(&self, document: &impl Serialize) -> bool {
        let path = self.path(".json");
        let temporary = self.path(".json.tmp");
        let written = serde_json::to_vec_pretty(document)
            .map_err(io::Error::from)
            .and_then(|text| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("cannot keep {}", path.display()));
        if let Err(error) = &written {
            let _ = std::fs::remove_file(&temporary);
            say!("vmigrate: {error:#}");
        }
        written.is_ok()
    }
}
