//! Page numbers, bitmaps of pages, and runs of them. No I/O, no threads.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes in a page: the unit of tracking and of transfer.
pub const PAGE_BYTES: u64 = 4096;
/// Pages in a chunk (2 MiB): the unit of sharding, and the longest run in one frame.
pub const CHUNK_PAGES: u64 = 512;

/// Pages in a group: one word of a bitmap, and what is encoded together.
pub const GROUP_PAGES: u64 = 64;
/// Number of a page, from 0, across all of a guest's memory.
pub type PageNumber = u64;

/// A set of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    pages: u64,
}

impl Bitmap {
    /// An empty set over pages `0..pages`.
    pub fn empty(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// All of pages `0..pages`.
    pub fn full(pages: u64) -> Self {
        let mut all = Self::empty(pages);
        all.insert(0..pages);
        all
    }

    /// Number of pages the set is over.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds every page of `range`, which must lie inside; returns how many were new.
    pub fn insert(&mut self, range: Range<PageNumber>) -> u64 {
        assert!(range.end <= self.pages, "pages {range:?} of {}", self.pages);
        let mut new = 0;
        let mut page = range.start;
        while page < range.end {
            let bit = page % 64;
            let count = (64 - bit).min(range.end - page);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let word = &mut self.words[(page / 64) as usize];
            new += u64::from((mask & !*word).count_ones());
            *word |= mask;
            page += count;
        }
        new
    }

    /// Adds every page of `other`, which is over as many pages; returns how many were new.
    pub fn add(&mut self, other: &Self) -> u64 {
        assert_eq!(self.pages, other.pages, "sets over the same pages");
        let words = self.words.iter_mut().zip(&other.words);
        words.map(|(word, add)| ones(add & !std::mem::replace(word, *word | add))).sum()
    }

    /// Removes one page; returns whether it was there.
    pub fn remove(&mut self, page: PageNumber) -> bool {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let word = &mut self.words[(page / 64) as usize];
        let mask = 1 << (page % 64);
        let was = *word & mask != 0;
        *word &= !mask;
        was
    }

    /// Whether the set holds `page`.
    pub fn contains(&self, page: PageNumber) -> bool {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        self.words[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The pages of the group from `first` (a multiple of 64) on; bit i stands for page `first + i`.
    pub fn group(&self, first: PageNumber) -> u64 {
        self.words[(first / GROUP_PAGES) as usize]
    }

    /// Hands the set over and leaves an empty one.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::empty(self.pages))
    }

    /// The runs of pages inside `range`, ascending, each as long as it can be.
    pub fn runs(&self, range: Range<PageNumber>) -> Runs<'_> {
        Runs { bitmap: self, next: range.start, end: range.end.min(self.pages) }
    }

    /// First page at or after `page` that is in the set (or is not), or `end`.
    fn find(&self, page: PageNumber, end: PageNumber, member: Membership) -> PageNumber {
        let mut page = page;
        while page < end {
            let word = self.words[(page / 64) as usize];
            let word = match member {
                Membership::In => word,
                Membership::Out => !word,
            };
            let rest = word >> (page % 64);
            if rest != 0 {
                return (page + u64::from(rest.trailing_zeros())).min(end);
            }
            page = (page / 64 + 1) * 64;
        }
        end
    }
}

/// A set of pages that several threads add to and take from.
///
/// The sweep of a migration in progress: one thread adds pages as they get dirty, others take them
/// out just before they read and send them. A page is either in the set, or was read after it was
/// last taken out; so whatever is added after a page was protected again is sent once more.
#[derive(Debug)]
pub struct SharedBitmap {
    words: Box<[AtomicU64]>,
    pages: u64,
}

impl SharedBitmap {
    /// The same pages as `set`.
    pub fn of(set: &Bitmap) -> Self {
        Self { words: set.words.iter().map(|w| AtomicU64::new(*w)).collect(), pages: set.pages }
    }

    /// Number of pages the set is over.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds every page of `other`, which is over as many pages; returns how many were new.
    pub fn add(&self, other: &Bitmap) -> u64 {
        assert_eq!(self.pages, other.pages, "sets over the same pages");
        let words = self.words.iter().zip(&other.words).filter(|(_, add)| **add != 0);
        words.map(|(word, add)| add & !word.fetch_or(*add, Ordering::AcqRel)).map(ones).sum()
    }

    /// Takes out every page, one after the other and not at once.
    pub fn clear(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// Takes out the pages from `first` (a multiple of 64) to `first + 63`, except those in `but`;
    /// bit i of the result stands for page `first + i`.
    pub fn take_64(&self, first: PageNumber, but: &Self) -> u64 {
        let index = (first / 64) as usize;
        let wanted =
            self.words[index].load(Ordering::Acquire) & !but.words[index].load(Ordering::Acquire);
        match wanted {
            0 => 0,
            _ => self.words[index].fetch_and(!wanted, Ordering::AcqRel) & wanted,
        }
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.load(Ordering::Acquire).count_ones())).sum()
    }

    /// The pages in it now.
    pub fn snapshot(&self) -> Bitmap {
        let words = self.words.iter().map(|w| w.load(Ordering::Acquire)).collect();
        Bitmap { words, pages: self.pages }
    }
}

fn ones(word: u64) -> u64 {
    u64::from(word.count_ones())
}

#[derive(Clone, Copy)]
enum Membership {
    In,
    Out,
}

/// The runs of ones in a group's mask, as ranges of pages from `first` on.
pub fn runs_of(first: PageNumber, mask: u64) -> impl Iterator<Item = Range<PageNumber>> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let start = left.trailing_zeros();
        let length = left.checked_shr(start)?.trailing_ones();
        left &= u64::MAX.checked_shl(start + length).unwrap_or(0);
        let start = first + u64::from(start);
        Some(start..start + u64::from(length))
    })
}

/// The pages of a group's mask.
pub fn pages_of(first: PageNumber, mask: u64) -> impl Iterator<Item = PageNumber> + Clone {
    let mut left = mask;
    std::iter::from_fn(move || {
        let page = (left != 0).then(|| first + u64::from(left.trailing_zeros()))?;
        left &= left - 1;
        Some(page)
    })
}

/// Iterator over runs of pages.
#[derive(Debug)]
pub struct Runs<'a> {
    bitmap: &'a Bitmap,
    next: PageNumber,
    end: PageNumber,
}

impl Iterator for Runs<'_> {
    type Item = Range<PageNumber>;

    fn next(&mut self) -> Option<Range<PageNumber>> {
        let start = self.bitmap.find(self.next, self.end, Membership::In);
        if start >= self.end {
            return None;
        }
        let end = self.bitmap.find(start, self.end, Membership::Out);
        self.next = end;
        Some(start..end)
    }
}

/// The stream on which a page travels, always the same: an old copy cannot overtake a new one.
pub fn shard(page: PageNumber, streams: u64) -> u64 {
    page / CHUNK_PAGES % streams
}

/// The groups, by their first pages, that stream `index` of `streams` carries of memory of `pages`.
pub fn groups_of_shard(index: u64, streams: u64, pages: u64) -> impl Iterator<Item = PageNumber> {
    let chunks = (index * CHUNK_PAGES..pages).step_by((streams * CHUNK_PAGES) as usize);
    chunks.flat_map(move |chunk| {
        (chunk..(chunk + CHUNK_PAGES).min(pages)).step_by(GROUP_PAGES as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// The oracle is a set of numbers.
        #[test]
        fn bitmaps_agree_with_sets(pages in 1u64..400, ranges in prop::collection::vec((0u64..400, 0u64..90), 0..12), removed in prop::collection::vec(0u64..400, 0..20)) {
            let (mut bitmap, mut set) = (Bitmap::empty(pages), BTreeSet::new());
            for (start, length) in ranges {
                let range = start.min(pages)..(start + length).min(pages);
                let new = range.clone().filter(|p| set.insert(*p)).count();
                prop_assert_eq!(bitmap.insert(range), new as u64);
            }
            for page in removed.into_iter().filter(|p| *p < pages) {
                prop_assert_eq!(bitmap.remove(page), set.remove(&page));
            }
            prop_assert_eq!(bitmap.count(), set.len() as u64);
            let runs: Vec<_> = bitmap.runs(0..pages).collect();
            prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start), "runs are as long as can be");
            prop_assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..pages).all(|p| bitmap.contains(p) == set.contains(&p)));
            let (from, to) = (pages / 3, pages / 2);
            prop_assert_eq!(bitmap.runs(from..to).flatten().collect::<Vec<_>>(), set.range(from..to).copied().collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn masks_are_runs_and_pages(mask: u64) {
            let pages: Vec<_> = (0..64).filter(|i| mask >> i & 1 == 1).map(|i| 128 + i).collect();
            prop_assert_eq!(pages_of(128, mask).collect::<Vec<_>>(), pages.clone());
            let runs: Vec<_> = runs_of(128, mask).collect();
            prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start), "runs are as long as can be");
            prop_assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), pages);
        }
    }

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
            prop_assert_eq!(all, (0..pages).step_by(GROUP_PAGES as usize).collect());
        }
    }

    #[test]
    fn full_is_all() {
        assert_eq!(runs_of(0, u64::MAX).collect::<Vec<_>>(), vec![0..64]);
        assert_eq!(Bitmap::full(130).count(), 130);
        assert_eq!(Bitmap::full(130).runs(0..130).collect::<Vec<_>>(), vec![0..130]);
    }
}
