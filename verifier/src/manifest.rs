//! SHA-256 of a region by 2 MiB leaves, and of the leaves as a root: two hosts compare memory
//! without shipping it, and a differing leaf says where to look.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use workload::region::Region;
use workload::work::{Cancelled, Unwatched, Watch, to_its_end};
use workload::{LINE_BYTES, PAGE_BYTES, cores};

/// Version of this format.
const SCHEMA: u32 = 1;
/// Bytes that one leaf covers.
pub const LEAF_BYTES: u64 = 2 << 20;
/// Bytes copied at a time on the way to the hash: stays in the cache.
const COPY_BYTES: usize = 2 << 10;

/// The hashes of a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// Size of the region in bytes.
    pub bytes: u64,
    /// Bytes per leaf; the last leaf may be shorter.
    pub leaf_bytes: u64,
    /// SHA-256 of the little-endian sizes above and all leaf hashes, hexadecimal.
    pub root: String,
    /// SHA-256 of each leaf, hexadecimal.
    pub leaves: Vec<String>,
}

/// What is wrong with a manifest that somebody else wrote.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Of a version that does not exist yet.
    #[error("it is of schema {0}; this program reads schema 1")]
    Schema(u32),
    /// Leaves of another size are not compared.
    #[error("its leaves cover {0} bytes each; this program compares leaves of {LEAF_BYTES}")]
    LeafBytes(u64),
    /// A region that cannot be.
    #[error("it is of {0} bytes, which is no whole number of pages of 4096")]
    Size(u64),
    /// Not one leaf for each part of the region.
    #[error("it has {found} leaves, and {bytes} bytes take {wanted}: it was cut or added to")]
    Leaves {
        /// Leaves that it has.
        found: u64,
        /// Leaves that it should have.
        wanted: u64,
        /// Bytes that they should cover.
        bytes: u64,
    },
    /// A hash that is none.
    #[error("leaf {0} is no SHA-256 (64 hexadecimal digits in lower case)")]
    Leaf(u64),
    /// The root does not follow from the leaves.
    #[error("its root is not that of its leaves: it was changed")]
    Root,
}

impl Manifest {
    /// Whether it can be what [`Manifest::of`] made: its leaves cover its size, and its root is theirs.
    ///
    /// # Errors
    /// The first [`Flaw`].
    pub fn check(&self) -> Result<(), Flaw> {
        if self.schema != SCHEMA {
            return Err(Flaw::Schema(self.schema));
        }
        if self.leaf_bytes != LEAF_BYTES {
            return Err(Flaw::LeafBytes(self.leaf_bytes));
        }
        if self.bytes == 0 || !self.bytes.is_multiple_of(PAGE_BYTES) {
            return Err(Flaw::Size(self.bytes));
        }
        let (found, wanted) = (self.leaves.len() as u64, self.bytes.div_ceil(LEAF_BYTES));
        if found != wanted {
            return Err(Flaw::Leaves { found, wanted, bytes: self.bytes });
        }
        let mut hashes = Vec::with_capacity(self.leaves.len());
        for (leaf, index) in self.leaves.iter().zip(0..) {
            let mut hash = [0; 32];
            let lower = !leaf.bytes().any(|digit| digit.is_ascii_uppercase());
            match hex::decode_to_slice(leaf, &mut hash) {
                Ok(()) if lower => hashes.push(hash),
                _ => return Err(Flaw::Leaf(index)),
            }
        }
        match root_of(self.bytes, &hashes) == self.root {
            true => Ok(()),
            false => Err(Flaw::Root),
        }
    }

    /// Hashes a region at rest, all cores at work.
    pub fn of(region: &Region) -> Self {
        to_its_end(Self::of_watched(region, &Unwatched))
    }

    /// The same, watched; lines are the units of work.
    ///
    /// # Errors
    /// Whoever watches called it off.
    pub fn of_watched(region: &Region, watch: &dyn Watch) -> Result<Self, Cancelled> {
        let bytes = region.bytes();
        watch.expect(bytes / LINE_BYTES);
        let hashes = cores::map(bytes.div_ceil(LEAF_BYTES), |leaf| {
            if watch.cancelled() {
                return Err(Cancelled);
            }
            let end = ((leaf + 1) * LEAF_BYTES).min(bytes);
            let mut hash = Sha256::new();
            let mut buffer = [0; COPY_BYTES];
            let mut offset = leaf * LEAF_BYTES;
            while offset < end {
                let piece = &mut buffer[..COPY_BYTES.min((end - offset) as usize)];
                region.copy_out(offset, piece);
                offset += piece.len() as u64;
                // The next piece comes in from memory while this one is hashed.
                let next = offset / LINE_BYTES..(offset + COPY_BYTES as u64) / LINE_BYTES;
                next.for_each(|address| region.prefetch(address));
                hash.update(&*piece);
            }
            watch.done((end - leaf * LEAF_BYTES) / LINE_BYTES);
            Ok(hash.finalize().into())
        });
        let hashes: Vec<[u8; 32]> = hashes.into_iter().collect::<Result<_, _>>()?;
        Ok(Self {
            schema: SCHEMA,
            bytes,
            leaf_bytes: LEAF_BYTES,
            root: root_of(bytes, &hashes),
            leaves: hashes.iter().map(hex::encode).collect(),
        })
    }

    /// Byte ranges (start, end) in which two regions differ, by leaf; a difference in size is the
    /// range that only one of them has.
    pub fn differences(&self, other: &Self) -> Vec<(u64, u64)> {
        let shared = self.leaves.iter().zip(&other.leaves).enumerate();
        let mut ranges: Vec<(u64, u64)> = shared
            .filter(|(_, (a, b))| a != b)
            .map(|(i, _)| {
                let start = i as u64 * LEAF_BYTES;
                (start, (start + LEAF_BYTES).min(self.bytes.max(other.bytes)))
            })
            .collect();
        if self.bytes != other.bytes {
            ranges.push((self.bytes.min(other.bytes), self.bytes.max(other.bytes)));
        }
        ranges
    }
}

fn root_of(bytes: u64, leaves: &[[u8; 32]]) -> String {
    let mut root = Sha256::new();
    root.update(bytes.to_le_bytes());
    root.update(LEAF_BYTES.to_le_bytes());
    leaves.iter().for_each(|leaf| root.update(leaf));
    hex::encode(root.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::units::Bytes;

    #[test]
    fn a_leaf_locates_a_change() {
        let region = Region::anonymous(Bytes(5 << 20)).unwrap();
        let before = Manifest::of(&region);
        assert_eq!(before.leaves.len(), 3);
        region.store((3 << 20) / 64, &[1; 8]);
        let after = Manifest::of(&region);
        assert_ne!(before.root, after.root);
        assert_eq!(before.differences(&after), [(2 << 20, 4 << 20)]);
        assert_eq!(after.differences(&after), []);
    }

    #[test]
    fn leaves_are_plain_sha256() {
        let region = Region::anonymous(Bytes(4096)).unwrap();
        let zero_page = "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7";
        assert_eq!(Manifest::of(&region).leaves, [zero_page]);
    }

    /// B44: each of these compared as equal.
    #[test]
    fn manifests_that_lie_are_flawed() {
        let region = Region::anonymous(Bytes(5 << 20)).unwrap();
        let good = Manifest::of(&region);
        assert_eq!(good.check(), Ok(()));
        let flaw = |change: fn(&mut Manifest)| {
            let mut manifest = good.clone();
            change(&mut manifest);
            manifest.check().unwrap_err()
        };
        assert_eq!(flaw(|m| m.schema = 99), Flaw::Schema(99));
        assert_eq!(flaw(|m| m.leaf_bytes = 1 << 20), Flaw::LeafBytes(1 << 20));
        let cut = flaw(|m| m.leaves.clear());
        assert_eq!(cut, Flaw::Leaves { found: 0, wanted: 3, bytes: 5 << 20 });
        assert_eq!(flaw(|m| (m.bytes, m.leaves) = (0, vec![])), Flaw::Size(0));
        assert_eq!(flaw(|m| m.root = "0".repeat(64)), Flaw::Root);
        assert_eq!(flaw(|m| m.leaves.swap(0, 2)), Flaw::Root);
        assert_eq!(flaw(|m| m.leaves[1].make_ascii_uppercase()), Flaw::Leaf(1));
        assert_eq!(flaw(|m| m.leaves[2].truncate(63)), Flaw::Leaf(2));
    }
}
