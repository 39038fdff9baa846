//! The header of every frame: 40 bytes that carry a check of themselves, so that a bit lost on the
//! way cannot put pages in the wrong place. What a frame means is the subject of `message` (control
//! connections) and `page_frame` (data connections).

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    ALIVE_BYTES, DESCRIPTION_BYTES_MAX, EARLIER_BYTES_MAX, NOTE_BYTES_MAX, ProtoError,
    REGIONS_BYTES_MAX, STATE_BYTES_MAX, TEXT_BYTES_MAX,
};
use crate::codec::CHECK_BYTES;
use crate::memory::{GROUP_PAGES, PAGE_BYTES};

/// What a frame is. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[expect(missing_docs, reason = "`Message` and `PageFrame` document each")]
pub enum Kind {
    Setup = 1,
    SetupDone = 2,
    Pages = 3,
    ZeroPages = 4,
    EndOfPages = 5,
    State = 6,
    Ready = 7,
    Run = 8,
    Running = 9,
    Released = 10,
    Alive = 11,
    Cancel = 12,
    Fail = 13,
    Note = 14,
    Packed = 15,
    Lines = 16,
    Again = 17,
    Refused = 18,
    Late = 19,
    Standing = 20,
    NoteHeard = 21,
}

impl Kind {
    const ALL: [Self; 21] = [
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
        Self::Refused,
        Self::Late,
        Self::Standing,
        Self::NoteHeard,
    ];

    /// Most payload bytes.
    pub fn length_max(self) -> usize {
        match self {
            Self::Setup => EARLIER_BYTES_MAX + REGIONS_BYTES_MAX + DESCRIPTION_BYTES_MAX,
            Self::Pages => (GROUP_PAGES * (CHECK_BYTES + PAGE_BYTES)) as usize,
            Self::Packed | Self::Lines => crate::codec::block::PAYLOAD_BYTES_MAX,
            Self::State => STATE_BYTES_MAX,
            Self::Note => NOTE_BYTES_MAX,
            Self::Cancel | Self::Fail | Self::Refused => TEXT_BYTES_MAX,
            Self::Alive => ALIVE_BYTES,
            Self::SetupDone
            | Self::ZeroPages
            | Self::EndOfPages
            | Self::Ready
            | Self::Run
            | Self::Running
            | Self::Released
            | Self::Again
            | Self::Late
            | Self::Standing
            | Self::NoteHeard => 0,
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

/// A checked header, before its two arguments were given a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Payload bytes that follow.
    pub length: usize,
    pub(super) a: u64,
    pub(super) b: u64,
}

impl Header {
    pub(super) fn new(kind: Kind, a: u64, b: u64, length: usize) -> Self {
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
        if wire.flags != 0 {
            return Err(ProtoError::Unexpected { kind, why: "unknown flags" });
        }
        let length = wire.length.get() as usize;
        if length > kind.length_max() {
            let most = kind.length_max() as u64;
            return Err(ProtoError::Length { kind, length: length as u64, most });
        }
        Ok(Self { kind, length, a: wire.a.get(), b: wire.b.get() })
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
        fn kinds_and_flags_near_valid_never_panic(kind in 0u16..25, flags in 0u16..2, length: u32, a: u64, b: u64) {
            let mut bytes = Header::new(Kind::Late, a, b, 0).encode(5);
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
}
