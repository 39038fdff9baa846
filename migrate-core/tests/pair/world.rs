//! The world around a pair of machines: guests, memory, records, connections, and what is left of
//! the faults and words that a walk allows. What can happen in it is the subject of
//! [`crate::choices`], what the shells do of [`crate::shell`].
//!
//! A walk's time has no unit: a step is one link timeout, and now is always [`NOW`], because
//! machines are put on a clock that stands there after each step. The constraints are closed (a lease
//! of at most one link timeout, a guard of at least two), so whole steps lose nothing. Random
//! histories count in quarters, with signs of life, and feed the machines when they want to wake.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use migrate_core::proto::StunNumber;
use migrate_core::proto::hello::MigrationId;
use migrate_core::proto::message::{Message, Setup};
use migrate_core::session::record::SourceRecord;
use migrate_core::session::source::{self, Source};
use migrate_core::session::{Failure, Moment, Purpose, destination};

use crate::chart::Chart;
pub use crate::ends::{
    Answer, Connection, Copy, DestinationEnd, Disk, Frame, Guest, Progress, Reading, SourceEnd,
    Task, There,
};
use crate::fingerprint::{Kept, Unhashed};
use crate::mutants::Mutant;
pub use crate::rules::{
    Clock, Crash, Left, MOST, NONE, NOW, PAGES, RULES, Rules, TIMEOUT, Violation,
};

/// Most connections that one end or the other still knows.
const CONNECTIONS_MAX: usize = 3;
/// Everything.
#[derive(Clone, Hash)]
pub struct World {
    pub source: SourceEnd,
    pub there: Vec<DestinationEnd>,
    pub there_up: bool,
    pub connections: Vec<Connection>,
    pub left: Left,
    /// The number of the guest's last run, wherever it began.
    pub latest: u8,
    /// The guest runs on a third host.
    pub elsewhere: bool,
    pub ended: bool,
    /// The source's engine and guest were ended for good.
    pub fenced: bool,
    pub gave_up: bool,
    /// The program asked for a look at the destination.
    pub look_asked: bool,
    pub looked: bool,
    /// Time passed between the look at the lease and the gate.
    pub gap: bool,
    pub now: Unhashed<Moment>,
    /// When each end last told its user something.
    pub told: Unhashed<[Moment; 2]>,
    /// A survivor said that the guest is lost, or that it cannot know.
    pub said_lost: bool,
    pub violation: Option<Violation>,
    pub rules: Unhashed<Rules>,
    pub serials: Unhashed<u32>,
    pub chart: Unhashed<Option<Box<Chart>>>,
}

pub fn attempt_id(attempt: u8) -> MigrationId {
    MigrationId(u128::from(attempt) + 1)
}

pub fn source_settings(attempt: u8, gives_up: bool) -> source::Settings {
    let earlier = (0..attempt).map(attempt_id).collect();
    let setup = Setup { regions: vec![PAGES as u64], streams: 1, earlier, description: Vec::new() };
    source::Settings {
        setup,
        link_timeout: TIMEOUT,
        resolve_limit: TIMEOUT * 3,
        give_up_after: gives_up.then_some(TIMEOUT * 4),
    }
}

pub fn destination_settings(gives_up: bool) -> destination::Settings {
    destination::Settings {
        resolve_limit: TIMEOUT * 3,
        give_up_after: gives_up.then_some(TIMEOUT * 4),
    }
}

impl World {
    pub fn new(rules: Rules) -> Self {
        let source = SourceEnd {
            engine: Some(Kept::new(Source::new(source_settings(0, rules.gives_up)))),
            orders: VecDeque::new(),
            writing: None,
            late: None,
            connecting: None,
            task: Task::Nothing,
            guest: Guest::Running,
            run: 1,
            memory: [0, 0],
            owed: [true; PAGES],
            disks: vec![Disk::new(Some((SourceRecord::Open, StunNumber(0))))],
            attempt: 0,
        };
        let mut world = Self {
            source,
            there: vec![DestinationEnd::new()],
            there_up: true,
            connections: Vec::new(),
            left: rules.left,
            latest: 1,
            elsewhere: false,
            ended: false,
            fenced: false,
            gave_up: false,
            look_asked: false,
            looked: false,
            gap: false,
            now: Unhashed(NOW),
            told: Unhashed([NOW; 2]),
            said_lost: false,
            violation: None,
            rules: Unhashed(rules),
            serials: Unhashed(0),
            chart: Unhashed(None),
        };
        world.feed_source(source::Event::Start);
        world
    }

    pub fn now(&self) -> Moment {
        self.now.0
    }

    pub fn counts_quarters(&self) -> bool {
        self.rules.0.clock == Clock::Quarters
    }

    pub fn mutant(&self, mutant: Mutant) -> bool {
        self.rules.0.mutant == Some(mutant)
    }

    pub fn violate(&mut self, violation: Violation) {
        // Two guests are worse than what else may be wrong with them.
        if self.violation.is_none() || violation == Violation::TwoRun {
            self.violation = Some(violation);
        }
    }

    pub fn running(&self) -> usize {
        usize::from(self.source.guest == Guest::Running)
            + self.there.iter().filter(|end| end.runs()).count()
            + usize::from(self.elsewhere)
    }

    /// Whether the guest can go on somewhere without anything being forgotten.
    pub fn is_whole(&self) -> bool {
        self.running() > 0
            || self.source.guest == Guest::Stopped && self.source.run == self.latest
            || self.there.iter().any(|end| end.is_whole(self.latest))
    }

    /// Whether somebody who is left says that the guest is lost, or that he cannot know.
    pub fn is_said_lost(&self) -> bool {
        use destination::State;
        let says = |end: &DestinationEnd| {
            end.engine.as_ref().is_some_and(|engine| {
                matches!(engine.state(), State::Doubtful | State::Ran(_) | State::Refused(_))
            })
        };
        self.said_lost || self.there.iter().any(says) || self.is_nobody_left()
    }

    /// Whether the source was ended for good and the destination's record was lost with its power.
    fn is_nobody_left(&self) -> bool {
        self.fenced && self.there.iter().all(|end| end.copy.is_none() && end.disk.now.is_none())
    }

    /// Whether one guest runs, and its engine knows.
    pub fn is_settled(&self) -> bool {
        let committed = self
            .source
            .engine
            .as_ref()
            .is_some_and(|engine| matches!(engine.state(), source::State::Committed));
        self.running() == 1 && !(committed && self.source.guest == Guest::Running)
    }

    pub fn runs_or_ran_there(&self) -> bool {
        self.elsewhere || self.there.iter().any(|end| end.runs()) || self.source.run != self.latest
    }

    pub fn connection(&self, id: u64) -> Option<usize> {
        self.connections.iter().position(|connection| connection.id == id)
    }

    pub fn has_room(&self) -> bool {
        self.connections.len() < CONNECTIONS_MAX
    }

    pub fn new_connection(&mut self, attempt: u8, purpose: Purpose) -> u64 {
        let id = (0..).find(|id| self.connection(*id).is_none()).unwrap_or_default();
        self.serials.0 += 1;
        self.connections.push(Connection {
            id,
            serial: Unhashed(self.serials.0),
            attempt,
            purpose,
            source_open: true,
            there: There::Pending,
            cut: false,
            to_there: VecDeque::new(),
            to_source: VecDeque::new(),
            stream: VecDeque::new(),
            unseen: false,
        });
        id
    }

    /// Forgets connections that nobody knows any more; a destination that is busy may still speak
    /// of them, and their numbers are given to others.
    pub fn tidy(&mut self) {
        let busy: Vec<bool> = self.there.iter().map(DestinationEnd::is_busy).collect();
        self.connections.retain(|connection| {
            connection.source_open
                || connection.there != There::Closed
                || busy[usize::from(connection.attempt)]
        });
    }

    /// The guest begins, or goes on, to run at the source.
    pub fn start_source(&mut self) {
        match self.source.guest {
            Guest::None => self.violate(Violation::Absent),
            Guest::Running => {}
            Guest::Stopped => {
                if self.source.run != self.latest {
                    self.violate(Violation::Rollback);
                }
                self.latest += 1;
                self.source.run = self.latest;
                let page = usize::from(self.latest) % PAGES;
                self.source.memory[page] = self.latest;
                self.source.owed[page] = true;
                self.source.guest = Guest::Running;
                if self.running() > 1 {
                    self.violate(Violation::TwoRun);
                }
            }
        }
    }

    /// The gate opens.
    pub fn start_there(&mut self, attempt: usize) {
        let (latest, refused) = (self.latest, self.there[attempt].refused);
        let Some(copy) = &mut self.there[attempt].copy else {
            self.violate(Violation::Absent);
            return;
        };
        if copy.runs {
            return;
        }
        let mut wrong = None;
        match (copy.started, copy.state) {
            (Some(run), _) if run == latest => {}
            (Some(_), _) => wrong = Some(Violation::Rollback),
            (None, None) => wrong = Some(Violation::Torn),
            (None, Some((_, memory))) if memory != copy.memory => wrong = Some(Violation::Torn),
            (None, Some((run, _))) if run != latest => wrong = Some(Violation::Rollback),
            (None, Some(_)) if refused => wrong = Some(Violation::BrokenRefusal),
            (None, Some(_)) => {}
        }
        if copy.started.is_none() {
            copy.started = Some(latest + 1);
            self.latest += 1;
        }
        copy.runs = true;
        self.there[attempt].ran = true;
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
        if self.running() > 1 {
            self.violate(Violation::TwoRun);
        }
    }
}

/// Whether it says that the peer does not keep to the protocol.
pub fn is_accusation(message: &Message) -> bool {
    matches!(message, Message::Fail { why } if why.starts_with("unexpected"))
}

/// Texts say why, and decide nothing.
pub fn without_texts(mut message: Message) -> Message {
    match &mut message {
        Message::Cancel { why } | Message::Fail { why } | Message::Refused { why } => why.clear(),
        _ => {}
    }
    message
}

/// What a broken connection says.
pub fn broken() -> Failure {
    Failure::LinkLost(String::new())
}

impl<T> Hash for Unhashed<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
