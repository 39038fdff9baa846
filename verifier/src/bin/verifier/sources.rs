//! Which journals a command reads, and what it expects of them.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args as ClapArgs;
use verifier::case::Case;
use verifier::law::Demand;
use workload::beat::session::Name;
use workload::journal::JournalError;

/// Journals, and who must have written them.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct Sources {
    /// A journal; several of one run (of several hosts, or collectors) are judged as one
    #[arg(long, required = true, value_name = "FILE")]
    pub(crate) journal: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) expect: Expect,
}

/// Who must have collected.
#[derive(ClapArgs, Clone, Debug, Default)]
pub(crate) struct Expect {
    /// A collector that must be there, and how many sessions of it: what is missing could say
    /// otherwise
    #[arg(long, value_name = "ID[:SESSIONS]")]
    expect: Vec<Expected>,
}

#[derive(Clone, Debug)]
struct Expected(Name, u64);

impl FromStr for Expected {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, sessions) = text.split_once(':').unwrap_or((text, "1"));
        match sessions.parse() {
            Ok(sessions) if sessions > 0 => Ok(Self(name.parse()?, sessions)),
            _ => Err(format!("'{sessions}' is no number of sessions")),
        }
    }
}

impl Expect {
    pub(crate) fn demand(&self) -> Demand {
        Demand(self.expect.iter().map(|Expected(name, count)| (name.clone(), *count)).collect())
    }
}

impl Sources {
    pub(crate) fn read(&self) -> Result<Vec<Case>, JournalError> {
        read(&self.journal, &self.expect)
    }
}

/// Reads journals that may be growing: a cut last line of format 1 is looked at again before it is an
/// error.
pub(crate) fn read(paths: &[PathBuf], expect: &Expect) -> Result<Vec<Case>, JournalError> {
    for _ in 0..20 {
        match Case::read_all(paths, &expect.demand()) {
            Err(JournalError::Cut { .. }) => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
    Case::read_all(paths, &expect.demand())
}
