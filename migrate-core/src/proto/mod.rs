//! The wire and the handover: frames, handshake, and the two state machines as data.
//!
//! No sockets here: bytes in, values out. `docs/protocol.md` is the same thing in prose, exact
//! enough for a second implementation. Everything is little-endian.

pub mod frame;
pub mod hello;
pub mod state;

/// Version of the protocol spoken here.
pub const VERSION: u16 = 3;
/// Longest description of a guest.
pub const DESCRIPTION_BYTES_MAX: usize = 1 << 20;
/// Longest device state.
pub const STATE_BYTES_MAX: usize = 64 << 20;
/// Longest opaque note.
pub const NOTE_BYTES_MAX: usize = 4 << 20;
/// Longest text of a failure.
pub const TEXT_BYTES_MAX: usize = 4 << 10;
/// Most data streams.
pub const STREAMS_MAX: u32 = 64;
/// Most guest pages (1 PiB).
pub const PAGES_MAX: u64 = 1 << 38;

/// What a peer sent that it must not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// Not our magic.
    #[error(
        "the peer does not speak the vmigrate protocol; is something else listening on that port?"
    )]
    NotOurs,
    /// Another version.
    #[error(
        "the peer speaks protocol version {theirs}, this program {VERSION}; install the same version on both hosts"
    )]
    Version {
        /// What it speaks.
        theirs: u16,
    },
    /// Refused in the handshake.
    #[error("the peer refused: {0}")]
    Refused(&'static str),
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
        kind: frame::Kind,
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
        kind: frame::Kind,
        /// What is wrong with it.
        why: &'static str,
    },
}
