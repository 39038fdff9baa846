//! What an operator may say when, what is done, and what is answered.

use super::{By, Destination, Order, State};
use crate::session::record::DestinationRecord;
use crate::session::{Failure, Reply, Word};

impl Destination {
    pub(super) fn word(&mut self, word: Word) -> Reply {
        match self.state {
            State::Greeting | State::Setup | State::Receiving { .. } | State::Loading => match word
            {
                Word::Cancel | Word::Interrupt | Word::GiveUp => {
                    self.abandon(Failure::Cancelled);
                    Reply::taken("cancelled: nothing runs here, the guest runs on at its source")
                }
                Word::SourceRuns { .. } | Word::DestinationRuns { .. } => Reply::not_taken(
                    "nothing is to be decided: the guest is the source's, and `cancel` ends the \
                     migration",
                ),
            },
            State::Prepared => self.word_prepared(word),
            State::Running => Reply::not_taken("the guest runs here; only its owner ends it"),
            State::Refused(_) => Reply::not_taken("the guest was refused here already"),
            State::Ran(_) => Reply::not_taken("the guest ran here, and does no more"),
            State::Doubtful => Reply::not_taken(
                "the guest is not here any more, and may have run; decide at its source",
            ),
            State::Dropped => Reply::not_taken("nothing is here"),
            State::Preparing(_)
            | State::Reopening
            | State::TakingUp(_)
            | State::PuttingBack
            | State::Opening
            | State::Refusing(_) => {
                Reply::not_taken("it is being decided at this moment; say it again")
            }
        }
    }

    fn word_prepared(&mut self, word: Word) -> Reply {
        let connected = self.line.is_some();
        match word {
            Word::GiveUp => {}
            Word::Cancel | Word::Interrupt if connected => {}
            Word::Interrupt if self.interrupts > 0 => {}
            Word::Interrupt | Word::Cancel => {
                self.interrupts += u32::from(word == Word::Interrupt);
                return Reply::not_taken(
                    "nothing was changed: all of the guest is here, its source was lost, and this \
                     may be the only whole copy; ending now would lose it. `vmigrate resolve` \
                     decides; `--give-up` (or Ctrl-C again) refuses the guest here",
                );
            }
            Word::SourceRuns { .. } => {
                return Reply::not_taken(
                    "that is said at the source; here `--give-up` refuses the guest, and its source \
                     goes on when it hears so",
                );
            }
            Word::DestinationRuns { .. } if connected => {
                return Reply::not_taken("the source is here; it decides, and does so soon");
            }
            Word::DestinationRuns { source_is_gone: false } => {
                return Reply::not_taken(
                    "its source may still run it: end its program and guest there for good, make \
                     sure that it did not run on and runs nowhere else, then say this again with \
                     --source-is-gone",
                );
            }
            Word::DestinationRuns { source_is_gone: true } => {
                self.state = State::TakingUp(By::Word);
                self.order(Order::Record(DestinationRecord::Opening));
                return Reply::taken("the guest runs here from now on");
            }
        }
        self.refuse(Failure::Cancelled);
        Reply::taken(
            "refused: the guest will not run here, and its source goes on when it hears so",
        )
    }
}
