//! The source: runs a migration by wiring guest, tracker, policy and link together.
//!
//! ```text
//! setup -> rounds (the policy decides) -> stun -> handover -> released
//! ```
//!
//! Nothing is lost by a failed attempt: a page that was harvested is owed until the destination
//! has it, and the next attempt owes all of memory again. Who runs the guest when is decided by
//! [`crate::session::source`]; here that is carried out.

mod attendant;
mod caller;
mod debt;
mod first_look;
pub(crate) mod notes;
mod setup;
mod shell;
mod taken_up;
mod withdrawal;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::Error;
use crate::codec::Encoding;
use crate::guest::{DirtyTracker, Guest};
use crate::link::LinkSettings;
use crate::link::address::HostPort;
use crate::link::pacer;
use crate::operator::{Desk, StateDirectory};
use crate::policy::{PolicyKind, Settings};
use crate::proto::hello::MigrationId;
use crate::proto::message::Standing;
use crate::proto::{EARLIER_MAX, Epoch, STREAMS_MAX};
use crate::report::MigrationReport;
use crate::session::Reply;
pub use notes::Notes;
pub use taken_up::{Outcome, TakeUp, take_up};
pub use withdrawal::Withdrawal;

/// How a migration is to go.
#[derive(Clone, Debug)]
pub struct SourceSettings {
    /// The destination; of a name's addresses the first that answers.
    pub peer: HostPort,
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
    pub epoch: Epoch,
    /// Earlier attempts to move this guest, which failed: the destination refuses what they left.
    pub earlier: Vec<MigrationId>,
    /// Where handover records are kept until the handover is over; private to the user.
    pub state_directory: PathBuf,
    /// How long a handover may be unresolved before the observer hears of it again and again.
    pub resolve_timeout: Duration,
    /// How long until an unresolved handover is given up, the guest left to the destination; `None`
    /// never.
    pub give_up_after: Option<Duration>,
    /// Where an operator asks and tells, if anywhere.
    pub operator: Option<Arc<Desk>>,
}

impl SourceSettings {
    /// A migration to this destination, loopback or not as [`LinkSettings::default`] allows, by
    /// `adaptive` with a goal of 300 ms, as fast as it goes; a handover that stays unresolved is said
    /// so each ten minutes and never given up.
    pub fn to(peer: HostPort) -> Self {
        Self {
            peer,
            link: LinkSettings::default(),
            streams: Streams::Auto,
            encoding: Encoding::default(),
            bandwidth: None,
            policy: PolicyKind::Adaptive,
            limits: Settings::default(),
            over_limit: OverLimit::Accept,
            epoch: Epoch(1),
            earlier: Vec::new(),
            state_directory: StateDirectory::default_path(),
            resolve_timeout: RESOLVE_TIMEOUT,
            give_up_after: None,
            operator: None,
        }
    }

    /// Whether a migration can be tried with these settings.
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub fn check(&self) -> Result<(), Error> {
        if self.earlier.len() > EARLIER_MAX {
            let why = format!("more than {EARLIER_MAX} earlier attempts cannot be named");
            return Err(Error::Settings(why));
        }
        match self.bandwidth {
            Some(rate) if !pacer::is_rate(rate) => {
                let why = "is none: say how many may be sent, or nothing for no limit";
                Err(Error::Settings(format!("a bandwidth of {rate} bytes/s {why}")))
            }
            _ => Ok(()),
        }
    }
}

/// How long a handover may be unresolved before it is said again and again, if nobody says otherwise.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(600);

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
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Connected; the destination builds its shadow.
    Setup,
    /// Pages are being sent.
    Round {
        /// From 1.
        round: u32,
        /// Pages of this round still to be sent.
        remaining_pages: u64,
        /// Pages owed beside them.
        owed_pages: u64,
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
    /// The destination was told to run the guest and has not answered; it is asked again.
    Unresolved {
        /// Which migration, for `vmigrate resolve`.
        migration: MigrationId,
        /// For how long now; none when it begins.
        since: Duration,
    },
    /// The destination answers that it cannot say whether the guest ran there.
    NotKnownThere {
        /// Which migration.
        migration: MigrationId,
        /// Its answer.
        standing: Standing,
    },
    /// The guest runs here, and the destination says that it runs or ran there: one of them must be
    /// ended.
    RunsThereToo {
        /// Which migration.
        migration: MigrationId,
    },
    /// The destination refused, and there is no guest here either.
    GuestLost {
        /// Which migration.
        migration: MigrationId,
    },
    /// What an interrupt, or a word of an operator, was answered.
    Answer(Reply),
}

/// Who watches.
pub trait Observer {
    /// Something happened.
    fn progress(&mut self, progress: Progress);
    /// The policy changed something, or a stun was called off, and why.
    fn decided(&mut self, what: &str) {
        let _ = what;
    }
    /// How often the user asked to stop; asked often. Before the handover is committed the first
    /// time ends the attempt; afterwards it is answered with what would be lost.
    fn interrupts(&self) -> usize {
        0
    }
}

/// Nobody watches.
impl Observer for () {
    fn progress(&mut self, _: Progress) {}
}

/// A migration that is done: the guest runs at the destination, and what is left of it here is never
/// to run again.
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
    /// What goes on in the background while the guest runs here; keep it meanwhile.
    pub withdrawal: Option<Withdrawal>,
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
    shell::Attempt::new(guest, tracker, settings, observer).run()
}
