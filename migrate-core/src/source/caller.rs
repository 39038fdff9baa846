//! What an attempt and a record that was taken up have in common: how the destination is reached, how
//! a decision is written down, and what the user says and hears.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Observer, Progress};
use crate::Error;
use crate::conductor::{Conductor, Dial};
use crate::link::address::HostPort;
use crate::link::{LinkSettings, connect};
use crate::operator::record::{Record, Says};
use crate::proto::Epoch;
use crate::proto::hello::{Features, Hello, MigrationId, Role};
use crate::session::record::SourceRecord;
use crate::session::source::{Event, Notice, Source};
use crate::session::{Failure, Purpose, Word};

/// Who calls whom about which migration.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) migration: MigrationId,
    pub(super) epoch: Epoch,
    pub(super) peer: HostPort,
    pub(super) link: LinkSettings,
}

impl Caller {
    pub(super) fn hello(&self, role: Role) -> Hello {
        Hello {
            migration: self.migration,
            role,
            epoch: self.epoch,
            link_timeout: self.link.timeout,
            features: Features::OURS,
        }
    }

    /// How the session reaches the destination; what went wrong is kept as it was.
    pub(super) fn dial(self, unreachable: Arc<Mutex<Option<Error>>>) -> Dial<Event> {
        Dial {
            open: Box::new(move |purpose| {
                let hello = self.hello(match purpose {
                    Purpose::Setup => Role::Control,
                    Purpose::Resolve => Role::Resolve,
                });
                connect(&self.peer, hello, &self.link)
                    .map(|(channel, timeout)| (Arc::new(channel), timeout))
                    .map_err(|error| {
                        let said = Error::Session(Failure::Unreachable(error.to_string()));
                        *unreachable.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        said
                    })
            }),
            connected: Event::Connected,
            failed: Event::NotConnected,
        }
    }
}

/// What the user hears of a session's notice.
pub(super) fn told(migration: MigrationId, notice: &Notice) -> Progress {
    match notice {
        Notice::Unresolved => Progress::Unresolved { migration, since: Duration::ZERO },
        Notice::StillUnresolved(since) => Progress::Unresolved { migration, since: *since },
        Notice::NotKnown(standing) => Progress::NotKnownThere { migration, standing: *standing },
        Notice::RunsThereToo => Progress::RunsThereToo { migration },
        Notice::Lost(_) => Progress::GuestLost { migration },
    }
}

/// Writes down what the session ordered, tells it so, and says whether it could be.
pub(super) fn write_down(
    session: &Conductor<Source>,
    record: &mut Record,
    says: SourceRecord,
) -> Result<(), String> {
    let (stun, timeout) = session.look(|session| (session.stun(), session.timeout()));
    let written = record.write(Says::Source(says), stun, timeout).map_err(|e| e.to_string());
    session.on(Event::Recorded(written.clone()));
    written
}

/// Tells the session of the user's interrupts, of which so many were told; each of them is a word.
pub(super) fn hear_interrupts(
    session: &Conductor<Source>,
    told: &mut usize,
    observer: &mut dyn Observer,
) {
    while *told < observer.interrupts() {
        *told += 1;
        // A source answers at once.
        if let Ok(reply) = session.handle().say(Word::Interrupt).try_recv()
            && !reply.taken
        {
            observer.progress(Progress::Answer(reply));
        }
    }
}
