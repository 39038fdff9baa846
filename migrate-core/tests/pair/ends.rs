//! The two hosts and what is between them: guests, memory, disks, shells, connections.

use std::collections::VecDeque;

use migrate_core::proto::StunNumber;
use migrate_core::proto::message::Message;
use migrate_core::session::destination::{self, Destination};
use migrate_core::session::record::{DestinationRecord, SourceRecord};
use migrate_core::session::source::{self, Source};
use migrate_core::session::{Output, Purpose};

use crate::fingerprint::{Kept, Unhashed};
use crate::rules::PAGES;

/// A guest at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    None,
    Stopped,
    Running,
}

/// Versions of pages: each run of the guest has a number and writes one of them.
pub type Memory = [u8; PAGES];

/// The guest's shadow, or the guest, at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Copy {
    pub memory: Memory,
    /// The device state that was loaded: of which run, and what memory was then.
    pub state: Option<(u8, Memory)>,
    pub runs: bool,
    /// The run that began here.
    pub started: Option<u8>,
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk<R> {
    pub now: Option<(R, StunNumber)>,
    /// What may be found instead after power was lost.
    pub older: Vec<Option<(R, StunNumber)>>,
    /// Written since this host booted.
    pub this_boot: bool,
    /// A sync failed, or this engine does not know: the next record is synced whatever it says.
    pub unsure: bool,
}

impl<R: Clone + PartialEq> Disk<R> {
    pub fn new(now: Option<(R, StunNumber)>) -> Self {
        Self { now, older: Vec::new(), this_boot: true, unsure: false }
    }

    /// `keep`: whether it matters what was there before.
    pub fn write(&mut self, content: Option<(R, StunNumber)>, synced: bool, keep: bool) {
        self.this_boot = true;
        if synced {
            self.older.clear();
        } else if keep && self.now != content {
            self.older.retain(|older| *older != content && *older != self.now);
            self.older.push(self.now.take());
        }
        self.now = content;
    }
}

/// How far a record that was ordered is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    Ordered,
    Written,
    Failed,
}

/// What a source's shell is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    Nothing,
    Copying,
    /// It was told Ready, and answers with Commit or `GoBack`.
    Deciding,
}

/// The source's host.
#[derive(Clone, Hash)]
pub struct SourceEnd {
    /// None while it is down.
    pub engine: Option<Kept<Source>>,
    pub orders: VecDeque<Output<source::Order>>,
    pub writing: Option<(SourceRecord, Progress)>,
    /// A mutant's record that was answered for and is not written yet.
    pub late: Option<(SourceRecord, StunNumber)>,
    pub connecting: Option<Purpose>,
    pub task: Task,
    pub guest: Guest,
    pub run: u8,
    pub memory: Memory,
    pub owed: [bool; PAGES],
    /// Of each attempt.
    pub disks: Vec<Disk<SourceRecord>>,
    /// The attempt that the engine is about.
    pub attempt: u8,
}

/// What a destination's shell has to answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Built,
    Loaded(Vec<u8>),
    Recorded(DestinationRecord, Progress),
    Opened,
}

/// What the receivers of a destination do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    Nothing,
    Pages,
    Behind(StunNumber),
}

/// One attempt at the destination's host.
#[derive(Clone, Hash)]
pub struct DestinationEnd {
    pub engine: Option<Kept<Destination>>,
    pub orders: VecDeque<Output<destination::Order>>,
    pub answers: Vec<Answer>,
    pub reading: Reading,
    pub superseded: bool,
    pub copy: Option<Copy>,
    pub disk: Disk<DestinationRecord>,
    /// The guest ran here.
    pub ran: bool,
    /// It was said that it will not.
    pub refused: bool,
    /// Cancel waits until a record is written, or that it is prepared cannot be: what is here will be
    /// dropped.
    pub doomed: bool,
    /// For mutants: for how long Run was heard.
    pub age_of_run: u8,
}

/// The destination's side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum There {
    Pending,
    Open,
    Closed,
}

/// What a data stream carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    Page(u8, u8),
    /// All of a stun was sent.
    End(StunNumber),
    /// That stun is off.
    Again(StunNumber),
}

/// A control connection, and the data stream beside it.
#[derive(Clone, Hash)]
pub struct Connection {
    pub id: u64,
    pub serial: Unhashed<u32>,
    pub attempt: u8,
    pub purpose: Purpose,
    pub source_open: bool,
    pub there: There,
    /// It broke, or an end closed it.
    pub cut: bool,
    pub to_there: VecDeque<Message>,
    pub to_source: VecDeque<Message>,
    pub stream: VecDeque<Frame>,
    /// A mutant's connection that the session has not seen.
    pub unseen: bool,
}

impl DestinationEnd {
    pub fn new() -> Self {
        Self {
            engine: None,
            orders: VecDeque::new(),
            answers: Vec::new(),
            reading: Reading::Nothing,
            superseded: false,
            copy: None,
            disk: Disk::new(None),
            ran: false,
            refused: false,
            doomed: false,
            age_of_run: 0,
        }
    }

    /// Whether the machine lets others wait, or the shell has something to carry out.
    pub fn is_busy(&self) -> bool {
        self.is_writing() || !self.orders.is_empty()
    }

    /// Whether the machine lets others wait.
    pub fn is_writing(&self) -> bool {
        use destination::State;
        let state = self.engine.as_ref().map(|engine| engine.state());
        matches!(
            state,
            Some(
                State::Preparing(_)
                    | State::Reopening
                    | State::TakingUp(_)
                    | State::PuttingBack
                    | State::Opening
                    | State::Refusing(_)
            )
        )
    }

    pub fn runs(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| copy.runs)
    }

    /// Whether all of the guest is here, is the newest, and is not about to be dropped.
    pub fn is_whole(&self, latest: u8) -> bool {
        use destination::State;
        let state = self.engine.as_ref().map(|engine| engine.state());
        let given_up =
            matches!(state, Some(State::Dropped | State::Refused(_) | State::Refusing(_)));
        !given_up
            && !self.doomed
            && self.copy.as_ref().is_some_and(|copy| match (copy.started, copy.state) {
                (Some(run), _) => run == latest,
                (None, Some((run, memory))) => run == latest && memory == copy.memory,
                (None, None) => false,
            })
    }

    /// Whether what is here may be called prepared.
    pub fn is_prepared(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| {
            copy.started.is_none() && copy.state.is_some_and(|(_, memory)| memory == copy.memory)
        })
    }
}
