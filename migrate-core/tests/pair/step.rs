//! What a step does.

use std::time::Duration;

use migrate_core::proto::message::{Message, Progress as Far, Standing};
use migrate_core::session::record::DestinationRecord;
use migrate_core::session::{ConnectionId, Failure, Heard, Purpose, RETRY_INTERVAL};
use migrate_core::session::{destination, source};

use crate::action::Action;
use crate::chart::Side;
use crate::fingerprint::Kept;
use crate::mutants::Mutant;
use crate::world::{
    Answer, Guest, MOST, NOW, Progress, TIMEOUT, Task, There, World, broken, destination_settings,
};

impl World {
    /// Does it.
    pub fn act(&mut self, action: Action) {
        let whole = self.is_whole();
        self.act_unjudged(action);
        self.tidy();
        let excused = self.left.crashes < self.rules.0.left.crashes
            || self.gave_up
            || self.ended
            || self.rules.0.gives_up;
        if whole && !excused && !self.is_whole() {
            self.violate(crate::world::Violation::Lost);
        }
    }

    fn act_unjudged(&mut self, action: Action) {
        use Action as A;
        match action {
            A::Time => self.time_passes(),
            A::Break(at) => {
                self.left.cuts -= 1;
                self.connections[usize::from(at)].cut = true;
                self.note_connection("breaks", at);
            }
            A::SourceNotices(at) | A::SourceTires(at) => {
                self.note_loss(Side::Source, at);
                let id = self.connections[usize::from(at)].id;
                self.close_at_source(id);
                let heard = self.mutate_loss(Heard::Lost(broken()));
                self.source_hears(id, heard);
            }
            A::DestinationNotices(at) => {
                self.note_loss(Side::Destination, at);
                let connection = &self.connections[usize::from(at)];
                let (id, attempt) = (connection.id, usize::from(connection.attempt));
                let known = connection.there == There::Open;
                self.close_there(id);
                if known {
                    let heard = Heard::Lost(broken());
                    self.feed_there(attempt, destination::Event::Heard(ConnectionId(id), heard));
                }
            }
            A::SourceHears(at) => {
                let connection = &mut self.connections[usize::from(at)];
                let (id, serial) = (connection.id, connection.serial.0);
                if let Some(message) = connection.to_source.pop_front() {
                    self.arrived(Side::Source, serial, &message);
                    let own = self.source.engine.as_ref().map(|engine| engine.stun());
                    let message = self.mutate_number(message, own.unwrap_or_default());
                    self.source_hears(id, Heard::Message(message));
                }
            }
            A::DestinationHears(at) => self.destination_hears(at),
            A::Accepts(at) => self.accept(at),
            A::Connects => {
                if let Some(purpose) = self.source.connecting.take() {
                    let id = self.new_connection(self.source.attempt, purpose);
                    self.note_connection("opens", self.connections.len() as u8 - 1);
                    self.mutate_hello(purpose);
                    self.feed_source(source::Event::Connected(ConnectionId(id), TIMEOUT));
                }
            }
            A::CannotConnect => {
                self.source.connecting = None;
                self.feed_source(source::Event::NotConnected(String::new()));
            }
            A::SourceNotes => {
                self.left.notes -= 1;
                self.note(Side::Source, "a note");
                self.feed_source(source::Event::Note(Vec::new()));
            }
            A::DestinationNotes(attempt) => {
                self.left.notes -= 1;
                self.note(Side::Destination, "a note");
                self.feed_there(usize::from(attempt), destination::Event::Note(Vec::new()));
            }
            A::SourceTicks => self.feed_source(source::Event::Tick(Far::default())),
            A::DestinationTicks(attempt) => {
                let tick = destination::Event::Tick(Far::default());
                self.feed_there(usize::from(attempt), tick);
            }
            A::Retries => {
                let at = self.now().after(RETRY_INTERVAL);
                self.feed_source_at(source::Event::Tick(Far::default()), at);
            }
            A::SourceOrder => {
                if let Some(output) = self.source.orders.pop_front() {
                    self.carry_out_at_source(output);
                    self.settle_source();
                }
            }
            A::DestinationOrder(attempt) => {
                let attempt = usize::from(attempt);
                if let Some(output) = self.there[attempt].orders.pop_front() {
                    self.carry_out_there(attempt, output);
                    self.settle_there(attempt);
                }
            }
            A::SourceWrites => self.source_writes(Progress::Written, true),
            A::SourceWritesUnsynced => self.source_writes(Progress::Failed, true),
            A::SourceCannotWrite => self.source_writes(Progress::Failed, false),
            A::DestinationWrites(attempt) => {
                self.destination_writes(attempt, Progress::Written, true);
            }
            A::DestinationWritesUnsynced(attempt) => {
                self.destination_writes(attempt, Progress::Failed, true);
            }
            A::DestinationCannotWrite(attempt) => {
                self.destination_writes(attempt, Progress::Failed, false);
            }
            A::SourceRecorded => {
                if let Some((_, progress)) = self.source.writing.take() {
                    let written = self.written(progress);
                    self.feed_source(source::Event::Recorded(written));
                }
            }
            A::DestinationAnswers(attempt, at) => self.destination_answers(attempt, at, true),
            A::DestinationFails(attempt, at) => {
                self.left.setbacks -= 1;
                self.destination_answers(attempt, at, false);
            }
            A::ReadsPages(attempt) => self.read_pages(usize::from(attempt)),
            A::Superseded(attempt) => {
                self.there[usize::from(attempt)].superseded = false;
                self.feed_there(usize::from(attempt), destination::Event::Superseded);
            }
            A::Stun => {
                self.note(Side::Source, "stuns the guest");
                self.stun();
            }
            A::Commit => {
                self.source.task = Task::Nothing;
                self.feed_source(source::Event::Commit);
            }
            A::GoBack => {
                self.left.agains -= 1;
                self.source.task = Task::Nothing;
                self.note(Side::Source, "goes back to copying");
                self.feed_source(source::Event::GoBack);
            }
            A::Abandon => {
                self.left.setbacks -= 1;
                self.note(Side::Source, "cannot go on");
                self.feed_source(source::Event::Abandon(Failure::Local(String::new())));
            }
            A::SourceWord(_) | A::DestinationWord(..) | A::Look => self.speak(action),
            A::GoesOn(attempt) | A::Ends(attempt) => {
                self.left.hops -= 1;
                let attempt = usize::from(attempt);
                self.there[attempt].copy = None;
                let standing = if action == A::Ends(attempt as u8) {
                    self.ended = true;
                    self.note(Side::Destination, "the guest ends, by its owner");
                    Standing::Ended
                } else {
                    self.elsewhere = true;
                    self.latest += 1;
                    self.note(Side::Destination, "the guest goes on to a third host");
                    Standing::GoneOn
                };
                self.feed_there(attempt, destination::Event::Left(standing));
            }
            A::SourceGoesOn => {
                self.left.hops -= 1;
                self.source.guest = Guest::None;
                self.elsewhere = true;
                self.latest += 1;
                self.note(Side::Source, "the guest goes on to a third host");
            }
            A::Again => self.begin_another_attempt(),
            A::SourceCrashes
            | A::DestinationCrashes
            | A::SourceLosesPower(_)
            | A::DestinationLosesPower(_)
            | A::SourceRestarts
            | A::DestinationRestarts => self.fail(action),
            A::Mutated(which) => self.act_mutated(which),
        }
    }

    /// Machines grow older; a machine that is asked nothing needs to be told nothing.
    fn time_passes(&mut self) {
        if self.counts_quarters() {
            self.now.0 = self.now().after(TIMEOUT / 4);
            self.note(Side::Both, "a quarter of it");
            return;
        }
        self.source_grows_older();
        let later = NOW.after(TIMEOUT);
        let counts = self.mutant(Mutant::LeaseBeforeRecord);
        for end in &mut self.there {
            if counts {
                end.age_of_run = (end.age_of_run + 1).min(2);
            }
            if let Some(engine) = &end.engine {
                if *engine.state() == destination::State::Opening && !end.orders.is_empty() {
                    self.gap = true;
                }
                end.engine = Some(Kept::new(engine.rebased(later, MOST)));
            }
        }
        self.note(Side::Both, "one link timeout");
    }

    pub fn source_grows_older(&mut self) {
        if let Some(engine) = &self.source.engine {
            let older = engine.rebased(NOW.after(TIMEOUT), MOST);
            self.source.engine = Some(Kept::new(older));
        }
    }

    fn source_hears(&mut self, id: u64, heard: Heard) {
        self.feed_source(source::Event::Heard(ConnectionId(id), heard));
    }

    fn destination_hears(&mut self, at: u8) {
        let connection = &mut self.connections[usize::from(at)];
        let (id, attempt) = (connection.id, usize::from(connection.attempt));
        let serial = connection.serial.0;
        if let Some(message) = connection.to_there.pop_front() {
            self.arrived(Side::Destination, serial, &message);
            let newest = self.connections.iter().rposition(|connection| {
                usize::from(connection.attempt) == attempt && connection.there == There::Open
            });
            let end = &mut self.there[attempt];
            let cancelled = newest == Some(usize::from(at)) && end.is_writing();
            end.doomed |= cancelled && matches!(message, Message::Cancel { .. });
            let id = self.heard_as(id, attempt as u8);
            let own = self.there[attempt].engine.as_ref().map(|engine| engine.stun());
            let message = self.mutate_number(message, own.unwrap_or_default());
            if matches!(message, Message::Run { .. }) && self.rules.0.mutant.is_some() {
                let counts = self.mutant(Mutant::LeaseBeforeRecord);
                self.there[attempt].age_of_run = u8::from(!counts);
            }
            let event = destination::Event::Heard(ConnectionId(id), Heard::Message(message));
            self.feed_there(attempt, event);
        }
    }

    fn accept(&mut self, at: u8) {
        let connection = &mut self.connections[usize::from(at)];
        connection.there = There::Open;
        let (id, purpose) = (ConnectionId(connection.id), connection.purpose);
        let attempt = usize::from(connection.attempt);
        self.note_connection("is accepted", at);
        if self.there[attempt].engine.is_none() {
            let engine = destination::Destination::new(destination_settings(self.rules.0.gives_up));
            self.there[attempt].engine = Some(Kept::new(engine));
        }
        if self.answers_early(at) {
            return;
        }
        self.feed_there(
            attempt,
            match purpose {
                Purpose::Setup => destination::Event::Called(id, TIMEOUT),
                Purpose::Resolve => destination::Event::Asked(id, TIMEOUT),
            },
        );
    }

    fn source_writes(&mut self, progress: Progress, reaches: bool) {
        let Some((record, _)) = self.source.writing else { return };
        self.source.writing = Some((record, progress));
        let stun = self.source.engine.as_ref().map(|engine| engine.stun()).unwrap_or_default();
        let keep = self.rules.0.power;
        if reaches {
            let at = usize::from(self.source.attempt);
            let synced = progress == Progress::Written;
            self.source.disks[at].write(Some((record, stun)), synced, keep);
        }
        self.left.syncs -= u8::from(progress == Progress::Failed);
        self.note_record(Side::Source, record.word(), progress);
    }

    fn destination_writes(&mut self, attempt: u8, progress: Progress, reaches: bool) {
        let keep = self.rules.0.power;
        let end = &mut self.there[usize::from(attempt)];
        let stun = end.engine.as_ref().map(|engine| engine.stun()).unwrap_or_default();
        let Some(Answer::Recorded(record, done)) =
            end.answers.iter_mut().find(|answer| matches!(answer, Answer::Recorded(..)))
        else {
            return;
        };
        *done = progress;
        let record = *record;
        let says = self.mutate_written(record);
        let end = &mut self.there[usize::from(attempt)];
        if reaches {
            let written = progress == Progress::Written;
            let trusts = self.rules.0.mutant == Some(Mutant::FailedSyncIsForgotten);
            let unsure = end.disk.unsure && !trusts;
            let synced = (record == DestinationRecord::Refused || unsure) && written;
            end.disk.write(Some((says, stun)), synced, keep);
            end.disk.unsure = keep && (end.disk.unsure || !written) && !synced;
        }
        let preparing = end
            .engine
            .as_ref()
            .is_some_and(|engine| matches!(engine.state(), destination::State::Preparing(_)));
        end.doomed |= preparing && progress == Progress::Failed;
        self.left.syncs -= u8::from(progress == Progress::Failed);
        self.note_record(Side::Destination, says.word(), progress);
    }

    fn destination_answers(&mut self, attempt: u8, at: u8, well: bool) {
        let attempt = usize::from(attempt);
        let result = if well { Ok(()) } else { Err(String::new()) };
        let event = match self.there[attempt].answers.remove(usize::from(at)) {
            Answer::Built => {
                if well {
                    self.built(attempt);
                }
                destination::Event::Built(result)
            }
            Answer::Loaded(state) => {
                if well {
                    self.loaded(attempt, &state);
                }
                destination::Event::Loaded(result.map(|()| Duration::ZERO))
            }
            Answer::Recorded(_, progress) => destination::Event::Recorded(self.written(progress)),
            Answer::Opened => destination::Event::Opened,
        };
        let now = self.moment_of_answer(attempt);
        self.feed_there_at(attempt, event, now);
    }

    fn written(&self, progress: Progress) -> Result<(), String> {
        match progress {
            Progress::Failed if !self.mutant(Mutant::FailedIsWritten) => Err(String::new()),
            Progress::Failed | Progress::Ordered | Progress::Written => Ok(()),
        }
    }
}
