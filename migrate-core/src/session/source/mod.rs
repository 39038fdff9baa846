//! The source's end: what it may do when, and who is told.
//!
//! Its shell copies pages, pauses and resumes, writes the record; here is decided whether it may.

mod operator;
mod peer;
mod recorded;

use std::time::Duration;

use crate::proto::StunNumber;
use crate::proto::message::{Message, Progress, Setup, Standing};
use crate::session::line::{ConnectionId, Line};
use crate::session::notes::Notes;
use crate::session::record::{Holder, SourceRecord};
use crate::session::standstill::Standstill;
use crate::session::{
    Failure, Heard, Machine, Moment, Output, Purpose, RETRY_INTERVAL, STALL_LIMIT, Word,
};

/// A Run that was said is void after so many link timeouts without a word from the destination.
const GUARD_TIMEOUTS: u32 = 2;
/// Most notes that may come while a record is being written.
const NOTES_EARLY_MAX: usize = 8;
/// Least time that a destination has to answer Run.
const ANSWER_LIMIT_MIN: Duration = Duration::from_secs(2);

/// How a source goes about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// What is asked of the destination.
    pub setup: Setup,
    /// This host's own link timeout.
    pub link_timeout: Duration,
    /// How long a handover may be unresolved before that is said again and again.
    pub resolve_limit: Duration,
    /// How long until it is given up; `None` never.
    pub give_up_after: Option<Duration>,
}

/// What happens to a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Begin.
    Start,
    /// A connection was made; both ends let it be silent for so long.
    Connected(ConnectionId, Duration),
    /// It could not be made.
    NotConnected(String),
    /// Something came over a connection.
    Heard(ConnectionId, Heard),
    /// The guest stands still, all pages and marks were sent; this is its state.
    Stunned(Vec<u8>),
    /// The shell is content with what it was told by [`Order::Ready`]: hand over.
    Commit,
    /// It is not: the guest shall run on here.
    GoBack,
    /// The record that was ordered last was written and synced, or not.
    Recorded(Result<(), String>),
    /// The shell cannot go on, or shall not.
    Abandon(Failure),
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
    /// The shadow exists: copy.
    Copy,
    /// The destination is prepared; inspecting took so long. Answer with Commit or `GoBack`.
    Ready(Duration),
    /// The stun is off: let the guest run on here, mark each data connection, copy.
    RunOn(StunNumber),
    /// Write and sync the record; answer with Recorded.
    Record(SourceRecord),
    /// Let the guest run here, freely; no more of it is sent.
    Resume(Failure),
    /// The guest is the destination's: never run it here again.
    HandedOver(Arrival),
    /// A note from the other side.
    Note(Vec<u8>),
    /// All that was sent as notes was taken.
    NotesHeard,
    /// Something that the user should hear.
    Notice(Notice),
    /// Nothing is left to do.
    Over,
}

/// How it is known that the guest is the destination's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// It said Running.
    Running,
    /// It said that the guest ran there, and went on or was ended.
    RanThere(Standing),
    /// An operator swore it.
    ByWord,
}

/// What the user should hear.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// Run was said, and nothing came back; asking again.
    Unresolved,
    /// The same, for so long now.
    StillUnresolved(Duration),
    /// The destination answers that it cannot say.
    NotKnown(Standing),
    /// It runs here, and the destination says that it runs or ran there.
    RunsThereToo,
    /// It would go on here, but there is no guest here any more: it is lost.
    Lost(Failure),
}

/// Where the source is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The destination builds its shadow.
    Setup,
    /// Pages are sent; the destination may not be told to run anything.
    Copying,
    /// Everything was sent; Ready is awaited.
    Stunned,
    /// The destination has everything, and nothing is decided.
    Prepared,
    /// The decision is being written.
    Committing,
    /// A decision is being taken back; then the guest runs here. `forced`: even if that cannot be
    /// written, since the destination refused.
    Uncommitting {
        /// Why.
        why: Failure,
        /// See above.
        forced: bool,
    },
    /// It is the destination's, unless that says otherwise.
    Committed,
    /// That it is the destination's is being written.
    Releasing(Arrival),
    /// It is the destination's.
    Released(Arrival),
    /// It runs here.
    Resumed(Failure),
    /// Given up by a word: stopped for good here, the record stays committed.
    Left,
}

/// The source's machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    settings: Settings,
    state: State,
    line: Option<Line>,
    connecting: bool,
    retry_at: Moment,
    /// The link timeout that both ends kept to on the last connection.
    timeout: Duration,
    stun: StunNumber,
    /// Whether there is a guest here.
    guest: bool,
    /// Whether the destination may hold a prepared copy that was not refused.
    perhaps_prepared: bool,
    run_said: Option<Moment>,
    /// The destination refused while the decision was being written.
    refused: Option<String>,
    /// An operator, or a disk that fails, wants the guest back: the destination is asked to refuse.
    wants_back: bool,
    /// The operator was asked to look, after Run had become void.
    look_asked: bool,
    interrupts: u32,
    /// Whether the record says released.
    released: bool,
    over: bool,
    standstill: Option<Standstill>,
    /// Whether Running was heard on the connection in use: from then on notes are taken there.
    running_heard: bool,
    notes: Notes,
    /// Notes that came before it was on disk that the guest is the destination's: whoever heard that
    /// they were taken may end, and must have heard Released before.
    notes_early: Vec<(u64, Vec<u8>)>,
    out: Vec<Output<Order>>,
}

impl Machine for Source {
    type Event = Event;
    type Order = Order;

    fn on(&mut self, event: Event, now: Moment) -> Vec<Output<Order>> {
        match event {
            Event::Start => self.connect(Purpose::Setup),
            Event::Connected(id, timeout) => self.connected(id, timeout, now),
            Event::NotConnected(why) => self.not_connected(why, now),
            Event::Heard(id, heard) if self.line.as_ref().is_some_and(|l| l.id == id) => {
                match heard {
                    Heard::Message(message) => self.message(message, now),
                    Heard::Lost(failure) => self.lost(failure, now),
                }
            }
            // Of a connection that was closed already.
            Event::Heard(..) => {}
            Event::Stunned(state) => self.stunned(state, now),
            Event::Commit if self.state == State::Prepared => {
                self.state = State::Committing;
                self.order(Order::Record(SourceRecord::Committed));
            }
            Event::GoBack if self.state == State::Prepared => {
                self.state = State::Copying;
                self.order(Order::RunOn(self.stun));
                self.send(Message::Again { stun: self.stun });
            }
            // The shell answered what was overtaken by the end of the attempt.
            Event::Commit | Event::GoBack => {}
            Event::Recorded(result) => self.recorded(result, now),
            Event::Abandon(failure) => self.abandon(failure),
            Event::Word(number, word) => {
                let reply = self.word(word, now);
                self.out.push(Output::Answer(number, reply));
            }
            Event::Note(note) => {
                let message = self.notes.add(note);
                // Sooner the destination takes it for a breach.
                if self.running_heard {
                    self.send(message);
                }
            }
            Event::Tick(progress) => self.time(progress, now),
        }
        std::mem::take(&mut self.out)
    }

    fn wake(&self) -> Option<Moment> {
        let line = self.line.as_ref().map(Line::wake);
        let retry =
            (self.line.is_none() && !self.connecting && self.wants_line()).then_some(self.retry_at);
        let standstill = self.standstill.map(|standstill| standstill.wake());
        [line, retry, standstill].into_iter().flatten().min()
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

impl Source {
    /// A new migration.
    pub fn new(settings: Settings) -> Self {
        Self {
            timeout: settings.link_timeout,
            settings,
            state: State::Setup,
            line: None,
            connecting: false,
            retry_at: Moment::default(),
            stun: StunNumber(0),
            guest: true,
            perhaps_prepared: false,
            run_said: None,
            refused: None,
            wants_back: false,
            look_asked: false,
            interrupts: 0,
            released: false,
            over: false,
            standstill: None,
            running_heard: false,
            notes: Notes::default(),
            notes_early: Vec::new(),
            out: Vec::new(),
        }
    }

    /// A new engine takes up a record; what it does at once. `stun` and `timeout` are the record's.
    pub fn restored(
        settings: Settings,
        record: SourceRecord,
        stun: StunNumber,
        timeout: Duration,
        guest: Holder,
        now: Moment,
    ) -> (Self, Vec<Output<Order>>) {
        let mut source = Self::new(settings);
        source.timeout = source.timeout.max(timeout);
        source.guest = guest != Holder::Gone;
        (source.stun, source.retry_at) = (stun, now);
        match record {
            SourceRecord::Committed => {
                source.state = State::Committed;
                // When Run was said last is not known: it may have been a moment ago.
                source.run_said = Some(now);
                source.perhaps_prepared = true;
                source.unresolved(now);
            }
            SourceRecord::Open | SourceRecord::TakenBack if source.guest => {
                let why = Failure::Local("the engine ended in the middle of it".to_owned());
                source.state = State::Resumed(why.clone());
                source.perhaps_prepared = true;
                source.order(Order::Resume(why));
            }
            // Withdraws nothing: the destination's copy may be the only one.
            SourceRecord::Open | SourceRecord::TakenBack => {
                source.state = State::Resumed(Failure::Local("the guest is gone".to_owned()));
                source.order(Order::Over);
            }
            SourceRecord::Released => {
                source.state = State::Released(Arrival::Running);
                source.settled();
            }
        }
        let out = std::mem::take(&mut source.out);
        (source, out)
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The stun that was sent last.
    pub fn stun(&self) -> StunNumber {
        self.stun
    }

    /// The link timeout that both ends keep to.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the destination can be talked to.
    pub fn is_connected(&self) -> bool {
        self.line.is_some()
    }

    /// The same machine on a clock on which `now` is `most`, and with no moment before 0: two that
    /// differ only in when they are, or in why, become equal. When a connection is silent and when
    /// it is tried anew is the explorer's to say, and so are reminders.
    #[must_use]
    pub fn rebased(&self, now: Moment, most: Duration) -> Self {
        let mut same = self.clone();
        if let Some(line) = &mut same.line {
            line.rebase(most);
        }
        same.retry_at = Moment(most);
        same.run_said = self.run_said.map(|said| crate::session::rebase(said, now, most));
        same.standstill = None;
        if let State::Uncommitting { why, .. } | State::Resumed(why) = &mut same.state {
            *why = Failure::Cancelled;
        }
        same.refused = self.refused.as_ref().map(|_| String::new());
        same
    }

    fn order(&mut self, order: Order) {
        self.out.push(Output::Order(order));
    }

    fn send(&mut self, message: Message) {
        if let Some(line) = &self.line {
            self.out.push(Output::Send(line.id, message));
        }
    }

    fn connect(&mut self, purpose: Purpose) {
        self.connecting = true;
        self.out.push(Output::Connect(purpose));
    }

    fn close(&mut self) {
        self.running_heard = false;
        if let Some(line) = self.line.take() {
            self.out.push(Output::Close(line.id));
        }
    }

    /// Whether there is still something to hear from the destination, or to tell it.
    fn wants_line(&self) -> bool {
        match &self.state {
            State::Committed => true,
            State::Released(Arrival::Running) => !self.over,
            State::Resumed(_) => self.perhaps_prepared && self.guest,
            State::Setup
            | State::Copying
            | State::Stunned
            | State::Prepared
            | State::Committing
            | State::Uncommitting { .. }
            | State::Releasing(_)
            | State::Released(Arrival::RanThere(_) | Arrival::ByWord)
            | State::Left => false,
        }
    }

    fn connected(&mut self, id: ConnectionId, timeout: Duration, now: Moment) {
        self.connecting = false;
        if self.state == State::Setup {
            self.timeout = timeout;
            self.line = Some(Line::new(id, timeout, now));
            self.send(Message::Setup(self.settings.setup.clone()));
        } else if self.wants_line() {
            self.timeout = self.timeout.max(timeout);
            self.line = Some(Line::new(id, timeout, now));
        } else {
            self.out.push(Output::Close(id));
        }
    }

    fn not_connected(&mut self, why: String, now: Moment) {
        self.connecting = false;
        self.retry_at = now.after(RETRY_INTERVAL);
        if self.state == State::Setup {
            self.resume(Failure::Unreachable(why));
        }
    }

    fn stunned(&mut self, state: Vec<u8>, now: Moment) {
        if self.state != State::Copying {
            return;
        }
        self.state = State::Stunned;
        self.stun.0 += 1;
        self.perhaps_prepared = true;
        if let Some(line) = &mut self.line {
            line.await_from(now);
        }
        self.send(Message::State { stun: self.stun, state });
    }

    /// Before the commit the guest runs here again, whatever happened.
    fn abandon(&mut self, failure: Failure) {
        match self.state {
            State::Setup | State::Copying | State::Stunned | State::Prepared => {
                self.send(Message::Cancel { why: failure.to_string() });
                self.resume(failure);
            }
            // What is decided, or being decided, is not the shell's to end.
            State::Committing
            | State::Uncommitting { .. }
            | State::Committed
            | State::Releasing(_)
            | State::Released(_)
            | State::Resumed(_)
            | State::Left => {}
        }
    }

    /// The guest runs here, if there is one. A copy that may be prepared is withdrawn, on new
    /// connections if need be; else nothing is left to do.
    fn resume(&mut self, why: Failure) {
        self.standstill = None;
        self.state = State::Resumed(why.clone());
        self.order(match self.guest {
            true => Order::Resume(why),
            false => Order::Notice(Notice::Lost(why)),
        });
        if !self.perhaps_prepared {
            self.settled();
        }
    }

    fn settled(&mut self) {
        self.perhaps_prepared = false;
        self.over = true;
        self.close();
        self.order(Order::Over);
    }

    fn lost(&mut self, failure: Failure, now: Moment) {
        // At once, but for a peer that takes connections and drops them again.
        let soon = self.line.as_ref().map(|line| line.opened.after(RETRY_INTERVAL));
        self.retry_at = soon.unwrap_or(now).max(now);
        self.close();
        match self.state {
            State::Setup | State::Copying | State::Stunned | State::Prepared => {
                self.resume(failure)
            }
            State::Committed => self.unresolved(now),
            State::Committing
            | State::Uncommitting { .. }
            | State::Releasing(_)
            | State::Released(_)
            | State::Resumed(_)
            | State::Left => {}
        }
    }

    fn unresolved(&mut self, now: Moment) {
        if self.standstill.is_none() {
            let Settings { resolve_limit, give_up_after, .. } = self.settings;
            self.standstill = Some(Standstill::new(now, resolve_limit, give_up_after));
            self.order(Order::Notice(Notice::Unresolved));
        }
    }

    fn time(&mut self, progress: Progress, now: Moment) {
        if let Some(failure) = self.line.as_ref().and_then(|line| line.lost(now)) {
            self.lost(failure, now);
        }
        if let Some(failure) = self.stuck(now) {
            match self.state {
                State::Setup | State::Stunned => self.abandon(failure),
                _ => {
                    self.lost(failure, now);
                    self.retry_at = now.after(RETRY_INTERVAL);
                }
            }
        }
        if let Some(alive) = self.line.as_mut().and_then(|line| line.alive(progress, now)) {
            self.send(alive);
        }
        if self.standstill.is_some_and(|standstill| standstill.is_given_up(now)) {
            // Nobody waits for this answer.
            let _ = self.leave();
        }
        if let Some(since) = self.standstill.as_mut().and_then(|still| still.reminder(now)) {
            self.order(Order::Notice(Notice::StillUnresolved(since)));
        }
        let idle = self.line.is_none() && !self.connecting && self.wants_line();
        if idle && now >= self.retry_at {
            self.connect(Purpose::Resolve);
        }
    }

    /// Why waiting for the destination's next word is over.
    fn stuck(&self, now: Moment) -> Option<Failure> {
        let line = self.line.as_ref()?;
        let answer = (self.timeout * 2).max(ANSWER_LIMIT_MIN);
        match self.state {
            State::Setup => line.stuck("the shadow", STALL_LIMIT, now),
            State::Stunned => line.stuck("the guest to be loaded", STALL_LIMIT, now),
            State::Committed => line.stuck("an answer to Run", answer, now),
            State::Resumed(_) => line.stuck("its refusal", answer, now),
            State::Copying
            | State::Prepared
            | State::Committing
            | State::Uncommitting { .. }
            | State::Releasing(_)
            | State::Released(_)
            | State::Left => None,
        }
    }
}
