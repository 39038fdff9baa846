//! The journal: heartbeats on another machine than the one being moved, one line of text each.
//!
//! ```text
//! S <run> <workload spec as JSON> <sum>                                    start of a run
//! B <run> <epoch> <writer> <watermark> <guest ns> <journal ns> <sum>       a heartbeat
//! E <run> <epoch> <writer> <watermark> <guest ns> <journal ns> <sum>       at rest: exactly this
//! ```
//!
//! `run` and `sum` are 16 hexadecimal digits; `sum` is XXH3-64 of the line before its last space.
//! Lines stand alone, so several hosts may append to one file. This module owns the format; what
//! the beats prove is the verifier's business.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::clock::realtime_ns;
use crate::spec::WorkloadSpec;

/// Longest line a reader accepts.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Identifies one run of one workload in journals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunId(pub u64);

impl RunId {
    /// A new random id.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Whether the writer may have gone on after a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// A heartbeat: the writer was running.
    Running,
    /// The writer rests at exactly this watermark.
    AtRest,
}

/// One writer's counter at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whether the writer goes on.
    pub motion: Motion,
    /// How many hosts the guest has been moved across.
    pub epoch: u64,
    /// Which writer.
    pub writer: u32,
    /// Operations completed.
    pub watermark: u64,
    /// The guest's own monotonic clock, nanoseconds.
    pub guest_ns: u64,
    /// The journal's wall clock, nanoseconds since 1970.
    pub journal_ns: u64,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file could not be read or written.
    #[error("cannot {doing} journal {}: {source}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The last line has no end.
    #[error("journal {}: line {line} is cut in the middle; remove that line to use what stands before it", path.display())]
    Cut {
        /// The journal.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
    },
    /// A line that is not what was written.
    #[error("journal {}: line {line} {what}; it was edited or is not a vmigrate journal", path.display())]
    Edited {
        /// The journal.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Two runs in one file.
    #[error("journal {}: line {line} belongs to run {found}, the lines before to run {expected}; give each run its own journal", path.display())]
    OtherRun {
        /// The journal.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// The run of that line.
        found: RunId,
        /// The run of the first line.
        expected: RunId,
    },
    /// No start line.
    #[error("journal {} does not start with a run's description; it was truncated or is not a vmigrate journal", path.display())]
    NoStart {
        /// The journal.
        path: PathBuf,
    },
}

/// Appends a run's beats to a file or a pipe; each line is one write.
#[derive(Debug)]
pub struct JournalWriter {
    path: PathBuf,
    file: File,
    run: RunId,
}

impl JournalWriter {
    /// Starts the journal of a new run: whatever the file held is gone.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub fn create(path: &Path, run: RunId, spec: &WorkloadSpec) -> Result<Self, JournalError> {
        let mut journal = Self::append(path, run)?;
        // Not for pipes. Appending all along, because other hosts may append to the same file.
        if journal.file.metadata().is_ok_and(|m| m.is_file()) {
            journal.file.set_len(0).map_err(io_error(path, "truncate"))?;
        }
        let json =
            serde_json::to_string(spec).unwrap_or_else(|_| unreachable!("a spec is plain data"));
        journal.line(&format!("S {run} {json}"))?;
        Ok(journal)
    }

    /// Goes on with a journal that another host started.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn append(path: &Path, run: RunId) -> Result<Self, JournalError> {
        let file =
            File::options().append(true).create(true).open(path).map_err(io_error(path, "open"))?;
        Ok(Self { path: path.to_owned(), file, run })
    }

    /// Adds one beat, stamped with this machine's clock.
    ///
    /// # Errors
    /// The line could not be written whole.
    pub fn beat(&mut self, beat: &Beat) -> Result<(), JournalError> {
        let tag = match beat.motion {
            Motion::Running => 'B',
            Motion::AtRest => 'E',
        };
        let Beat { epoch, writer, watermark, guest_ns, .. } = beat;
        let now = realtime_ns();
        self.line(&format!("{tag} {} {epoch} {writer} {watermark} {guest_ns} {now}", self.run))
    }

    fn line(&mut self, text: &str) -> Result<(), JournalError> {
        let line = format!("{text} {:016x}\n", xxh3_64(text.as_bytes()));
        self.file.write_all(line.as_bytes()).map_err(io_error(&self.path, "write"))
    }
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> JournalError {
    move |source| JournalError::Io { path: path.to_owned(), doing, source }
}

/// A journal as read back.
#[derive(Clone, Debug)]
pub struct Journal {
    /// The run it is of.
    pub run: RunId,
    /// What the run writes.
    pub spec: WorkloadSpec,
    /// The beats, in the order in which they were written.
    pub beats: Vec<Beat>,
}

impl Journal {
    /// Reads and checks a whole journal.
    ///
    /// # Errors
    /// [`JournalError`] names the first line that cannot be trusted.
    pub fn read(path: &Path) -> Result<Self, JournalError> {
        let file = File::open(path).map_err(io_error(path, "open"))?;
        let mut reader = BufReader::new(file);
        let mut journal: Option<Self> = None;
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            let read = reader
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_line(&mut line)
                .map_err(io_error(path, "read"))?;
            if read == 0 {
                break;
            }
            let edited = |what| JournalError::Edited { path: path.to_owned(), line: number, what };
            let Some(text) = line.strip_suffix('\n') else {
                return Err(match read as u64 {
                    LINE_BYTES_MAX => edited("is too long"),
                    _ => JournalError::Cut { path: path.to_owned(), line: number },
                });
            };
            let (text, sum) = text.rsplit_once(' ').ok_or_else(|| edited("has no fields"))?;
            if u64::from_str_radix(sum, 16) != Ok(xxh3_64(text.as_bytes())) {
                return Err(edited("does not match its checksum"));
            }
            let (tag, rest) = text.split_once(' ').ok_or_else(|| edited("has no fields"))?;
            let (run, rest) = rest.split_once(' ').ok_or_else(|| edited("has no run id"))?;
            let run =
                u64::from_str_radix(run, 16).map(RunId).map_err(|_| edited("has no run id"))?;
            match (&mut journal, tag) {
                (None, "S") => {
                    let spec = serde_json::from_str(rest)
                        .map_err(|_| edited("describes a workload of another version"))?;
                    journal = Some(Self { run, spec, beats: Vec::new() });
                }
                (None, _) => return Err(JournalError::NoStart { path: path.to_owned() }),
                (Some(journal), _) if journal.run != run => {
                    return Err(JournalError::OtherRun {
                        path: path.to_owned(),
                        line: number,
                        found: run,
                        expected: journal.run,
                    });
                }
                (Some(journal), "B" | "E") => {
                    let beat = parse_beat(tag, rest).ok_or_else(|| edited("has bad numbers"))?;
                    if beat.writer >= journal.spec.writers {
                        return Err(edited("names a writer that the run does not have"));
                    }
                    journal.beats.push(beat);
                }
                (Some(_), _) => return Err(edited("is of an unknown kind")),
            }
        }
        journal.ok_or_else(|| JournalError::NoStart { path: path.to_owned() })
    }
}

fn parse_beat(tag: &str, rest: &str) -> Option<Beat> {
    let mut fields = rest.split(' ').map(|f| f.parse::<u64>().ok());
    let mut next = || fields.next().flatten();
    let beat = Beat {
        motion: if tag == "E" { Motion::AtRest } else { Motion::Running },
        epoch: next()?,
        writer: u32::try_from(next()?).ok()?,
        watermark: next()?,
        guest_ns: next()?,
        journal_ns: next()?,
    };
    fields.next().is_none().then_some(beat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ContentKind, PatternKind};
    use crate::units::Bytes;

    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let spec = WorkloadSpec {
            seed: 7,
            memory: Bytes(1 << 20),
            writers: 2,
            record: Bytes(4096),
            pattern: PatternKind::Stream,
            content: ContentKind::Random,
        };
        let mut journal = JournalWriter::create(&path, RunId(1), &spec).unwrap();
        for watermark in 0..3 {
            let beat = Beat {
                motion: Motion::Running,
                epoch: 0,
                writer: 1,
                watermark,
                guest_ns: 5,
                journal_ns: 0,
            };
            journal.beat(&beat).unwrap();
        }
        (dir, path)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_dir, path) = written();
        let journal = Journal::read(&path).unwrap();
        assert_eq!(journal.run, RunId(1));
        assert_eq!(journal.beats.iter().map(|b| b.watermark).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(journal.beats.iter().all(|b| b.writer == 1 && b.journal_ns > 0));
    }

    #[test]
    fn cut_edited_and_foreign_journals_are_refused() {
        let (_dir, path) = written();
        let whole = std::fs::read_to_string(&path).unwrap();
        let read_as = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Journal::read(&path).unwrap_err().to_string()
        };
        assert!(read_as(&whole[..whole.len() - 5]).contains("line 4 is cut"));
        assert!(read_as(&whole.replace(" 1 2 5 ", " 1 9 5 ")).contains("line 4 does not match"));
        assert!(read_as("").contains("does not start"));
        assert!(read_as(&whole[whole.find("\nB").unwrap() + 1..]).contains("does not start"));
        assert!(read_as("hello\n").contains("has no fields"));
    }
}
