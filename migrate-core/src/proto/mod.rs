//! The wire: handshake, messages of control connections, frames of data connections.
//!
//! No sockets here: bytes in, values out. `docs/protocol.md` is the same thing in prose, exact
//! enough for a second implementation. Everything is little-endian. Who may say what when is the
//! subject of [`crate::session`].

pub mod header;
pub mod hello;
pub mod message;
pub mod page_frame;

/// Newest version of the protocol spoken here.
pub const VERSION: u16 = 4;
/// Oldest version spoken here. Before 4 a destination did not say how it stands with a guest, so
/// that neither side could come back safely.
pub const VERSION_MIN: u16 = 4;
/// Longest description of a guest.
pub const DESCRIPTION_BYTES_MAX: usize = 1 << 20;
/// Most earlier attempts that a Setup names.
pub const EARLIER_MAX: usize = 64;
/// Bytes of as many.
pub const EARLIER_BYTES_MAX: usize = EARLIER_MAX * 16;
/// Most regions of a guest's memory.
pub const REGIONS_MAX: usize = 1024;
/// Bytes of as many.
pub const REGIONS_BYTES_MAX: usize = REGIONS_MAX * 8;
/// Longest device state.
pub const STATE_BYTES_MAX: usize = 64 << 20;
/// Longest opaque note.
pub const NOTE_BYTES_MAX: usize = 4 << 20;
/// Longest text of a failure.
pub const TEXT_BYTES_MAX: usize = 4 << 10;
/// Bytes of an Alive on a control connection.
pub const ALIVE_BYTES: usize = 24;
/// Most data streams.
pub const STREAMS_MAX: u32 = 64;
/// Most guest pages (1 PiB).
pub const PAGES_MAX: u64 = 1 << 38;

/// Counts the stuns of one migration, from 1: a stun that was called off is followed by another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StunNumber(pub u64);

/// How many hosts a guest will have left: 1 for its first migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a peer sent that it must not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ProtoError {
    /// Not our magic.
    #[error(
        "the peer does not speak the vmigrate protocol; is something else listening on that port?"
    )]
    NotOurs,
    /// What came is the beginning of TLS, where there is none.
    #[error("the peer wants TLS, and this side has none: use --tls-dir on both")]
    WantsTls,
    /// No version in common.
    #[error(
        "the peer ({program}) speaks protocol version {theirs}, this program ({}) versions {VERSION_MIN} to {VERSION}; install the same version on both hosts",
        hello::PROGRAM
    )]
    Version {
        /// What it speaks.
        theirs: u16,
        /// What it calls itself.
        program: String,
    },
    /// Refused in the handshake.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// Another migration is under way there.
    #[error("the peer is busy: {0}")]
    Busy(String),
    /// A header that does not fit its own check.
    #[error("a frame was damaged on the way; check the network cards and cables, or use --tls-dir")]
    Damaged,
    /// A frame of a kind that does not exist.
    #[error("a frame of unknown kind {0}")]
    Kind(u16),
    /// More bytes than the kind allows; nothing was allocated for it.
    #[error("a {kind:?} frame of {length} bytes; at most {most} are allowed")]
    Length {
        /// What kind of frame.
        kind: header::Kind,
        /// What it announced.
        length: u64,
        /// What is allowed.
        most: u64,
    },
    /// A frame of another migration.
    #[error("a frame of another migration")]
    Migration,
    /// A frame that does not belong here, or whose fields contradict.
    #[error("unexpected {kind:?} frame: {why}")]
    Unexpected {
        /// What kind of frame.
        kind: header::Kind,
        /// What is wrong with it.
        why: &'static str,
    },
}
