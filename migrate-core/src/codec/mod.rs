//! How pages are put on the wire: whole, packed, or as the lines that changed since last time.
//!
//! Pure: bytes in, bytes out, and times as arguments. `block` is the form on the wire,
//! `signatures` remembers what was sent, `choice` finds out what pays on this link with these
//! cores. Who sends when is [`crate::source`]'s affair.
//!
//! **Checks and the race with the guest.** Every page travels with a check of its contents. A page
//! that is sent straight from guest memory is read twice, once for the check and once by the
//! kernel; if the guest writes it in between, the two disagree. That is no damage: the page was
//! protected before the first read, so it is dirty again and comes once more. A destination
//! therefore does not refuse a page that fails its check, it *suspects* it, until a later copy
//! passes; pages still suspected when everything has arrived were damaged on the way, because by
//! then the guest stood still. What is remembered for deltas is always a copy of our own, whose
//! check is exact.

pub(crate) mod block;
pub(crate) mod choice;
pub(crate) mod looks;
pub(crate) mod signatures;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::memory::PageNumber;

/// Bytes of a page's check on the wire.
pub const CHECK_BYTES: u64 = 8;
/// The check of a page that was not checked.
pub const UNCHECKED: u64 = 0;

/// XXH3 (64 bits) of a page's contents with its number as the seed, so that a page in the wrong
/// place does not pass; never [`UNCHECKED`].
pub fn check(page: PageNumber, contents: &[u8]) -> u64 {
    xxh3_64_with_seed(contents, page.0).max(1)
}

/// Whether and how contents are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compress {
    /// Whatever gets pages across soonest, by measurement.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// Always LZ4.
    Lz4,
    /// Always Zstandard.
    Zstd,
}

/// Whether pages that come again are sent as the lines that changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delta {
    /// Where the link, not the CPU, is the limit, and as long as it saves something.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
}

/// Whether pages carry checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checks {
    /// Every page.
    #[default]
    On,
    /// None; headers still do.
    Off,
}

/// How pages are put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Packing.
    pub compress: Compress,
    /// Deltas.
    pub delta: Delta,
    /// Most memory that may be used to remember what was sent, all streams together, in bytes.
    /// An eighth of the guest's memory remembers all of it.
    pub delta_cache_bytes: u64,
    /// Checks.
    pub checks: Checks,
}

impl Encoding {
    /// Every page as it is, without memory of what was sent.
    pub const PLAIN: Self = Self {
        compress: Compress::Off,
        delta: Delta::Off,
        delta_cache_bytes: 0,
        checks: Checks::On,
    };
}

impl Default for Encoding {
    fn default() -> Self {
        Self {
            compress: Compress::Auto,
            delta: Delta::Auto,
            delta_cache_bytes: 1 << 30,
            checks: Checks::On,
        }
    }
}

fn named<T: Copy>(what: &str, text: &str, all: &[(&str, T)]) -> Result<T, String> {
    all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        format!("'{text}' is no {what}; there are: {}", names.join(", "))
    })
}

impl std::str::FromStr for Compress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all =
            [("auto", Self::Auto), ("off", Self::Off), ("lz4", Self::Lz4), ("zstd", Self::Zstd)];
        named("way to compress", text, &all)
    }
}

impl std::str::FromStr for Delta {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        named(
            "setting for deltas",
            text,
            &[("auto", Self::Auto), ("off", Self::Off), ("on", Self::On)],
        )
    }
}

impl std::str::FromStr for Checks {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        named("setting for checks", text, &[("on", Self::On), ("off", Self::Off)])
    }
}
