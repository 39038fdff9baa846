//! Which journals a command reads, what it expects of them, and how it computes memory.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Args as ClapArgs;
use verifier::cache::Cache;
use verifier::case::Case;
use verifier::expected::Expected;
use verifier::law::Demand;
use workload::beat::session::Name;
use workload::journal::JournalError;
use workload::spec::{REPLAYED_OPERATIONS_MAX, Workload};
use workload::stamp::IsaChoice;
use workload::work::Watch;

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
    expect: Vec<Wanted>,
}

#[derive(Clone, Debug)]
struct Wanted(Name, u64);

impl FromStr for Wanted {
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
        Demand(self.expect.iter().map(|Wanted(name, count)| (name.clone(), *count)).collect())
    }
}

impl Sources {
    pub(crate) fn read(&self) -> Result<Vec<Case>, JournalError> {
        read(&self.journal, &self.expect)
    }
}

/// How what memory must hold is computed.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct Computing {
    /// What lines are computed with: auto, avx512, avx2 or portable
    #[arg(long, value_name = "NAME", default_value_t)]
    isa: IsaChoice,
    /// Most operations, of all writers together, that are replayed to know memory: patterns that draw at
    /// random have no other way; 10^9 take some 20 s
    #[arg(long, value_name = "OPERATIONS", default_value_t = REPLAYED_OPERATIONS_MAX)]
    replay_limit: u64,
    /// Where long replays are kept, so that the next one begins where they ended; `none` keeps nothing
    /// [default: vmigrate/generations where the user's caches are]
    #[arg(long, value_name = "DIR|none")]
    replay_cache: Option<PathBuf>,
}

impl Computing {
    /// Lines are computed as was asked for, from here on.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        self.isa.apply().map_err(anyhow::Error::msg).context("--isa")
    }

    /// What memory must hold at these watermarks.
    pub(crate) fn expected(
        &self,
        workload: &Workload,
        watermarks: &[u64],
        watch: &dyn Watch,
    ) -> anyhow::Result<Expected> {
        workload.check_watermarks_within(watermarks, self.replay_limit)?;
        let cache = match workload.replayed_operations(watermarks) {
            0 => None,
            _ => self.cache()?,
        };
        Ok(Expected::recall(workload, watermarks, cache.as_ref(), watch)?)
    }

    fn cache(&self) -> anyhow::Result<Option<Cache>> {
        match &self.replay_cache {
            Some(none) if none.as_os_str() == "none" => Ok(None),
            Some(folder) => {
                let open = Cache::open(folder);
                open.map(Some).with_context(|| format!("--replay-cache {}", folder.display()))
            }
            // Where there is no such place, nothing is kept.
            None => Ok(Cache::usual().and_then(|folder| Cache::open(&folder).ok())),
        }
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
