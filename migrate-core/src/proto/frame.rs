//! Frames: a 40-byte header, and a payload whose length is checked before it is read.
//!
//! A header carries a check of itself, so that a bit lost on the way cannot put pages in the wrong
//! place. Payloads with pages carry a check per page ([`crate::codec::check`]).

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    DESCRIPTION_BYTES_MAX, NOTE_BYTES_MAX, PAGES_MAX, ProtoError, STATE_BYTES_MAX, STREAMS_MAX,
    TEXT_BYTES_MAX,
};
use crate::codec::CHECK_BYTES;
use crate::memory::{GROUP_PAGES, PAGE_BYTES};

/// What a frame is. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Source, control: build a shadow. `a` pages, `b` streams; payload: the description.
    Setup = 1,
    /// Destination, control: the shadow exists, all memory populated.
    SetupDone = 2,
    /// Source, data: the pages of the group at `a` that mask `b` names; payload: a check for each,
    /// then their bytes.
    Pages = 3,
    /// Source, data: the pages of the group at `a` that mask `b` names are zero.
    ZeroPages = 4,
    /// Source, data: nothing more on this stream in epoch `a`.
    EndOfPages = 5,
    /// Source, control: device state at the stun of epoch `a`.
    State = 6,
    /// Destination, control, the first Okay: pages and state of epoch `a` are complete, loading
    /// and inspecting took `b` nanoseconds.
    Ready = 7,
    /// Source, control: committed; run the guest of epoch `a`.
    Run = 8,
    /// Destination, control, the second Okay: the guest of epoch `a` runs.
    Running = 9,
    /// Source, control: released its copy; the handover is over.
    Released = 10,
    /// Both, control: still here.
    Alive = 11,
    /// Source, control: the attempt is off; forget the shadow.
    Cancel = 12,
    /// Both, control: cannot go on; payload: why, UTF-8.
    Fail = 13,
    /// Both, control: for whoever embeds the engine; opaque.
    Note = 14,
    /// Source, data: the same pages; payload: a [`crate::codec::block`] of their contents.
    Packed = 15,
    /// Source, data: the same pages' changed lines; payload: a [`crate::codec::block`] of line masks
    /// and lines, to be put over what was sent before.
    Lines = 16,
    /// Source, control: the stun of epoch `a` took too long and the guest runs on; more pages and
    /// another state will come.
    Again = 17,
}

impl Kind {
    const ALL: [Self; 17] = [
        Self::Setup,
        Self::SetupDone,
        Self::Pages,
        Self::ZeroPages,
        Self::EndOfPages,
        Self::State,
        Self::Ready,
        Self::Run,
        Self::Running,
        Self::Released,
        Self::Alive,
        Self::Cancel,
        Self::Fail,
        Self::Note,
        Self::Packed,
        Self::Lines,
        Self::Again,
    ];

    /// Most payload bytes.
    pub fn length_max(self) -> usize {
        match self {
            Self::Setup => DESCRIPTION_BYTES_MAX,
            Self::Pages => (GROUP_PAGES * (CHECK_BYTES + PAGE_BYTES)) as usize,
            Self::Packed | Self::Lines => crate::codec::block::PAYLOAD_BYTES_MAX,
            Self::State => STATE_BYTES_MAX,
            Self::Note => NOTE_BYTES_MAX,
            Self::Fail => TEXT_BYTES_MAX,
            _ => 0,
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderWire {
    kind: U16,
    flags: U16,
    length: U32,
    migration: U64,
    a: U64,
    b: U64,
    check: U64,
}

impl HeaderWire {
    /// XXH3 (64 bits, no seed) of everything before the check.
    fn own_check(&self) -> U64 {
        U64::new(xxh3_64(&self.as_bytes()[..HEADER_BYTES - size_of::<U64>()]))
    }
}

/// Bytes of a header on the wire.
pub const HEADER_BYTES: usize = size_of::<HeaderWire>();

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Payload bytes that follow.
    pub length: usize,
    /// First argument; see [`Kind`].
    pub a: u64,
    /// Second argument; see [`Kind`].
    pub b: u64,
}

impl Header {
    /// A header with these arguments.
    pub fn new(kind: Kind, a: u64, b: u64, length: usize) -> Self {
        debug_assert!(length <= kind.length_max(), "{kind:?} of {length} bytes");
        Self { kind, length, a, b }
    }

    /// The bytes to send for migration `tag`.
    pub fn encode(&self, tag: u64) -> [u8; HEADER_BYTES] {
        let mut wire = HeaderWire {
            kind: U16::new(self.kind as u16),
            flags: U16::new(0),
            length: U32::new(self.length as u32),
            migration: U64::new(tag),
            a: U64::new(self.a),
            b: U64::new(self.b),
            check: U64::ZERO,
        };
        wire.check = wire.own_check();
        zerocopy::transmute!(wire)
    }

    /// Checks the bytes received: kind, migration, flags, and length before anything is allocated.
    ///
    /// # Errors
    /// What a well-behaved peer of this migration would not send.
    pub fn decode(bytes: [u8; HEADER_BYTES], tag: u64) -> Result<Self, ProtoError> {
        let wire: HeaderWire = zerocopy::transmute!(bytes);
        if wire.check != wire.own_check() {
            return Err(ProtoError::Damaged);
        }
        let number = wire.kind.get();
        let kind =
            *Kind::ALL.get(usize::from(number).wrapping_sub(1)).ok_or(ProtoError::Kind(number))?;
        if wire.migration != tag {
            return Err(ProtoError::Migration);
        }
        let unexpected = |why| Err(ProtoError::Unexpected { kind, why });
        if wire.flags != 0 {
            return unexpected("unknown flags");
        }
        let header =
            Self { kind, length: wire.length.get() as usize, a: wire.a.get(), b: wire.b.get() };
        if header.length > kind.length_max() {
            return Err(ProtoError::Length {
                kind,
                length: header.length as u64,
                most: kind.length_max() as u64,
            });
        }
        let Self { a, b, length, .. } = header;
        match kind {
            Kind::Setup if a == 0 || a > PAGES_MAX => unexpected("page count out of range"),
            Kind::Setup if b == 0 || b > u64::from(STREAMS_MAX) => unexpected("stream count"),
            Kind::Pages | Kind::ZeroPages | Kind::Packed | Kind::Lines
                if b == 0 || !a.is_multiple_of(GROUP_PAGES) =>
            {
                unexpected("not the pages of a group")
            }
            Kind::Pages
                if u64::from(b.count_ones()) * (CHECK_BYTES + PAGE_BYTES) != length as u64 =>
            {
                unexpected("page count and length disagree")
            }
            Kind::Packed | Kind::Lines if length < crate::codec::block::payload_bytes_min(b) => {
                unexpected("too short for its pages")
            }
            Kind::Pages | Kind::ZeroPages | Kind::Packed | Kind::Lines if a > PAGES_MAX => {
                unexpected("page out of range")
            }
            _ => Ok(header),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_to_bounded_lengths_or_fail(bytes: [u8; HEADER_BYTES], tag: u64) {
            if let Ok(header) = Header::decode(bytes, tag) {
                prop_assert!(header.length <= header.kind.length_max());
            }
        }

        #[test]
        fn kinds_and_flags_near_valid_never_panic(kind in 0u16..20, flags in 0u16..2, length: u32, a: u64, b: u64) {
            let mut bytes = Header::new(Kind::Alive, a, b, 0).encode(5);
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            bytes[2..4].copy_from_slice(&flags.to_le_bytes());
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            let bytes = checked(bytes);
            if let Ok(header) = Header::decode(bytes, 5) {
                prop_assert!(header.length <= header.kind.length_max());
                prop_assert_eq!(Header::decode(header.encode(5), 5), Ok(header));
            }
        }
    }

    /// The same bytes with a check that is right.
    fn checked(bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        let mut wire: HeaderWire = zerocopy::transmute!(bytes);
        wire.check = wire.own_check();
        zerocopy::transmute!(wire)
    }

    #[test]
    fn lengths_are_checked_first() {
        let mut bytes = Header::new(Kind::State, 1, 0, 0).encode(5);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let bytes = checked(bytes);
        assert!(matches!(Header::decode(bytes, 5), Err(ProtoError::Length { .. })));
        assert_eq!(Header::decode(bytes, 6), Err(ProtoError::Migration));
        assert_eq!(Header::decode(checked([0; HEADER_BYTES]), 0), Err(ProtoError::Kind(0)));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let good = Header::new(Kind::ZeroPages, 512, 64, 0).encode(5);
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(bytes, 5), Err(ProtoError::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn documented_example() {
        let bytes = Header::new(Kind::Pages, 512, 0b101, 8208).encode(0x1122_3344_5566_7788);
        let text = bytes.map(|b| format!("{b:02x}")).join(" ");
        let doc = include_str!("../../../docs/protocol.md");
        assert!(doc.contains(&text), "docs/protocol.md should show {text}");
    }
}
