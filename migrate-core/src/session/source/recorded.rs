//! What follows once a record was written, or could not be.

use super::{Arrival, Order, Source, State};
use crate::proto::message::Message;
use crate::session::record::SourceRecord;
use crate::session::{Failure, Moment};

impl Source {
    pub(super) fn take_back(&mut self, why: Failure, forced: bool) {
        self.state = State::Uncommitting { why, forced };
        self.order(Order::Record(SourceRecord::TakenBack));
    }

    pub(super) fn recorded(&mut self, result: Result<(), String>, now: Moment) {
        match (self.state.clone(), result) {
            (State::Committing, Ok(())) => match self.refused.take() {
                Some(why) => self.take_back(Failure::Refused(why), true),
                None => {
                    self.state = State::Committed;
                    self.retry_at = now;
                    match self.line.is_some() {
                        true => self.say_run(now),
                        false => self.unresolved(now),
                    }
                }
            },
            // What failed to be synced may have reached the disk all the same.
            (State::Committing, Err(why)) => {
                let forced = self.refused.take().is_some();
                self.take_back(Failure::Record(why), forced);
            }
            (State::Uncommitting { why, forced: true }, result) => {
                self.perhaps_prepared = false;
                if result.is_ok() {
                    // Else a new engine asks again, and must hear that it was refused.
                    self.send(Message::Released);
                }
                self.resume(why);
            }
            (State::Uncommitting { why, forced: false }, Ok(())) => {
                self.send(Message::Cancel { why: why.to_string() });
                self.resume(why);
            }
            (State::Uncommitting { why, forced: false }, Err(_)) => {
                self.state = State::Committed;
                self.wants_back = true;
                self.retry_at = now;
                self.send(Message::Cancel { why: why.to_string() });
                self.unresolved(now);
            }
            (State::Releasing(arrival), result) => {
                self.state = State::Released(arrival);
                self.released = result.is_ok();
                if self.released {
                    // Else the record is still committed, and the destination must not forget.
                    self.send(Message::Released);
                }
                for (number, note) in std::mem::take(&mut self.notes_early) {
                    self.note(number, note, now);
                }
                if !matches!(arrival, Arrival::Running) {
                    self.settled();
                }
            }
            // The shell answers only what it was asked.
            (
                State::Setup
                | State::Copying
                | State::Stunned
                | State::Prepared
                | State::Committed
                | State::Released(_)
                | State::Resumed(_)
                | State::Left,
                _,
            ) => {}
        }
    }
}
