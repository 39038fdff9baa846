//! The journal: heartbeats on another machine than the one being moved, one line of text each.
//!
//! ```text
//! S <run> <workload spec as JSON> <sum>          start of a run, on each host; of another run: its end
//! B <run> <epoch> <number> <writer> <watermark> <guest ns> <journal ns> <sum>       a heartbeat
//! E <run> <epoch> <number> <writer> <watermark> <guest ns> <journal ns> <sum>       at rest here
//! ```
//!
//! `run` and `sum` are 16 hexadecimal digits; `sum` is XXH3-64 of the line before its last space.
//! `number` counts the beats sent in an epoch, so that a beat lost on the way is not mistaken for
//! a guest that stood still. Lines stand alone, so several hosts may append to one file. This
//! module owns the format; how lines travel is [`outlet`](crate::outlet)'s subject, and what the
//! beats prove the verifier's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::realtime_ns;
use crate::line::{PlaceKey, StampKey};
use crate::outlet::{Outlet, OutletAddress, OutletError};
use crate::run::{RunId, hexadecimal};
use crate::spec::{WRITERS_MAX, WorkloadSpec};
use crate::units::Bytes;

/// Longest line a reader accepts.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Most memory of a run that a reader believes: 64 TiB.
const MEMORY_MAX: Bytes = Bytes(64 << 40);

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
    /// How many beats were sent in this epoch before this one, all writers together.
    pub number: u64,
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
    /// It could not be written.
    #[error(transparent)]
    Outlet(#[from] OutletError),
    /// The file could not be read.
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
    #[error("journal {}: line {line} {what}; it was edited, or is not a vmigrate journal, or is what came over a line that others write to: then `verifier collect --from {} --journal NEW` takes what is whole out of it", path.display(), path.display())]
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

/// A run's beats on their way into a journal.
#[derive(Debug)]
pub struct JournalWriter {
    outlet: Outlet,
    run: RunId,
    /// The start line, and when it was sent last; `None` on a host that goes on with a journal.
    start: Option<(String, Instant)>,
    sent: u64,
    incomplete: Option<Incomplete>,
}

/// What a journal lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal lacks {lost} heartbeats: {why}")]
pub struct Incomplete {
    /// Beats that could not be written.
    pub lost: u64,
    /// What kept the first of them from it.
    pub why: String,
}

/// Over a link that may lose it, the start line is sent this often.
const START_INTERVAL: Duration = Duration::from_secs(1);

impl JournalWriter {
    /// Starts the journal of a new run: whatever a file held is gone.
    ///
    /// # Errors
    /// The journal cannot be reached or written.
    pub fn start(
        address: &OutletAddress,
        run: RunId,
        spec: &WorkloadSpec,
    ) -> Result<Self, JournalError> {
        let line = start_line(run, spec);
        let mut outlet = Outlet::open(address)?;
        outlet.truncate()?;
        outlet.send(&line)?;
        let start = Some((line, Instant::now()));
        Ok(Self { outlet, run, start, sent: 0, incomplete: None })
    }

    /// Starts the journal of a new run in a file or a pipe.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub fn create(path: &Path, run: RunId, spec: &WorkloadSpec) -> Result<Self, JournalError> {
        Self::start(&OutletAddress::File(path.to_owned()), run, spec)
    }

    /// Goes on with a journal that another host started.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn append(path: &Path, run: RunId) -> Result<Self, JournalError> {
        let outlet = Outlet::open(&OutletAddress::File(path.to_owned()))?;
        Ok(Self { outlet, run, start: None, sent: 0, incomplete: None })
    }

    /// Describes the run in a journal that another host may have started, so that what stands here
    /// can be read by itself; also shows that the journal can be written.
    ///
    /// # Errors
    /// The line could not be written whole.
    pub fn describe(&mut self, spec: &WorkloadSpec) -> Result<(), JournalError> {
        Ok(self.outlet.send(&start_line(self.run, spec))?)
    }

    /// Adds one beat, numbered, and stamped with this machine's clock. A guest does not fail because
    /// its journal does: a beat that cannot be written is counted, and leaves a hole in the numbers.
    pub fn beat(&mut self, beat: &Beat) {
        if let Err(error) = self.try_beat(beat) {
            let why = error.to_string();
            self.incomplete.get_or_insert(Incomplete { lost: 0, why }).lost += 1;
        }
    }

    /// Whether every beat was written, as far as that can be told.
    ///
    /// # Errors
    /// [`Incomplete`] says what is missing.
    pub fn complete(&self) -> Result<(), Incomplete> {
        self.incomplete.clone().map_or(Ok(()), Err)
    }

    fn try_beat(&mut self, beat: &Beat) -> Result<(), JournalError> {
        let number = self.sent;
        self.sent += 1;
        if self.outlet.may_lose()
            && let Some((line, sent)) = &mut self.start
            && sent.elapsed() >= START_INTERVAL
        {
            self.outlet.send(line)?;
            *sent = Instant::now();
        }
        let beat = Beat { number, journal_ns: realtime_ns(), ..*beat };
        let line = sealed(&text(self.run, &beat));
        match beat.motion {
            Motion::Running => self.outlet.send(&line)?,
            Motion::AtRest => self.outlet.send_last(&line)?,
        }
        Ok(())
    }

    /// Beats that the link is known not to have taken.
    pub fn refused(&self) -> u64 {
        self.outlet.refused()
    }
}

/// A beat as a line, without its checksum.
fn text(run: RunId, beat: &Beat) -> String {
    let tag = match beat.motion {
        Motion::Running => 'B',
        Motion::AtRest => 'E',
    };
    let Beat { epoch, number, writer, watermark, guest_ns, journal_ns, .. } = beat;
    format!("{tag} {run} {epoch} {number} {writer} {watermark} {guest_ns} {journal_ns}")
}

fn start_line(run: RunId, spec: &WorkloadSpec) -> String {
    let json = serde_json::to_string(spec).unwrap_or_else(|_| unreachable!("a spec is plain data"));
    sealed(&format!("S {run} {json}"))
}

fn sealed(text: &str) -> String {
    format!("{text} {:016x}\n", xxh3_64(text.as_bytes()))
}

/// Receives lines from a link and writes the journal of the run they belong to, stamped with this
/// machine's clock.
#[derive(Debug)]
pub struct Collector {
    file: Outlet,
    run: Option<RunId>,
    other: Option<RunId>,
    /// Beats written.
    pub beats: u64,
    /// Lines dropped: garbled, of another run, or before the run's description.
    pub dropped: u64,
}

/// What became of a collected line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// A run's description, seen for the first time.
    Start(RunId),
    /// A beat, now in the journal.
    Beat(Beat),
    /// The description of another run, for the first time: the guest started again, or another one
    /// beats into the same link. The journal says so; it takes no beat of that run.
    OtherRun(RunId),
    /// Nothing that belongs into the journal.
    Dropped,
}

impl Collector {
    /// Collects into `journal`; whatever it held is gone.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(journal: &Path) -> Result<Self, JournalError> {
        let mut file = Outlet::open(&OutletAddress::File(journal.to_owned()))?;
        file.truncate()?;
        Ok(Self { file, run: None, other: None, beats: 0, dropped: 0 })
    }

    /// Takes a line as it came, without its end.
    ///
    /// # Errors
    /// The journal could not be written.
    pub fn line(&mut self, line: &str) -> Result<Collected, JournalError> {
        // A console's carriage return is not part of the line.
        let parsed = parse_line(line.trim_end_matches('\r'));
        match (parsed, self.run) {
            (Ok((run, Content::Start(spec))), None) => {
                self.run = Some(run);
                self.file.send(&start_line(run, &spec))?;
                Ok(Collected::Start(run))
            }
            (Ok((run, Content::Start(_))), Some(known)) if run == known => Ok(Collected::Dropped),
            (Ok((run, Content::Start(spec))), Some(_)) if self.other.is_none() => {
                self.other = Some(run);
                self.file.send(&start_line(run, &spec))?;
                Ok(Collected::OtherRun(run))
            }
            (Ok((run, Content::Beat(beat))), Some(known)) if run == known => {
                let beat = Beat { journal_ns: realtime_ns(), ..beat };
                self.file.send(&sealed(&text(run, &beat)))?;
                self.beats += 1;
                Ok(Collected::Beat(beat))
            }
            _ => {
                self.dropped += 1;
                Ok(Collected::Dropped)
            }
        }
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
    /// Another run that began where this one was heard: what is in memory may be that one's.
    pub followed_by: Option<Follower>,
}

/// A run that began where another one was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Follower {
    /// Its name.
    pub run: RunId,
    /// What its lines are known by, if they name their run.
    pub key: Option<PlaceKey>,
}

impl Follower {
    /// The run that such a description is of.
    pub fn of(run: RunId, spec: &WorkloadSpec) -> Self {
        Self { run, key: spec.run().map(|_| StampKey::new(spec.format, spec.seed).place()) }
    }
}

impl Journal {
    /// Reads and checks a whole journal.
    ///
    /// # Errors
    /// [`JournalError`] names the first line that cannot be trusted.
    pub fn read(path: &Path) -> Result<Self, JournalError> {
        let mut reader = JournalReader::open(path)?;
        reader.read_more()?;
        reader.finish()
    }

    /// Takes one line that stands behind what is here.
    fn add(&mut self, run: RunId, content: Content) -> Result<(), Refused> {
        match content {
            Content::Start(spec) if run != self.run => {
                self.followed_by.get_or_insert(Follower::of(run, &spec));
            }
            Content::Beat(_) if run != self.run => {
                return Err(Refused::OtherRun { found: run, expected: self.run });
            }
            // Each host that the guest reaches describes the run.
            Content::Start(spec) if self.spec == *spec => {}
            Content::Start(_) => return Err(Refused::Edited("describes the run in another way")),
            Content::Beat(beat) if beat.writer >= self.spec.writers => {
                return Err(Refused::Edited("names a writer that the run does not have"));
            }
            Content::Beat(beat) => self.beats.push(beat),
        }
        Ok(())
    }
}

/// Why a line is not taken.
enum Refused {
    Edited(&'static str),
    NoStart,
    OtherRun { found: RunId, expected: RunId },
}

/// Reads a journal that may be growing: each line once.
#[derive(Debug)]
pub struct JournalReader {
    path: PathBuf,
    file: BufReader<File>,
    journal: Option<Journal>,
    /// Bytes read, with those of [`JournalReader::line`].
    read: u64,
    lines: usize,
    /// The start of a line whose end is not there yet.
    line: Vec<u8>,
}

impl JournalReader {
    /// Opens a journal, which may still be empty.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let file = BufReader::new(File::open(path).map_err(io_error(path, "open"))?);
        let (path, line) = (path.to_owned(), Vec::new());
        Ok(Self { path, file, journal: None, read: 0, lines: 0, line })
    }

    /// Reads and checks what has been added; a line without an end waits for it.
    ///
    /// # Errors
    /// [`JournalError`] names the first line that cannot be trusted.
    pub fn read_more(&mut self) -> Result<(), JournalError> {
        loop {
            let rest = LINE_BYTES_MAX - self.line.len() as u64;
            let read = self.file.by_ref().take(rest).read_until(b'\n', &mut self.line);
            self.read += read.map_err(io_error(&self.path, "read"))? as u64;
            if self.line.last() != Some(&b'\n') {
                return match self.line.len() as u64 {
                    LINE_BYTES_MAX => Err(self.refused(Refused::Edited("is too long"))),
                    _ => self.has_not_shrunk(),
                };
            }
            self.take_line().map_err(|refused| self.refused(refused))?;
            self.lines += 1;
            self.line.clear();
        }
    }

    /// What has been read so far; `None` before the run's description.
    pub fn so_far(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// All that was read, if it ends with a whole line.
    ///
    /// # Errors
    /// It is cut, or empty.
    pub fn finish(self) -> Result<Journal, JournalError> {
        match self.journal {
            _ if !self.line.is_empty() => {
                Err(JournalError::Cut { path: self.path, line: self.lines + 1 })
            }
            Some(journal) => Ok(journal),
            None => Err(JournalError::NoStart { path: self.path }),
        }
    }

    fn take_line(&mut self) -> Result<(), Refused> {
        let text = &self.line[..self.line.len() - 1];
        let text = std::str::from_utf8(text).map_err(|_| Refused::Edited("is no text"))?;
        let (run, content) = parse_line(text).map_err(Refused::Edited)?;
        match (&mut self.journal, content) {
            (Some(journal), content) => journal.add(run, content),
            (None, Content::Start(spec)) => {
                let (beats, followed_by) = (Vec::new(), None);
                self.journal = Some(Journal { run, spec: *spec, beats, followed_by });
                Ok(())
            }
            (None, Content::Beat(_)) => Err(Refused::NoStart),
        }
    }

    /// Whoever empties a file that is followed would else be waited for without end.
    fn has_not_shrunk(&self) -> Result<(), JournalError> {
        let metadata = self.file.get_ref().metadata().map_err(io_error(&self.path, "look at"))?;
        match metadata.is_file() && metadata.len() < self.read {
            true => {
                Err(self.refused(Refused::Edited("is gone: the file was cut while it was read")))
            }
            false => Ok(()),
        }
    }

    fn refused(&self, why: Refused) -> JournalError {
        let (path, line) = (self.path.clone(), self.lines + 1);
        match why {
            Refused::Edited(what) => JournalError::Edited { path, line, what },
            Refused::NoStart => JournalError::NoStart { path },
            Refused::OtherRun { found, expected } => {
                JournalError::OtherRun { path, line, found, expected }
            }
        }
    }
}

/// What a line says.
enum Content {
    Start(Box<WorkloadSpec>),
    Beat(Beat),
}

fn parse_line(text: &str) -> Result<(RunId, Content), &'static str> {
    let (text, sum) = text.rsplit_once(' ').ok_or("has no fields")?;
    if hexadecimal(sum) != Some(xxh3_64(text.as_bytes())) {
        return Err("does not match its checksum");
    }
    let (tag, rest) = text.split_once(' ').ok_or("has no fields")?;
    let (run, rest) = rest.split_once(' ').ok_or("has no run id")?;
    let run = hexadecimal(run).map(RunId).ok_or("has no run id")?;
    let content = match tag {
        "S" => {
            let spec: Box<WorkloadSpec> = serde_json::from_str(rest)
                .map_err(|_| "describes a workload of another version")?;
            if spec.writers == 0 || spec.writers > WRITERS_MAX || spec.memory > MEMORY_MAX {
                return Err("describes a run that cannot be");
            }
            if spec.run().is_some_and(|stamped| stamped != run) {
                return Err("describes memory that names another run");
            }
            Content::Start(spec)
        }
        "B" | "E" => Content::Beat(parse_beat(tag, rest).ok_or("has bad numbers")?),
        _ => return Err("is of an unknown kind"),
    };
    Ok((run, content))
}

/// A number as it is written here: no sign, no zeros before it.
fn decimal(text: &str) -> Option<u64> {
    let written = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (written && digits).then(|| text.parse().ok()).flatten()
}

fn parse_beat(tag: &str, rest: &str) -> Option<Beat> {
    let mut fields = rest.split(' ').map(decimal);
    let mut next = || fields.next().flatten();
    let beat = Beat {
        motion: if tag == "E" { Motion::AtRest } else { Motion::Running },
        epoch: next()?,
        number: next()?,
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
    use crate::line::PageFormat;

    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let spec = WorkloadSpec {
            format: PageFormat::V2 { run: RunId(1) },
            seed: 7,
            memory: Bytes(1 << 20),
            writers: 2,
            workload: "stream".parse().unwrap(),
        };
        let mut journal = JournalWriter::create(&path, RunId(1), &spec).unwrap();
        for watermark in 0..3 {
            let beat = Beat {
                motion: Motion::Running,
                epoch: 0,
                number: 0,
                writer: 1,
                watermark,
                guest_ns: 5,
                journal_ns: 0,
            };
            journal.beat(&beat);
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
        assert_eq!(journal.beats.iter().map(|b| b.number).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_collector_keeps_what_belongs_to_the_run() {
        let (dir, path) = written();
        let whole = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        let collected = dir.path().join("collected");
        let mut collector = Collector::create(&collected).unwrap();
        assert_eq!(collector.line(lines[1]).unwrap(), Collected::Dropped, "before the start");
        assert_eq!(collector.line(lines[0]).unwrap(), Collected::Start(RunId(1)));
        assert_eq!(collector.line(lines[0]).unwrap(), Collected::Dropped, "again");
        assert!(matches!(collector.line(lines[1]).unwrap(), Collected::Beat(_)));
        for garbled in ["", "[    0.1] kernel", &lines[2][1..], &lines[2].replace(" 1 ", " 2 ")] {
            assert_eq!(collector.line(garbled).unwrap(), Collected::Dropped, "{garbled}");
        }
        assert!(matches!(collector.line(&format!("{}\r", lines[3])).unwrap(), Collected::Beat(_)));
        assert_eq!((collector.beats, collector.dropped), (2, 5));
        let journal = Journal::read(&collected).unwrap();
        assert_eq!(journal.beats.iter().map(|b| b.number).collect::<Vec<_>>(), [0, 2]);
    }

    /// C28: whoever follows a journal reads each line once, however it arrives.
    #[test]
    fn a_journal_that_grows_is_read_once() {
        let (dir, path) = written();
        let whole = std::fs::read(&path).unwrap();
        let growing = dir.path().join("growing");
        std::fs::write(&growing, "").unwrap();
        let mut file = File::options().append(true).open(&growing).unwrap();
        let mut reader = JournalReader::open(&growing).unwrap();
        for byte in &whole {
            std::io::Write::write_all(&mut file, &[*byte]).unwrap();
            reader.read_more().unwrap();
        }
        assert_eq!((reader.read, reader.lines), (whole.len() as u64, 4));
        assert_eq!(reader.so_far().unwrap().beats, Journal::read(&path).unwrap().beats);
        std::io::Write::write_all(&mut file, &[255, b'\n']).unwrap();
        assert!(reader.read_more().unwrap_err().to_string().contains("line 5 is no text"));
        let mut reader = JournalReader::open(&path).unwrap();
        reader.read_more().unwrap();
        std::fs::write(&path, &whole[..9]).unwrap();
        let error = reader.read_more().unwrap_err().to_string();
        assert!(error.contains("line 5 is gone: the file was cut"), "{error}");
    }

    /// C18: a guest that starts again is another run; the journal of the first says that it began, and
    /// has none of its beats.
    #[test]
    fn another_run_ends_what_a_journal_knows() {
        let (dir, path) = written();
        let whole = std::fs::read_to_string(&path).unwrap();
        let format = PageFormat::V2 { run: RunId(2) };
        let spec = WorkloadSpec { format, ..Journal::read(&path).unwrap().spec };
        let again = [
            start_line(RunId(2), &spec),
            whole.replace("B 0000000000000001", "B 0000000000000002"),
        ];
        let collected = dir.path().join("collected");
        let mut collector = Collector::create(&collected).unwrap();
        for line in whole.lines() {
            collector.line(line).unwrap();
        }
        assert_eq!(Journal::read(&collected).unwrap().followed_by, None);
        let second = start_line(RunId(2), &spec);
        assert_eq!(
            collector.line(&second[..second.len() - 1]).unwrap(),
            Collected::OtherRun(RunId(2))
        );
        for line in again.concat().lines() {
            assert_eq!(collector.line(line).unwrap(), Collected::Dropped, "{line}");
        }
        let journal = Journal::read(&collected).unwrap();
        assert_eq!((journal.run, journal.beats.len()), (RunId(1), 3));
        assert_eq!(journal.followed_by, Some(Follower::of(RunId(2), &spec)));
        // Two journals in one file are still no journal.
        let beat = sealed("B 0000000000000002 0 0 0 0 5 5");
        std::fs::write(&path, format!("{whole}{second}{beat}")).unwrap();
        assert!(matches!(Journal::read(&path), Err(JournalError::OtherRun { line: 6, .. })));
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
        assert!(
            read_as(&whole.replace(" 2 1 2 5 ", " 2 1 9 5 ")).contains("line 4 does not match")
        );
        assert!(read_as("").contains("does not start"));
        assert!(read_as(&whole[whole.find("\nB").unwrap() + 1..]).contains("does not start"));
        assert!(read_as("hello\n").contains("has no fields"));
        // C30: a console's messages between heartbeats.
        let garbled = whole.replacen("\nB", "\n[    5.1] usb 1-1: new device\nB", 1);
        assert!(read_as(&garbled).contains("verifier collect --from"));
    }

    /// B45, B48: a parser that takes what nobody wrote hides damage, or asks for memory that is not there.
    #[test]
    fn only_what_was_written_is_read() {
        let (_dir, path) = written();
        let whole = std::fs::read_to_string(&path).unwrap();
        let read_with = |line: usize, change: &dyn Fn(&str) -> String| {
            let mut lines: Vec<String> = whole.lines().map(str::to_owned).collect();
            let (text, _) = lines[line].rsplit_once(' ').unwrap();
            lines[line] = sealed(&change(text)).trim_end().to_owned();
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
            Journal::read(&path).map(|journal| journal.beats.len()).map_err(|e| e.to_string())
        };
        assert_eq!(read_with(1, &str::to_owned), Ok(3));
        for (from, to) in [(" 5 ", " +5 "), (" 5 ", " 05 "), (" 5 ", " 5_ "), ("B 00", "B +0")] {
            let error = read_with(1, &|text| text.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains("bad numbers") || error.contains("no run id"), "{error}");
        }
        for (from, to) in [
            ("\"memory\":1048576", "\"memory\":1125899906842624"),
            ("\"writers\":2", "\"writers\":4294967295"),
            ("\"writers\":2", "\"writers\":0"),
        ] {
            let error = read_with(0, &|text| text.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains("a run that cannot be"), "{to}: {error}");
        }
        // The sum itself, with a sign or in capitals.
        let signed = whole.trim_end().to_owned();
        let (text, sum) = signed.rsplit_once(' ').unwrap();
        for sum in [format!("+{sum}"), sum.to_uppercase() + "A", format!("0{sum}")] {
            std::fs::write(&path, format!("{text} {sum}\n")).unwrap();
            let error = Journal::read(&path).unwrap_err().to_string();
            assert!(error.contains("does not match its checksum"), "{sum}: {error}");
        }
    }
}
