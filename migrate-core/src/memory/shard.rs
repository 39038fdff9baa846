//! Which stream carries which page: always the same, so that an old copy cannot overtake a new one.

use super::group::GROUP_PAGES;
use super::page::PageNumber;

/// Pages in a chunk (2 MiB): the unit of sharding.
pub const CHUNK_PAGES: u64 = 512;

/// The stream on which a page travels.
pub fn shard(page: PageNumber, streams: u64) -> u64 {
    page.0 / CHUNK_PAGES % streams
}

/// The groups, by their first pages, that stream `index` of `streams` carries of memory of `pages`.
pub fn groups_of_shard(index: u64, streams: u64, pages: u64) -> impl Iterator<Item = PageNumber> {
    let chunks = (index * CHUNK_PAGES..pages).step_by((streams * CHUNK_PAGES) as usize);
    chunks.flat_map(move |chunk| {
        (chunk..(chunk + CHUNK_PAGES).min(pages)).step_by(GROUP_PAGES as usize).map(PageNumber)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_group_is_in_the_one_shard_of_its_pages(streams in 1u64..5, pages in 1u64..5000) {
            let mut all = BTreeSet::new();
            for index in 0..streams {
                for first in groups_of_shard(index, streams, pages) {
                    prop_assert_eq!(shard(first, streams), index);
                    prop_assert!(all.insert(first));
                }
            }
            prop_assert_eq!(all, (0..pages).step_by(GROUP_PAGES as usize).map(PageNumber).collect());
        }
    }
}
