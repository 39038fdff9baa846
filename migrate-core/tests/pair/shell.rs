//! The shells: they feed the machines, and carry their outputs out one by one, in order. What only
//! talks is carried out at once, since a network may do with it what it likes; what touches a guest
//! or a disk is a step of its own, before which the engine may crash.

use migrate_core::proto::StunNumber;
use migrate_core::proto::message::{Message, Standing};
use migrate_core::session::destination::{self, Destination};
use migrate_core::session::source::{self, Source};
use migrate_core::session::{Machine, Moment, Output, Purpose, Reply};

use crate::chart::Side;
use crate::fingerprint::Kept;
use crate::world::{
    Answer, Clock, Copy, Frame, Guest, MOST, NOW, Progress, Reading, Task, There, Violation, World,
    is_accusation, without_texts,
};

impl World {
    pub fn feed_source(&mut self, event: source::Event) {
        self.feed_source_at(event, self.now());
    }

    pub fn feed_source_at(&mut self, event: source::Event, now: Moment) {
        let Some(engine) = &self.source.engine else { return };
        let mut engine = Source::clone(engine);
        let out = engine.on(event, now);
        self.keep_source(engine, out);
    }

    pub fn keep_source(&mut self, engine: Source, out: Vec<Output<source::Order>>) {
        self.source.engine = Some(match self.rules.0.clock {
            Clock::Whole => Kept::new(engine.rebased(NOW, MOST)),
            Clock::Quarters => Kept::unprinted(engine),
        });
        for output in &out {
            if let Output::Answer(_, reply) = output {
                self.hear_answer(Side::Source, reply);
            }
        }
        self.source.orders.extend(out);
        self.settle_source();
    }

    /// Carries out what only talks.
    pub fn settle_source(&mut self) {
        while let Some(output) = self.source.orders.front() {
            match output {
                Output::Order(
                    source::Order::RunOn(_)
                    | source::Order::Resume(_)
                    | source::Order::HandedOver(_),
                ) => break,
                Output::Order(source::Order::Record(_)) if self.source.writing.is_some() => break,
                _ => {}
            }
            if let Some(output) = self.source.orders.pop_front() {
                self.carry_out_at_source(output);
            }
        }
    }

    pub fn carry_out_at_source(&mut self, output: Output<source::Order>) {
        match output {
            Output::Connect(purpose) => self.source.connecting = Some(purpose),
            Output::Send(id, message) => self.send_there(id.0, message),
            Output::Close(id) => self.close_at_source(id.0),
            // It was heard with the word.
            Output::Answer(..) => {}
            Output::Order(order) => self.obey_at_source(order),
        }
    }

    fn obey_at_source(&mut self, order: source::Order) {
        use source::Order;
        match order {
            Order::Copy => {
                self.source.task = Task::Copying;
                self.send_pages();
            }
            Order::Ready(_) => self.source.task = Task::Deciding,
            Order::RunOn(stun) => {
                self.note(Side::Source, "the guest RUNS on");
                self.start_source();
                self.source.task = Task::Copying;
                self.stream(Frame::Again(stun));
                self.send_pages();
            }
            Order::Record(record) => {
                self.source.writing = Some((record, Progress::Ordered));
                let stun = self.source.engine.as_ref().map(|engine| engine.stun());
                self.mutate_source_record(record, stun.unwrap_or_default());
            }
            Order::Resume(_) => {
                self.note(Side::Source, "the guest RUNS here");
                self.source.task = Task::Nothing;
                self.start_source();
            }
            Order::HandedOver(_) => {
                self.note(Side::Source, "drops the guest");
                self.source.task = Task::Nothing;
                self.source.guest = Guest::None;
            }
            Order::Over => {
                if self
                    .source
                    .engine
                    .as_ref()
                    .is_some_and(|engine| matches!(engine.state(), source::State::Left))
                {
                    // The program ends, and its guest with it.
                    self.gave_up = true;
                    self.source.guest = Guest::None;
                }
                if self.source.guest == Guest::None {
                    self.said_lost = true;
                }
            }
            Order::Notice(notice) => {
                use source::Notice;
                self.told.0[0] = self.now();
                self.said_lost |= matches!(notice, Notice::NotKnown(_) | Notice::Lost(_));
            }
            Order::Note(_) | Order::NotesHeard => {}
        }
    }

    /// What was written since it was sent last goes onto the data stream.
    fn send_pages(&mut self) {
        for page in 0..self.source.owed.len() {
            if std::mem::take(&mut self.source.owed[page]) {
                self.stream(Frame::Page(page as u8, self.source.memory[page]));
            }
        }
        // The guest runs, and writes again what it writes in this run.
        let page = usize::from(self.source.run) % self.source.memory.len();
        self.source.memory[page] = self.source.run;
        self.source.owed[page] = true;
    }

    fn stream(&mut self, frame: Frame) {
        let attempt = self.source.attempt;
        for connection in &mut self.connections {
            let setup = connection.purpose == Purpose::Setup && connection.attempt == attempt;
            if setup && connection.source_open && !connection.cut {
                connection.stream.push_back(frame.clone());
            }
        }
    }

    /// The guest is paused, what is owed is sent, and its state.
    pub fn stun(&mut self) {
        self.source.guest = Guest::Stopped;
        self.source.task = Task::Nothing;
        for page in 0..self.source.owed.len() {
            if std::mem::take(&mut self.source.owed[page]) {
                self.stream(Frame::Page(page as u8, self.source.memory[page]));
            }
        }
        let next = self.source.engine.as_ref().map_or(0, |engine| engine.stun().0) + 1;
        self.stream(Frame::End(StunNumber(next)));
        let mut state = vec![self.source.run];
        state.extend(self.source.memory);
        self.feed_source(source::Event::Stunned(state));
    }

    fn send_there(&mut self, id: u64, message: Message) {
        if is_accusation(&message) && self.rules.0.mutant.is_none() {
            self.violate(Violation::Breach);
        }
        let message = without_texts(message);
        if matches!(message, Message::Alive(_)) && !self.counts_quarters() {
            return;
        }
        if let Some(at) = self.connection(id) {
            let connection = &mut self.connections[at];
            if connection.cut || !connection.source_open {
                return;
            }
            self.connections[at].to_there.push_back(message);
        }
    }

    fn send_back(&mut self, attempt: usize, id: u64, message: Message) {
        if is_accusation(&message) && self.rules.0.mutant.is_none() {
            self.violate(Violation::Breach);
        }
        let message = without_texts(message);
        if matches!(message, Message::Alive(_)) && !self.counts_quarters() {
            return;
        }
        self.judge(attempt, &message);
        if let Some(at) = self.connection(id) {
            let connection = &mut self.connections[at];
            if connection.cut || connection.there != There::Open {
                return;
            }
            self.connections[at].to_source.push_back(message);
        }
    }

    /// Whether what a destination says is true.
    fn judge(&mut self, attempt: usize, message: &Message) {
        let end = &mut self.there[attempt];
        let (prepared, ran) = (end.is_prepared(), end.ran);
        let (is_true, what) = match message {
            Message::Ready { .. } => (prepared, "Ready"),
            Message::Late { .. } => (prepared, "Late"),
            Message::Standing(Standing::Prepared { .. }) => (prepared, "prepared"),
            Message::Running => (ran, "Running"),
            Message::Standing(Standing::GoneOn | Standing::Ended) => (ran, "ran here"),
            Message::Refused { .. } => {
                end.refused = true;
                (!ran, "Refused")
            }
            _ => (true, ""),
        };
        if !is_true {
            self.violate(Violation::Untrue(what));
        }
    }

    pub fn close_at_source(&mut self, id: u64) {
        if let Some(at) = self.connection(id) {
            self.never_arrive(Side::Source, at);
            let connection = &mut self.connections[at];
            (connection.source_open, connection.cut) = (false, true);
            connection.to_source.clear();
            if connection.there == There::Pending && connection.purpose == Purpose::Resolve {
                // It is never accepted, or as good as never.
                connection.there = There::Closed;
            }
        }
    }

    pub fn close_there(&mut self, id: u64) {
        if let Some(at) = self.connection(id) {
            self.never_arrive(Side::Destination, at);
            let connection = &mut self.connections[at];
            (connection.there, connection.cut) = (There::Closed, true);
            connection.to_there.clear();
            connection.stream.clear();
        }
    }

    fn hear_answer(&mut self, side: Side, reply: &Reply) {
        if reply.taken {
            self.left.words = self.left.words.saturating_sub(1);
            (self.look_asked, self.looked) = (false, false);
        } else if reply.text.starts_with("look now") {
            (self.look_asked, self.looked) = (true, self.looked && self.keeps_an_old_look());
            self.note(Side::Source, "answers: look now");
        } else {
            self.note(side, "answers: no");
        }
    }

    pub fn feed_there(&mut self, attempt: usize, event: destination::Event) {
        self.feed_there_at(attempt, event, self.now());
    }

    pub fn feed_there_at(&mut self, attempt: usize, event: destination::Event, now: Moment) {
        let Some(engine) = &self.there[attempt].engine else { return };
        let mut engine = Destination::clone(engine);
        let out = engine.on(event, now);
        self.keep_there(attempt, engine, out);
    }

    pub fn keep_there(
        &mut self,
        attempt: usize,
        engine: Destination,
        out: Vec<Output<destination::Order>>,
    ) {
        for output in &out {
            if let Output::Answer(_, reply) = output {
                self.hear_answer(Side::Destination, reply);
            }
        }
        let end = &mut self.there[attempt];
        end.engine = Some(match self.rules.0.clock {
            Clock::Whole => Kept::new(engine.rebased(NOW, MOST)),
            Clock::Quarters => Kept::unprinted(engine),
        });
        end.orders.extend(out);
        end.doomed &= end.is_writing();
        self.settle_there(attempt);
    }

    pub fn settle_there(&mut self, attempt: usize) {
        use destination::Order;
        while let Some(output) = self.there[attempt].orders.front() {
            let end = &self.there[attempt];
            let writes = end.answers.iter().any(|answer| matches!(answer, Answer::Recorded(..)));
            match output {
                Output::Order(Order::Open | Order::Drop(_) | Order::Forget) => break,
                Output::Order(Order::Record(_)) if writes => break,
                _ => {}
            }
            if let Some(output) = self.there[attempt].orders.pop_front() {
                self.carry_out_there(attempt, output);
            }
        }
    }

    pub fn carry_out_there(&mut self, attempt: usize, output: Output<destination::Order>) {
        match output {
            Output::Connect(_) => {}
            Output::Send(id, message) => self.send_back(attempt, id.0, message),
            Output::Close(_) if self.reads_older_connections() => {}
            Output::Close(id) => self.close_there(id.0),
            Output::Answer(..) => {}
            Output::Order(order) => self.obey_there(attempt, order),
        }
    }

    fn obey_there(&mut self, attempt: usize, order: destination::Order) {
        use destination::{Notice, Order};
        match order {
            Order::Build(setup) => {
                self.there[attempt].answers.push(Answer::Built);
                for earlier in 0..attempt {
                    self.there[earlier].superseded = self.there[earlier].engine.is_some()
                        && setup.earlier.contains(&crate::world::attempt_id(earlier as u8));
                }
            }
            Order::Receive(None) => self.there[attempt].reading = Reading::Pages,
            Order::Receive(Some(mark)) => self.there[attempt].reading = Reading::Behind(mark),
            Order::Load(state) => self.there[attempt].answers.push(Answer::Loaded(state)),
            Order::Record(record) => {
                self.there[attempt].answers.push(Answer::Recorded(record, Progress::Ordered));
                self.mutate_destination_record(attempt);
            }
            Order::Open => {
                self.note(Side::Destination, "opens the gate: the guest RUNS");
                self.start_there(attempt);
                self.there[attempt].answers.push(Answer::Opened);
            }
            Order::Drop(_) => {
                self.note(Side::Destination, "drops the guest");
                self.there[attempt].copy = None;
                self.there[attempt].reading = Reading::Nothing;
            }
            Order::Forget => {
                let keep = self.rules.0.power;
                self.there[attempt].disk.write(None, false, keep);
            }
            Order::Notice(_) | Order::Over => {
                self.told.0[1] = self.now();
                let fails = matches!(order, Order::Notice(Notice::RecordFails(_)) | Order::Over);
                self.said_lost |= fails && self.there[attempt].copy.is_none();
            }
            Order::Note(_) | Order::NotesHeard => {}
        }
    }

    /// The shadow's memory exists.
    pub fn built(&mut self, attempt: usize) {
        self.there[attempt].copy =
            Some(Copy { memory: [u8::MAX; 2], state: None, runs: false, started: None });
    }

    /// Device state is in the guest.
    pub fn loaded(&mut self, attempt: usize, state: &[u8]) {
        if let (Some(copy), [run, memory @ ..]) = (&mut self.there[attempt].copy, state)
            && let Ok(memory) = memory.try_into()
        {
            copy.state = Some((*run, memory));
        }
    }

    /// Reads the data stream up to the end of a stun, or to what may not be read yet.
    pub fn read_pages(&mut self, attempt: usize) {
        loop {
            let end = &mut self.there[attempt];
            let Some(connection) = self.connections.iter_mut().find(|connection| {
                usize::from(connection.attempt) == attempt
                    && connection.purpose == Purpose::Setup
                    && connection.there == There::Open
            }) else {
                return;
            };
            match (connection.stream.front(), end.reading) {
                (Some(Frame::Page(page, version)), Reading::Pages) => {
                    if let Some(copy) = &mut end.copy {
                        copy.memory[usize::from(*page)] = *version;
                    }
                    connection.stream.pop_front();
                }
                (Some(Frame::End(_)), Reading::Pages) => {
                    connection.stream.pop_front();
                    end.reading = Reading::Nothing;
                    self.note(Side::Destination, "has all pages");
                    self.feed_there(attempt, destination::Event::PagesComplete);
                    return;
                }
                (Some(Frame::Again(stun)), Reading::Behind(mark)) if *stun == mark => {
                    connection.stream.pop_front();
                    end.reading = Reading::Pages;
                    if let Some(copy) = &mut end.copy {
                        copy.state = None;
                    }
                }
                _ => return,
            }
        }
    }

    /// Whether there is something to read on the data stream.
    pub fn can_read_pages(&self, attempt: usize) -> bool {
        let reading = self.there[attempt].reading;
        self.connections.iter().any(|connection| {
            usize::from(connection.attempt) == attempt
                && connection.purpose == Purpose::Setup
                && connection.there == There::Open
                && match reading {
                    Reading::Nothing => false,
                    Reading::Pages => {
                        connection.stream.iter().any(|frame| matches!(frame, Frame::End(_)))
                    }
                    Reading::Behind(_) => !connection.stream.is_empty(),
                }
        })
    }
}
