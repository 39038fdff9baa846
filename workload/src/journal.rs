//! The journal of one run: its beats, whoever heard them.
//!
//! Journals are written in format 2 ([`crate::beat`]). Those of format 1 are read here:
//!
//! ```text
//! S <run> <workload spec as JSON> <sum>          start of a run, on each host; of another run: its end
//! B <run> <epoch> <number> <writer> <watermark> <guest ns> <journal ns> <sum>       a heartbeat
//! E <run> <epoch> <number> <writer> <watermark> <guest ns> <journal ns> <sum>       at rest here
//! ```
//!
//! `run` and `sum` are 16 hexadecimal digits; `sum` is XXH3-64 of the line before its last space.
//! `number` counts the beats sent in an epoch. What the beats prove is the verifier's business.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::beat::books::{Books, BooksError, Heard};
use crate::beat::said::{Kind, Tag};
use crate::digits::hexadecimal;
use crate::line::{PlaceKey, StampKey};
use crate::run::RunId;
use crate::spec::{WRITERS_MAX, WorkloadSpec};
use crate::units::Bytes;

/// Longest line a reader accepts.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Most memory of a run that a reader believes: 64 TiB.
const MEMORY_MAX: Bytes = Bytes(64 << 40);

/// One writer's counter at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whether the writer goes on.
    pub kind: Kind,
    /// How many hosts the guest has been moved across.
    pub epoch: u32,
    /// How many beats were sent before this one, all writers together; in format 1 in this epoch.
    pub number: u64,
    /// Which writer.
    pub writer: u16,
    /// Operations completed.
    pub watermark: u64,
    /// The guest's own monotonic clock, nanoseconds.
    pub guest_ns: u64,
    /// The journal's wall clock, nanoseconds since 1970.
    pub journal_ns: u64,
    /// Whose clock that is: one boot of a host has one that does not step; 0 in format 1.
    pub clock: u8,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It is of format 2, and cannot be read.
    #[error(transparent)]
    Books(#[from] BooksError),
    /// It holds more than one run, or none.
    #[error("journal {} holds {}", path.display(), match runs[..] { [] => "no run".to_owned(), _ => format!("several runs: {}", runs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")) })]
    Runs {
        /// The journal.
        path: PathBuf,
        /// The runs that were heard.
        runs: Vec<Tag>,
    },
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

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> JournalError {
    move |source| JournalError::Io { path: path.to_owned(), doing, source }
}

/// A journal as read back.
#[derive(Clone, Debug)]
pub struct Journal {
    /// The run it is of.
    pub run: RunId,
    /// Tells its beats from others'; journals of format 1 have none.
    pub tag: Option<Tag>,
    /// What the run writes.
    pub spec: WorkloadSpec,
    /// The beats: in format 1 as they were written, else by their numbers.
    pub beats: Vec<Beat>,
    /// Another run that began where this one was heard: what is in memory may be that one's.
    pub followed_by: Option<Follower>,
}

/// A run that began where another one was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
    /// Reads and checks the journal of one run.
    ///
    /// # Errors
    /// [`JournalError`] names the first line that cannot be trusted.
    pub fn read(path: &Path) -> Result<Self, JournalError> {
        if is_old(path)? {
            return Self::read_old(path);
        }
        let books = Books::read(&[path])?;
        let journals: Vec<_> = books.runs.keys().filter_map(|tag| Self::of(&books, *tag)).collect();
        let mut tags = journals.iter().filter_map(|journal| journal.tag).collect();
        match <[Self; 1]>::try_from(journals) {
            Ok([journal]) => Ok(journal),
            Err(_) => {
                Err(JournalError::Runs { path: path.to_owned(), runs: std::mem::take(&mut tags) })
            }
        }
    }

    /// What books say of one run; `None` without its description.
    pub fn of(books: &Books, tag: Tag) -> Option<Self> {
        let run = books.runs.get(&tag)?;
        let spec = run.start.as_ref()?.spec.clone();
        // The first to hear a beat says when.
        let mut beats: Vec<Beat> = Vec::with_capacity(run.heard.len());
        let mut last = None;
        let clocks = books.clocks();
        let sessions = 0..books.sessions.len() as u32;
        let begun_us: Vec<u64> = sessions.map(|session| books.wall_us(session, 0)).collect();
        for heard in &run.heard {
            let clock = clocks[heard.session as usize];
            let journal_ns =
                begun_us[heard.session as usize].saturating_add(heard.at_us).saturating_mul(1000);
            match beats.last_mut() {
                Some(beat) if last == Some(heard.beat) => {
                    (beat.journal_ns, beat.clock) =
                        (beat.journal_ns, beat.clock).min((journal_ns, clock));
                }
                _ => beats.push(Beat::heard(heard, journal_ns, clock)),
            }
            last = Some(heard.beat);
        }
        let id = spec.run().unwrap_or(RunId(0));
        Some(Self { run: id, tag: Some(tag), spec, beats, followed_by: None })
    }

    /// Reads and checks a whole journal of format 1.
    ///
    /// # Errors
    /// [`JournalError`] names the first line that cannot be trusted.
    pub fn read_old(path: &Path) -> Result<Self, JournalError> {
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
            Content::Beat(beat) if u32::from(beat.writer) >= self.spec.writers => {
                return Err(Refused::Edited("names a writer that the run does not have"));
            }
            Content::Beat(beat) => self.beats.push(beat),
        }
        Ok(())
    }
}

impl Beat {
    fn heard(heard: &Heard, journal_ns: u64, clock: u8) -> Self {
        let beat = &heard.beat;
        Self {
            kind: beat.kind,
            epoch: beat.epoch,
            number: beat.number,
            writer: beat.writer,
            watermark: beat.watermark,
            guest_ns: beat.clock_us.saturating_mul(1000),
            journal_ns,
            clock,
        }
    }
}

/// Whether a file is a journal of format 1, by its first line.
///
/// # Errors
/// It cannot be read.
pub fn is_old(path: &Path) -> Result<bool, JournalError> {
    let mut file = File::open(path).map_err(io_error(path, "open"))?;
    let mut begin = Vec::new();
    file.by_ref().take(19).read_to_end(&mut begin).map_err(io_error(path, "read"))?;
    let tag = begin.split_first_chunk::<2>();
    Ok(tag.is_some_and(|(tag, rest)| {
        let run = rest.get(..16).and_then(|run| std::str::from_utf8(run).ok());
        matches!(tag, b"S " | b"B " | b"E ") && run.is_some_and(|run| hexadecimal(run).is_some())
    }))
}

/// Why a line is not taken.
enum Refused {
    Edited(&'static str),
    NoStart,
    OtherRun { found: RunId, expected: RunId },
}

/// Reads a journal of format 1: each line once.
#[derive(Debug)]
struct JournalReader {
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
    fn open(path: &Path) -> Result<Self, JournalError> {
        let file = BufReader::new(File::open(path).map_err(io_error(path, "open"))?);
        let (path, line) = (path.to_owned(), Vec::new());
        Ok(Self { path, file, journal: None, read: 0, lines: 0, line })
    }

    /// Reads and checks what has been added; a line without an end waits for it.
    ///
    /// # Errors
    /// [`JournalError`] names the first line that cannot be trusted.
    fn read_more(&mut self) -> Result<(), JournalError> {
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

    /// All that was read, if it ends with a whole line.
    ///
    /// # Errors
    /// It is cut, or empty.
    fn finish(self) -> Result<Journal, JournalError> {
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
                self.journal = Some(Journal { run, tag: None, spec: *spec, beats, followed_by });
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
        kind: if tag == "E" { Kind::Ended } else { Kind::Running },
        epoch: u32::try_from(next()?).ok()?,
        number: next()?,
        writer: u16::try_from(next()?).ok()?,
        watermark: next()?,
        guest_ns: next()?,
        journal_ns: next()?,
        clock: 0,
    };
    fields.next().is_none().then_some(beat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PageFormat;

    fn sealed(text: &str) -> String {
        format!("{text} {:016x}\n", xxh3_64(text.as_bytes()))
    }

    fn spec() -> WorkloadSpec {
        WorkloadSpec {
            format: PageFormat::V1,
            seed: 7,
            memory: Bytes(1 << 20),
            writers: 2,
            workload: "stream".parse().unwrap(),
        }
    }

    fn start_line(run: RunId) -> String {
        sealed(&format!("S {run} {}", serde_json::to_string(&spec()).unwrap()))
    }

    /// As a version wrote it that knew no other format.
    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let beat = |n: u64| sealed(&format!("B {} 0 {n} 1 {n} 5 {}", RunId(1), 1000 + n));
        let beats: String = (0..3).map(beat).collect();
        std::fs::write(&path, start_line(RunId(1)) + &beats).unwrap();
        (dir, path)
    }

    #[test]
    fn what_was_written_is_read() {
        let (_dir, path) = written();
        let journal = Journal::read(&path).unwrap();
        assert_eq!((journal.run, journal.tag), (RunId(1), None));
        assert_eq!(journal.beats.iter().map(|b| b.watermark).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(journal.beats.iter().all(|b| b.writer == 1 && b.journal_ns >= 1000));
        assert_eq!(journal.beats.iter().map(|b| b.number).collect::<Vec<_>>(), [0, 1, 2]);
    }

    /// C18: a guest that starts again is another run; the journal of the first says that it began, and
    /// has none of its beats.
    #[test]
    fn another_run_ends_what_a_journal_knows() {
        let (_dir, path) = written();
        let whole = std::fs::read_to_string(&path).unwrap();
        let second = start_line(RunId(2));
        std::fs::write(&path, format!("{whole}{second}")).unwrap();
        let journal = Journal::read(&path).unwrap();
        assert_eq!((journal.run, journal.beats.len()), (RunId(1), 3));
        assert_eq!(journal.followed_by, Some(Follower::of(RunId(2), &spec())));
        // Two journals in one file are no journal.
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
        assert!(read_as("").contains("holds no session"));
        assert!(read_as(&whole[whole.find("\nB").unwrap() + 1..]).contains("does not start"));
        assert!(read_as("hello\n").contains("holds no session"));
        assert!(read_as(&sealed("S 0000000000000001 hello")).contains("another version"));
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
