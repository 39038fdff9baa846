//! Readings of the rules that fail, and plain mistakes, made in shells, operators and clocks around
//! the machines. The walk must find each of them, with the right violation: a walk that finds
//! nothing in the session proves something only if it finds these.
//!
//! Not made here, because the session leaves no place for them: all that concerns pages after the
//! switch, which this session does not have. A gate that opens before its record says so is found
//! only where the guest dies with its engine: else its holder knows better than the record.

use migrate_core::proto::StunNumber;
use migrate_core::proto::message::{Message, Standing};
use migrate_core::session::record::{Boot, DestinationRecord, Holder, SourceRecord};
use migrate_core::session::{ConnectionId, Heard, Moment, Purpose, destination, source};

use crate::action::Action;
use crate::chart::Side;
use crate::world::{Answer, MOST, Progress, TIMEOUT, There, World};

/// What is wrong with a shell, an operator or a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Run is said before `committed` is on the disk.
    CommittedLater,
    /// A lost connection counts as a refusal.
    LostIsRefused,
    /// The lease is not looked at.
    LeaseIsIgnored,
    /// The lease is looked at, then the record is written, then the gate opens.
    LeaseBeforeRecord,
    /// The gate opens before the record says so.
    OpeningLater,
    /// The record says `running` before the gate opens.
    OpeningIsRunning,
    /// The guest's holder does not know whether it ever ran.
    HolderForgets,
    /// Records of an earlier boot are taken for records of this one.
    BootIsForgotten,
    /// Again leaves `prepared` in the record.
    AgainKeepsPrepared,
    /// A record that did not reach the disk is said to be there.
    FailedIsWritten,
    /// `taken back` is never written.
    TakenBackNever,
    /// `taken back` is written after the guest runs.
    TakenBackLater,
    /// `--runs-nowhere-else` is sworn without a look.
    SourceRunsUnseen,
    /// It is sworn of a guest that does not run there now, but has.
    SourceRunsNotNow,
    /// The look was made before it was asked for.
    LookedBefore,
    /// `--source-is-gone` is sworn where Run was heard, of a source that lives.
    GoneSinceRun,
    /// It is sworn of a source whose engine is down.
    GoneIsDown,
    /// It is sworn of a source that does not run the guest now.
    GoneIsNotNow,
    /// It is sworn of a source that was ended, but ran on after the stun.
    GoneRanOn,
    /// `--destination-runs` is said at the source of a guest that does not run there.
    SourceDrops,
    /// Run is sent with the hello.
    RunWithHello,
    /// The network's thread answers for the session, which sees the connection later.
    AnsweredEarly,
    /// Older connections are read on, and one lease counts for all.
    OneLease,
    /// A new engine does not wait for the Run of an older one.
    RestartForgetsRun,
    /// The guard is one link timeout, or none.
    GuardOfOne,
    GuardOfNone,
    /// The destination's clock stands while its host is paused.
    ClockStands,
    /// The source commits before it has heard Ready.
    CommitsEarly,
    /// Again is said before Ready was heard, and no message carries the number of its stun.
    AgainEarly,
    /// After a refusal that could not be synced, what follows is not synced either.
    FailedSyncIsForgotten,
    /// A machine's wish to be woken is not heard.
    SourceIsNeverWoken,
    DestinationIsNeverWoken,
    /// A source that resumed does not come back to withdraw.
    DoesNotWithdraw,
}

impl World {
    pub fn mutant_actions(&self, out: &mut Vec<Action>) {
        let Some(mutant) = self.rules.0.mutant else { return };
        match mutant {
            Mutant::CommittedLater | Mutant::TakenBackLater if self.source.late.is_some() => {
                out.push(Action::Mutated(0));
            }
            Mutant::ClockStands => out.push(Action::Mutated(0)),
            Mutant::AnsweredEarly => {
                let due = self.connections.iter().enumerate().filter(|(_, connection)| {
                    connection.unseen && self.destination_is_free(connection.attempt)
                });
                out.extend(due.map(|(at, _)| Action::Mutated(at as u8)));
            }
            Mutant::CommitsEarly | Mutant::AgainEarly if self.source_is_free() => {
                let stunned = self
                    .source
                    .engine
                    .as_ref()
                    .is_some_and(|engine| matches!(engine.state(), source::State::Stunned));
                let open = self.connections.iter().position(|connection| connection.source_open);
                out.extend(open.filter(|_| stunned).map(|at| Action::Mutated(at as u8)));
            }
            _ => {}
        }
    }

    pub fn act_mutated(&mut self, which: u8) {
        match self.rules.0.mutant {
            Some(Mutant::CommittedLater | Mutant::TakenBackLater) => {
                if let Some(content) = self.source.late.take() {
                    let at = usize::from(self.source.attempt);
                    self.source.disks[at].write(Some(content), true, false);
                    self.note_record(Side::Source, content.0.word(), Progress::Written);
                }
            }
            Some(Mutant::ClockStands) => {
                self.source_grows_older();
                self.note(Side::Source, "one link timeout, but not there");
            }
            Some(Mutant::AnsweredEarly) => {
                let connection = &mut self.connections[usize::from(which)];
                connection.unseen = false;
                let (id, attempt) = (connection.id, usize::from(connection.attempt));
                let answers = connection.to_source.len();
                self.feed_there(attempt, destination::Event::Asked(ConnectionId(id), TIMEOUT));
                if let Some(at) = self.connection(id) {
                    self.connections[at].to_source.truncate(answers);
                }
            }
            Some(Mutant::CommitsEarly | Mutant::AgainEarly) => {
                let id = ConnectionId(self.connections[usize::from(which)].id);
                let stun = self.source.engine.as_ref().map(|engine| engine.stun());
                let stun = stun.unwrap_or_default();
                let ready = Message::Ready { stun, inspected: std::time::Duration::ZERO };
                self.feed_source(source::Event::Heard(id, Heard::Message(ready)));
            }
            _ => {}
        }
    }

    /// A record that the source's shell answers for without having written it.
    pub fn mutate_source_record(&mut self, record: SourceRecord, stun: StunNumber) {
        let (unwritten, later) = match self.rules.0.mutant {
            Some(Mutant::CommittedLater) => (SourceRecord::Committed, true),
            Some(Mutant::TakenBackLater) => (SourceRecord::TakenBack, true),
            Some(Mutant::TakenBackNever) => (SourceRecord::TakenBack, false),
            _ => return,
        };
        if record == unwritten {
            self.source.writing = Some((record, Progress::Written));
            self.source.late = later.then_some((record, stun));
        }
    }

    /// The same at the destination.
    pub fn mutate_destination_record(&mut self, attempt: usize) {
        let unwritten = match self.rules.0.mutant {
            Some(Mutant::OpeningLater) => DestinationRecord::Opening,
            Some(Mutant::AgainKeepsPrepared) => DestinationRecord::Receiving,
            _ => return,
        };
        for answer in &mut self.there[attempt].answers {
            if let Answer::Recorded(record, progress) = answer
                && *record == unwritten
            {
                *progress = Progress::Written;
            }
        }
    }

    pub fn mutate_written(&self, record: DestinationRecord) -> DestinationRecord {
        let opening = record == DestinationRecord::Opening;
        if opening && self.mutant(Mutant::OpeningIsRunning) {
            DestinationRecord::Running
        } else {
            record
        }
    }

    /// What a source hears instead of a loss.
    pub fn mutate_loss(&self, heard: Heard) -> Heard {
        let committed = self
            .source
            .engine
            .as_ref()
            .is_some_and(|engine| matches!(engine.state(), source::State::Committed));
        if committed && self.mutant(Mutant::LostIsRefused) {
            Heard::Message(Message::Refused { why: String::new() })
        } else {
            heard
        }
    }

    /// The time that a destination is told together with an answer.
    pub fn moment_of_answer(&self, attempt: usize) -> Moment {
        match self.rules.0.mutant {
            Some(Mutant::LeaseIsIgnored) if self.takes_up(attempt) => Moment::default(),
            Some(Mutant::LeaseBeforeRecord) if self.takes_up(attempt) => {
                Moment(MOST - TIMEOUT * u32::from(self.there[attempt].age_of_run))
            }
            _ => self.now(),
        }
    }

    pub fn takes_up(&self, attempt: usize) -> bool {
        self.there[attempt]
            .engine
            .as_ref()
            .is_some_and(|engine| matches!(engine.state(), destination::State::TakingUp(_)))
    }

    pub fn moment_of_restart(&self) -> Moment {
        if self.mutant(Mutant::RestartForgetsRun) { Moment::default() } else { self.now() }
    }

    pub fn moment_of_word(&self) -> Moment {
        match self.rules.0.mutant {
            Some(Mutant::GuardOfOne) => self.now().after(TIMEOUT),
            Some(Mutant::GuardOfNone) => self.now().after(TIMEOUT * 2),
            _ => self.now(),
        }
    }

    pub fn mutate_holder(&self, holder: Holder) -> Holder {
        match holder {
            Holder::Started if self.mutant(Mutant::HolderForgets) => Holder::Stopped,
            holder => holder,
        }
    }

    pub fn mutate_boot(&self, boot: Boot) -> Boot {
        if self.mutant(Mutant::BootIsForgotten) { Boot::This } else { boot }
    }

    /// Whether an operator may look now, and believes what is seen.
    pub fn may_look(&self) -> bool {
        match self.rules.0.mutant {
            Some(Mutant::SourceRunsUnseen) => self.look_asked,
            Some(Mutant::SourceRunsNotNow) => self.look_asked && self.running() == 0,
            Some(Mutant::LookedBefore) => !self.runs_or_ran_there(),
            _ => self.look_asked && !self.runs_or_ran_there(),
        }
    }

    pub fn keeps_an_old_look(&self) -> bool {
        self.mutant(Mutant::LookedBefore)
    }

    /// Whether a source that was told Ready may commit, and may go back.
    pub fn decisions(&self) -> (bool, bool) {
        let early =
            self.mutant(Mutant::AgainEarly) && self.there.iter().all(|end| end.disk.now.is_none());
        (!early, self.left.agains > 0)
    }

    /// A message as it arrives where numbers of stuns mean nothing.
    pub fn mutate_number(&self, message: Message, own: StunNumber) -> Message {
        if !self.mutant(Mutant::AgainEarly) {
            return message;
        }
        match message {
            Message::Ready { inspected, .. } => Message::Ready { stun: own, inspected },
            Message::Run { .. } => Message::Run { stun: own },
            Message::Late { .. } => Message::Late { stun: own },
            Message::Standing(Standing::Prepared { .. }) => {
                Message::Standing(Standing::Prepared { stun: own })
            }
            message => message,
        }
    }

    /// Whether a source comes back in that state.
    pub fn withdraws(&self, state: &source::State) -> bool {
        let resumed = matches!(state, source::State::Resumed(_));
        !resumed || !self.mutant(Mutant::DoesNotWithdraw)
    }

    pub fn wakes(&self, wake: Option<Moment>, side: Side) -> bool {
        let deaf = match side {
            Side::Source => Mutant::SourceIsNeverWoken,
            _ => Mutant::DestinationIsNeverWoken,
        };
        let due = wake.is_some_and(|wake| wake <= self.now());
        due && self.counts_quarters() && !self.mutant(deaf)
    }

    /// Whether a false `--source-is-gone` is sworn, without ending anything.
    pub fn swears_falsely(&self, attempt: u8) -> bool {
        let end = &self.there[usize::from(attempt)];
        let elsewhere = self.running() - usize::from(end.runs());
        match self.rules.0.mutant {
            Some(Mutant::GoneSinceRun) => end.age_of_run > 0,
            Some(Mutant::GoneIsDown) => self.source.engine.is_none(),
            Some(Mutant::GoneIsNotNow) => elsewhere == 0,
            _ => false,
        }
    }

    /// Whether a newer connection leaves the older ones alone.
    pub fn reads_older_connections(&self) -> bool {
        self.mutant(Mutant::OneLease)
    }

    /// The connection under whose number a destination hears what that one brings.
    pub fn heard_as(&self, id: u64, attempt: u8) -> u64 {
        if !self.mutant(Mutant::OneLease) {
            return id;
        }
        let open = self
            .connections
            .iter()
            .filter(|connection| connection.attempt == attempt && connection.there == There::Open);
        open.max_by_key(|connection| connection.serial.0).map_or(id, |connection| connection.id)
    }

    /// What a source sends with its hello.
    pub fn mutate_hello(&mut self, purpose: Purpose) {
        let Some(engine) = &self.source.engine else { return };
        let stun = engine.stun();
        let committed = matches!(engine.state(), source::State::Committed);
        if self.mutant(Mutant::RunWithHello)
            && purpose == Purpose::Resolve
            && committed
            && let Some(connection) = self.connections.last_mut()
        {
            connection.to_there.push_back(Message::Run { stun });
        }
    }

    /// Whether the network's thread answers this connection, for the session.
    pub fn answers_early(&mut self, at: u8) -> bool {
        let connection = &self.connections[usize::from(at)];
        let attempt = usize::from(connection.attempt);
        let prepared = self.there[attempt]
            .engine
            .as_ref()
            .filter(|engine| matches!(engine.state(), destination::State::Prepared));
        let stun = prepared.map(|engine| engine.stun());
        match stun {
            Some(stun)
                if self.mutant(Mutant::AnsweredEarly) && connection.purpose == Purpose::Resolve =>
            {
                let connection = &mut self.connections[usize::from(at)];
                let prepared = Message::Standing(Standing::Prepared { stun });
                connection.to_source.push_back(prepared);
                connection.unseen = true;
                true
            }
            _ => false,
        }
    }

    /// Whether the source's engine may swear that it runs at the destination.
    pub fn may_drop(&self) -> bool {
        self.mutant(Mutant::SourceDrops) || self.elsewhere || self.there.iter().any(|e| e.runs())
    }
}
