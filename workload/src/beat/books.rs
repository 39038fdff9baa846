//! Sessions read back: any number of files, in any order, with lines missing, doubled or garbled.
//!
//! Order means nothing here. A line whose sum does not fit is not there; a whole line that nobody can
//! have written is refused, with its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::lock;
use super::said::{Beat, Said, Start, Tag, unsealed};
use super::session::{Entry, LINE_BYTES_MAX, Line, Name, Opening, Restored, SessionId};
use crate::regular;

/// Fewest bytes that are worth a thread.
const CHUNK_BYTES: usize = 1 << 20;

/// Why files cannot be read as evidence.
#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    /// A file could not be read.
    #[error("cannot {doing} journal {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A whole line that nobody wrote.
    #[error("journal {}: line {line} {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Lines that cannot both have been written.
    #[error("{0}; one of them was edited")]
    Contradiction(String),
    /// Nothing of a session.
    #[error("journal {} holds no session of a collector: it is no vmigrate journal, or what came over a line; then `verifier collect --from {} --journal NEW` takes what is whole out of it", path.display(), path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// Numbers of lines that are there: ranges, in order after [`Numbers::settle`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Numbers(Vec<Range<u64>>);

impl Numbers {
    fn insert(&mut self, number: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == number => last.end = number.saturating_add(1),
            _ => self.0.push(number..number.saturating_add(1)),
        }
    }

    /// Joins what touches; whether any number was there twice.
    fn settle(&mut self) -> bool {
        self.0.sort_unstable_by_key(|range| (range.start, range.end));
        let mut doubled = false;
        self.0.dedup_by(|next, range| {
            doubled |= next.start < range.end;
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        doubled
    }

    /// The least that is not there.
    fn first_missing(&self) -> u64 {
        self.0.first().filter(|range| range.start == 0).map_or(0, |range| range.end)
    }

    /// One more than the greatest.
    fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.end)
    }
}

/// What is known of one session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// How it began, if that line is there.
    pub opening: Option<Opening>,
    /// How many lines it says it has, and when it said so.
    pub close: Option<(u64, u64)>,
    /// It is being written now: the lock is held.
    pub held: bool,
    /// When its last line was written, microseconds since it began.
    pub last_us: u64,
    numbers: Numbers,
    /// Some line was there more than once.
    doubled: bool,
    /// Of every line but beats, number and text, as a hash.
    others: Vec<(u64, u64)>,
}

impl Session {
    fn new(id: SessionId) -> Self {
        Self {
            id,
            opening: None,
            close: None,
            held: false,
            last_us: 0,
            numbers: Numbers::default(),
            doubled: false,
            others: Vec::new(),
        }
    }

    /// Lines that must be there, if anything says how many: its own end, what a later session of the
    /// file found (`found`), or its being written still.
    fn lines(&self, found: Option<u64>) -> Option<u64> {
        let held = self.held.then(|| self.numbers.end());
        self.close
            .map(|(lines, _)| lines)
            .or(found.map(|found| found.max(self.numbers.end())))
            .or(held)
    }
}

/// A beat that somebody heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    /// What the guest said.
    pub beat: Beat,
    /// Which session heard it, by its place in [`Books::sessions`].
    pub session: u32,
    /// Number of its line there.
    pub line: u32,
    /// Microseconds since the session began.
    pub at_us: u64,
}

/// Something that was told to a collector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told<T> {
    /// Which session was told, by its place in [`Books::sessions`].
    pub session: u32,
    /// Number of the line there.
    pub line: u64,
    /// Microseconds since the session began.
    pub at_us: u64,
    /// What.
    pub what: T,
}

/// What was heard of one run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Its description; there is one.
    pub start: Option<Start>,
    /// Its beats, each as often as it was heard, in order after [`Books::settle`].
    pub heard: Vec<Heard>,
    /// Restores that were meant.
    pub words: Vec<Told<Restored>>,
}

/// All that collectors wrote down.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// By their names.
    pub sessions: Vec<Session>,
    /// By their tags.
    pub runs: BTreeMap<Tag, Run>,
    /// Phases that were told.
    pub marks: Vec<Told<Name>>,
    /// Lines of sessions.
    pub lines: u64,
    /// Lines whose sum does not fit, or that have none: as good as not there.
    pub garbage: u64,
    places: HashMap<SessionId, u32>,
    settled: bool,
}

/// What a stretch of text holds. Beats are most of it, and are kept small.
#[derive(Default)]
struct Chunk {
    beats: Vec<(u32, SessionId, Tag, Heard)>,
    /// Anything else, with the hash of its text.
    others: Vec<(u32, Line, u64)>,
    garbage: u64,
    lines: u32,
    refused: Option<(u32, String)>,
}

impl Chunk {
    fn of(text: &[u8]) -> Self {
        let mut chunk = Self::default();
        let whole = text.strip_suffix(b"\n").unwrap_or(text);
        for line in whole.split(|byte| *byte == b'\n') {
            let place = chunk.lines;
            if let Err(what) = chunk.line(line) {
                chunk.refused = Some((place, what));
                break;
            }
            chunk.lines += 1;
        }
        chunk
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = unsealed(line).filter(|_| line.len() <= LINE_BYTES_MAX);
        // A line as a guest said it, without a session, is what nobody collected.
        let Some((text, line)) = text.and_then(|text| Some((text, Line::read(text)?))) else {
            self.garbage += 1;
            return Ok(());
        };
        let line = line?;
        let Line { session, number, at_us, entry } = line;
        match entry {
            Entry::Heard(tag, Said::Beat(beat)) => {
                let line = u32::try_from(number).map_err(|_| TOO_MANY)?;
                let heard = Heard { beat, session: 0, line, at_us };
                self.beats.push((self.lines, session, tag, heard));
            }
            entry => {
                let line = Line { session, number, at_us, entry };
                self.others.push((self.lines, line, xxh3_64(text)));
            }
        }
        Ok(())
    }
}

/// Of a line with a number that its session cannot have.
const TOO_MANY: &str = "has a number that no session reaches";

impl Books {
    /// Reads whole files.
    ///
    /// # Errors
    /// [`BooksError`] says which line of which.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self, BooksError> {
        let mut books = Self::default();
        for path in paths {
            let mut source = Source::open(path.as_ref())?;
            source.read_more(&mut books)?;
            source.look_for_locks(&mut books);
            source.is_a_journal()?;
        }
        books.settle()?;
        Ok(books)
    }

    /// Takes whole lines; `path` and `first` (from 1) are for messages.
    ///
    /// # Errors
    /// A whole line is none that anybody can have written.
    pub fn take(&mut self, path: &Path, first: u64, text: &[u8]) -> Result<(), BooksError> {
        let mut line = first;
        for batch in batches(text, CHUNK_BYTES * 16) {
            let chunks: Vec<&[u8]> = batches(batch, CHUNK_BYTES).collect();
            let chunks: Vec<Chunk> = match chunks.len() {
                1 => chunks.into_iter().map(Chunk::of).collect(),
                _ => chunks.into_par_iter().map(Chunk::of).collect(),
            };
            for chunk in chunks {
                let refused = |(place, what)| BooksError::Line {
                    path: path.to_owned(),
                    line: line + u64::from(place),
                    what,
                };
                let lines = u64::from(chunk.lines);
                self.absorb(chunk).map_err(refused)?;
                line += lines;
            }
        }
        Ok(())
    }

    fn absorb(&mut self, chunk: Chunk) -> Result<(), (u32, String)> {
        let Chunk { beats, others, garbage, refused, .. } = chunk;
        self.garbage += garbage;
        self.settled &= beats.is_empty() && others.is_empty();
        let mut beats = beats.into_iter().peekable();
        // The session and the run of the beat before: mostly those of the next.
        let mut last: Option<(SessionId, u32)> = None;
        let mut run: Option<(Tag, Vec<Heard>)> = None;
        let mut add = |books: &mut Self, (_, id, tag, heard): (u32, SessionId, Tag, Heard)| {
            let place = match last {
                Some((known, place)) if known == id => place,
                _ => books.session(id),
            };
            last = Some((id, place));
            books.there(place, u64::from(heard.line), heard.at_us);
            let heard = Heard { session: place, ..heard };
            match &mut run {
                Some((known, beats)) if *known == tag => beats.push(heard),
                other => {
                    if let Some((tag, mut beats)) = other.take() {
                        books.runs.entry(tag).or_default().heard.append(&mut beats);
                    }
                    *other = Some((tag, vec![heard]));
                }
            }
        };
        for (place, line, hash) in others {
            while let Some(beat) = beats.next_if(|beat| beat.0 < place) {
                add(self, beat);
            }
            self.add(line, hash).map_err(|what| (place, what))?;
        }
        beats.for_each(|beat| add(self, beat));
        if let Some((tag, mut beats)) = run {
            self.runs.entry(tag).or_default().heard.append(&mut beats);
        }
        refused.map_or(Ok(()), Err)
    }

    /// A line of a session is there.
    fn there(&mut self, place: u32, number: u64, at_us: u64) {
        let session = &mut self.sessions[place as usize];
        session.numbers.insert(number);
        session.last_us = session.last_us.max(at_us);
        self.lines += 1;
    }

    fn session(&mut self, id: SessionId) -> u32 {
        *self.places.entry(id).or_insert_with(|| {
            self.sessions.push(Session::new(id));
            self.sessions.len() as u32 - 1
        })
    }

    fn add(&mut self, line: Line, hash: u64) -> Result<(), String> {
        let Line { session: id, number, at_us, entry } = line;
        let place = self.session(id);
        self.there(place, number, at_us);
        let session = &mut self.sessions[place as usize];
        session.others.push((number, hash));
        match entry {
            Entry::Open(opening) => match &session.opening {
                Some(before) if *before != opening => {
                    return Err(format!("opens session {id} a second time, in another way"));
                }
                _ if number != 0 => return Err(format!("opens session {id} in its middle")),
                _ => session.opening = Some(opening),
            },
            // That it is there is all that is asked of it.
            Entry::Tick { .. } => {}
            Entry::Close(lines) => match session.close {
                Some((before, _)) if before != lines => {
                    return Err(format!("ends session {id} a second time, in another way"));
                }
                _ if number.checked_add(1) != Some(lines) => {
                    return Err(format!("ends session {id} at another number than its own"));
                }
                _ => session.close = Some((lines, at_us)),
            },
            Entry::Mark(name) => {
                self.marks.push(Told { session: place, line: number, at_us, what: name });
            }
            Entry::Restored(word) => {
                let run = self.runs.entry(word.tag).or_default();
                run.words.push(Told { session: place, line: number, at_us, what: word });
            }
            Entry::Heard(tag, Said::Beat(beat)) => {
                let line = u32::try_from(number).map_err(|_| TOO_MANY)?;
                let run = self.runs.entry(tag).or_default();
                run.heard.push(Heard { beat, session: place, line, at_us });
            }
            Entry::Heard(tag, Said::Start(start)) => {
                let run = self.runs.entry(tag).or_default();
                match &run.start {
                    Some(before) if *before != *start => {
                        return Err(format!("describes run {tag} in another way than before"));
                    }
                    _ => run.start = Some(*start),
                }
            }
        }
        Ok(())
    }

    /// Puts all into one order, and looks for lines that cannot both be.
    ///
    /// # Errors
    /// Two lines of one number, or one behind the end of its session.
    pub fn settle(&mut self) -> Result<(), BooksError> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        for session in &mut self.sessions {
            session.doubled |= session.numbers.settle();
            if session.close.is_some_and(|(lines, _)| session.numbers.end() > lines) {
                return Err(BooksError::Contradiction(format!(
                    "session {} has a line behind its last one",
                    session.id
                )));
            }
        }
        for run in self.runs.values_mut() {
            run.heard.sort_unstable();
            run.words.sort_unstable();
        }
        self.marks.sort_unstable();
        if self.sessions.iter().any(|session| session.doubled) {
            self.settle_doubled()?;
        }
        Ok(())
    }

    /// The same line twice is one; another line of its number cannot be.
    fn settle_doubled(&mut self) -> Result<(), BooksError> {
        for run in self.runs.values_mut() {
            run.heard.dedup();
            run.words.dedup();
        }
        self.marks.dedup();
        // Whatever is still there twice under one number differs.
        let mut seen: Vec<(u32, u64)> = Vec::new();
        for run in self.runs.values() {
            seen.extend(run.heard.iter().map(|heard| (heard.session, u64::from(heard.line))));
        }
        for (place, session) in (0..).zip(&mut self.sessions) {
            session.others.sort_unstable();
            session.others.dedup();
            seen.extend(session.others.iter().map(|(line, _)| (place, *line)));
        }
        seen.retain(|(session, _)| self.sessions[*session as usize].doubled);
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(BooksError::Contradiction(format!(
                "session {} has two lines of number {}",
                self.sessions[pair[0].0 as usize].id, pair[0].1
            ))),
            None => Ok(()),
        }
    }

    /// Lines of each session that later sessions of its file found.
    fn found(&self) -> HashMap<SessionId, u64> {
        let mut found = HashMap::new();
        let after = self.sessions.iter().filter_map(|session| session.opening.as_ref()?.after);
        for (id, lines) in after {
            let most = found.entry(id).or_insert(lines);
            *most = lines.max(*most);
        }
        found
    }

    /// The number of the first line that is missing of each session; `None` where none is. A session
    /// of which nothing says where it ends lacks what follows its last line.
    pub fn holes(&self) -> Vec<Option<u64>> {
        let found = self.found();
        let hole = |session: &Session| {
            let first = session.numbers.first_missing();
            match session.lines(found.get(&session.id).copied()) {
                Some(lines) => (first < lines).then_some(first),
                None => Some(first),
            }
        };
        self.sessions.iter().map(hole).collect()
    }

    /// When something happened in a session, by the wall clock, microseconds since 1970. Sessions of
    /// one boot of a host share the clock of the first of them: a clock that steps moves none.
    pub fn wall_us(&self, session: u32, at_us: u64) -> u64 {
        let Some(opening) = &self.sessions[session as usize].opening else { return at_us };
        let openings = self.sessions.iter().filter_map(|session| session.opening.as_ref());
        let same = openings.filter(|other| other.boot == opening.boot);
        let first = same.min_by_key(|other| other.boot_us).unwrap_or(opening);
        let since = (opening.boot_us - first.boot_us).saturating_add(at_us);
        first.wall_us.saturating_add(since)
    }

    /// Whose clock each session has, by a number of this journal's own; sessions of one boot of a host
    /// have one.
    pub fn clocks(&self) -> Vec<u8> {
        let boots: BTreeSet<Option<u32>> =
            self.sessions.iter().map(|s| s.opening.as_ref().map(|opening| opening.boot)).collect();
        let numbers: BTreeMap<_, _> = boots.into_iter().zip(0usize..).collect();
        let of = |session: &Session| numbers[&session.opening.as_ref().map(|opening| opening.boot)];
        self.sessions.iter().map(|session| u8::try_from(of(session)).unwrap_or(u8::MAX)).collect()
    }

    /// Whether a session names one before it that is not there.
    pub fn lacks_session(&self) -> bool {
        self.found().keys().any(|id| !self.places.contains_key(id))
    }
}

/// Whole lines, about so many bytes at a time.
fn batches(text: &[u8], bytes: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let from = bytes.min(rest.len());
        let end = rest[from..].iter().position(|byte| *byte == b'\n');
        let (batch, after) = rest.split_at(end.map_or(rest.len(), |end| from + end + 1));
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

/// A file that may be growing: each line of it once.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    /// The start of a line whose end is not there yet, or is too far away.
    rest: Vec<u8>,
    lines: u64,
    read: u64,
    /// Lines of sessions among them.
    taken: u64,
}

/// Read at once.
const BLOCK_BYTES: usize = 64 << 20;

impl Source {
    /// Opens a file, which may still be empty.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self, BooksError> {
        let (file, _) = regular::open(path).map_err(io_error(path, "open"))?;
        let (path, rest) = (path.to_owned(), Vec::new());
        Ok(Self { path, file, rest, lines: 0, read: 0, taken: 0 })
    }

    /// Reads what has been added; a line without an end waits for it.
    ///
    /// # Errors
    /// It cannot be read, or has a whole line that nobody wrote.
    pub fn read_more(&mut self, books: &mut Books) -> Result<(), BooksError> {
        loop {
            let before = self.rest.len();
            let block = (&self.file).take(BLOCK_BYTES as u64).read_to_end(&mut self.rest);
            let block = block.map_err(io_error(&self.path, "read"))?;
            self.read += block as u64;
            if block == 0 {
                return self.has_not_shrunk();
            }
            let end = self.rest[before..].iter().rposition(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| before + end + 1) {
                let before = books.lines;
                books.take(&self.path, self.lines + 1, &self.rest[..end])?;
                self.taken += books.lines - before;
                self.lines += self.rest[..end].iter().filter(|byte| **byte == b'\n').count() as u64;
                self.rest.drain(..end);
            }
            // Of a line that is none only so much is kept as shows it.
            self.rest.truncate(LINE_BYTES_MAX + 1);
        }
    }

    /// Looks which of the sessions that have no end are being written.
    pub fn look_for_locks(&self, books: &mut Books) {
        for session in books.sessions.iter_mut().filter(|session| session.close.is_none()) {
            session.held |= lock::is_held(&self.file, session.id);
        }
    }

    /// The same in books that are of this file alone, which may have been looked at before: who held a
    /// session then may be gone.
    pub fn look_for_locks_again(&self, books: &mut Books) {
        for session in &mut books.sessions {
            session.held = false;
        }
        self.look_for_locks(books);
    }

    /// Whether there was a session in it.
    ///
    /// # Errors
    /// There was none.
    pub fn is_a_journal(&self) -> Result<(), BooksError> {
        match self.taken == 0 {
            true => Err(BooksError::Foreign { path: self.path.clone() }),
            false => Ok(()),
        }
    }

    /// Whoever empties a file that is followed would else be waited for without end.
    fn has_not_shrunk(&self) -> Result<(), BooksError> {
        let metadata = self.file.metadata().map_err(io_error(&self.path, "look at"))?;
        match metadata.is_file() && metadata.len() < self.read {
            true => Err(BooksError::Line {
                path: self.path.clone(),
                line: self.lines + 1,
                what: "is gone: the file was cut while it was read".to_owned(),
            }),
            false => Ok(()),
        }
    }
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> BooksError {
    move |source| BooksError::Io { path: path.to_owned(), doing, source }
}

#[cfg(test)]
mod tests {
    use super::super::said::{Kind, sealed};
    use super::*;
    use std::io::Write as _;

    fn text(lines: u64) -> String {
        let line = |number: u64| {
            let entry = match number {
                0 => "C 2 lab 00000001 5 5 0 -".to_owned(),
                number => format!("B 00000007 0 {number} 0 {number} 5 00010001 00000000"),
            };
            sealed(&format!("000000aa {number} {number} {entry}"))
        };
        (0..lines).map(line).collect()
    }

    fn read(texts: &[&str]) -> Result<Books, BooksError> {
        let mut books = Books::default();
        for text in texts {
            books.take(Path::new("journal"), 1, text.as_bytes())?;
        }
        books.settle()?;
        Ok(books)
    }

    /// C28: whoever follows a journal reads each line once, however it arrives.
    #[test]
    fn a_journal_that_grows_is_read_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let whole = text(5);
        let mut file = File::options().append(true).create(true).open(&path).unwrap();
        let (mut source, mut books) = (Source::open(&path).unwrap(), Books::default());
        for byte in whole.as_bytes() {
            file.write_all(&[*byte]).unwrap();
            source.read_more(&mut books).unwrap();
        }
        assert_eq!((source.read, books.lines), (whole.len() as u64, 5));
        source.is_a_journal().unwrap();
        // What is no line is not kept until it ends.
        file.write_all(&vec![b'x'; 3 * LINE_BYTES_MAX]).unwrap();
        source.read_more(&mut books).unwrap();
        assert!(source.rest.len() <= LINE_BYTES_MAX + 1);
        file.write_all(b"\n").unwrap();
        source.read_more(&mut books).unwrap();
        assert_eq!((books.lines, books.garbage), (5, 1));
        File::options().write(true).open(&path).unwrap().set_len(9).unwrap();
        let error = source.read_more(&mut books).unwrap_err().to_string();
        assert!(error.contains("is gone: the file was cut"), "{error}");
    }

    #[test]
    fn lines_that_are_missing_are_holes_and_order_means_nothing() {
        let whole = text(6) + &sealed("000000aa 6 6 Z 7");
        let lines: Vec<&str> = whole.split_inclusive('\n').collect();
        assert_eq!(read(&[&whole]).unwrap().holes(), [None]);
        let backwards: String = lines.iter().rev().copied().collect();
        let doubled = read(&[&backwards, &whole]).unwrap();
        assert_eq!(doubled.holes(), [None]);
        assert_eq!(doubled.runs[&Tag(7)].heard.len(), 5, "each line once");
        assert!(doubled.runs[&Tag(7)].heard.iter().all(|heard| heard.beat.kind == Kind::Running));
        let without = |gone: usize| {
            let left: String = (0..7).filter(|i| *i != gone).map(|i| lines[i]).collect();
            read(&[&left]).unwrap().holes()[0]
        };
        assert_eq!([without(0), without(3)], [Some(0), Some(3)]);
        assert_eq!(without(6), Some(6), "nothing says where it ends");
    }

    #[test]
    fn lines_that_cannot_both_be_are_refused() {
        let whole = text(6) + &sealed("000000aa 6 6 Z 7");
        for (more, says) in [
            ("000000aa 3 3 B 00000007 0 3 0 9 5 00010001 00000000", "two lines of number 3"),
            ("000000aa 3 3 M other", "two lines of number 3"),
            ("000000aa 9 3 M other", "behind its last one"),
            ("000000aa 0 0 C 2 other 00000001 5 5 0 -", "a second time, in another way"),
            ("000000aa 3 3 Z 4", "a second time, in another way"),
            ("000000bb 3 3 Z 9", "another number than its own"),
            ("000000aa 5000000000 3 B 00000007 0 3 0 9 5 00010001 00000000", "no session reaches"),
            ("000000bb 0 3 C 3 x", "journal format 3"),
        ] {
            let error = read(&[&whole, &sealed(more)]).unwrap_err().to_string();
            assert!(error.contains(says), "{more}: {error}");
        }
    }
}
