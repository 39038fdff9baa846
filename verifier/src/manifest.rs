//! SHA-256 of a region by 2 MiB leaves, and of the leaves as a root: two hosts compare memory
//! without shipping it, and a differing leaf says where to look.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use workload::region::Region;
use workload::work::{Cancelled, Unwatched, Watch, to_its_end};
use workload::{LINE_BYTES, cores};

/// Bytes that one leaf covers.
pub const LEAF_BYTES: u64 = 2 << 20;
/// Bytes copied at a time on the way to the hash: stays in the cache.
const COPY_BYTES: usize = 2 << 10;

/// The hashes of a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl Manifest {
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
        let mut root = Sha256::new();
        root.update(bytes.to_le_bytes());
        root.update(LEAF_BYTES.to_le_bytes());
        hashes.iter().for_each(|h| root.update(h));
        Ok(Self {
            schema: 1,
            bytes,
            leaf_bytes: LEAF_BYTES,
            root: hex::encode(root.finalize()),
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
}
