//! What the source says, and what it is answered in each state.

use std::time::Duration;

use super::{By, Destination, Notice, Order, State};
use crate::proto::StunNumber;
use crate::proto::header::Kind;
use crate::proto::message::{Message, Standing};
use crate::session::line::{ConnectionId, Line};
use crate::session::record::DestinationRecord;
use crate::session::{Failure, Moment};

impl Destination {
    /// A new connection closes the older one: what is still on its way there is never read.
    pub(super) fn asked(&mut self, id: ConnectionId, timeout: Duration, now: Moment) {
        self.close();
        self.line = Some(Line::new(id, timeout, now));
        if self.standstill.take().is_some() {
            self.notice(Notice::SourceBack);
        }
        if self.is_before_ready() {
            self.drop_shadow(Failure::LinkLost("the source came back too early".to_owned()));
        }
        self.answer(now);
    }

    /// Says how it stands.
    fn answer(&mut self, now: Moment) {
        match self.state.clone() {
            State::Prepared => {
                (self.said, self.late_at) = (Some(now), None);
                self.send(Message::Standing(Standing::Prepared { stun: self.stun }));
            }
            State::Running => {
                self.send(Message::Running);
                self.say_notes();
            }
            State::Ran(standing) => self.send(Message::Standing(standing)),
            State::Refused(why) => self.send(Message::Refused { why }),
            State::Doubtful => self.send(Message::Standing(Standing::MayHaveRun)),
            State::Greeting
            | State::Setup
            | State::Receiving { .. }
            | State::Loading
            | State::Dropped => self.send(Message::Standing(Standing::Unknown)),
            // Whoever asks then waits until that is over.
            State::Preparing(_)
            | State::Reopening
            | State::TakingUp(_)
            | State::PuttingBack
            | State::Opening
            | State::Refusing(_) => {}
        }
    }

    pub(super) fn message(&mut self, message: Message, now: Moment) {
        if let Some(line) = &mut self.line {
            line.hear(&message, now);
        }
        let kind = message.kind();
        match message {
            Message::Alive(_) => {}
            Message::Setup(setup) if self.state == State::Greeting => {
                self.state = State::Setup;
                self.order(Order::Build(setup));
            }
            // They crossed the refusal.
            Message::State { .. } | Message::Again { .. }
                if matches!(self.state, State::Refused(_)) => {}
            Message::State { stun, state } => self.device_state(stun, state, kind, now),
            Message::Run { stun } => self.run(stun, kind, now),
            Message::Again { stun } if self.state == State::Prepared && stun == self.stun => {
                self.said = None;
                self.state = State::Reopening;
                self.order(Order::Record(DestinationRecord::Receiving));
            }
            Message::Cancel { why } => self.cancelled(why, now),
            Message::Fail { why } => self.lost(Failure::Peer(why), now),
            Message::Released => self.released(),
            Message::Note { number, note } => self.note(number, note, now),
            Message::NoteHeard { number } => {
                if self.notes.taken(number) {
                    self.order(Order::NotesHeard);
                }
            }
            Message::Setup(_) | Message::Again { .. } => self.breach(kind, "not now", now),
            Message::SetupDone
            | Message::Ready { .. }
            | Message::Running
            | Message::Refused { .. }
            | Message::Late { .. }
            | Message::Standing(_) => self.breach(kind, "that is the destination's to say", now),
        }
    }

    fn device_state(&mut self, stun: StunNumber, bytes: Vec<u8>, kind: Kind, now: Moment) {
        let next = StunNumber(self.stun.0 + 1);
        match &mut self.state {
            State::Receiving { state: state @ None, .. } if stun == next => {
                *state = Some(bytes);
                self.stun = stun;
                self.load();
            }
            _ => self.breach(kind, "not now", now),
        }
    }

    fn run(&mut self, stun: StunNumber, kind: Kind, now: Moment) {
        match (&self.state, self.said) {
            (State::Prepared, Some(said)) if stun == self.stun => {
                self.state = State::TakingUp(By::Run { said });
                self.order(Order::Record(DestinationRecord::Opening));
            }
            (State::Prepared, _) => self.breach(kind, "for another stun", now),
            (State::Greeting | State::Setup | State::Receiving { .. } | State::Loading, _) => {
                self.breach(kind, "Ready was not said", now)
            }
            _ => self.answer(now),
        }
    }

    fn cancelled(&mut self, why: String, now: Moment) {
        match &self.state {
            State::Greeting | State::Setup | State::Receiving { .. } | State::Loading => {
                let refused = Message::Refused { why: why.clone() };
                self.drop_shadow(Failure::Called(why));
                self.send(refused);
                self.close();
            }
            State::Prepared => self.refuse(Failure::Called(why)),
            // One that knows nothing cannot refuse: its record may be lost, and the guest have run.
            _ => self.answer(now),
        }
    }

    fn released(&mut self) {
        match self.state {
            // A new engine must still find a guest that stands still because this one crashed.
            State::Running => self.settled = true,
            State::Ran(_) | State::Refused(_) => {
                self.settled = true;
                self.order(Order::Forget);
                self.close();
                self.order(Order::Over);
            }
            // Nothing is here that could be forgotten, or must not be.
            _ => {}
        }
    }

    fn note(&mut self, number: u64, note: Vec<u8>, now: Moment) {
        if self.state != State::Running {
            return self.breach(Kind::Note, "not now", now);
        }
        if self.notes.hear(number) {
            self.order(Order::Note(note));
        }
        self.send(Message::NoteHeard { number });
    }

    /// The peer does not keep to the protocol: before Ready that ends the attempt, afterwards the
    /// connection.
    fn breach(&mut self, kind: Kind, why: &'static str, now: Moment) {
        let failure = Failure::breach(kind, why);
        self.send(Message::Fail { why: failure.to_string() });
        self.lost(failure, now);
    }
}
