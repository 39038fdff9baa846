//! The destination: builds the shadow, receives pages into place, runs the guest when told to.
//!
//! The shadow exists with all its memory populated before the first page is asked for. Who runs the
//! guest when, and what a source that comes back is told, is decided by
//! [`crate::session::destination`]; here that is carried out.

mod attendant;
mod host;
mod keeper;
mod registry;
mod rooms;
mod shell;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Error;
use crate::guest::ShadowFactory;
use crate::link::channel::Channel;
use crate::link::endpoint::Endpoint;
use crate::operator::{Desk, StateDirectory};
use crate::proto::Epoch;
use crate::proto::hello::{Hello, MigrationId, Welcome};
use crate::proto::message::Setup;
use crate::session::{Failure, Reply};
use crate::source::{Notes, RESOLVE_TIMEOUT};

pub use host::Host;

/// How often waits look at whether the user cancelled.
const TICK: Duration = Duration::from_millis(20);

/// How long to wait for what, and where to remember it.
#[derive(Clone, Debug)]
pub struct DestinationSettings {
    /// For a source to come; `None` waits until cancelled.
    pub arrival_timeout: Option<Duration>,
    /// How long a prepared guest may wait for a source that was lost before the observer hears of it
    /// again and again.
    pub resolve_timeout: Duration,
    /// How long until such a guest is given up; `None` never.
    pub give_up_after: Option<Duration>,
    /// Where handover records are kept until the handover is over; private to the user.
    pub state_directory: PathBuf,
    /// Where an operator asks and tells, if anywhere.
    pub operator: Option<Arc<Desk>>,
}

impl Default for DestinationSettings {
    /// Waits for ever, gives no guest up, and keeps records where this user's are kept.
    fn default() -> Self {
        Self {
            arrival_timeout: None,
            resolve_timeout: RESOLVE_TIMEOUT,
            give_up_after: None,
            state_directory: StateDirectory::default_path(),
            operator: None,
        }
    }
}

/// What a user may want to see while it goes on.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// A caller was turned away.
    Rejected {
        /// Who and why.
        what: String,
    },
    /// A source came; its shadow is being built.
    Setup {
        /// From where.
        peer: SocketAddr,
        /// Which migration it brings.
        migration: MigrationId,
        /// Pages of memory.
        pages: u64,
    },
    /// Pages arrive.
    Receiving,
    /// Everything is here; waiting for the source's word.
    Prepared,
    /// The source was lost with the guest prepared: it stays, stopped, until the source or an
    /// operator speaks.
    Unresolved {
        /// Which migration, for `vmigrate resolve`.
        migration: MigrationId,
        /// For how long now; none when it begins.
        since: Duration,
    },
    /// The source is back.
    SourceBack,
    /// A record could not be written; what depends on it waits.
    RecordFails {
        /// Why.
        why: String,
    },
    /// The guest runs here.
    Running,
    /// What an interrupt, or a word of an operator, was answered.
    Answer(Reply),
}

/// Who watches.
pub trait Observer {
    /// Something happened.
    fn progress(&mut self, progress: Progress);
    /// How often the user asked to stop; asked often. Nobody is waited for once they did; until everything is here the first time ends
    /// the attempt; a prepared guest whose source was lost is only given up the second time, and one
    /// that runs never.
    fn interrupts(&self) -> usize {
        0
    }
}

/// Nobody watches.
impl Observer for () {
    fn progress(&mut self, _: Progress) {}
}

/// A guest that arrived and runs here.
#[derive(Debug)]
pub struct Arrived<S> {
    /// The guest.
    pub guest: S,
    /// Which migration brought it.
    pub migration: MigrationId,
    /// From where.
    pub peer: SocketAddr,
    /// Hosts it has left.
    pub epoch: Epoch,
    /// Pages received, zero pages and repeats included.
    pub pages: u64,
    /// CPU time of this process while pages were received, in milliseconds.
    pub cpu_ms: f64,
    /// Whether it runs here by the oath of an operator that its source is gone for good: nobody is
    /// left to take a note.
    pub source_is_gone: bool,
    /// To the source, for the embedder's notes. A source that lost the link finds its way back
    /// through it: keep it until the guest's owner ends the guest, or it went on.
    pub control: Notes,
}

/// A source that was welcomed.
struct Source {
    hello: Hello,
    peer: SocketAddr,
    channel: Channel,
    timeout: Duration,
    /// What it asks for, if that was read already.
    setup: Option<Setup>,
}

/// How a reception ended without a guest.
enum Ended {
    /// The source never said what it wants: the next one is waited for.
    BeforeSetup(Failure),
    /// A later attempt of the same guest took its place, and is here.
    Superseded(Box<Source>),
    Failed(Error),
}

/// Waits for one guest, receives it, and runs it. Meanwhile, as long as the endpoint lives, sources
/// of earlier migrations are told how those stand, by the records in the state directory.
///
/// # Errors
/// Why it does not run here. The source was told, if it could be.
pub fn receive<F: ShadowFactory>(
    endpoint: &Arc<Endpoint>,
    factory: &mut F,
    settings: &DestinationSettings,
    observer: &mut dyn Observer,
) -> Result<Arrived<F::Shadow>, Error> {
    Host::open(endpoint, settings, 1)?.receive(factory, settings.arrival_timeout, observer)
}

fn await_source(
    endpoint: &Endpoint,
    patience: Option<Duration>,
    observer: &mut dyn Observer,
) -> Result<Source, Error> {
    let start = Instant::now();
    loop {
        // Also one that came before: whoever asked has waited since.
        if observer.interrupts() > 0 {
            return Err(Error::Cancelled);
        }
        let caller = endpoint.arrival(Instant::now() + TICK);
        for what in endpoint.rejected() {
            observer.progress(Progress::Rejected { what });
        }
        if let Some(caller) = caller {
            let (hello, peer) = (caller.hello, caller.peer);
            match caller.answer(&Welcome::Ok) {
                Ok((channel, timeout)) => {
                    return Ok(Source { hello, peer, channel, timeout, setup: None });
                }
                Err(error) => {
                    observer.progress(Progress::Rejected { what: format!("{peer}: {error}") });
                }
            }
        }
        match patience {
            Some(patience) if start.elapsed() >= patience => {
                return Err(Error::NobodyCame(patience));
            }
            _ => {}
        }
    }
}
