//! A session on its way into a file.

use std::fs::File;
use std::io::{Read as _, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::lock;
use super::said::{sealed, unsealed};
use super::session::{Entry, LINE_BYTES_MAX, Line, Name, Opening, SessionId};
use crate::clock::realtime_ns;
use crate::fresh;
use crate::outlet::{Outlet, OutletAddress, OutletError};

/// Time between two ticks.
const TICK: Duration = Duration::from_secs(1);
/// What is looked at of a file's end to find the session before.
const TAIL_BYTES: u64 = 2 * LINE_BYTES_MAX as u64;

/// What a session does with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// What it held is gone, if it was a journal.
    Replaced,
    /// It goes on.
    Continued,
}

/// Why no session could be begun.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be written.
    #[error(transparent)]
    Outlet(#[from] OutletError),
    /// It holds something else.
    #[error(
        "{0} holds something else than sessions of collectors; it is left as it is: name a new file"
    )]
    Foreign(OutletAddress),
}

/// A session that is being written. It ends when this is dropped.
#[derive(Debug)]
pub struct Ledger {
    outlet: Outlet,
    id: SessionId,
    lines: u64,
    words: u64,
    begun_us: u64,
    ticked: Instant,
}

impl Ledger {
    /// Begins a session in a file.
    ///
    /// # Errors
    /// The file cannot be written, or is none of ours.
    pub fn open(
        path: &Path,
        existing: Existing,
        collector: &Name,
        late: Duration,
    ) -> Result<Self, LedgerError> {
        let address = OutletAddress::File(path.to_owned());
        let mut outlet = Outlet::open(&address)?;
        let mut tail = Vec::new();
        let mut length = 0;
        if let Ok(mut file) = File::open(path)
            && file.metadata().is_ok_and(|metadata| metadata.is_file())
        {
            // What cannot be read holds no session that could be named.
            length = file.metadata().map_or(0, |metadata| metadata.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)));
            let _ = file.take(TAIL_BYTES).read_to_end(&mut tail);
        }
        let before = before(&tail);
        if before.is_none() && length > 0 && !is_old_journal(&tail) {
            return Err(LedgerError::Foreign(address));
        }
        let after = match existing {
            Existing::Replaced => {
                outlet.truncate()?;
                None
            }
            Existing::Continued if length > 0 && before.is_none() => {
                return Err(LedgerError::Foreign(address));
            }
            Existing::Continued => {
                if tail.last().is_some_and(|byte| *byte != b'\n') {
                    outlet.end_line();
                }
                before
            }
        };
        let id = SessionId(fresh::bits() as u32);
        if let Some(file) = outlet.file() {
            lock::hold(file, id);
        }
        let begun_us = boot_time_us();
        let mut ledger = Self { outlet, id, lines: 0, words: 0, begun_us, ticked: Instant::now() };
        ledger.note(Entry::Open(Opening {
            collector: collector.clone(),
            boot: boot(),
            boot_us: begun_us,
            wall_us: realtime_ns() / 1000,
            late_us: late.as_micros() as u64,
            after,
        }))?;
        Ok(ledger)
    }

    /// Its name.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Writes a line. One that cannot be written leaves a hole.
    ///
    /// # Errors
    /// It could not be written whole.
    pub fn note(&mut self, entry: Entry) -> Result<(), OutletError> {
        self.words += u64::from(matches!(entry, Entry::Restored(_)));
        let at_us = boot_time_us().saturating_sub(self.begun_us);
        let line = Line { session: self.id, number: self.lines, at_us, entry };
        self.lines += 1;
        self.outlet.send(&sealed(&line.text()))
    }

    /// Says that whoever writes is awake, once a second.
    pub fn tick(&mut self) {
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            // A tick more or less is nobody's evidence; its number is.
            let _ = self.note(Entry::Tick { wall_us: realtime_ns() / 1000, words: self.words });
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = self.note(Entry::Close(self.lines + 1));
    }
}

/// This machine's name, as a collector's.
pub fn here() -> Name {
    Name::of(&rustix::system::uname().nodename().to_string_lossy())
}

/// The session of the last whole line, and how many lines of it there are at most.
fn before(tail: &[u8]) -> Option<(SessionId, u64)> {
    let whole = tail.iter().rposition(|byte| *byte == b'\n')?;
    let mut lines = tail[..whole].rsplit(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let line = Line::read(unsealed(line)?)?.ok()?;
        Some((line.session, line.number.saturating_add(1)))
    })
}

/// Whether this is the end of a journal of format 1, which a new run may replace.
fn is_old_journal(tail: &[u8]) -> bool {
    let line = tail.split(|byte| *byte == b'\n').rev().find(|line| !line.is_empty());
    line.is_some_and(|line| matches!(line, [b'S' | b'B' | b'E', b' ', ..]))
}

fn boot_time_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Names the time since this machine was started.
fn boot() -> u32 {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    // One that nobody else has: then no clocks are compared that may be of two machines.
    id.unwrap_or_else(|| fresh::bits() as u32)
}

#[cfg(test)]
mod tests {
    use super::super::books::Books;
    use super::*;

    fn open(path: &Path, existing: Existing) -> Result<Ledger, LedgerError> {
        Ledger::open(path, existing, &Name::of("test"), Duration::ZERO)
    }

    /// Killed, and started again in its file: what the second one found is what the first one has.
    #[test]
    fn a_session_says_what_stood_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let mut first = open(&path, Existing::Continued).unwrap();
        first.note(Entry::Mark(Name::of("one"))).unwrap();
        let id = first.id;
        let held = Books::read(&[&path]).unwrap();
        assert!(held.sessions[0].held && held.holes() == [None], "{held:?}");
        let text = std::fs::read(&path).unwrap();
        drop(first);
        // As it was killed in the middle of a line.
        std::fs::write(&path, [&text[..], b"00000000 1"].concat()).unwrap();
        assert_eq!(Books::read(&[&path]).unwrap().holes(), [Some(2)], "nothing says that it ended");
        drop(open(&path, Existing::Continued).unwrap());
        let books = Books::read(&[&path]).unwrap();
        assert_eq!(books.sessions[1].opening.as_ref().unwrap().after, Some((id, 2)));
        assert_eq!((books.holes(), books.garbage), (vec![None, None], 1));
        assert_eq!(books.sessions[1].close.map(|(lines, _)| lines), Some(2));
        drop(open(&path, Existing::Replaced).unwrap());
        assert_eq!(Books::read(&[&path]).unwrap().sessions.len(), 1);
    }

    #[test]
    fn what_is_no_journal_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes");
        std::fs::write(&path, "my notes\n").unwrap();
        for existing in [Existing::Replaced, Existing::Continued] {
            let error = open(&path, existing).unwrap_err().to_string();
            assert!(error.contains("left as it is"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), b"my notes\n");
        }
    }
}
