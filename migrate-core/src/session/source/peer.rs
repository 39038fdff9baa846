//! What the destination says, and what follows from it in each state.

use super::{Arrival, NOTES_EARLY_MAX, Notice, Order, Source, State};
use crate::proto::StunNumber;
use crate::proto::header::Kind;
use crate::proto::message::{Message, Standing};
use crate::session::record::SourceRecord;
use crate::session::{Failure, Moment, RETRY_INTERVAL};

impl Source {
    /// The peer does not keep to the protocol: before the commit that ends the attempt, afterwards
    /// the connection.
    fn breach(&mut self, kind: Kind, why: &'static str, now: Moment) {
        let failure = Failure::breach(kind, why);
        self.send(Message::Fail { why: failure.to_string() });
        self.lost(failure, now);
        self.retry_at = now.after(RETRY_INTERVAL);
    }

    pub(super) fn message(&mut self, message: Message, now: Moment) {
        if let Some(line) = &mut self.line {
            line.hear(&message, now);
        }
        let kind = message.kind();
        match message {
            Message::Alive(_) => {}
            Message::SetupDone if self.state == State::Setup => {
                self.state = State::Copying;
                self.order(Order::Copy);
            }
            Message::Ready { stun, inspected }
                if self.state == State::Stunned && stun == self.stun =>
            {
                self.state = State::Prepared;
                self.order(Order::Ready(inspected));
            }
            // It crossed the word that the attempt is off.
            Message::Ready { .. } if matches!(self.state, State::Resumed(_)) => {}
            Message::Running => self.runs_there(Arrival::Running, kind, now),
            Message::Standing(standing @ (Standing::GoneOn | Standing::Ended)) => {
                self.runs_there(Arrival::RanThere(standing), kind, now);
            }
            Message::Standing(Standing::Prepared { stun }) | Message::Late { stun } => {
                self.prepared_there(stun, kind, now);
            }
            Message::Standing(standing @ (Standing::MayHaveRun | Standing::Unknown)) => {
                self.not_known_there(standing, kind, now);
            }
            Message::Refused { why } => self.refused(why),
            Message::Fail { why } => self.failed_there(why, now),
            Message::Note { number, note } => self.note(number, note, now),
            Message::NoteHeard { number } => {
                if self.notes.taken(number) {
                    self.order(Order::NotesHeard);
                }
            }
            Message::SetupDone | Message::Ready { .. } => self.breach(kind, "not now", now),
            Message::Setup(_)
            | Message::State { .. }
            | Message::Run { .. }
            | Message::Released
            | Message::Cancel { .. }
            | Message::Again { .. } => self.breach(kind, "that is the source's to say", now),
        }
    }

    fn runs_there(&mut self, arrival: Arrival, kind: Kind, now: Moment) {
        match self.state {
            State::Committed => self.release(arrival),
            State::Setup
            | State::Copying
            | State::Stunned
            | State::Prepared
            | State::Committing
            | State::Uncommitting { .. } => self.breach(kind, "it was not told to run", now),
            State::Resumed(_) => {
                self.order(Order::Notice(Notice::RunsThereToo));
                self.settled();
            }
            // Said again to a source that came back.
            State::Released(_) => {
                if self.released {
                    self.send(Message::Released);
                }
                match arrival {
                    Arrival::Running => self.say_notes(),
                    // Nobody is left there to take a note.
                    Arrival::RanThere(_) | Arrival::ByWord => self.settled(),
                }
            }
            State::Releasing(_) | State::Left => {}
        }
    }

    pub(super) fn release(&mut self, arrival: Arrival) {
        self.standstill = None;
        self.state = State::Releasing(arrival);
        self.order(Order::HandedOver(arrival));
        self.order(Order::Record(SourceRecord::Released));
        if arrival == Arrival::Running {
            self.say_notes();
        }
    }

    fn say_notes(&mut self) {
        self.running_heard = true;
        for message in self.notes.untaken() {
            self.send(message);
        }
    }

    fn prepared_there(&mut self, stun: StunNumber, kind: Kind, now: Moment) {
        match self.state {
            State::Committed if self.wants_back => {
                self.send(Message::Cancel { why: "the source takes its guest back".to_owned() });
            }
            State::Committed if stun == self.stun => self.say_run(now),
            State::Committed => self.breach(kind, "prepared for another stun", now),
            State::Resumed(_) => {
                self.send(Message::Cancel { why: "the guest runs at the source".to_owned() });
            }
            State::Setup
            | State::Copying
            | State::Stunned
            | State::Prepared
            | State::Committing
            | State::Uncommitting { .. } => self.breach(kind, "it was not asked", now),
            State::Releasing(_) | State::Released(_) | State::Left => {}
        }
    }

    pub(super) fn say_run(&mut self, now: Moment) {
        (self.run_said, self.look_asked) = (Some(now), false);
        self.send(Message::Run { stun: self.stun });
        if let Some(line) = &mut self.line {
            line.await_from(now);
        }
    }

    fn not_known_there(&mut self, standing: Standing, kind: Kind, now: Moment) {
        match self.state {
            State::Committed => {
                self.order(Order::Notice(Notice::NotKnown(standing)));
                self.close();
                self.unresolved(now);
                self.retry_at = now.after(RETRY_INTERVAL);
            }
            State::Resumed(_) => self.settled(),
            // It was told and has forgotten, as it may.
            State::Released(_) => self.settled(),
            State::Setup
            | State::Copying
            | State::Stunned
            | State::Prepared
            | State::Committing
            | State::Uncommitting { .. } => self.breach(kind, "it was not asked", now),
            State::Releasing(_) | State::Left => {}
        }
    }

    fn refused(&mut self, why: String) {
        match &mut self.state {
            State::Setup | State::Copying | State::Stunned | State::Prepared => {
                self.perhaps_prepared = false;
                self.send(Message::Released);
                self.resume(Failure::Refused(why));
            }
            State::Committing => self.refused = Some(why),
            State::Committed => self.take_back(Failure::Refused(why), true),
            State::Uncommitting { forced, .. } => *forced = true,
            State::Resumed(_) => {
                self.send(Message::Released);
                self.settled();
            }
            State::Releasing(_) | State::Released(_) | State::Left => {}
        }
    }

    fn failed_there(&mut self, why: String, now: Moment) {
        match self.state {
            State::Setup | State::Copying | State::Stunned | State::Prepared => {
                // It dropped the shadow before it said so.
                self.perhaps_prepared = false;
                self.resume(Failure::Peer(why));
            }
            State::Committing
            | State::Uncommitting { .. }
            | State::Committed
            | State::Releasing(_)
            | State::Released(_)
            | State::Resumed(_)
            | State::Left => {
                self.lost(Failure::Peer(why), now);
                self.retry_at = now.after(RETRY_INTERVAL);
            }
        }
    }

    pub(super) fn note(&mut self, number: u64, note: Vec<u8>, now: Moment) {
        if matches!(self.state, State::Releasing(_)) && self.notes_early.len() < NOTES_EARLY_MAX {
            self.notes_early.push((number, note));
            return;
        }
        if !matches!(self.state, State::Released(_)) {
            return self.breach(Kind::Note, "not now", now);
        }
        if self.notes.hear(number) {
            self.order(Order::Note(note));
        }
        self.send(Message::NoteHeard { number });
    }
}
