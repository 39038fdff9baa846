//! What goes over a control connection: typed messages, and the one codec that turns them into
//! frames and back.

use std::time::Duration;

use zerocopy::little_endian::{U64, U128};
use zerocopy::{FromBytes, IntoBytes};

use super::header::{Header, Kind};
use super::hello::MigrationId;
use super::{
    ALIVE_BYTES, EARLIER_MAX, PAGES_MAX, ProtoError, REGIONS_MAX, STREAMS_MAX, StunNumber,
    TEXT_BYTES_MAX,
};

/// A message of a control connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Source: build a shadow.
    Setup(Setup),
    /// Destination: the shadow exists, all its memory populated.
    SetupDone,
    /// Source: device state at a stun.
    State {
        /// Which stun of this migration, from 1.
        stun: StunNumber,
        /// Opaque to the engine.
        state: Vec<u8>,
    },
    /// Destination, the first Okay: pages and state of a stun are complete, loaded and inspected,
    /// and everything that could fail was done.
    Ready {
        /// Of which stun.
        stun: StunNumber,
        /// What inspecting took.
        inspected: Duration,
    },
    /// Source: committed; run the guest of that stun.
    Run {
        /// The stun whose Ready, or answer, this answers.
        stun: StunNumber,
    },
    /// Destination, the second Okay: the guest runs.
    Running,
    /// Source: it has settled what was decided and asks no more; records may be forgotten.
    Released,
    /// Both: still here, doing this.
    Alive(Progress),
    /// Source: the attempt is off; forget the shadow and say that it will not run.
    Cancel {
        /// Why.
        why: String,
    },
    /// Both: cannot go on.
    Fail {
        /// Why.
        why: String,
    },
    /// Both: for whoever embeds the engine; opaque.
    Note {
        /// From 1, counted by its sender; a number heard before is not taken again.
        number: u64,
        /// The note.
        note: Vec<u8>,
    },
    /// Both: a note was taken.
    NoteHeard {
        /// Its number.
        number: u64,
    },
    /// Source: that stun took too long and the guest runs on; more pages and another state will
    /// come.
    Again {
        /// Which stun.
        stun: StunNumber,
    },
    /// Destination: the guest never ran here and never will; its record says so.
    Refused {
        /// Why.
        why: String,
    },
    /// Destination: Run came later than its word holds; here is a new one.
    Late {
        /// The stun it is prepared for.
        stun: StunNumber,
    },
    /// Destination, the answer to a source that came back: how it stands with this guest here.
    Standing(Standing),
}

/// What a destination is to build.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Pages of each region of memory, at least 1 each and [`PAGES_MAX`] together: page numbers
    /// count across all of them. 1 to [`REGIONS_MAX`].
    pub regions: Vec<u64>,
    /// Data connections, 1 to [`STREAMS_MAX`].
    pub streams: u32,
    /// Earlier attempts to move the same guest, which are over: what they left is refused.
    pub earlier: Vec<MigrationId>,
    /// What the destination needs to know to build the shadow; opaque.
    pub description: Vec<u8>,
}

/// How it stands with a guest at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Everything is here, and it waits for Run.
    Prepared {
        /// The stun it is prepared for.
        stun: StunNumber,
    },
    /// It ran here and went on to another host.
    GoneOn,
    /// It ran here and its owner ended it.
    Ended,
    /// It may have run here; nobody can know.
    MayHaveRun,
    /// Nothing is known of that migration.
    Unknown,
}

/// What a peer is busy with, and how far it is: a wait for it ends when this does not move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// What is being done.
    pub activity: Activity,
    /// How much of it was done, in whatever unit.
    pub done: u64,
    /// Of how much; 0 where that is not known.
    pub total: u64,
}

/// What a peer is busy with. The numbers are the wire's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Activity {
    /// It waits for the other side.
    #[default]
    Waiting = 0,
    /// The destination makes the shadow's memory.
    Building = 1,
    /// The source looks at memory before the first page.
    Looking = 2,
    /// Pages are on their way.
    Copying = 3,
    /// The destination loads and inspects the guest.
    Inspecting = 4,
    /// The guest runs at the destination.
    Running = 5,
}

impl Activity {
    const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Building,
        Self::Looking,
        Self::Copying,
        Self::Inspecting,
        Self::Running,
    ];
}

impl std::fmt::Display for Activity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Building => "making the shadow's memory",
            Self::Looking => "looking at memory",
            Self::Copying => "sending pages",
            Self::Inspecting => "loading and inspecting the guest",
            Self::Running => "running the guest",
        })
    }
}

/// Standings on the wire.
const PREPARED: u64 = 1;
const GONE_ON: u64 = 2;
const ENDED: u64 = 3;
const MAY_HAVE_RUN: u64 = 4;
const UNKNOWN: u64 = 5;

impl Message {
    /// Which kind of frame it becomes.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Setup(_) => Kind::Setup,
            Self::SetupDone => Kind::SetupDone,
            Self::State { .. } => Kind::State,
            Self::Ready { .. } => Kind::Ready,
            Self::Run { .. } => Kind::Run,
            Self::Running => Kind::Running,
            Self::Released => Kind::Released,
            Self::Alive(_) => Kind::Alive,
            Self::Cancel { .. } => Kind::Cancel,
            Self::Fail { .. } => Kind::Fail,
            Self::Note { .. } => Kind::Note,
            Self::NoteHeard { .. } => Kind::NoteHeard,
            Self::Again { .. } => Kind::Again,
            Self::Refused { .. } => Kind::Refused,
            Self::Late { .. } => Kind::Late,
            Self::Standing(_) => Kind::Standing,
        }
    }

    /// The whole frame for migration `tag`. A text that is too long is cut.
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        let (a, b, payload) = match self {
            Self::Setup(setup) => {
                let counts = [u64::from(setup.streams), setup.earlier.len() as u64];
                // One region needs no list: its pages are all pages.
                let listed = match &setup.regions[..] {
                    [_] => &[][..],
                    regions => regions,
                };
                let counts = counts[0] | counts[1] << 32 | (listed.len() as u64) << 48;
                let mut payload = Vec::with_capacity(setup.description.len());
                for id in &setup.earlier {
                    payload.extend(U128::new(id.0).as_bytes());
                }
                for pages in listed {
                    payload.extend(U64::new(*pages).as_bytes());
                }
                payload.extend(&setup.description);
                (setup.pages(), counts, payload)
            }
            Self::State { stun, state } => (stun.0, 0, state.clone()),
            Self::Ready { stun, inspected } => {
                (stun.0, u64::try_from(inspected.as_nanos()).unwrap_or(u64::MAX), vec![])
            }
            Self::Run { stun } | Self::Again { stun } | Self::Late { stun } => (stun.0, 0, vec![]),
            Self::Alive(progress) => {
                let fields = [progress.activity as u64, progress.done, progress.total];
                (0, 0, fields.map(U64::new).as_bytes().to_vec())
            }
            Self::Cancel { why } | Self::Fail { why } | Self::Refused { why } => {
                let cut = why.floor_char_boundary(TEXT_BYTES_MAX);
                (0, 0, why.as_bytes()[..cut].to_vec())
            }
            Self::Note { number, note } => (*number, 0, note.clone()),
            Self::NoteHeard { number } => (*number, 0, vec![]),
            Self::Standing(standing) => match standing {
                Standing::Prepared { stun } => (PREPARED, stun.0, vec![]),
                Standing::GoneOn => (GONE_ON, 0, vec![]),
                Standing::Ended => (ENDED, 0, vec![]),
                Standing::MayHaveRun => (MAY_HAVE_RUN, 0, vec![]),
                Standing::Unknown => (UNKNOWN, 0, vec![]),
            },
            Self::SetupDone | Self::Running | Self::Released => (0, 0, vec![]),
        };
        let mut frame = Header::new(self.kind(), a, b, payload.len()).encode(tag).to_vec();
        frame.extend(payload);
        frame
    }

    /// What a header and its payload say.
    ///
    /// # Errors
    /// What a well-behaved peer would not send.
    pub fn decode(header: &Header, payload: Vec<u8>) -> Result<Self, ProtoError> {
        let Header { kind, a, b, length } = *header;
        let unexpected = |why| ProtoError::Unexpected { kind, why };
        debug_assert_eq!(length, payload.len());
        let text = |payload: Vec<u8>| String::from_utf8_lossy(&payload).into_owned();
        Ok(match kind {
            Kind::Setup => Self::Setup(Setup::decode(a, b, payload)?),
            Kind::SetupDone => Self::SetupDone,
            Kind::State => Self::State { stun: StunNumber(a), state: payload },
            Kind::Ready => Self::Ready { stun: StunNumber(a), inspected: Duration::from_nanos(b) },
            Kind::Run => Self::Run { stun: StunNumber(a) },
            Kind::Running => Self::Running,
            Kind::Released => Self::Released,
            Kind::Alive => Self::Alive(Progress::decode(&payload)?),
            Kind::Cancel => Self::Cancel { why: text(payload) },
            Kind::Fail => Self::Fail { why: text(payload) },
            Kind::Note => Self::Note { number: a, note: payload },
            Kind::NoteHeard => Self::NoteHeard { number: a },
            Kind::Again => Self::Again { stun: StunNumber(a) },
            Kind::Refused => Self::Refused { why: text(payload) },
            Kind::Late => Self::Late { stun: StunNumber(a) },
            Kind::Standing => Self::Standing(match a {
                PREPARED => Standing::Prepared { stun: StunNumber(b) },
                GONE_ON => Standing::GoneOn,
                ENDED => Standing::Ended,
                MAY_HAVE_RUN => Standing::MayHaveRun,
                UNKNOWN => Standing::Unknown,
                _ => return Err(unexpected("a standing that does not exist")),
            }),
            Kind::Pages | Kind::ZeroPages | Kind::EndOfPages | Kind::Packed | Kind::Lines => {
                return Err(unexpected("on a control connection"));
            }
        })
    }
}

impl Setup {
    /// Pages of all regions together.
    pub fn pages(&self) -> u64 {
        self.regions.iter().sum()
    }

    fn decode(pages: u64, counts: u64, mut payload: Vec<u8>) -> Result<Self, ProtoError> {
        let unexpected = |why| ProtoError::Unexpected { kind: Kind::Setup, why };
        let (streams, earlier) = (counts as u32, usize::from((counts >> 32) as u16));
        let listed = usize::from((counts >> 48) as u16);
        if pages == 0 || pages > PAGES_MAX {
            return Err(unexpected("page count out of range"));
        }
        if streams == 0 || streams > STREAMS_MAX {
            return Err(unexpected("stream count out of range"));
        }
        let ids_bytes = earlier * size_of::<U128>();
        if earlier > EARLIER_MAX || ids_bytes > payload.len() {
            return Err(unexpected("earlier attempts out of range"));
        }
        let mut rest = payload.split_off(ids_bytes);
        let ids = <[U128]>::ref_from_bytes(&payload)
            .map_err(|_| unexpected("earlier attempts out of range"))?;
        let earlier = ids.iter().map(|id| MigrationId(id.get())).collect();
        let listed_bytes = listed * size_of::<U64>();
        if listed > REGIONS_MAX || listed_bytes > rest.len() {
            return Err(unexpected("regions out of range"));
        }
        let description = rest.split_off(listed_bytes);
        let regions = match listed {
            0 => vec![pages],
            _ => <[U64]>::ref_from_bytes(&rest)
                .map_err(|_| unexpected("regions out of range"))?
                .iter()
                .map(|pages| pages.get())
                .collect(),
        };
        let sum = regions.iter().try_fold(0u64, |sum, pages| sum.checked_add(*pages));
        if regions.contains(&0) || sum != Some(pages) {
            return Err(unexpected("regions that are not all of memory"));
        }
        if description.len() > super::DESCRIPTION_BYTES_MAX {
            return Err(unexpected("description too long"));
        }
        Ok(Self { regions, streams, earlier, description })
    }
}

impl Progress {
    fn decode(payload: &[u8]) -> Result<Self, ProtoError> {
        let unexpected = |why| ProtoError::Unexpected { kind: Kind::Alive, why };
        let fields: [U64; ALIVE_BYTES / size_of::<U64>()] =
            FromBytes::read_from_bytes(payload).map_err(|_| unexpected("of another length"))?;
        let [activity, done, total] = fields.map(U64::get);
        let activity = Activity::ALL.into_iter().find(|known| *known as u64 == activity);
        // A later version may do what this one has no word for.
        Ok(Self { activity: activity.unwrap_or_default(), done, total })
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::HEADER_BYTES;
    use super::*;
    use proptest::prelude::*;

    fn back(message: &Message) -> Result<Message, ProtoError> {
        let frame = message.encode(3);
        let (head, payload) = frame.split_first_chunk::<HEADER_BYTES>().expect("a whole header");
        let header = Header::decode(*head, 3)?;
        assert_eq!(header.length, payload.len());
        Message::decode(&header, payload.to_vec())
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(
            a: u64,
            pages in 1..PAGES_MAX / 1024,
            others in proptest::collection::vec(1..PAGES_MAX / 1024, 0..9),
            streams in 1..STREAMS_MAX,
            earlier in proptest::collection::vec(any::<u128>(), 0..EARLIER_MAX),
            bytes: Vec<u8>,
            why: String,
        ) {
            let stun = StunNumber(a);
            let earlier = earlier.into_iter().map(MigrationId).collect();
            let regions = std::iter::once(pages).chain(others).collect();
            let why = why.chars().take(100).collect::<String>();
            for message in [
                Message::Setup(Setup { regions, streams, earlier, description: bytes.clone() }),
                Message::SetupDone,
                Message::State { stun, state: bytes.clone() },
                Message::Ready { stun, inspected: Duration::from_nanos(a) },
                Message::Run { stun },
                Message::Running,
                Message::Released,
                Message::Alive(Progress { activity: Activity::Inspecting, done: a, total: pages }),
                Message::Cancel { why: why.clone() },
                Message::Fail { why: why.clone() },
                Message::Note { number: a, note: bytes },
                Message::NoteHeard { number: a },
                Message::Again { stun },
                Message::Refused { why },
                Message::Late { stun },
                Message::Standing(Standing::Prepared { stun }),
                Message::Standing(Standing::GoneOn),
                Message::Standing(Standing::Ended),
                Message::Standing(Standing::MayHaveRun),
                Message::Standing(Standing::Unknown),
            ] {
                prop_assert_eq!(back(&message), Ok(message));
            }
        }

        #[test]
        fn any_setup_decodes_or_fails(pages: u64, counts: u64, payload: Vec<u8>) {
            if let Ok(setup) = Setup::decode(pages, counts, payload) {
                prop_assert!(setup.earlier.len() <= EARLIER_MAX);
                prop_assert!(setup.pages() == pages && setup.regions.len() <= REGIONS_MAX);
            }
        }
    }

    #[test]
    fn texts_are_cut_and_absurd_numbers_refused() {
        let why = "ä".repeat(TEXT_BYTES_MAX);
        assert!(
            matches!(back(&Message::Fail { why }), Ok(Message::Fail { why }) if why.len() == TEXT_BYTES_MAX)
        );
        for (pages, counts) in
            [(0, 1), (PAGES_MAX + 1, 1), (1, 0), (1, 65), (1, 1 | 65 << 32), (1, 1 | 2 << 48)]
        {
            assert!(Setup::decode(pages, counts, vec![0; 4096]).is_err(), "{pages} {counts:x}");
        }
        let pages = Header::new(Kind::Pages, 0, 1, 0);
        assert!(Message::decode(&pages, vec![]).is_err());
    }
}
