//! What an operator asks and tells a destination.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::conductor::{Handle, ProgressGauge};
use crate::operator::{Attendant, Setting, Status};
use crate::proto::hello::MigrationId;
use crate::session::destination::{Destination, State};
use crate::session::{Reply, Word};

/// A destination, as its operator sees it.
pub(super) struct DestinationAttendant {
    pub(super) session: Handle<Destination>,
    pub(super) gauge: Arc<ProgressGauge>,
    pub(super) migration: MigrationId,
    pub(super) peer: SocketAddr,
    pub(super) memory_pages: Arc<AtomicU64>,
}

impl Attendant for DestinationAttendant {
    fn status(&self) -> Status {
        let (state, connected) = self.session.look(|session| {
            let state = match session.state() {
                State::Receiving { .. } => "Receiving".to_owned(),
                State::Prepared if !session.is_connected() => "Prepared, source lost".to_owned(),
                State::Preparing(_) => "Preparing".to_owned(),
                State::TakingUp(_) => "Opening".to_owned(),
                State::Refusing(_) | State::Refused(_) => "Refused".to_owned(),
                state => format!("{state:?}"),
            };
            (state, session.is_connected())
        });
        let progress = self.gauge.read();
        Status {
            migration: self.migration.to_string(),
            role: "destination".to_owned(),
            state,
            connected,
            peer: self.peer.to_string(),
            memory_pages: self.memory_pages.load(Ordering::Relaxed),
            doing: progress.activity.to_string(),
            done: progress.done,
            total: progress.total,
        }
    }

    fn word(&self, word: Word) -> Reply {
        self.session.word(word)
    }

    fn set(&self, _: Setting) -> Reply {
        Reply::not_taken("that is the source's to set")
    }

    fn switch(&self) -> Reply {
        Reply::not_taken("that is the source's to do")
    }
}
