//! Whoever hears guests over a link, and writes a journal of all of them.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use super::ledger::{Existing, Ledger, LedgerError};
use super::said::{Beat, Said, Start, Tag, unsealed};
use super::session::{Entry, Name, Restored, SessionId};

/// Beats of each run that are kept, to know those that words name.
const KEPT: usize = 1 << 16;
/// Runs that are told apart; of more nothing is kept in memory.
const RUNS_MAX: usize = 1024;

/// Hears lines, and writes down what is whole.
#[derive(Debug)]
pub struct Collector {
    ledger: Ledger,
    runs: BTreeMap<Tag, Heard>,
    /// Beats written.
    pub beats: u64,
    /// Lines dropped: garbled, or of somebody else.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Heard {
    described: bool,
    /// Numbers and bits, as they were heard.
    last: VecDeque<(u64, u32)>,
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    /// A run's description, heard for the first time.
    Start(Tag, Box<Start>),
    /// A beat.
    Beat(Tag, Beat),
    /// A description that was heard before.
    Again,
    /// Nothing that belongs into a journal.
    Dropped,
}

/// Why a word was not written down.
#[derive(Debug, thiserror::Error)]
pub enum WordError {
    /// It could not be written.
    #[error(transparent)]
    Outlet(#[from] crate::outlet::OutletError),
    /// Nobody can say what it is about.
    #[error("beat {0} of run {1} was not heard here: name one that was, with the bits that it had")]
    NotHeard(u64, Tag),
}

impl Collector {
    /// Collects into a journal, which may hold earlier sessions.
    ///
    /// # Errors
    /// The file cannot be written, or holds something else.
    pub fn open(journal: &Path, name: &Name, late: Duration) -> Result<Self, LedgerError> {
        let ledger = Ledger::open(journal, Existing::Continued, name, late)?;
        Ok(Self { ledger, runs: BTreeMap::new(), beats: 0, dropped: 0 })
    }

    /// Its session.
    pub fn session(&self) -> SessionId {
        self.ledger.id()
    }

    /// Takes a line as it came, without its end.
    ///
    /// # Errors
    /// The journal could not be written.
    pub fn line(&mut self, line: &[u8]) -> Result<Collected, LedgerError> {
        self.tick();
        let Some((tag, said)) = whole(line) else {
            self.dropped += 1;
            return Ok(Collected::Dropped);
        };
        self.ledger.note(Entry::Heard(tag, said.clone()))?;
        let known = self.runs.len() < RUNS_MAX || self.runs.contains_key(&tag);
        let heard = known.then(|| self.runs.entry(tag).or_default());
        match said {
            Said::Beat(beat) => {
                self.beats += 1;
                if let Some(heard) = heard {
                    heard.last.push_back((beat.number, beat.bits));
                    if heard.last.len() > KEPT {
                        heard.last.pop_front();
                    }
                }
                Ok(Collected::Beat(tag, beat))
            }
            Said::Start(start) => match heard {
                Some(heard) if !heard.described => {
                    heard.described = true;
                    Ok(Collected::Start(tag, start))
                }
                _ => Ok(Collected::Again),
            },
        }
    }

    /// Says that it is awake, once a second.
    pub fn tick(&mut self) {
        self.ledger.tick();
    }

    /// Writes down that the run was restored, and goes on from one of these beats.
    ///
    /// # Errors
    /// It could not be written, or names a beat that was not heard.
    pub fn restored(
        &mut self,
        tag: Tag,
        first: u64,
        last: u64,
        bits: Option<u32>,
    ) -> Result<Restored, WordError> {
        let heard = self.runs.get(&tag);
        let heard = heard.and_then(|heard| {
            let named = |(number, heard): &&(u64, u32)| {
                *number == last && bits.is_none_or(|bits| bits == *heard)
            };
            heard.last.iter().rev().find(named)
        });
        let (_, bits) = *heard.ok_or(WordError::NotHeard(last, tag))?;
        let word = Restored { tag, first: first.min(last), last, bits };
        self.ledger.note(Entry::Restored(word))?;
        Ok(word)
    }

    /// Writes down that a phase begins.
    ///
    /// # Errors
    /// It could not be written.
    pub fn mark(&mut self, name: Name) -> Result<(), WordError> {
        Ok(self.ledger.note(Entry::Mark(name))?)
    }
}

/// What a guest said last in a line, in which a console may have said something before it.
fn whole(line: &[u8]) -> Option<(Tag, Said)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let begins = |at: &usize| matches!(line[*at..], [b'S' | b'B' | b'P' | b'E', b' ', ..]);
    let mut begins = (0..line.len()).rev().filter(begins);
    // The sum says which of them it is; a description has spaces of its own.
    let text = begins.find_map(|at| unsealed(&line[at..]))?;
    Said::read(text).ok()
}

#[cfg(test)]
mod tests {
    use super::super::books::Books;
    use super::super::said::{Kind, sealed};
    use super::*;

    fn beat(number: u64, bits: u32) -> Beat {
        Beat {
            number,
            bits,
            kind: Kind::Running,
            epoch: 0,
            writer: 0,
            watermark: number,
            clock_us: 0,
            links: [0, 0],
        }
    }

    #[test]
    fn what_is_whole_is_kept_and_words_name_what_was_heard() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let mut collector =
            Collector::open(&path, &Name::of("lab"), Duration::from_secs(1)).unwrap();
        let said = |number| sealed(&beat(number, 0x0001_0001).text(Tag(7)));
        let console = format!("[   1.0] E is not B, says the kernel {}", said(1));
        for line in [said(0), console, said(2).replace('\n', "\r\n")] {
            let collected = collector.line(line.as_bytes()).unwrap();
            assert!(matches!(collected, Collected::Beat(Tag(7), _)), "{line}: {collected:?}");
        }
        for line in ["", "hello", "B 1 2 3", &said(3)[..30], &format!("{}x", said(4).trim_end())] {
            assert_eq!(collector.line(line.as_bytes()).unwrap(), Collected::Dropped, "{line}");
        }
        collector.restored(Tag(7), 0, 2, None).unwrap();
        for (tag, number, bits) in [(7, 3, None), (8, 1, None), (7, 1, Some(5))] {
            let error = collector.restored(Tag(tag), number, number, bits).unwrap_err();
            assert!(error.to_string().contains("was not heard here"), "{error}");
        }
        collector.mark(Name::of("after")).unwrap();
        assert_eq!((collector.beats, collector.dropped), (3, 5));
        drop(collector);
        let books = Books::read(&[&path]).unwrap();
        let run = &books.runs[&Tag(7)];
        assert_eq!((run.heard.len(), run.words.len(), books.marks.len()), (3, 1, 1));
        assert_eq!(books.holes(), [None]);
    }
}
