//! How a guest says its beats.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ledger::{Existing, Ledger, LedgerError, here};
use super::said::{Beat, Kind, REACH_MAX, Said, Start, Tag, linked, sealed};
use super::session::Entry;
use crate::fresh;
use crate::outlet::{Outlet, OutletAddress, OutletError};
use crate::spec::WorkloadSpec;

/// Over a link that may lose it, the description of the run is said this often; into a file as well, so
/// that a part of it can be read.
const DESCRIBED: Duration = Duration::from_secs(1);
/// How far back the bits go that a guest takes along: those that links reach most often.
const TAKEN_ALONG: u64 = 128;
/// How often a guest says that it stands still: so that one is heard.
const REPEATED: u32 = 5;

/// What a run that goes on elsewhere takes along, so that its beats are of one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// Which run.
    pub tag: Tag,
    /// Beats said.
    pub number: u64,
    /// The low halves of the bits of the last of them, the newest last.
    pub recent: Vec<u16>,
    /// Time between two beats.
    pub interval_us: u64,
}

impl Thread {
    /// Of a run that was not heard before.
    pub fn of_silent(interval: Duration) -> Self {
        let interval_us = interval.as_micros() as u64;
        Self { tag: Tag(fresh::bits() as u32), number: 0, recent: Vec::new(), interval_us }
    }

    /// Checks what whoever sends it may have wrong.
    ///
    /// # Errors
    /// It is of no run.
    pub fn check(&self) -> Result<(), String> {
        let bits = self.recent.len() as u64;
        let fits =
            bits <= REACH_MAX.min(self.number) && (1..=60_000_000).contains(&self.interval_us);
        match fits && self.number < 1 << 63 {
            true => Ok(()),
            false => Err("its heartbeats have numbers that no run has".to_owned()),
        }
    }
}

/// A run's beats on their way to whoever hears them.
#[derive(Debug)]
pub struct JournalWriter {
    tag: Tag,
    start: Start,
    number: u64,
    /// The low halves of the bits of the last beats, by number.
    recent: Vec<u16>,
    way: Way,
    described: Option<Instant>,
    incomplete: Option<Incomplete>,
}

#[derive(Debug)]
enum Way {
    /// Whoever says it writes it down as well.
    File(Ledger),
    Link(Outlet),
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

impl JournalWriter {
    /// A new run: whatever a journal held is gone.
    ///
    /// # Errors
    /// The journal cannot be reached or written.
    pub fn start(
        address: &OutletAddress,
        spec: &WorkloadSpec,
        interval: Duration,
    ) -> Result<Self, LedgerError> {
        Self::on(address, Existing::Replaced, spec, &Thread::of_silent(interval))
    }

    /// A new run into a file or a pipe.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub fn create(
        path: &Path,
        spec: &WorkloadSpec,
        interval: Duration,
    ) -> Result<Self, LedgerError> {
        Self::start(&OutletAddress::File(path.to_owned()), spec, interval)
    }

    /// A run that was said elsewhere before, in a session of its own; the file may hold others.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn go_on(path: &Path, spec: &WorkloadSpec, thread: &Thread) -> Result<Self, LedgerError> {
        Self::on(&OutletAddress::File(path.to_owned()), Existing::Continued, spec, thread)
    }

    fn on(
        address: &OutletAddress,
        existing: Existing,
        spec: &WorkloadSpec,
        thread: &Thread,
    ) -> Result<Self, LedgerError> {
        let outlet = Outlet::open(address)?;
        let way = match (address, outlet.file().is_some()) {
            (OutletAddress::File(path), true) => {
                drop(outlet);
                Way::File(Ledger::open(path, existing, &here(), Duration::ZERO)?)
            }
            _ => Way::Link(outlet),
        };
        let interval_us = thread.interval_us;
        let start = Start { interval_us, weak: fresh::is_weak(), spec: spec.clone() };
        let mut recent = vec![0; REACH_MAX as usize];
        let first = thread.number - thread.recent.len() as u64;
        for (number, bits) in (first..).zip(&thread.recent) {
            recent[(number % REACH_MAX) as usize] = *bits;
        }
        let (tag, number) = (thread.tag, thread.number);
        let mut writer =
            Self { tag, start, number, recent, way, described: None, incomplete: None };
        // A link that nobody listens to yet is no reason not to begin.
        match (writer.describe(), &writer.way) {
            (Err(error), Way::File(_)) => Err(error.into()),
            _ => Ok(writer),
        }
    }

    /// What the run takes along if it goes on elsewhere from here.
    pub fn thread(&self) -> Thread {
        let first = self.number.saturating_sub(TAKEN_ALONG);
        let bits = |number: u64| self.recent[(number % REACH_MAX) as usize];
        let recent = (first..self.number).map(bits).collect();
        let interval_us = self.start.interval_us;
        Thread { tag: self.tag, number: self.number, recent, interval_us }
    }

    /// Time between two beats.
    pub fn interval(&self) -> Duration {
        Duration::from_micros(self.start.interval_us)
    }

    /// Describes the run.
    fn describe(&mut self) -> Result<(), OutletError> {
        self.described = Some(Instant::now());
        self.say(Said::Start(Box::new(self.start.clone())), Last::No)
    }

    fn say(&mut self, said: Said, last: Last) -> Result<(), OutletError> {
        match &mut self.way {
            Way::File(ledger) => ledger.note(Entry::Heard(self.tag, said)),
            Way::Link(outlet) => {
                // A console may have begun a line; of ours nothing is to be lost with it.
                let line = sealed(&said.text(self.tag));
                let line = if outlet.is_shared() { format!("\n{line}") } else { line };
                match last {
                    Last::Yes => outlet.send_last(&line),
                    Last::No => outlet.send(&line),
                }
            }
        }
    }

    /// Says one beat. A guest does not fail because its journal does: a beat that cannot be written
    /// is counted, and its number is missing.
    pub fn beat(&mut self, kind: Kind, epoch: u64, writer: u16, watermark: u64, clock_us: u64) {
        self.tick();
        let number = self.number;
        let bits = loop {
            let bits = fresh::bits() as u32;
            if bits & 0xFFFF != 0 && bits >> 16 != 0 {
                break bits;
            }
        };
        let links = linked(number).map(|number| {
            // What was said before it came here, and not taken along, is none.
            number.map_or(0, |number| self.recent[(number % REACH_MAX) as usize])
        });
        self.recent[(number % REACH_MAX) as usize] = bits as u16;
        self.number += 1;
        let epoch = u32::try_from(epoch).unwrap_or(u32::MAX);
        let beat = Beat { number, bits, kind, epoch, writer, watermark, clock_us, links };
        let last = if kind == Kind::Running { Last::No } else { Last::Yes };
        if let Err(error) = self.say(Said::Beat(beat), last) {
            let why = error.to_string();
            self.incomplete.get_or_insert(Incomplete { lost: 0, why }).lost += 1;
        }
    }

    /// One beat of each writer; of one that stands still several times.
    pub fn beats(&mut self, kind: Kind, epoch: u64, watermarks: &[u64], clock_us: u64) {
        let times = if kind == Kind::Running { 1 } else { REPEATED };
        for _ in 0..times {
            for (writer, watermark) in (0..).zip(watermarks) {
                self.beat(kind, epoch, writer, *watermark, clock_us);
            }
        }
    }

    /// Says once a second that it is there, also while its guest stands still.
    pub fn tick(&mut self) {
        if let Way::File(ledger) = &mut self.way {
            ledger.tick();
        }
        if self.described.is_none_or(|at| at.elapsed() >= DESCRIBED) {
            // It is said again.
            let _ = self.describe();
        }
    }

    /// Whether every beat was written, as far as that can be told.
    ///
    /// # Errors
    /// [`Incomplete`] says what is missing.
    pub fn complete(&self) -> Result<(), Incomplete> {
        self.incomplete.clone().map_or(Ok(()), Err)
    }

    /// Beats that the link is known not to have taken.
    pub fn refused(&self) -> u64 {
        match &self.way {
            Way::File(_) => 0,
            Way::Link(outlet) => outlet.refused(),
        }
    }
}

/// Whether it is worth waiting for a reader.
#[derive(Clone, Copy)]
enum Last {
    Yes,
    No,
}
