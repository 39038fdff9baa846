//! What follows once a record was written, or could not be.

use super::{By, Destination, Notice, Order, State};
use crate::proto::message::Message;
use crate::session::record::DestinationRecord;
use crate::session::{Failure, Moment, RETRY_INTERVAL};

impl Destination {
    pub(super) fn refuse(&mut self, why: Failure) {
        self.state = State::Refusing(why);
        self.order(Order::Record(DestinationRecord::Refused));
    }

    pub(super) fn recorded(&mut self, result: Result<(), String>, now: Moment) {
        match (self.state.clone(), result) {
            (State::Preparing(inspected), Ok(())) => {
                self.state = State::Prepared;
                self.said = self.line.as_ref().map(|_| now);
                self.notice(Notice::Prepared);
                self.send(Message::Ready { stun: self.stun, inspected });
            }
            (State::Preparing(_), Err(why)) => {
                self.state = State::Loading;
                self.abandon(Failure::Record(why));
            }
            (State::Reopening, Ok(())) => {
                self.state = State::Receiving { state: None, pages: false };
                self.order(Order::Receive(Some(self.stun)));
            }
            (State::Reopening, Err(why)) => {
                self.state = State::Loading;
                self.abandon(Failure::Record(why));
            }
            (State::TakingUp(by), Ok(())) => {
                let holds = match by {
                    By::Word => true,
                    By::Run { said } => {
                        self.timeout().is_some_and(|timeout| now.since(said) <= timeout)
                    }
                };
                if holds {
                    self.source_is_gone = by == By::Word;
                    self.state = State::Opening;
                    self.order(Order::Open);
                } else {
                    self.put_back();
                }
            }
            (State::TakingUp(_), Err(why)) => {
                self.notice(Notice::RecordFails(why));
                self.late_at = Some(now.after(RETRY_INTERVAL));
                self.put_back();
            }
            (State::PuttingBack, result) => {
                if let Err(why) = result {
                    self.notice(Notice::RecordFails(why));
                    self.late_at = Some(now.after(RETRY_INTERVAL));
                }
                self.state = State::Prepared;
                match (self.line.is_some(), self.late_at) {
                    (true, None) => self.say_late(now),
                    (true, Some(_)) => {}
                    (false, _) => {
                        self.late_at = None;
                        self.source_lost(now);
                    }
                }
            }
            (State::Refusing(failure), Ok(())) => {
                let why = failure.to_string();
                self.standstill = None;
                self.state = State::Refused(why.clone());
                self.order(Order::Drop(failure));
                self.send(Message::Refused { why });
                if self.line.is_none() {
                    self.order(Order::Over);
                }
            }
            // Nothing was said, so what was said before still counts.
            (State::Refusing(_), Err(why)) => {
                self.notice(Notice::RecordFails(why));
                self.state = if self.guest_gone { State::Doubtful } else { State::Prepared };
            }
            // What was written after the fact.
            (
                State::Greeting
                | State::Setup
                | State::Receiving { .. }
                | State::Loading
                | State::Prepared
                | State::Opening
                | State::Running
                | State::Refused(_)
                | State::Ran(_)
                | State::Doubtful
                | State::Dropped,
                result,
            ) => {
                if let Err(why) = result {
                    self.notice(Notice::RecordFails(why));
                }
            }
        }
    }

    pub(super) fn say_late(&mut self, now: Moment) {
        (self.said, self.late_at) = (Some(now), None);
        self.send(Message::Late { stun: self.stun });
    }

    fn put_back(&mut self) {
        self.state = State::PuttingBack;
        self.order(Order::Record(DestinationRecord::Prepared));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Destination, Event, Order, Settings, State};
    use crate::proto::StunNumber;
    use crate::proto::message::{Message, Progress, Setup};
    use crate::session::{
        ConnectionId, Failure, Heard, Machine, Moment, Output, RETRY_INTERVAL, Word,
    };

    const LINE: ConnectionId = ConnectionId(1);
    const STUN: StunNumber = StunNumber(1);

    fn heard(message: Message) -> Event {
        Event::Heard(LINE, Heard::Message(message))
    }

    /// Everything is here, and Ready was said, at 0.
    fn prepared() -> Destination {
        let patience = Duration::from_secs(60);
        let settings = Settings { resolve_limit: patience, give_up_after: None };
        let mut there = Destination::new(settings);
        let setup =
            Setup { regions: vec![1], streams: 1, earlier: Vec::new(), description: Vec::new() };
        for event in [
            Event::Called(LINE, Duration::from_secs(4)),
            heard(Message::Setup(setup)),
            Event::Built(Ok(())),
            Event::PagesComplete,
            heard(Message::State { stun: STUN, state: Vec::new() }),
            Event::Loaded(Ok(Duration::ZERO)),
            Event::Recorded(Ok(())),
        ] {
            there.on(event, Moment::default());
        }
        assert_eq!(there.state(), &State::Prepared);
        there
    }

    /// Late, said at once, was answered by Run at once, as fast as the disk could fail.
    #[test]
    fn late_waits_after_a_record_that_cannot_be_written() {
        let (mut there, full) = (prepared(), "the disk is full".to_owned());
        let late = |outputs: Vec<Output<Order>>| {
            let late = Output::Send(LINE, Message::Late { stun: STUN });
            outputs.contains(&late)
        };
        let now = Moment(Duration::from_millis(10));
        there.on(heard(Message::Run { stun: STUN }), now);
        there.on(Event::Recorded(Err(full)), now);
        assert!(!late(there.on(Event::Recorded(Ok(())), now)));
        let due = now.after(RETRY_INTERVAL);
        assert_eq!(there.wake(), Some(due));
        assert!(late(there.on(Event::Tick(Progress::default()), due)));
        // From then on Run holds again.
        there.on(heard(Message::Run { stun: STUN }), due);
        there.on(Event::Recorded(Ok(())), due);
        assert_eq!(there.state(), &State::Opening);
    }

    /// An oath that the disk did not take is none: a source that comes back hears of the proof.
    #[test]
    fn an_oath_counts_once_it_is_written() {
        let mut there = prepared();
        let now = Moment(Duration::from_secs(1));
        let lost = Heard::Lost(Failure::Cancelled);
        let oath = Word::DestinationRuns { source_is_gone: true };
        there.on(Event::Heard(LINE, lost), now);
        there.on(Event::Word(1, oath), now);
        there.on(Event::Recorded(Err("the disk is full".to_owned())), now);
        there.on(Event::Recorded(Ok(())), now);
        assert!(there.state() == &State::Prepared && !there.source_is_gone());
        there.on(Event::Word(2, oath), now);
        there.on(Event::Recorded(Ok(())), now);
        assert!(there.state() == &State::Opening && there.source_is_gone());
    }
}
