//! What goes over a data connection: groups of pages in one of four shapes, and marks between them.
//!
//! Only heads are made and read here; contents go from guest memory to the socket and from the
//! socket to the shadow without passing through a message (`wire`).

use super::header::{HEADER_BYTES, Header, Kind};
use super::{PAGES_MAX, ProtoError, StunNumber};
use crate::codec::CHECK_BYTES;
use crate::memory::{GROUP_PAGES, Group, PAGE_BYTES, PageNumber};

/// The head of a frame on a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFrame {
    /// The pages of a group; payload: a check for each, then their bytes.
    Pages(Group),
    /// The pages of a group are zero.
    Zero(Group),
    /// The pages of a group; payload: a `codec::block` of their contents, so long.
    Packed(Group, usize),
    /// Lines of the pages of a group; payload: a `codec::block` of line masks and lines, so
    /// long, to be put over what was sent before.
    Lines(Group, usize),
    /// Nothing more on this connection in this stun.
    EndOfPages(StunNumber),
    /// That stun took too long: what follows belongs to copying again.
    Again(StunNumber),
    /// Still here, with nothing to send.
    Alive,
}

impl PageFrame {
    /// Payload bytes that follow the head.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Pages(group) => group.count() as usize * (CHECK_BYTES + PAGE_BYTES) as usize,
            Self::Packed(_, length) | Self::Lines(_, length) => *length,
            Self::Zero(_) | Self::EndOfPages(_) | Self::Again(_) | Self::Alive => 0,
        }
    }

    /// Name, for errors.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pages(_) => Kind::Pages,
            Self::Zero(_) => Kind::ZeroPages,
            Self::Packed(..) => Kind::Packed,
            Self::Lines(..) => Kind::Lines,
            Self::EndOfPages(_) => Kind::EndOfPages,
            Self::Again(_) => Kind::Again,
            Self::Alive => Kind::Alive,
        }
    }

    /// The head's bytes for migration `tag`.
    pub fn encode(&self, tag: u64) -> [u8; HEADER_BYTES] {
        let (a, b) = match self {
            Self::Pages(group) | Self::Zero(group) => (group.first().0, group.mask()),
            Self::Packed(group, _) | Self::Lines(group, _) => (group.first().0, group.mask()),
            Self::EndOfPages(stun) | Self::Again(stun) => (stun.0, 0),
            Self::Alive => (0, 0),
        };
        Header::new(self.kind(), a, b, self.payload_bytes()).encode(tag)
    }

    /// The head that was received for migration `tag`.
    ///
    /// # Errors
    /// What a well-behaved source would not send.
    pub fn decode(bytes: [u8; HEADER_BYTES], tag: u64) -> Result<Self, ProtoError> {
        let Header { kind, length, a, b } = Header::decode(bytes, tag)?;
        let unexpected = |why| ProtoError::Unexpected { kind, why };
        let group = || match a > PAGES_MAX - GROUP_PAGES {
            true => Err(unexpected("page out of range")),
            false => Group::new(PageNumber(a), b).ok_or(unexpected("not the pages of a group")),
        };
        let block = || {
            let group = group()?;
            match length < crate::codec::block::payload_bytes_min(group.mask()) {
                true => Err(unexpected("too short for its pages")),
                false => Ok(group),
            }
        };
        let frame = match kind {
            Kind::Pages => Self::Pages(group()?),
            Kind::ZeroPages => Self::Zero(group()?),
            Kind::Packed => Self::Packed(block()?, length),
            Kind::Lines => Self::Lines(block()?, length),
            Kind::EndOfPages => Self::EndOfPages(StunNumber(a)),
            Kind::Again => Self::Again(StunNumber(a)),
            Kind::Alive => Self::Alive,
            Kind::Setup
            | Kind::SetupDone
            | Kind::State
            | Kind::Ready
            | Kind::Run
            | Kind::Running
            | Kind::Released
            | Kind::Cancel
            | Kind::Fail
            | Kind::Note
            | Kind::Refused
            | Kind::Late
            | Kind::Standing
            | Kind::NoteHeard => return Err(unexpected("on a data connection")),
        };
        match frame.payload_bytes() == length {
            true => Ok(frame),
            false => Err(unexpected("page count and length disagree")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(first: u64, mask: u64) -> Group {
        Group::new(PageNumber(first), mask).expect("a group")
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(first in 0..1u64 << 30, mask in 1u64.., stun: u64, more in 0usize..1000) {
            let group = group(first * GROUP_PAGES, mask);
            let length = crate::codec::block::payload_bytes_min(mask) + more;
            for frame in [
                PageFrame::Pages(group),
                PageFrame::Zero(group),
                PageFrame::Packed(group, length),
                PageFrame::Lines(group, length),
                PageFrame::EndOfPages(StunNumber(stun)),
                PageFrame::Again(StunNumber(stun)),
                PageFrame::Alive,
            ] {
                prop_assert_eq!(PageFrame::decode(frame.encode(9), 9), Ok(frame));
            }
        }

        #[test]
        fn any_arguments_decode_or_fail(kind in 0usize..21, a: u64, b: u64, length in 0usize..300_000) {
            let header = Header { kind: ALL[kind % ALL.len()], length, a, b };
            if let Ok(frame) = PageFrame::decode(header.encode(1), 1) {
                prop_assert_eq!(frame.payload_bytes(), length);
            }
        }
    }

    const ALL: [Kind; 5] = [Kind::Pages, Kind::ZeroPages, Kind::Packed, Kind::Lines, Kind::Alive];

    #[test]
    fn documented_example() {
        let frame = PageFrame::Pages(group(512, 0b101));
        let text = frame.encode(0x1122_3344_5566_7788).map(|b| format!("{b:02x}")).join(" ");
        let doc = include_str!("../../../docs/protocol.md");
        assert!(doc.contains(&text), "docs/protocol.md should show {text}");
    }
}
