//! Who is being received at one endpoint, how many more may come, and which of them wait for a source
//! that was lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{DestinationSettings, TICK};
use crate::conductor::Handle;
use crate::link::endpoint::Endpoint;
use crate::operator::StateDirectory;
use crate::proto::hello::MigrationId;
use crate::session::destination::{Destination, Event, State};

/// How long a guest that is superseded may take until its memory is free.
const SUPERSEDED: Duration = Duration::from_secs(10);

/// The rooms of a host.
pub(super) struct Rooms {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) directory: StateDirectory,
    pub(super) settings: DestinationSettings,
    /// Most guests that are received at once.
    guests: usize,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// Who is being received, the first that came first, with what is said of it.
    taken: Vec<(MigrationId, String)>,
    /// Who stands complete, with its source lost.
    alone: HashMap<MigrationId, Handle<Destination>>,
}

impl Rooms {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        directory: StateDirectory,
        settings: DestinationSettings,
        guests: usize,
    ) -> Self {
        let guests = guests.max(1);
        Self { endpoint, directory, settings, guests, book: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one guest at a time is received.
    pub(super) fn is_single(&self) -> bool {
        self.guests == 1
    }

    /// A guest is being received, of which this can be said.
    pub(super) fn occupy(&self, migration: MigrationId, what: String) {
        let mut book = self.book();
        match book.taken.iter_mut().find(|(taken, _)| *taken == migration) {
            Some((_, said)) => *said = what,
            None => book.taken.push((migration, what)),
        }
        self.tell(&book);
    }

    /// It is received no more: it runs, or is not here, or waits for its source.
    pub(super) fn vacate(&self, migration: MigrationId) {
        let mut book = self.book();
        book.taken.retain(|(taken, _)| *taken != migration);
        book.alone.remove(&migration);
        self.tell(&book);
    }

    /// It stands here complete, and its source was lost.
    pub(super) fn left_alone(&self, migration: MigrationId, session: Handle<Destination>) {
        let mut book = self.book();
        book.taken.retain(|(taken, _)| *taken != migration);
        book.alone.insert(migration, session);
        self.tell(&book);
    }

    /// What callers are told.
    fn tell(&self, book: &Book) {
        let more = book.taken.len().saturating_sub(1);
        let busy = book.taken.first().filter(|_| book.taken.len() >= self.guests);
        self.endpoint.set_busy(busy.map(|(_, what)| match more {
            0 => what.clone(),
            more => format!("{what} and {more} more"),
        }));
    }

    /// A later attempt of guests that wait here is about to take their place: those that stand without
    /// their source are dropped, and their memory is free before this returns.
    pub(super) fn supersede(&self, earlier: &[MigrationId]) {
        let waiting: Vec<MigrationId> = {
            let book = self.book();
            let alone = earlier.iter().filter_map(|id| book.alone.get_key_value(id));
            alone
                .filter(|(_, session)| {
                    session.look(|s| *s.state() == State::Prepared && !s.is_connected())
                })
                .map(|(id, session)| {
                    session.on(Event::Superseded);
                    *id
                })
                .collect()
        };
        let deadline = Instant::now() + SUPERSEDED;
        let here = || self.book().alone.keys().any(|id| waiting.contains(id));
        while !waiting.is_empty() && here() && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
    }
}
