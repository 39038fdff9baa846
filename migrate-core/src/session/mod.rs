//! Who runs the guest: the two ends of a migration as pure state machines.
//!
//! ```text
//! source       Setup -> Copying -> Stunned -> Prepared -> Committed -> Released
//!                 \________\_________\__________\-> Resumed  \-> Resumed (on Refused, or an oath)
//! destination  Setup -> Receiving -> Loading -> Prepared -> Opening -> Running -> Ran
//!                 \________\___________\___-> Dropped \-> Refused
//! ```
//!
//! At every instant at most one side runs the guest, and from every state in which a whole copy
//! exists it can run again. What makes it so:
//!
//! - *Both ends keep a record* ([`record`]). The source's says `committed`, on disk, before Run is
//!   said; the destination's says `prepared` before Ready, `opening` before the gate opens,
//!   `running` after it, and `refused` before that is said.
//! - *After the commit a source resumes only on Refused, or on an operator's oath*, and takes its
//!   record back first.
//! - *Run is a lease.* It holds for one link timeout from the moment at which the destination last
//!   said Ready, Late or Prepared on the connection that brings it. Handled later, it is answered
//!   Late. So a source that hears nothing knows after two link timeouts that its Run is void.
//! - *A limit ends asking, never holding.* A guest that is stopped here and may run there stays
//!   until the peer or an operator speaks.
//!
//! A machine is given events and the time, and gives back outputs; it reads no clock and knows no
//! socket, thread, file or guest. Its shell carries the outputs out in their order, and answers
//! those that ask for it with an event. `tests/pair` owns both ends and the network between them.

pub mod destination;
#[cfg(test)]
mod limits;
mod line;
mod notes;
pub mod record;
pub mod source;
mod standstill;

use std::time::Duration;

pub use line::ConnectionId;

use crate::proto::message::{Message, Progress};
use crate::proto::{ProtoError, header::Kind};

/// A wait ends when the other side's progress has not moved for so long.
pub const STALL_LIMIT: Duration = Duration::from_secs(20);
/// A receiver's memory is taken back from a source that fills none of it for so long.
pub const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Time between two tries to reach a peer that holds, or may run, the guest.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two notices that a guest still stands still.
pub const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// A moment on this host's boot-time clock: it goes on while the host sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// Time from an earlier moment to this one; none if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment and so long after it.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// A state machine of one end.
pub trait Machine {
    /// What can happen to it.
    type Event;
    /// What it asks of its own host.
    type Order;

    /// Takes an event in; what is to be done about it, in this order.
    fn on(&mut self, event: Self::Event, now: Moment) -> Vec<Output<Self::Order>>;

    /// When it wants a tick at the latest.
    fn wake(&self) -> Option<Moment>;

    /// A tick: time has passed, and this host is so far with what it does.
    fn tick(progress: Progress) -> Self::Event;

    /// A message, or the end, of a connection.
    fn heard(connection: ConnectionId, heard: Heard) -> Self::Event;

    /// A word of an operator, whose answer is to carry this number.
    fn word(number: u64, word: Word) -> Self::Event;
}

/// What a connection brings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Heard {
    /// A message.
    Message(Message),
    /// It broke, or the peer does not keep to the protocol.
    Lost(Failure),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output<Order> {
    /// Open a control connection, to set a migration up or to ask how it stands; answered by
    /// `Connected` or `NotConnected`.
    Connect(Purpose),
    /// Send a message after all that was sent on this connection.
    Send(ConnectionId, Message),
    /// Close a connection once all that was sent on it is out; nothing more is read from it.
    Close(ConnectionId),
    /// Something for this host.
    Order(Order),
    /// The answer to an operator's word.
    Answer(u64, Reply),
}

/// What a control connection is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A new migration.
    Setup,
    /// To hear how it stands with the guest there.
    Resolve,
}

/// What an operator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// End the migration if that costs nothing.
    Cancel,
    /// The first Ctrl-C: as `Cancel`, but where a guest would be given up it only says so.
    Interrupt,
    /// The guest shall run at the source.
    SourceRuns {
        /// Sworn: it neither runs nor has run at the destination or beyond it, seen after the
        /// program asked for that look.
        runs_nowhere_else: bool,
    },
    /// The guest runs, or shall run, at the destination.
    DestinationRuns {
        /// Sworn: the source's engine and guest were ended for good, it did not run on after the
        /// stun, and runs nowhere else.
        source_is_gone: bool,
    },
    /// The copy that is held here may be given up.
    GiveUp,
}

/// The answer to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// Whether the word was taken.
    pub taken: bool,
    /// What was done, or what would be lost, and what to say instead.
    pub text: String,
}

impl Reply {
    pub(crate) fn taken(text: impl Into<String>) -> Self {
        Self { taken: true, text: text.into() }
    }

    pub(crate) fn not_taken(text: impl Into<String>) -> Self {
        Self { taken: false, text: text.into() }
    }
}

/// Why a migration ended without the guest at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The user said so.
    Cancelled,
    /// This host cannot go on; its shell knows more.
    Local(String),
    /// The connection could not be made.
    Unreachable(String),
    /// The connection broke.
    LinkLost(String),
    /// The peer said nothing for so long.
    Silent(Duration),
    /// The peer lives, and is no further with what we wait for than it was so long ago.
    Stuck(Duration, &'static str),
    /// The peer said that it cannot go on.
    Peer(String),
    /// The source called it off.
    Called(String),
    /// The peer will not run the guest.
    Refused(String),
    /// The peer does not keep to the protocol.
    Breach(ProtoError),
    /// The decision could not be made durable.
    Record(String),
    /// A later attempt of the same guest took this one's place.
    Superseded,
}

impl Failure {
    pub(crate) fn breach(kind: Kind, why: &'static str) -> Self {
        Self::Breach(ProtoError::Unexpected { kind, why })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Local(why) | Self::Unreachable(why) | Self::LinkLost(why) => f.write_str(why),
            Self::Silent(time) => write!(f, "link lost: no word from the peer for {time:?}"),
            Self::Stuck(time, doing) => {
                write!(f, "the peer is no further after {time:?} while we wait for {doing}")
            }
            Self::Peer(why) => write!(f, "the peer gave up: {why}"),
            Self::Called(why) => write!(f, "the source called it off: {why}"),
            Self::Refused(why) => write!(f, "the destination will not run the guest: {why}"),
            Self::Breach(error) => error.fmt(f),
            Self::Record(why) => write!(f, "the handover record cannot be written: {why}"),
            Self::Superseded => f.write_str("a later attempt of the same guest took its place"),
        }
    }
}

/// A moment as its age, at most `most`, on a clock that shows `most` now: two states that differ
/// only in when they are become equal. For explorers; see [`source::Source::rebased`].
pub(crate) fn rebase(moment: Moment, now: Moment, most: Duration) -> Moment {
    Moment(most - now.since(moment).min(most))
}
