//! What can happen next.

use migrate_core::session::record::SourceRecord;
use migrate_core::session::{Machine, Output, RETRY_INTERVAL, destination, source};

use crate::action::Action;
use crate::chart::Side;
use crate::world::{Answer, Connection, Guest, NOW, Progress, Task, There, World};

impl World {
    /// All that can happen next.
    pub fn actions(&self, out: &mut Vec<Action>) {
        out.clear();
        if self.violation.is_some() {
            return;
        }
        self.time_and_network(out);
        self.source_actions(out);
        for attempt in 0..self.there.len() as u8 {
            self.destination_actions(attempt, out);
        }
        self.fault_actions(out);
        self.word_actions(out);
        self.mutant_actions(out);
    }

    fn time_and_network(&self, out: &mut Vec<Action>) {
        use destination::Order;
        let gate = self.there.iter().any(|end| {
            end.engine.as_ref().is_some_and(|engine| *engine.state() == destination::State::Opening)
                && end.orders.iter().any(|order| matches!(order, Output::Order(Order::Open)))
        });
        if !gate || self.rules.0.gap {
            out.push(Action::Time);
        }
        for (at, connection) in self.connections.iter().enumerate() {
            let at = at as u8;
            if !connection.cut && self.left.cuts > 0 {
                out.push(Action::Break(at));
            }
            if connection.source_open && self.source_is_free() {
                if connection.cut {
                    out.push(Action::SourceNotices(at));
                }
                if !connection.to_source.is_empty() {
                    out.push(Action::SourceHears(at));
                } else if self.is_quiet(connection) {
                    out.push(Action::SourceTires(at));
                }
            }
            let free = self.destination_is_free(connection.attempt);
            if free && connection.there == There::Open {
                if connection.cut {
                    out.push(Action::DestinationNotices(at));
                }
                if !connection.to_there.is_empty() && !connection.unseen {
                    out.push(Action::DestinationHears(at));
                }
            }
            if connection.there == There::Pending {
                if connection.cut {
                    out.push(Action::DestinationNotices(at));
                } else if self.there_up
                    && self.there[usize::from(connection.attempt)].orders.is_empty()
                {
                    out.push(Action::Accepts(at));
                }
            }
        }
    }

    /// Whether a source waits in vain for an answer.
    fn is_quiet(&self, connection: &Connection) -> bool {
        let end = &self.there[usize::from(connection.attempt)];
        let waits = self.source.engine.as_ref().is_some_and(|engine| {
            matches!(engine.state(), source::State::Committed | source::State::Resumed(_))
        });
        waits
            && !self.counts_quarters()
            && !connection.cut
            && connection.there == There::Open
            && connection.to_there.is_empty()
            && end.answers.is_empty()
            && end.orders.is_empty()
    }

    /// Whether the source's shell has nothing to carry out.
    pub fn source_is_free(&self) -> bool {
        self.source.engine.is_some() && self.source.orders.is_empty()
    }

    pub fn destination_is_free(&self, attempt: u8) -> bool {
        let end = &self.there[usize::from(attempt)];
        end.engine.is_some() && end.orders.is_empty()
    }

    fn source_actions(&self, out: &mut Vec<Action>) {
        let Some(engine) = &self.source.engine else { return };
        match self.source.writing {
            Some((_, Progress::Ordered)) => {
                out.push(Action::SourceWrites);
                if self.left.syncs > 0 {
                    out.extend([Action::SourceWritesUnsynced, Action::SourceCannotWrite]);
                }
            }
            Some(_) => out.push(Action::SourceRecorded),
            None => {}
        }
        if !self.source.orders.is_empty() {
            let blocked = self.source.writing.is_some()
                && matches!(
                    self.source.orders.front(),
                    Some(Output::Order(source::Order::Record(_)))
                );
            if !blocked {
                out.push(Action::SourceOrder);
            }
            return;
        }
        if self.source.connecting.is_some() {
            if !self.there_up {
                out.push(Action::CannotConnect);
            } else if self.has_room() {
                out.push(Action::Connects);
            }
        } else if !self.counts_quarters()
            && !engine.is_connected()
            && engine.wake().is_some_and(|wake| wake <= NOW.after(RETRY_INTERVAL))
            && self.withdraws(engine.state())
        {
            out.push(Action::Retries);
        }
        if self.left.notes > 0 {
            out.push(Action::SourceNotes);
        }
        if self.wakes(engine.wake(), Side::Source) {
            out.push(Action::SourceTicks);
        }
        match self.source.task {
            Task::Copying if *engine.state() == source::State::Copying => out.push(Action::Stun),
            Task::Deciding => {
                let (commit, back) = self.decisions();
                out.extend(commit.then_some(Action::Commit));
                out.extend(back.then_some(Action::GoBack));
            }
            Task::Copying | Task::Nothing => {}
        }
        let before_commit = matches!(
            engine.state(),
            source::State::Copying | source::State::Stunned | source::State::Prepared
        );
        if self.left.setbacks > 0 && before_commit {
            out.push(Action::Abandon);
        }
        if matches!(engine.state(), source::State::Resumed(_))
            && self.source.guest == Guest::Running
        {
            if self.left.hops > 0 {
                out.push(Action::SourceGoesOn);
            }
            let disk = &self.source.disks[usize::from(self.source.attempt)];
            let clean = !matches!(disk.now, Some((SourceRecord::Committed, _)));
            if self.left.attempts > 0 && self.there_up && clean {
                out.push(Action::Again);
            }
        }
    }

    fn destination_actions(&self, attempt: u8, out: &mut Vec<Action>) {
        let end = &self.there[usize::from(attempt)];
        let Some(engine) = &end.engine else { return };
        for (at, answer) in end.answers.iter().enumerate() {
            let at = at as u8;
            match answer {
                Answer::Recorded(_, Progress::Ordered) => {
                    out.push(Action::DestinationWrites(attempt));
                    if self.left.syncs > 0 {
                        out.push(Action::DestinationWritesUnsynced(attempt));
                        out.push(Action::DestinationCannotWrite(attempt));
                    }
                }
                Answer::Recorded(..) | Answer::Opened => {
                    out.push(Action::DestinationAnswers(attempt, at));
                }
                Answer::Built | Answer::Loaded(_) => {
                    out.push(Action::DestinationAnswers(attempt, at));
                    if self.left.setbacks > 0 {
                        out.push(Action::DestinationFails(attempt, at));
                    }
                }
            }
        }
        if !end.orders.is_empty() {
            let writes = end.answers.iter().any(|answer| matches!(answer, Answer::Recorded(..)));
            let record =
                matches!(end.orders.front(), Some(Output::Order(destination::Order::Record(_))));
            if !(writes && record) {
                out.push(Action::DestinationOrder(attempt));
            }
            return;
        }
        if self.left.notes > 0 {
            out.push(Action::DestinationNotes(attempt));
        }
        if self.wakes(engine.wake(), Side::Destination) {
            out.push(Action::DestinationTicks(attempt));
        }
        if self.can_read_pages(usize::from(attempt)) {
            out.push(Action::ReadsPages(attempt));
        }
        if end.superseded {
            out.push(Action::Superseded(attempt));
        }
        if self.left.hops > 0 && *engine.state() == destination::State::Running && end.runs() {
            out.extend([Action::GoesOn(attempt), Action::Ends(attempt)]);
        }
    }

    /// Whether a shadow would be built, or a guest loaded.
    pub fn is_loading(&self, action: Action) -> bool {
        let Action::DestinationAnswers(attempt, at) = action else { return false };
        let answers = &self.there[usize::from(attempt)].answers;
        matches!(answers[usize::from(at)], Answer::Built | Answer::Loaded(_))
    }
}
