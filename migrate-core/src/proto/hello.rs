//! The handshake that opens every connection: who calls, for which migration, as what.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ProtoError, STREAMS_MAX, VERSION};

/// First eight bytes of every connection, in both directions.
pub const MAGIC: [u8; 8] = *b"VMIGRATE";

/// Identifies one attempt to migrate one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            Ok(id) if text.len() == 32 => Ok(Self(id)),
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
    /// Finish a handover whose control connection was lost.
    Resolve,
}

/// First message of the connecting side; 48 bytes.
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
}

/// Answer of the accepting side; 24 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WelcomeWire {
    magic: [u8; 8],
    version: U16,
    status: U16,
    reserved: U32,
    features: U64,
}

/// Bytes of a hello on the wire.
pub const HELLO_BYTES: usize = size_of::<HelloWire>();
/// Bytes of a welcome on the wire.
pub const WELCOME_BYTES: usize = size_of::<WelcomeWire>();
/// Features of this implementation: none beyond version 1.
pub const FEATURES: u64 = 0;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// For which migration.
    pub migration: MigrationId,
    /// What the connection is for.
    pub role: Role,
    /// How many hosts the guest will have left.
    pub epoch: u64,
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
            features: U64::new(FEATURES),
            migration: U128::new(self.migration.0),
            epoch: U64::new(self.epoch),
        };
        zerocopy::transmute!(wire)
    }

    /// The bytes received.
    ///
    /// # Errors
    /// Not ours, another version, or a role that does not exist.
    pub fn decode(bytes: [u8; HELLO_BYTES]) -> Result<Self, ProtoError> {
        let wire: HelloWire = zerocopy::transmute!(bytes);
        if wire.magic != MAGIC {
            return Err(ProtoError::NotOurs);
        }
        if wire.version != VERSION {
            return Err(ProtoError::Version { theirs: wire.version.get() });
        }
        let role = match (wire.role.get(), wire.stream.get()) {
            (1, 0) => Role::Control,
            (2, stream) if stream < STREAMS_MAX => Role::Data { stream },
            (3, 0) => Role::Resolve,
            _ => return Err(ProtoError::Refused("unknown role")),
        };
        Ok(Self { migration: MigrationId(wire.migration.get()), role, epoch: wire.epoch.get() })
    }
}

/// The answer to a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// Go on.
    Ok,
    /// We speak another version.
    Version,
    /// Another migration is under way.
    Busy,
    /// We know nothing of that migration.
    Unknown,
}

impl Welcome {
    /// The bytes to send.
    pub fn encode(self) -> [u8; WELCOME_BYTES] {
        let wire = WelcomeWire {
            magic: MAGIC,
            version: U16::new(VERSION),
            status: U16::new(self as u16),
            reserved: U32::new(0),
            features: U64::new(FEATURES),
        };
        zerocopy::transmute!(wire)
    }

    /// The bytes received.
    ///
    /// # Errors
    /// Not ours, or the peer refused.
    pub fn decode(bytes: [u8; WELCOME_BYTES]) -> Result<(), ProtoError> {
        let wire: WelcomeWire = zerocopy::transmute!(bytes);
        if wire.magic != MAGIC {
            return Err(ProtoError::NotOurs);
        }
        match wire.status.get() {
            0 if wire.version == VERSION => Ok(()),
            0 | 1 => Err(ProtoError::Version { theirs: wire.version.get() }),
            2 => Err(ProtoError::Refused("another migration is under way there")),
            3 => Err(ProtoError::Refused("it knows nothing of this migration")),
            _ => Err(ProtoError::Refused("for a reason this version does not know")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: [u8; HELLO_BYTES], answer: [u8; WELCOME_BYTES]) {
            let _ = Hello::decode(bytes);
            let _ = Welcome::decode(answer);
        }

        #[test]
        fn hello_survives_the_wire(migration: u128, epoch: u64, stream in 0..STREAMS_MAX) {
            for role in [Role::Control, Role::Data { stream }, Role::Resolve] {
                let hello = Hello { migration: MigrationId(migration), role, epoch };
                prop_assert_eq!(Hello::decode(hello.encode()), Ok(hello));
            }
        }
    }

    #[test]
    fn other_versions_and_protocols_are_named() {
        let hello = Hello { migration: MigrationId(1), role: Role::Control, epoch: 0 };
        let mut bytes = hello.encode();
        bytes[8] = 9;
        assert_eq!(Hello::decode(bytes), Err(ProtoError::Version { theirs: 9 }));
        assert_eq!(Hello::decode([b'G'; HELLO_BYTES]), Err(ProtoError::NotOurs));
        assert_eq!(Welcome::decode(Welcome::Ok.encode()), Ok(()));
        assert!(Welcome::decode(Welcome::Busy.encode()).is_err());
    }
}
