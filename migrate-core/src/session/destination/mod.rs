//! The destination's end: what it may do when, what it answers, and what it never forgets.
//!
//! Its shell builds the shadow, receives, loads, opens the gate, writes the record; here is decided
//! whether it may. While a record is being written, what comes waits.

mod operator;
mod peer;
mod recorded;

use std::time::Duration;

use crate::proto::StunNumber;
use crate::proto::message::{Message, Progress, Setup, Standing};
use crate::session::line::{ConnectionId, Line};
use crate::session::notes::Notes;
use crate::session::record::{Boot, DestinationRecord, Holder};
use crate::session::standstill::Standstill;
use crate::session::{Failure, Heard, IDLE_LIMIT, Machine, Moment, Output, Word};

/// Most that waits while a record is being written; whoever sends more is no peer of ours.
const DEFERRED_MAX: usize = 64;

/// How a destination goes about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// How long a prepared guest may wait for its source before that is said again and again.
    pub resolve_limit: Duration,
    /// How long until it is given up; `None` never.
    pub give_up_after: Option<Duration>,
}

/// What happens to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A source came with a new migration; both ends let the link be silent for so long.
    Called(ConnectionId, Duration),
    /// A source came to ask how it stands.
    Asked(ConnectionId, Duration),
    /// Something came over a connection.
    Heard(ConnectionId, Heard),
    /// The shadow exists, or cannot.
    Built(Result<(), String>),
    /// Every data connection came to its end of this stun.
    PagesComplete,
    /// State was loaded, the guest inspected (for so long) and made ready to start; or it cannot be.
    Loaded(Result<Duration, String>),
    /// The record that was ordered last was written, or not.
    Recorded(Result<(), String>),
    /// The gate is open.
    Opened,
    /// The guest went on, or was ended by its owner.
    Left(Standing),
    /// The shell cannot go on, or shall not.
    Abandon(Failure),
    /// A later attempt of the same guest is here.
    Superseded,
    /// An operator's word, by a number for the answer.
    Word(u64, Word),
    /// A note to the embedder at the other side.
    Note(Vec<u8>),
    /// Time has passed, and this host is so far.
    Tick(Progress),
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Build a shadow; answer with Built.
    Build(Setup),
    /// Take pages, after the first stun only behind this mark; answer with `PagesComplete`.
    Receive(Option<StunNumber>),
    /// Load this state, inspect, and do everything that can fail; answer with Loaded.
    Load(Vec<u8>),
    /// Write the record; answer with Recorded. It is synced if it says refused, and also if an earlier
    /// sync failed, or the record is one that this engine took up: else a refusal that did not
    /// succeed could be found after a loss of power, of a guest that ran since.
    Record(DestinationRecord),
    /// Open the gate, now; answer with Opened.
    Open,
    /// Drop the shadow: it will not run here.
    Drop(Failure),
    /// Remove the record: nobody will ask for it.
    Forget,
    /// A note from the other side.
    Note(Vec<u8>),
    /// All that was sent as notes was taken.
    NotesHeard,
    /// Something that the user should hear.
    Notice(Notice),
    /// Nothing is left to do but to answer.
    Over,
}

/// What the user should hear.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// Everything is here.
    Prepared,
    /// The source was lost, and nobody but it or an operator knows where the guest shall run.
    SourceLost,
    /// The same, for so long now.
    StillWaiting(Duration),
    /// The source is back.
    SourceBack,
    /// A record could not be written; what it is about waits.
    RecordFails(String),
}

/// Who wants the gate open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The source, on the strength of what was said to it at that moment.
    Run {
        /// When.
        said: Moment,
    },
    /// An operator.
    Word,
}

/// Where the destination is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// A source came and has not said what it wants.
    Greeting,
    /// The shadow is being built.
    Setup,
    /// Pages arrive.
    Receiving {
        /// Device state, if it came before the last page.
        state: Option<Vec<u8>>,
        /// Whether all pages are here.
        pages: bool,
    },
    /// The guest is being loaded and inspected.
    Loading,
    /// That it is prepared is being written; inspecting took so long.
    Preparing(Duration),
    /// Everything is here, nothing runs.
    Prepared,
    /// That it is not prepared any more is being written: the source goes back to copying.
    Reopening,
    /// That the gate opens is being written.
    TakingUp(By),
    /// That it did not open is being written: Run came too late.
    PuttingBack,
    /// The gate is being opened.
    Opening,
    /// The guest runs here.
    Running,
    /// That it never will is being written.
    Refusing(Failure),
    /// It never ran here and never will.
    Refused(String),
    /// It ran here: went on, or was ended.
    Ran(Standing),
    /// It may have run here: nobody can know.
    Doubtful,
    /// Nothing is here.
    Dropped,
}

/// The destination's machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    settings: Settings,
    state: State,
    line: Option<Line>,
    /// Whether a new engine found no guest beside its record.
    guest_gone: bool,
    /// When Ready, Late or Prepared was said on the line in use: from then on Run holds for a link
    /// timeout.
    said: Option<Moment>,
    /// When Late is said after a record that could not be written: a source that hears it says Run
    /// at once, and a disk that is full is not less so then.
    late_at: Option<Moment>,
    stun: StunNumber,
    /// Whether this host can say more than that: pages received, memory made, lines inspected.
    progress: Progress,
    deferred: Vec<Event>,
    interrupts: u32,
    /// An operator swore that the source's engine and guest were ended for good.
    source_is_gone: bool,
    /// Whether the source said that it has settled.
    settled: bool,
    standstill: Option<Standstill>,
    notes: Notes,
    out: Vec<Output<Order>>,
}

impl Machine for Destination {
    type Event = Event;
    type Order = Order;

    fn on(&mut self, event: Event, now: Moment) -> Vec<Output<Order>> {
        self.take(event, now);
        while !self.is_writing() && !self.deferred.is_empty() {
            let event = self.deferred.remove(0);
            self.take(event, now);
        }
        std::mem::take(&mut self.out)
    }

    fn wake(&self) -> Option<Moment> {
        let line = self.line.as_ref().map(Line::wake);
        let standstill = self.standstill.map(|standstill| standstill.wake());
        [line, standstill, self.late_due()].into_iter().flatten().min()
    }

    fn tick(progress: Progress) -> Event {
        Event::Tick(progress)
    }

    fn heard(connection: ConnectionId, heard: Heard) -> Event {
        Event::Heard(connection, heard)
    }

    fn word(number: u64, word: Word) -> Event {
        Event::Word(number, word)
    }
}

impl Destination {
    /// Waits to be called.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::Greeting,
            line: None,
            guest_gone: false,
            said: None,
            late_at: None,
            stun: StunNumber(0),
            progress: Progress::default(),
            deferred: Vec::new(),
            interrupts: 0,
            source_is_gone: false,
            settled: false,
            standstill: None,
            notes: Notes::default(),
            out: Vec::new(),
        }
    }

    /// A new engine takes up a record; what it does at once. `stun` is the record's.
    pub fn restored(
        settings: Settings,
        record: DestinationRecord,
        stun: StunNumber,
        boot: Boot,
        guest: Holder,
        now: Moment,
    ) -> (Self, Vec<Output<Order>>) {
        use DestinationRecord as R;
        let mut there = Self::new(settings);
        (there.stun, there.guest_gone) = (stun, guest == Holder::Gone);
        there.state = match (record, guest, boot) {
            (R::Receiving, _, Boot::This) => State::Dropped,
            // All that came after it may have been lost with the power.
            (R::Receiving, _, Boot::Earlier) => State::Doubtful,
            (R::Prepared, Holder::Stopped, _) => State::Prepared,
            (R::Prepared, Holder::Gone, Boot::This) => {
                let why = "it was lost with the program that held it";
                there.order(Order::Record(R::Refused));
                State::Refusing(Failure::Local(why.to_owned()))
            }
            // A record of the gate may have been lost with the power.
            (R::Prepared | R::Opening, Holder::Gone, _) => State::Doubtful,
            (R::Opening, Holder::Stopped, _) => {
                there.order(Order::Record(R::Prepared));
                State::PuttingBack
            }
            // Its holder knows better than the record.
            (R::Prepared | R::Opening, Holder::Started, _) => {
                there.order(Order::Open);
                State::Opening
            }
            (R::Running, Holder::Started | Holder::Stopped, _) => {
                there.order(Order::Open);
                State::Opening
            }
            (R::Running, Holder::Gone, _) => {
                there.order(Order::Record(R::Ended));
                State::Ran(Standing::Ended)
            }
            (R::GoneOn, ..) => State::Ran(Standing::GoneOn),
            (R::Ended, ..) => State::Ran(Standing::Ended),
            (R::Refused, ..) => State::Refused("it was refused before".to_owned()),
        };
        if there.state == State::Prepared {
            there.source_lost(now);
        }
        let out = std::mem::take(&mut there.out);
        (there, out)
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The stun that it has, or waits for the end of.
    pub fn stun(&self) -> StunNumber {
        self.stun
    }

    /// Whether the source can be talked to.
    pub fn is_connected(&self) -> bool {
        self.line.is_some()
    }

    /// Whether the guest runs here by the oath of an operator: nobody is left to hear of it.
    pub fn source_is_gone(&self) -> bool {
        self.source_is_gone
    }

    /// The link timeout that both ends keep to.
    pub fn timeout(&self) -> Option<Duration> {
        self.line.as_ref().map(|line| line.timeout)
    }

    /// The same machine on a clock on which `now` is `most`, and with no moment before 0: two that
    /// differ only in when they are, or in why, become equal. When a connection is silent is the
    /// explorer's to say, and so are reminders.
    #[must_use]
    pub fn rebased(&self, now: Moment, most: Duration) -> Self {
        let mut same = self.clone();
        let age = |moment| crate::session::rebase(moment, now, most);
        if let Some(line) = &mut same.line {
            line.rebase(most);
        }
        same.said = self.said.map(age);
        match &mut same.state {
            State::TakingUp(By::Run { said }) => *said = age(*said),
            State::Refusing(why) => *why = Failure::Cancelled,
            State::Refused(why) => why.clear(),
            _ => {}
        }
        same.late_at = self.late_at.map(age);
        same.standstill = None;
        same
    }

    /// Whether something is under way that everything else waits for.
    fn is_writing(&self) -> bool {
        match self.state {
            State::Preparing(_)
            | State::Reopening
            | State::TakingUp(_)
            | State::PuttingBack
            | State::Opening
            | State::Refusing(_) => true,
            State::Greeting
            | State::Setup
            | State::Receiving { .. }
            | State::Loading
            | State::Prepared
            | State::Running
            | State::Refused(_)
            | State::Ran(_)
            | State::Doubtful
            | State::Dropped => false,
        }
    }

    fn take(&mut self, event: Event, now: Moment) {
        match event {
            Event::Heard(id, Heard::Message(Message::Alive(progress))) => {
                if let Some(line) = self.line.as_mut().filter(|line| line.id == id) {
                    line.hear(&Message::Alive(progress), now);
                }
            }
            Event::Heard(id, Heard::Message(_))
                if self.is_writing() && self.deferred.len() >= DEFERRED_MAX =>
            {
                self.out.push(Output::Close(id));
                if self.line.as_ref().is_some_and(|line| line.id == id) {
                    self.line = None;
                }
            }
            Event::Heard(..) | Event::Asked(..) | Event::Word(..) | Event::Superseded
                if self.is_writing() =>
            {
                self.deferred.push(event);
            }
            Event::Heard(id, heard) if self.line.as_ref().is_some_and(|l| l.id == id) => {
                match heard {
                    Heard::Message(message) => self.message(message, now),
                    Heard::Lost(failure) => self.lost(failure, now),
                }
            }
            // Of a connection that was closed already.
            Event::Heard(..) => {}
            Event::Called(id, timeout) => self.line = Some(Line::new(id, timeout, now)),
            Event::Asked(id, timeout) => self.asked(id, timeout, now),
            Event::Built(result) => self.built(result, now),
            Event::PagesComplete => self.pages_complete(),
            Event::Loaded(result) => self.loaded(result),
            Event::Recorded(result) => self.recorded(result, now),
            Event::Opened => self.opened(),
            Event::Left(standing) => self.left(standing),
            Event::Abandon(failure) => self.abandon(failure),
            Event::Superseded => self.superseded(),
            Event::Word(number, word) => {
                let reply = self.word(word);
                self.out.push(Output::Answer(number, reply));
            }
            Event::Note(note) => {
                let message = self.notes.add(note);
                // Sooner the source takes it for a breach.
                if self.state == State::Running {
                    self.send(message);
                }
            }
            Event::Tick(progress) => self.time(progress, now),
        }
    }

    fn late_due(&self) -> Option<Moment> {
        self.late_at.filter(|_| self.state == State::Prepared)
    }

    fn order(&mut self, order: Order) {
        self.out.push(Output::Order(order));
    }

    fn notice(&mut self, notice: Notice) {
        self.order(Order::Notice(notice));
    }

    fn send(&mut self, message: Message) {
        if let Some(line) = &self.line {
            self.out.push(Output::Send(line.id, message));
        }
    }

    fn close(&mut self) {
        (self.said, self.late_at) = (None, None);
        if let Some(line) = self.line.take() {
            self.out.push(Output::Close(line.id));
        }
    }

    fn is_before_ready(&self) -> bool {
        matches!(
            self.state,
            State::Greeting | State::Setup | State::Receiving { .. } | State::Loading
        )
    }

    fn pages_complete(&mut self) {
        if let State::Receiving { pages, .. } = &mut self.state {
            *pages = true;
            self.load();
        }
    }

    /// Loads the guest once all of it is here.
    fn load(&mut self) {
        if let State::Receiving { state: state @ Some(_), pages: true } = &mut self.state {
            let state = state.take().unwrap_or_default();
            self.state = State::Loading;
            self.order(Order::Load(state));
        }
    }

    fn built(&mut self, result: Result<(), String>, now: Moment) {
        if self.state != State::Setup {
            return;
        }
        match result {
            Ok(()) => {
                self.state = State::Receiving { state: None, pages: false };
                self.send(Message::SetupDone);
                self.order(Order::Receive(None));
                if let Some(line) = &mut self.line {
                    line.await_from(now);
                }
            }
            Err(why) => self.abandon(Failure::Local(why)),
        }
    }

    fn loaded(&mut self, result: Result<Duration, String>) {
        if self.state != State::Loading {
            return;
        }
        match result {
            Ok(inspected) => {
                self.state = State::Preparing(inspected);
                self.order(Order::Record(DestinationRecord::Prepared));
            }
            Err(why) => self.abandon(Failure::Local(why)),
        }
    }

    fn lost(&mut self, failure: Failure, now: Moment) {
        self.close();
        if self.is_before_ready() {
            self.drop_shadow(failure);
        } else if self.state == State::Prepared {
            self.source_lost(now);
        } else if matches!(self.state, State::Refused(_) | State::Ran(_)) {
            self.order(Order::Over);
        }
    }

    fn source_lost(&mut self, now: Moment) {
        let Settings { resolve_limit, give_up_after, .. } = self.settings;
        self.standstill = Some(Standstill::new(now, resolve_limit, give_up_after));
        self.notice(Notice::SourceLost);
    }

    fn abandon(&mut self, failure: Failure) {
        if self.is_before_ready() {
            let why = match &failure {
                Failure::Local(why) => why.clone(),
                other => other.to_string(),
            };
            self.send(Message::Fail { why });
            self.close();
            self.drop_shadow(failure);
        }
    }

    fn drop_shadow(&mut self, why: Failure) {
        self.state = State::Dropped;
        self.order(Order::Drop(why));
        self.order(Order::Forget);
        self.order(Order::Over);
    }

    fn superseded(&mut self) {
        match self.state {
            State::Greeting | State::Setup | State::Receiving { .. } | State::Loading => {
                self.close();
                self.drop_shadow(Failure::Superseded);
            }
            State::Prepared => self.refuse(Failure::Superseded),
            // A guest that runs, or ran, is not ended by whoever says that it is over.
            _ => {}
        }
    }

    fn opened(&mut self) {
        if self.state == State::Opening {
            self.state = State::Running;
            (self.standstill, self.said) = (None, None);
            self.send(Message::Running);
            self.order(Order::Record(DestinationRecord::Running));
            self.say_notes();
        }
    }

    fn say_notes(&mut self) {
        for message in self.notes.untaken() {
            self.send(message);
        }
    }

    fn left(&mut self, standing: Standing) {
        if self.state == State::Running {
            self.state = State::Ran(standing);
            self.order(match (self.settled, standing) {
                (true, _) => Order::Forget,
                (false, Standing::GoneOn) => Order::Record(DestinationRecord::GoneOn),
                (false, _) => Order::Record(DestinationRecord::Ended),
            });
            self.close();
            self.order(Order::Over);
        }
    }

    fn time(&mut self, progress: Progress, now: Moment) {
        if let Some(line) = self.line.as_mut().filter(|_| self.progress != progress) {
            line.await_from(now);
        }
        self.progress = progress;
        if self.is_writing() {
            if let Some(alive) = self.line.as_mut().and_then(|line| line.alive(progress, now)) {
                self.send(alive);
            }
            return;
        }
        if let Some(failure) = self.line.as_ref().and_then(|line| line.lost(now)) {
            self.lost(failure, now);
        }
        let idle = matches!(self.state, State::Receiving { .. })
            .then(|| self.line.as_ref()?.stuck("pages", IDLE_LIMIT, now))
            .flatten();
        if let Some(failure) = idle {
            self.abandon(failure);
        }
        if let Some(alive) = self.line.as_mut().and_then(|line| line.alive(progress, now)) {
            self.send(alive);
        }
        if self.state == State::Prepared
            && self.standstill.is_some_and(|standstill| standstill.is_given_up(now))
        {
            self.refuse(Failure::Cancelled);
        }
        if self.late_due().is_some_and(|at| now >= at) {
            self.say_late(now);
        }
        if let Some(since) = self.standstill.as_mut().and_then(|still| still.reminder(now)) {
            self.notice(Notice::StillWaiting(since));
        }
    }
}
