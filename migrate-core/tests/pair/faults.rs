//! Crashes, lost power, new engines; operators, who swear only what is true; and further attempts.

use migrate_core::proto::StunNumber;
use migrate_core::session::Word;
use migrate_core::session::destination::{self, Destination};
use migrate_core::session::record::{Boot, DestinationRecord, Holder, SourceRecord};
use migrate_core::session::source::{self, Source};

use crate::action::Action;
use crate::chart::Side;
use crate::fingerprint::Kept;
use crate::mutants::Mutant;
use crate::world::{
    Crash, DestinationEnd, Disk, Guest, TIMEOUT, Task, World, destination_settings, source_settings,
};

const SOURCE_RUNS: Word = Word::SourceRuns { runs_nowhere_else: false };
const SOURCE_RUNS_OATH: Word = Word::SourceRuns { runs_nowhere_else: true };
const DESTINATION_RUNS: Word = Word::DestinationRuns { source_is_gone: false };
const DESTINATION_RUNS_OATH: Word = Word::DestinationRuns { source_is_gone: true };

impl World {
    pub fn fault_actions(&self, out: &mut Vec<Action>) {
        let power = self.rules.0.power;
        if self.source.engine.is_none() {
            if !self.fenced {
                out.push(Action::SourceRestarts);
            }
        } else if self.left.crashes > 0 {
            out.push(Action::SourceCrashes);
            if power {
                let disk = &self.source.disks[usize::from(self.source.attempt)];
                out.extend((0..=disk.older.len() as u8).map(Action::SourceLosesPower));
            }
        }
        if !self.there_up {
            out.push(Action::DestinationRestarts);
        } else if self.left.crashes > 0 && self.there.iter().any(|end| end.engine.is_some()) {
            out.push(Action::DestinationCrashes);
            if power {
                let versions = self.there.last().map_or(0, |end| end.disk.older.len() as u8);
                out.extend((0..=versions).map(Action::DestinationLosesPower));
            }
        }
    }

    pub fn fail(&mut self, action: Action) {
        match action {
            Action::SourceCrashes => {
                self.left.crashes -= 1;
                self.note(Side::Source, "engine CRASHES");
                self.source_goes_down();
                match self.rules.0.crash {
                    Crash::Dies => self.source.guest = Guest::None,
                    Crash::Stops if self.source.guest == Guest::Running => {
                        self.source.guest = Guest::Stopped;
                    }
                    Crash::Outlives | Crash::Stops => {}
                }
            }
            Action::SourceLosesPower(version) => {
                self.left.crashes -= 1;
                self.note(Side::Source, "host LOSES POWER");
                self.source_goes_down();
                self.source.guest = Guest::None;
                let at = usize::from(self.source.attempt);
                lose(&mut self.source.disks[at], version);
            }
            Action::DestinationCrashes => {
                self.left.crashes -= 1;
                self.note(Side::Destination, "engine CRASHES");
                self.destination_goes_down();
                let crash = self.rules.0.crash;
                for end in &mut self.there {
                    // A shadow without a record is taken for nobody's.
                    let orphan =
                        matches!(end.disk.now, None | Some((DestinationRecord::Receiving, _)));
                    if crash == Crash::Dies || orphan && !end.runs() {
                        end.copy = None;
                    } else if let (Crash::Stops, Some(copy)) = (crash, &mut end.copy) {
                        copy.runs = false;
                    }
                }
            }
            Action::DestinationLosesPower(version) => {
                self.left.crashes -= 1;
                self.note(Side::Destination, "host LOSES POWER");
                self.destination_goes_down();
                for end in &mut self.there {
                    end.copy = None;
                    lose(&mut end.disk, version);
                }
            }
            Action::SourceRestarts => self.source_comes_back(),
            Action::DestinationRestarts => self.destination_comes_back(),
            _ => {}
        }
    }

    fn source_goes_down(&mut self) {
        self.source.engine = None;
        self.source.orders.clear();
        self.source.writing = None;
        self.source.late = None;
        self.source.connecting = None;
        self.source.task = Task::Nothing;
        for id in self.connections.iter().map(|connection| connection.id).collect::<Vec<_>>() {
            self.close_at_source(id);
        }
    }

    fn destination_goes_down(&mut self) {
        self.there_up = false;
        for end in &mut self.there {
            end.engine = None;
            end.orders.clear();
            end.answers.clear();
            (end.superseded, end.doomed, end.age_of_run) = (false, false, 0);
            end.reading = crate::world::Reading::Nothing;
        }
        for id in self.connections.iter().map(|connection| connection.id).collect::<Vec<_>>() {
            self.close_there(id);
        }
    }

    fn source_comes_back(&mut self) {
        let find = |wanted: &[SourceRecord]| {
            (0..self.source.disks.len()).rev().find_map(|attempt| {
                let (record, stun) = self.source.disks[attempt].now?;
                wanted.contains(&record).then_some((attempt, record, stun))
            })
        };
        let (attempt, record, stun) = find(&[SourceRecord::Committed])
            .or_else(|| find(&[SourceRecord::Released]))
            .or_else(|| find(&SourceRecord::ALL))
            .unwrap_or((0, SourceRecord::Open, StunNumber(0)));
        self.source.attempt = attempt as u8;
        let holder = match self.source.guest {
            Guest::None => Holder::Gone,
            Guest::Stopped => Holder::Stopped,
            Guest::Running => Holder::Started,
        };
        self.note_restart(Side::Source, record.word());
        let settings = source_settings(attempt as u8, self.rules.0.gives_up);
        let now = self.moment_of_restart();
        let (engine, out) = Source::restored(settings, record, stun, TIMEOUT, holder, now);
        self.keep_source(engine, out);
    }

    fn destination_comes_back(&mut self) {
        self.there_up = true;
        for attempt in 0..self.there.len() {
            let end = &self.there[attempt];
            let Some((record, stun)) = end.disk.now else { continue };
            let holder = match &end.copy {
                None => Holder::Gone,
                Some(copy) if copy.started.is_none() => Holder::Stopped,
                Some(_) => Holder::Started,
            };
            let boot = if end.disk.this_boot { Boot::This } else { Boot::Earlier };
            let (holder, boot) = (self.mutate_holder(holder), self.mutate_boot(boot));
            self.there[attempt].disk.unsure = self.rules.0.power;
            self.note_restart(Side::Destination, record.word());
            let settings = destination_settings(self.rules.0.gives_up);
            let (engine, out) =
                Destination::restored(settings, record, stun, boot, holder, self.now());
            self.keep_there(attempt, engine, out);
        }
    }

    pub fn word_actions(&self, out: &mut Vec<Action>) {
        if self.left.words == 0 {
            return;
        }
        if let Some(engine) = self.source.engine.as_ref().filter(|_| self.source_is_free()) {
            match engine.state() {
                source::State::Setup
                | source::State::Copying
                | source::State::Stunned
                | source::State::Prepared => out.push(Action::SourceWord(Word::Cancel)),
                source::State::Committed => {
                    out.push(Action::SourceWord(SOURCE_RUNS));
                    out.push(Action::SourceWord(Word::GiveUp));
                    if self.looked {
                        out.push(Action::SourceWord(SOURCE_RUNS_OATH));
                    } else if self.may_look() {
                        out.push(Action::Look);
                    }
                    if self.may_drop() {
                        out.push(Action::SourceWord(DESTINATION_RUNS));
                    }
                }
                _ => {}
            }
        }
        for attempt in 0..self.there.len() as u8 {
            let end = &self.there[usize::from(attempt)];
            let Some(engine) = end.engine.as_ref().filter(|_| self.destination_is_free(attempt))
            else {
                continue;
            };
            match engine.state() {
                destination::State::Setup
                | destination::State::Receiving { .. }
                | destination::State::Loading => {
                    out.push(Action::DestinationWord(attempt, Word::Cancel));
                }
                destination::State::Prepared => {
                    out.push(Action::DestinationWord(attempt, Word::GiveUp));
                    let gone = self.source_can_be_gone(attempt) || self.swears_falsely(attempt);
                    if !engine.is_connected() && gone {
                        out.push(Action::DestinationWord(attempt, DESTINATION_RUNS_OATH));
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether it is true, or can be made true, that the source is gone for good, did not run on
    /// after the stun, and that the guest runs nowhere else.
    fn source_can_be_gone(&self, attempt: u8) -> bool {
        let end = &self.there[usize::from(attempt)];
        let fresh = end
            .copy
            .as_ref()
            .is_some_and(|copy| copy.state.is_some_and(|(run, _)| run == self.latest));
        (fresh || self.mutant(Mutant::GoneRanOn)) && self.running() == 0
    }

    pub fn speak(&mut self, action: Action) {
        match action {
            Action::Look => {
                self.looked = true;
                self.note(Side::Source, "OPERATOR looks: neither runs nor ran there");
            }
            Action::SourceWord(word) => {
                self.note_word(Side::Source, word);
                self.gave_up |= word == Word::GiveUp;
                let now = self.moment_of_word();
                self.feed_source_at(source::Event::Word(0, word), now);
            }
            Action::DestinationWord(attempt, word) => {
                self.gave_up |= word == Word::GiveUp;
                if word == DESTINATION_RUNS_OATH && !self.fenced && !self.swears_falsely(attempt) {
                    self.note(Side::Source, "OPERATOR ends engine and guest for good");
                    self.source_goes_down();
                    self.source.guest = Guest::None;
                    self.fenced = true;
                }
                self.note_word(Side::Destination, word);
                self.feed_there(usize::from(attempt), destination::Event::Word(0, word));
            }
            _ => {}
        }
    }

    pub fn begin_another_attempt(&mut self) {
        self.left.attempts -= 1;
        for id in self.connections.iter().map(|connection| connection.id).collect::<Vec<_>>() {
            self.close_at_source(id);
        }
        self.note(Side::Source, "another attempt");
        self.source.attempt += 1;
        self.source.owed = [true; 2];
        self.source.connecting = None;
        self.source.disks.push(Disk::new(Some((SourceRecord::Open, StunNumber(0)))));
        self.there.push(DestinationEnd::new());
        self.source.engine = Some(Kept::new(Source::new(source_settings(
            self.source.attempt,
            self.rules.0.gives_up,
        ))));
        self.feed_source(source::Event::Start);
    }
}

/// After a loss of power a disk holds what was written, or something older.
fn lose<R: Clone + PartialEq>(disk: &mut Disk<R>, version: u8) {
    if usize::from(version) < disk.older.len() {
        disk.now = disk.older[usize::from(version)].clone();
    }
    disk.older.clear();
    disk.this_boot = false;
}
