//! The record that a handover was decided, and what becomes of an unanswered one.
//!
//! The record is written, and synced, before the destination is told to run the guest; from then
//! on the source must not resume it by itself, whatever happens to the link or to this process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::proto::hello::MigrationId;

/// What an operator decided about an unresolved handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The guest runs, or should run, at the destination.
    DestinationRuns,
    /// The destination is certainly dead; the guest may run here.
    SourceRuns,
}

impl Resolution {
    fn word(self) -> &'static str {
        match self {
            Self::DestinationRuns => "destination-runs",
            Self::SourceRuns => "source-runs",
        }
    }
}

/// The record of one attempt, on disk before the guest is stunned.
#[derive(Debug)]
pub struct Record {
    file: File,
    path: PathBuf,
    decision: PathBuf,
}

impl Record {
    /// Makes the record, undecided. Creating a file is slow; deciding must not be.
    ///
    /// # Errors
    /// It cannot be written; no handover could be.
    pub(super) fn create(directory: &Path, migration: MigrationId) -> Result<Self, Error> {
        let (path, decision) = Self::paths(directory, migration);
        let failed = |source| Error::Record { path: path.display().to_string(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        let record = Self { file, path: path.clone(), decision };
        record.put("undecided").map_err(failed)?;
        File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
        Ok(record)
    }

    /// Makes the decision durable: the destination may be told to run the guest.
    ///
    /// # Errors
    /// It could not be; the handover must not go on.
    pub(super) fn commit(&self) -> Result<(), Error> {
        self.put("committed")
            .map_err(|source| Error::Record { path: self.path.display().to_string(), source })
    }

    /// Words of the same length, so that a decision overwrites one block in place.
    fn put(&self, word: &str) -> std::io::Result<()> {
        self.file.write_all_at(format!("{word}\n").as_bytes(), 0)?;
        self.file.sync_data()
    }

    fn paths(directory: &Path, migration: MigrationId) -> (PathBuf, PathBuf) {
        (
            directory.join(format!("{migration}.handover")),
            directory.join(format!("{migration}.decision")),
        )
    }

    /// What an operator decided, if one has.
    pub(super) fn decision(&self) -> Option<Resolution> {
        let text = std::fs::read_to_string(&self.decision).ok()?;
        [Resolution::DestinationRuns, Resolution::SourceRuns]
            .into_iter()
            .find(|r| r.word() == text.trim())
    }

    /// The handover is over, one way or the other.
    pub(super) fn remove(self) {
        // A record left behind is a nuisance, not a danger: its migration id never comes again.
        let _ = std::fs::remove_file(self.path);
        let _ = std::fs::remove_file(self.decision);
    }
}

/// Tells the process that holds the stopped guest of `migration` what to do.
///
/// # Errors
/// No such handover waits in `directory`, or the decision cannot be written.
pub fn decide(
    directory: &Path,
    migration: MigrationId,
    resolution: Resolution,
) -> Result<(), Error> {
    let (record, decision) = Record::paths(directory, migration);
    let failed = |path: &Path, source| Error::Record { path: path.display().to_string(), source };
    std::fs::metadata(&record).map_err(|e| failed(&record, e))?;
    // Renamed into place, so that the waiting process never reads half a word.
    let draft = decision.with_extension("draft");
    std::fs::write(&draft, resolution.word()).map_err(|e| failed(&draft, e))?;
    std::fs::rename(&draft, &decision).map_err(|e| failed(&decision, e))
}
