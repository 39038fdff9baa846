//! One endpoint and the guests that come to it.

use std::sync::Arc;
use std::time::Duration;

use super::registry::Registry;
use super::rooms::Rooms;
use super::shell::Reception;
use super::{Arrived, DestinationSettings, Ended, Observer, Progress, Source, await_source};
use crate::Error;
use crate::guest::ShadowFactory;
use crate::link::endpoint::Endpoint;
use crate::operator::StateDirectory;

/// Where guests are received; several threads may each wait for one.
pub struct Host {
    rooms: Rooms,
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
        Ok(Self { rooms: Rooms::new(endpoint.clone(), directory, settings.clone(), guests) })
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
                None => await_source(&self.rooms.endpoint, patience, observer)?,
            };
            let (peer, migration) = (source.peer, source.hello.migration);
            let ended = Reception::begin(&self.rooms, source, observer)
                .map_err(Ended::Failed)
                .and_then(|reception| reception.run(factory));
            self.rooms.vacate(migration);
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
}
