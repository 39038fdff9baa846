//! The handshake that opens every connection: who calls, for which migration, as what, which
//! versions either side speaks, and how long it lets a link be silent.

use std::time::Duration;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Epoch, ProtoError, STREAMS_MAX, VERSION, VERSION_MIN};

/// First eight bytes of every connection, in both directions.
pub const MAGIC: [u8; 8] = *b"VMIGRATE";
/// What this program calls itself, at most 16 bytes.
pub const PROGRAM: &str = concat!("vmigrate ", env!("CARGO_PKG_VERSION"));
/// Bytes of a program's name.
const PROGRAM_BYTES: usize = 16;
/// Longest text that says why a caller is turned away.
pub const REASON_BYTES_MAX: usize = 256;
/// Both ends keep to the shorter link timeout of the two, but to none shorter than this.
pub const LINK_TIMEOUT_MIN: Duration = Duration::from_millis(250);

/// Identifies one attempt to migrate one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MigrationId(pub u128);

impl MigrationId {
    /// A new random id.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The part that every frame carries.
    pub fn tag(self) -> u64 {
        self.0 as u64
    }
}

impl std::fmt::Display for MigrationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for MigrationId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match u128::from_str_radix(text, 16) {
            Ok(id) if text.len() == 32 && !text.starts_with('+') => Ok(Self(id)),
            _ => Err(format!("'{text}' is no migration id; it has 32 hexadecimal digits")),
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Setup, state, the handover.
    Control,
    /// Pages of the shard with this index.
    Data {
        /// Index of the stream.
        stream: u32,
    },
    /// How does it stand with a guest whose control connection was lost?
    Resolve,
}

/// What either end can do beyond what every program of this version can; unknown ones are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Guest memory has a second view, so that the guest may run before all of it is here.
    pub const SECOND_VIEW: Self = Self(1);
    /// The guest tells of memory that it gives back.
    pub const DISCARDS: Self = Self(2);
    /// Guest memory lies on huge pages.
    pub const HUGE_PAGES: Self = Self(4);
    /// A destination takes guests whose memory is more than one region.
    pub const REGIONS: Self = Self(8);
    /// What this program offers.
    pub const OURS: Self = Self::REGIONS;

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// First message of the connecting side; 80 bytes. Of other versions, only magic and version may be
/// relied on.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HelloWire {
    magic: [u8; 8],
    version: U16,
    role: U16,
    stream: U32,
    features: U64,
    migration: U128,
    epoch: U64,
    version_min: U16,
    reserved: U16,
    link_timeout_ms: U32,
    unused: U64,
    program: [u8; PROGRAM_BYTES],
}

/// Answer of the accepting side; 56 bytes, then as many bytes of text as it says. The first 24 are
/// those of every version.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WelcomeWire {
    magic: [u8; 8],
    version: U16,
    status: U16,
    reason_bytes: U32,
    features: U64,
    version_min: U16,
    reserved: U16,
    link_timeout_ms: U32,
    unused: U64,
    program: [u8; PROGRAM_BYTES],
}

/// Bytes of a hello on the wire.
pub const HELLO_BYTES: usize = size_of::<HelloWire>();
/// Bytes of a hello that tell its version: what follows is only read if that is ours.
pub const HELLO_VERSION_BYTES: usize = 10;
/// Bytes of a welcome on the wire, before its text.
pub const WELCOME_BYTES: usize = size_of::<WelcomeWire>();
/// Bytes that a welcome of any version has.
pub const WELCOME_BYTES_MIN: usize = 24;

fn program() -> [u8; PROGRAM_BYTES] {
    let mut name = [0; PROGRAM_BYTES];
    let length = PROGRAM.len().min(PROGRAM_BYTES);
    name[..length].copy_from_slice(&PROGRAM.as_bytes()[..length]);
    name
}

fn program_name(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let printable = |c: &char| c.is_ascii_graphic() || *c == ' ';
    text.trim_end_matches('\0').chars().filter(printable).collect()
}

fn milliseconds(time: Duration) -> U32 {
    U32::new(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
}

/// The link timeout that both ends keep to, from their own.
pub fn agreed_timeout(ours: Duration, theirs: Duration) -> Duration {
    ours.min(theirs).max(LINK_TIMEOUT_MIN)
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// For which migration.
    pub migration: MigrationId,
    /// What the connection is for.
    pub role: Role,
    /// How many hosts the guest will have left.
    pub epoch: Epoch,
    /// How long the caller lets a link be silent.
    pub link_timeout: Duration,
    /// What the caller can do.
    pub features: Features,
}

/// Who begins so does not speak our protocol. TLS begins with the type of a record, a handshake or an
/// alert, and the version (RFC 8446, section 5.1).
pub fn stranger(first: &[u8]) -> ProtoError {
    match first {
        [0x15 | 0x16, 3, ..] => ProtoError::WantsTls,
        _ => ProtoError::NotOurs,
    }
}

impl Hello {
    /// The bytes to send.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let (role, stream) = match self.role {
            Role::Control => (1, 0),
            Role::Data { stream } => (2, stream),
            Role::Resolve => (3, 0),
        };
        let wire = HelloWire {
            magic: MAGIC,
            version: U16::new(VERSION),
            role: U16::new(role),
            stream: U32::new(stream),
            features: U64::new(self.features.0),
            migration: U128::new(self.migration.0),
            epoch: U64::new(self.epoch.0),
            version_min: U16::new(VERSION_MIN),
            reserved: U16::ZERO,
            link_timeout_ms: milliseconds(self.link_timeout),
            unused: U64::ZERO,
            program: program(),
        };
        zerocopy::transmute!(wire)
    }

    /// Whether the rest of a hello that begins so is worth reading.
    ///
    /// # Errors
    /// Not ours, or of a version without such a rest.
    pub fn check_version(bytes: [u8; HELLO_VERSION_BYTES]) -> Result<(), ProtoError> {
        if bytes[..MAGIC.len()] != MAGIC {
            return Err(stranger(&bytes));
        }
        let theirs = u16::from_le_bytes([bytes[8], bytes[9]]);
        match theirs < VERSION_MIN {
            true => Err(ProtoError::Version { theirs, program: "an older program".to_owned() }),
            false => Ok(()),
        }
    }

    /// The bytes received.
    ///
    /// # Errors
    /// Not ours, no version in common, or a role that does not exist.
    pub fn decode(bytes: [u8; HELLO_BYTES]) -> Result<Self, ProtoError> {
        let wire: HelloWire = zerocopy::transmute!(bytes);
        if wire.magic != MAGIC {
            return Err(ProtoError::NotOurs);
        }
        if wire.version.get() < VERSION_MIN || wire.version_min.get() > VERSION {
            let program = program_name(&wire.program);
            return Err(ProtoError::Version { theirs: wire.version.get(), program });
        }
        let role = match (wire.role.get(), wire.stream.get()) {
            (1, 0) => Role::Control,
            (2, stream) if stream < STREAMS_MAX => Role::Data { stream },
            (3, 0) => Role::Resolve,
            _ => return Err(ProtoError::Refused("unknown role".to_owned())),
        };
        Ok(Self {
            migration: MigrationId(wire.migration.get()),
            role,
            epoch: Epoch(wire.epoch.get()),
            link_timeout: Duration::from_millis(wire.link_timeout_ms.get().into()),
            features: Features(wire.features.get()),
        })
    }
}

/// The answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// Go on.
    Ok,
    /// No version in common.
    Version,
    /// Another migration is under way: which.
    Busy(String),
    /// We know nothing of that migration.
    Unknown,
}

/// What a welcome that lets the caller go on says besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long the accepting side lets a link be silent.
    pub link_timeout: Duration,
    /// What it can do.
    pub features: Features,
}

impl Welcome {
    /// The bytes to send.
    pub fn encode(&self, terms: Terms) -> Vec<u8> {
        let (status, reason) = match self {
            Self::Ok => (0, ""),
            Self::Version => (1, ""),
            Self::Busy(by) => (2, &by[..by.floor_char_boundary(REASON_BYTES_MAX)]),
            Self::Unknown => (3, ""),
        };
        let wire = WelcomeWire {
            magic: MAGIC,
            version: U16::new(VERSION),
            status: U16::new(status),
            reason_bytes: U32::new(reason.len() as u32),
            features: U64::new(terms.features.0),
            version_min: U16::new(VERSION_MIN),
            reserved: U16::ZERO,
            link_timeout_ms: milliseconds(terms.link_timeout),
            unused: U64::ZERO,
            program: program(),
        };
        let mut bytes = wire.as_bytes().to_vec();
        bytes.extend(reason.as_bytes());
        bytes
    }

    /// What the bytes say that `read` gives, asked for as they turn out to be needed.
    ///
    /// # Errors
    /// Not ours, the peer refused, or an error of `read`.
    pub fn read<E: From<ProtoError>>(
        mut read: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Terms, E> {
        let mut bytes = [0; WELCOME_BYTES];
        let (first, rest) = bytes.split_at_mut(WELCOME_BYTES_MIN);
        read(first)?;
        if first[..MAGIC.len()] != MAGIC {
            return Err(stranger(first).into());
        }
        let version = u16::from_le_bytes([first[8], first[9]]);
        if version < VERSION_MIN {
            let program = "an older program".to_owned();
            return Err(ProtoError::Version { theirs: version, program }.into());
        }
        read(rest)?;
        let wire: WelcomeWire = zerocopy::transmute!(bytes);
        let mut reason = vec![0; (wire.reason_bytes.get() as usize).min(REASON_BYTES_MAX)];
        read(&mut reason)?;
        let reason = program_name(&reason);
        let refused = match wire.status.get() {
            0 => {
                let link_timeout = Duration::from_millis(wire.link_timeout_ms.get().into());
                return Ok(Terms { link_timeout, features: Features(wire.features.get()) });
            }
            1 => ProtoError::Version { theirs: version, program: program_name(&wire.program) },
            2 => ProtoError::Busy(reason),
            3 => ProtoError::Refused("it knows nothing of this migration".to_owned()),
            _ => ProtoError::Refused("for a reason this version does not know".to_owned()),
        };
        Err(refused.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms =
        Terms { link_timeout: Duration::from_millis(1500), features: Features::OURS };

    fn hello(role: Role) -> Hello {
        Hello {
            migration: MigrationId(1),
            role,
            epoch: Epoch(0),
            link_timeout: Duration::from_secs(4),
            features: Features::OURS,
        }
    }

    fn read(mut bytes: &[u8]) -> Result<Terms, ProtoError> {
        Welcome::read(|into: &mut [u8]| {
            if bytes.len() < into.len() {
                return Err(ProtoError::NotOurs);
            }
            let (taken, rest) = bytes.split_at(into.len());
            into.copy_from_slice(taken);
            bytes = rest;
            Ok(())
        })
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: [u8; 80], answer: Vec<u8>) {
            let _ = Hello::decode(bytes);
            let _ = read(&answer);
        }

        #[test]
        fn hello_survives_the_wire(migration: u128, epoch: u64, stream in 0..STREAMS_MAX, ms: u32) {
            for role in [Role::Control, Role::Data { stream }, Role::Resolve] {
                let hello = Hello {
                    migration: MigrationId(migration),
                    epoch: Epoch(epoch),
                    link_timeout: Duration::from_millis(ms.into()),
                    ..hello(role)
                };
                prop_assert_eq!(Hello::decode(hello.encode()), Ok(hello));
            }
        }
    }

    #[test]
    fn welcomes_survive_the_wire() {
        assert_eq!(read(&Welcome::Ok.encode(TERMS)), Ok(TERMS));
        let busy = Welcome::Busy("migration 12 of 4 GiB".to_owned()).encode(TERMS);
        assert_eq!(read(&busy), Err(ProtoError::Busy("migration 12 of 4 GiB".to_owned())));
        assert!(matches!(read(&Welcome::Unknown.encode(TERMS)), Err(ProtoError::Refused(_))));
        assert!(read(&busy[..busy.len() - 1]).is_err());
    }

    #[test]
    fn other_versions_and_protocols_are_named() {
        let mut bytes = hello(Role::Control).encode();
        (bytes[8], bytes[48]) = (9, 8);
        let Err(ProtoError::Version { theirs: 9, program }) = Hello::decode(bytes) else {
            panic!("a version that does not exist yet")
        };
        assert_eq!(program, PROGRAM);
        // A later program that still speaks ours.
        bytes[48] = 4;
        assert!(Hello::decode(bytes).is_ok());
        assert_eq!(Hello::decode([b'G'; HELLO_BYTES]), Err(ProtoError::NotOurs));
        // What version 3 sent and answered, which was shorter.
        let mut old = [0; 24];
        old[..8].copy_from_slice(&MAGIC);
        old[8] = 3;
        assert!(matches!(read(&old), Err(ProtoError::Version { theirs: 3, .. })));
        let first: [u8; HELLO_VERSION_BYTES] = *old.first_chunk().expect("it is longer");
        assert!(matches!(Hello::check_version(first), Err(ProtoError::Version { theirs: 3, .. })));
        assert!(Hello::check_version(*bytes.first_chunk().expect("it is longer")).is_ok());
    }

    #[test]
    fn both_ends_keep_to_the_shorter_timeout() {
        let ms = Duration::from_millis;
        assert_eq!(agreed_timeout(ms(4000), ms(1000)), ms(1000));
        assert_eq!(agreed_timeout(ms(500), ms(1000)), ms(500));
        assert_eq!(agreed_timeout(ms(500), ms(0)), LINK_TIMEOUT_MIN);
    }
}
