//! The source: runs a migration by wiring guest, tracker, policy and link together.
//!
//! ```text
//! setup -> rounds (the policy decides) -> stun -> handover -> released
//! ```
//!
//! Nothing is lost by a failed attempt: a page that was harvested is owed until the destination
//! has it, and the next attempt owes all of memory again. Until the handover record is on disk,
//! any failure resumes the guest here, unthrottled; afterwards it stays stopped until the
//! destination or an operator says where it runs.

mod attempt;
mod first_look;
pub mod handover;
mod sender;
mod shards;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Error;
use crate::codec::Encoding;
use crate::guest::{DirtyTracker, Guest};
use crate::link::LinkSettings;
use crate::link::address::Endpoint;
use crate::link::channel::Channel;
use crate::link::pacer;
use crate::policy::{PolicyKind, Settings};
use crate::proto::frame::{Header, Kind};
use crate::proto::hello::MigrationId;
use crate::proto::{ProtoError, STREAMS_MAX};
use crate::report::MigrationReport;

/// How a migration is to go.
#[derive(Clone, Debug)]
pub struct SourceSettings {
    /// The destination; of a name's addresses the first that answers.
    pub peer: Endpoint,
    /// Protection and timeouts.
    pub link: LinkSettings,
    /// Data streams.
    pub streams: Streams,
    /// How pages are put on the wire.
    pub encoding: Encoding,
    /// Most bytes per second on all data streams together.
    pub bandwidth: Option<f64>,
    /// Who decides.
    pub policy: PolicyKind,
    /// What the policy keeps to.
    pub limits: Settings,
    /// What becomes of a stun that takes longer than the goal.
    pub over_limit: OverLimit,
    /// Hosts the guest will have left.
    pub epoch: u64,
    /// Where handover records are kept until the handover is over.
    pub state_directory: PathBuf,
    /// How long to wait, guest stopped, for an unresolved handover to be resolved.
    pub resolve_timeout: Duration,
}

impl SourceSettings {
    /// Whether a migration can be tried with these settings.
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub fn check(&self) -> Result<(), Error> {
        match self.bandwidth {
            Some(rate) if !pacer::is_rate(rate) => {
                let why = "is none: say how many may be sent, or nothing for no limit";
                Err(Error::Settings(format!("a bandwidth of {rate} bytes/s {why}")))
            }
            _ => Ok(()),
        }
    }
}

/// What becomes of a stun that takes longer than the goal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverLimit {
    /// It goes on, and is said to have taken longer.
    #[default]
    Accept,
    /// The guest runs on here and copying goes on, until the policy has had enough of it.
    GoBack,
}

/// How many data streams to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    /// As many as this host has cores, up to eight. A core sends some 10 Gbit/s, so more streams
    /// than cores carry no more; and one that a slow link leaves idle costs nothing.
    #[default]
    Auto,
    /// So many, up to [`crate::proto::STREAMS_MAX`].
    Fixed(u32),
}

/// Most streams that [`Streams::Auto`] opens.
const STREAMS_AUTO_MAX: usize = 8;

impl Streams {
    fn count(self) -> u32 {
        match self {
            Self::Fixed(count) => count,
            Self::Auto => std::thread::available_parallelism()
                .map_or(1, |cores| cores.get().min(STREAMS_AUTO_MAX) as u32),
        }
    }
}

impl std::str::FromStr for Streams {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(count)) if (1..=STREAMS_MAX).contains(&count) => Ok(Self::Fixed(count)),
            _ => Err(format!("streams are 'auto' or a number from 1 to {STREAMS_MAX}")),
        }
    }
}

/// What a user may want to see while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// Connected; the destination builds its shadow.
    Setup,
    /// Pages are being sent.
    Round {
        /// From 1.
        round: u32,
        /// Pages of this round still to be sent.
        remaining_pages: u64,
        /// Pages written since the round began.
        dirtied_pages: u64,
        /// Page data sent per second in the last window.
        send_rate: f64,
        /// Page data dirtied per second in the last window.
        dirty_rate: f64,
        /// Throttle in force.
        held_share: f64,
    },
    /// The guest is paused; the rest is being sent.
    Stun {
        /// Pages to send.
        pages: u64,
    },
    /// The destination was told to run the guest and has not answered.
    Unresolved {
        /// Which migration, for `vmigrate resolve`.
        migration: MigrationId,
    },
}

/// Who watches.
pub trait Observer {
    /// Something happened.
    fn progress(&mut self, progress: Progress);
    /// The policy changed something, or a stun was called off, and why.
    fn decided(&mut self, what: &str) {
        let _ = what;
    }
    /// Whether to abandon the attempt; asked often. Not asked once the handover is committed.
    fn cancelled(&self) -> bool;
}

/// A migration that is done: the guest runs at the destination.
#[derive(Debug)]
pub struct Migrated {
    /// What happened.
    pub report: MigrationReport,
    /// To the destination, for the embedder's notes; `None` if it was lost after the handover.
    pub control: Option<Notes>,
}

/// A migration that is not done.
#[derive(Debug)]
pub struct NotMigrated {
    /// Why.
    pub error: Error,
    /// What happened until then.
    pub report: MigrationReport,
}

/// The embedder's notes to and from the peer after the handover.
#[derive(Debug)]
pub struct Notes {
    pub(crate) channel: Arc<Channel>,
    pub(crate) tag: u64,
}

impl Notes {
    /// Sends one note, at most [`crate::proto::NOTE_BYTES_MAX`] long.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn send(&self, note: &[u8]) -> Result<(), Error> {
        let header = Header::new(Kind::Note, 0, 0, note.len());
        self.channel
            .send(self.tag, &header, note)
            .map_err(|source| Error::Link { doing: "sending a note", source })
    }

    /// Waits for the next note; `cancelled` is asked whenever the link's timeout has passed.
    ///
    /// # Errors
    /// The connection is lost, nothing came within `patience`, or the wait was cancelled.
    pub fn receive(
        &self,
        patience: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Error> {
        let doing = "waiting for a note";
        let deadline = Instant::now() + patience;
        loop {
            match self.channel.read_header(self.tag, doing) {
                Ok(header) => {
                    let payload = self.channel.read_payload(&header, doing)?;
                    match header.kind {
                        Kind::Note => return Ok(payload),
                        Kind::Alive | Kind::Running => {}
                        kind => {
                            return Err(ProtoError::Unexpected { kind, why: doing }.into());
                        }
                    }
                }
                Err(Error::Link { source, .. }) if source.kind() == ErrorKind::TimedOut => {
                    if cancelled() {
                        return Err(Error::Cancelled);
                    }
                    if Instant::now() >= deadline {
                        return Err(Error::PeerSilent(patience, doing));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Migrates `guest` once. On any error but [`Error::Unresolved`] the guest runs here as before.
///
/// # Errors
/// [`NotMigrated`] says why, and what happened until then.
pub fn migrate(
    guest: &mut dyn Guest,
    tracker: &mut dyn DirtyTracker,
    settings: &SourceSettings,
    observer: &mut dyn Observer,
) -> Result<Migrated, Box<NotMigrated>> {
    attempt::Attempt::new(guest, tracker, settings, observer).run()
}
