//! What an operator may say when, what is done, and what is answered.

use super::{Arrival, GUARD_TIMEOUTS, Order, Source, State};
use crate::proto::message::Message;
use crate::session::{Failure, Moment, Reply, Word};

impl Source {
    pub(super) fn word(&mut self, word: Word, now: Moment) -> Reply {
        match self.state {
            State::Setup | State::Copying | State::Stunned | State::Prepared => match word {
                Word::Cancel | Word::Interrupt => {
                    self.abandon(Failure::Cancelled);
                    Reply::taken("cancelled: the guest runs on here")
                }
                Word::SourceRuns { .. } | Word::DestinationRuns { .. } | Word::GiveUp => {
                    Reply::not_taken(
                        "nothing is to be decided: the guest is the source's, and `cancel` ends \
                         the migration",
                    )
                }
            },
            State::Committing | State::Uncommitting { .. } | State::Releasing(_) => {
                Reply::not_taken("it is being decided at this moment; say it again")
            }
            State::Committed => self.word_after_commit(word, now),
            State::Released(_) => Reply::not_taken("the guest runs at the destination"),
            State::Resumed(_) if self.guest => Reply::not_taken("the guest runs here"),
            State::Resumed(_) => Reply::not_taken("there is no guest here any more"),
            State::Left => Reply::not_taken("the guest was given up here"),
        }
    }

    fn word_after_commit(&mut self, word: Word, now: Moment) -> Reply {
        match word {
            Word::Interrupt if self.interrupts > 0 => self.leave(),
            Word::Interrupt | Word::Cancel => {
                self.interrupts += u32::from(word == Word::Interrupt);
                if !self.guest {
                    return Reply::not_taken(
                        "nothing was changed: the destination was told to run the guest and has \
                         not answered; there is no guest here any more, and only this program can \
                         still tell the destination to run its copy. `--give-up` (or Ctrl-C again) \
                         ends this program and leaves the guest to the destination",
                    );
                }
                Reply::not_taken(
                    "nothing was changed: the destination was told to run the guest and has not \
                     answered; this copy, stopped here, may be the only whole one, and ending now \
                     would lose it. `vmigrate resolve` decides; `--give-up` (or Ctrl-C again) ends \
                     this program and leaves the guest to the destination",
                )
            }
            Word::SourceRuns { runs_nowhere_else } => self.source_runs(runs_nowhere_else, now),
            Word::DestinationRuns { .. } => {
                self.release(Arrival::ByWord);
                Reply::taken("the guest is the destination's; this copy is dropped")
            }
            Word::GiveUp => self.leave(),
        }
    }

    fn source_runs(&mut self, runs_nowhere_else: bool, now: Moment) -> Reply {
        if !self.guest {
            return Reply::not_taken("there is no guest here any more");
        }
        if self.line.is_some() {
            self.wants_back = true;
            self.send(Message::Cancel { why: "the operator wants it at the source".to_owned() });
            return Reply::taken(
                "asked the destination to refuse the guest; it runs here as soon as it has, and \
                 there if it ran already",
            );
        }
        // From here on the destination is told to refuse, and not to run it: a link that comes and
        // goes would make Run good again each time.
        self.wants_back = true;
        let void_at = self.run_said.map(|said| said.after(self.timeout * GUARD_TIMEOUTS));
        if let Some(void_at) = void_at.filter(|void_at| now < *void_at) {
            let rest = format!("{:.1} s", void_at.since(now).as_secs_f64());
            return match runs_nowhere_else {
                true => Reply::not_taken(format!(
                    "not yet: the destination was told to run the guest, and may still do so for \
                     {rest}; look after that"
                )),
                false => Reply::taken(format!(
                    "the destination cannot be reached now: as soon as it can be it is asked to \
                     refuse the guest, which then runs here. Should it never be: say this again in \
                     {rest}"
                )),
            };
        }
        if !self.look_asked || !runs_nowhere_else {
            self.look_asked = true;
            return Reply::not_taken(
                "look now, at the destination and wherever the guest may have gone from there: \
                 only if it neither runs nor has run there, say this again with \
                 --runs-nowhere-else",
            );
        }
        self.take_back(Failure::Cancelled, false);
        Reply::taken("the guest goes on here; the destination is asked to refuse its copy")
    }

    pub(super) fn leave(&mut self) -> Reply {
        self.state = State::Left;
        self.standstill = None;
        self.close();
        self.order(Order::Over);
        Reply::taken(
            "given up here; the record stays committed, and the guest is the destination's",
        )
    }
}
