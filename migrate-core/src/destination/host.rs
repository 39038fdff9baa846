//! One endpoint and the guests that come to it: who is being received, how many more may come, and
//! which of them wait for a source that was lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::registry::Registry;
use super::shell::Reception;
use super::{Arrived, DestinationSettings, Ended, Observer, Progress, Source, TICK, await_source};
use crate::Error;
use crate::conductor::Handle;
use crate::guest::ShadowFactory;
use crate::link::endpoint::Endpoint;
use crate::operator::StateDirectory;
use crate::proto::hello::MigrationId;
use crate::session::destination::{Destination, Event, State};

/// How long a guest that is superseded may take until its memory is free.
const SUPERSEDED: Duration = Duration::from_secs(10);

/// Where guests are received; several threads may each wait for one.
pub struct Host {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) directory: StateDirectory,
    pub(super) settings: DestinationSettings,
    /// Most that are received at once.
    guests: usize,
    rooms: Mutex<Rooms>,
}

#[derive(Default)]
struct Rooms {
    /// Who is being received, the first that came first, with what is said of it.
    taken: Vec<(MigrationId, String)>,
    /// Who stands complete, with its source lost.
    alone: HashMap<MigrationId, Handle<Destination>>,
}

impl Host {
    /// Receives at this endpoint, at most so many guests at once. From now on, as long as the endpoint
    /// lives, sources of earlier migrations are told how those stand, by the records in the state
    /// directory.
    ///
    /// # Errors
    /// The state directory cannot be used.
    pub fn open(
        endpoint: &Arc<Endpoint>,
        settings: &DestinationSettings,
        guests: usize,
    ) -> Result<Self, Error> {
        let directory = StateDirectory::open(&settings.state_directory)?;
        let registry = Arc::new(Registry::take_up(&directory)?);
        endpoint.set_stranger(Arc::new(move |caller| registry.answer(caller)));
        let (endpoint, settings) = (endpoint.clone(), settings.clone());
        Ok(Self { endpoint, directory, settings, guests: guests.max(1), rooms: Mutex::default() })
    }

    /// Waits for one guest for so long at most, or until cancelled; receives it, and runs it.
    ///
    /// # Errors
    /// Why it does not run here. The source was told, if it could be.
    pub fn receive<F: ShadowFactory>(
        &self,
        factory: &mut F,
        patience: Option<Duration>,
        observer: &mut dyn Observer,
    ) -> Result<Arrived<F::Shadow>, Error> {
        let mut next: Option<Source> = None;
        loop {
            let source = match next.take() {
                Some(source) => source,
                None => await_source(&self.endpoint, patience, observer)?,
            };
            let (peer, migration) = (source.peer, source.hello.migration);
            let ended = Reception::begin(self, source, observer)
                .map_err(Ended::Failed)
                .and_then(|reception| reception.run(factory));
            self.vacate(migration);
            match ended {
                Ok(arrived) => return Ok(arrived),
                Err(Ended::BeforeSetup(why)) => {
                    observer.progress(Progress::Rejected { what: format!("{peer}: {why}") });
                }
                Err(Ended::Superseded(source)) => next = Some(*source),
                Err(Ended::Failed(error)) => return Err(error),
            }
        }
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one guest at a time is received.
    pub(super) fn is_single(&self) -> bool {
        self.guests == 1
    }

    /// A guest is being received, of which this can be said.
    pub(super) fn occupy(&self, migration: MigrationId, what: String) {
        let mut rooms = self.rooms();
        match rooms.taken.iter_mut().find(|(taken, _)| *taken == migration) {
            Some((_, said)) => *said = what,
            None => rooms.taken.push((migration, what)),
        }
        self.tell(&rooms);
    }

    /// It is received no more: it runs, or is not here, or waits for its source.
    pub(super) fn vacate(&self, migration: MigrationId) {
        let mut rooms = self.rooms();
        rooms.taken.retain(|(taken, _)| *taken != migration);
        rooms.alone.remove(&migration);
        self.tell(&rooms);
    }

    /// It stands here complete, and its source was lost.
    pub(super) fn left_alone(&self, migration: MigrationId, session: Handle<Destination>) {
        let mut rooms = self.rooms();
        rooms.taken.retain(|(taken, _)| *taken != migration);
        rooms.alone.insert(migration, session);
        self.tell(&rooms);
    }

    /// What callers are told.
    fn tell(&self, rooms: &Rooms) {
        let more = rooms.taken.len().saturating_sub(1);
        let busy = rooms.taken.first().filter(|_| rooms.taken.len() >= self.guests);
        self.endpoint.set_busy(busy.map(|(_, what)| match more {
            0 => what.clone(),
            more => format!("{what} and {more} more"),
        }));
    }

    /// A later attempt of guests that wait here is about to take their place: those that stand without
    /// their source are dropped, and their memory is free before this returns.
    pub(super) fn supersede(&self, earlier: &[MigrationId]) {
        let waiting: Vec<MigrationId> = {
            let rooms = self.rooms();
            let alone = earlier.iter().filter_map(|id| rooms.alone.get_key_value(id));
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
        let here = || self.rooms().alone.keys().any(|id| waiting.contains(id));
        while !waiting.is_empty() && here() && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
    }
}
