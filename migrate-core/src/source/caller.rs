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
use crate::proto::hello::{Features, Hello, MigrationId, Role};
use crate::proto::{Epoch, ProtoError};
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
    /// What the destination of a new migration must be able to do.
    pub(super) needs: Features,
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

    /// What a destination that is older cannot take is not sent there.
    fn check(&self, purpose: Purpose, offered: Features) -> Result<(), Error> {
        match purpose == Purpose::Resolve || offered.contains(self.needs) {
            true => Ok(()),
            false => {
                let why =
                    "it takes only guests whose memory is one region; install this version there";
                Err(ProtoError::Refused(why.to_owned()).into())
            }
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
                    .and_then(|(channel, terms)| {
                        self.check(purpose, terms.features)?;
                        Ok((Arc::new(channel), terms.link_timeout))
                    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_several_regions_is_not_sent_where_nobody_knows_them() {
        let needs = Features::REGIONS;
        let (migration, epoch) = (MigrationId(1), Epoch(1));
        let peer = "127.0.0.1:1".parse().unwrap();
        let caller = Caller { migration, epoch, peer, link: LinkSettings::default(), needs };
        let older = Features::default();
        let refused = caller.check(Purpose::Setup, older).unwrap_err().to_string();
        assert!(refused.contains("one region; install this version there"), "{refused}");
        assert!(caller.check(Purpose::Setup, Features::OURS).is_ok());
        assert!(caller.check(Purpose::Resolve, older).is_ok(), "its guest is there already");
    }
}
