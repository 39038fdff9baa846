//! What goes on in the background once nothing is left to decide quickly: a source that comes back
//! is let in, records are written, and notes are handed to whoever waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Error;
use crate::conductor::{Conductor, Handle};
use crate::error::spawn;
use crate::link::endpoint::{Caller, Endpoint, Route};
use crate::operator::Registration;
use crate::operator::record::{Record, Says};
use crate::proto::hello::{Role, Welcome};
use crate::proto::message::Standing;
use crate::session::destination::{Destination, Event, Order};
use crate::source::notes::NoteSignal;

/// How often callers are looked at beside orders.
const TICK: Duration = Duration::from_millis(10);

/// Keeps a session going until this value goes.
pub(super) struct Keeper {
    conductor: Arc<Conductor<Destination>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _registered: Option<Registration>,
    _endpoint: Option<Arc<Endpoint>>,
}

/// Where a session's orders come from.
pub(super) type Orders = Box<dyn FnMut(Duration) -> Option<Order> + Send>;

/// What a keeper looks after.
pub(super) struct Kept {
    pub(super) conductor: Conductor<Destination>,
    /// The session's next order, within a time.
    pub(super) orders: Orders,
    pub(super) record: Record,
    pub(super) route: Option<Route>,
    pub(super) registered: Option<Registration>,
    /// Where a source that lost the link comes back to.
    pub(super) endpoint: Option<Arc<Endpoint>>,
}

impl Keeper {
    /// Begins to keep; what comes of notes.
    pub(super) fn start(kept: Kept) -> Result<(Self, Receiver<NoteSignal>), Error> {
        let Kept { conductor, mut orders, record, route, registered, endpoint } = kept;
        let conductor = Arc::new(conductor);
        let (notes, signals) = mpsc::channel();
        let stop: Arc<AtomicBool> = Arc::default();
        let mut books = Books { record: Some(record), session: conductor.handle(), notes };
        let (told, attaching) = (stop.clone(), conductor.clone());
        let thread = spawn("keeper", move || {
            loop {
                let over = told.load(Ordering::Relaxed);
                while let Some(order) = orders(if over { Duration::ZERO } else { TICK }) {
                    books.carry_out(order);
                }
                if over {
                    return;
                }
                let caller = route.as_ref().and_then(|route| route.next(Duration::ZERO));
                if let Some(caller) = caller {
                    let_in(&attaching, caller);
                }
            }
        })?;
        let thread = Some(thread);
        let keeper = Self { conductor, stop, thread, _registered: registered, _endpoint: endpoint };
        Ok((keeper, signals))
    }

    /// A source that asks how it stands.
    pub(super) fn let_in(&self, caller: Caller) {
        let_in(&self.conductor, caller);
    }

    /// The guest went on or was ended: whoever asks from now on is told so.
    pub(super) fn left(&self, standing: Standing) {
        self.conductor.on(Event::Left(standing));
    }

    /// A way to the session.
    pub(super) fn handle(&self) -> Handle<Destination> {
        self.conductor.handle()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.left(Standing::Ended);
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets a source in that asks how it stands; anything else with this migration's id is told that it
/// is under way already.
pub(super) fn let_in(conductor: &Conductor<Destination>, caller: Caller) {
    if caller.hello.role != Role::Resolve {
        // Its loss is the caller's.
        let _ = caller.answer(&Welcome::Busy("this migration is under way already".to_owned()));
        return;
    }
    if let Ok((channel, timeout)) = caller.answer(&Welcome::Ok) {
        // Where the system has no thread for it, the source comes again.
        let _ = conductor.attach(channel, |id| Event::Asked(id, timeout));
    }
}

/// The record of a session, and who waits for its notes.
struct Books {
    record: Option<Record>,
    session: Handle<Destination>,
    notes: Sender<NoteSignal>,
}

impl Books {
    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Record(says) => {
                let stun = self.session.look(Destination::stun);
                let written = match &mut self.record {
                    Some(record) => {
                        let timeout = record.contents().timeout;
                        record.write(Says::Destination(says), stun, timeout)
                    }
                    // Forgotten: nobody will ask.
                    None => Ok(()),
                };
                self.session.on(Event::Recorded(written.map_err(|e| e.to_string())));
            }
            Order::Forget => {
                if let Some(record) = self.record.take() {
                    record.remove();
                }
            }
            // A guest that is not here has no gate.
            Order::Open => self.session.on(Event::Opened),
            Order::Note(note) => self.tell(NoteSignal::Note(note)),
            Order::NotesHeard => self.tell(NoteSignal::Heard),
            Order::Over => self.tell(NoteSignal::Over),
            Order::Build(_)
            | Order::Receive(_)
            | Order::Load(_)
            | Order::Drop(_)
            | Order::Notice(_) => {}
        }
    }

    fn tell(&self, signal: NoteSignal) {
        // Whoever waited may have stopped.
        let _ = self.notes.send(signal);
    }
}
