//! Sets of pages as bitmaps, and runs of pages in them.

use super::group::{GROUP_PAGES, Group};
use super::page::{PageNumber, PageRange, all, each};
// Of the standard library; tests put others in their place.
use crate::sync::atomic::{AtomicU64, Ordering};

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
        let mut full = Self::empty(pages);
        full.insert(all(pages));
        full
    }

    /// Number of pages the set is over.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds every page of `range`, which must lie inside; returns how many were new.
    pub fn insert(&mut self, range: PageRange) -> u64 {
        assert!(range.end.0 <= self.pages, "pages {range:?} of {}", self.pages);
        let mut new = 0;
        let (mut page, end) = (range.start.0, range.end.0);
        while page < end {
            let bit = page % 64;
            let count = (64 - bit).min(end - page);
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
        let (index, mask) = self.place(page);
        let word = &mut self.words[index];
        let was = *word & mask != 0;
        *word &= !mask;
        was
    }

    /// Whether the set holds `page`.
    pub fn contains(&self, page: PageNumber) -> bool {
        let (index, mask) = self.place(page);
        self.words[index] & mask != 0
    }

    /// The word of a page, and its bit there.
    fn place(&self, page: PageNumber) -> (usize, u64) {
        assert!(page.0 < self.pages, "page {page} of {}", self.pages);
        ((page.0 / 64) as usize, 1 << (page.0 % 64))
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// Those of the 64 pages from `first` (a multiple of 64) on that are in the set, if any.
    pub fn group(&self, first: PageNumber) -> Option<Group> {
        Group::new(first, self.words[(first.0 / GROUP_PAGES) as usize])
    }

    /// Takes out those of the 64 pages from `first` (a multiple of 64) on that are not in `but`; which
    /// they were, if any.
    pub fn take_group(&mut self, first: PageNumber, but: &Self) -> Option<Group> {
        let index = (first.0 / GROUP_PAGES) as usize;
        let taken = self.words[index] & !but.words[index];
        self.words[index] &= !taken;
        Group::new(first, taken)
    }

    /// Hands the set over and leaves an empty one.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::empty(self.pages))
    }

    /// The runs of pages inside `range`, ascending, each as long as it can be.
    pub fn runs(&self, range: PageRange) -> Runs<'_> {
        Runs { bitmap: self, next: range.start.0, end: range.end.0.min(self.pages) }
    }

    /// Its pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.runs(all(self.pages)).flat_map(each)
    }

    /// First page at or after `page` that is in the set (or is not), or `end`.
    fn find(&self, page: u64, end: u64, member: Membership) -> u64 {
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
    /// which they were, if any.
    pub fn take_group(&self, first: PageNumber, but: &Self) -> Option<Group> {
        let index = (first.0 / GROUP_PAGES) as usize;
        let wanted =
            self.words[index].load(Ordering::Acquire) & !but.words[index].load(Ordering::Acquire);
        match wanted {
            0 => None,
            _ => Group::new(first, self.words[index].fetch_and(!wanted, Ordering::AcqRel) & wanted),
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

/// Iterator over runs of pages.
#[derive(Debug)]
pub struct Runs<'a> {
    bitmap: &'a Bitmap,
    next: u64,
    end: u64,
}

impl Iterator for Runs<'_> {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        let start = self.bitmap.find(self.next, self.end, Membership::In);
        if start >= self.end {
            return None;
        }
        let end = self.bitmap.find(start, self.end, Membership::Out);
        self.next = end;
        Some(PageNumber(start)..PageNumber(end))
    }
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
                let range = PageNumber(start.min(pages))..PageNumber((start + length).min(pages));
                let new = each(range.clone()).filter(|p| set.insert(*p)).count();
                prop_assert_eq!(bitmap.insert(range), new as u64);
            }
            for page in removed.into_iter().filter(|p| *p < pages).map(PageNumber) {
                prop_assert_eq!(bitmap.remove(page), set.remove(&page));
            }
            prop_assert_eq!(bitmap.count(), set.len() as u64);
            let runs: Vec<_> = bitmap.runs(all(pages)).collect();
            prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start), "runs are as long as can be");
            prop_assert_eq!(runs.into_iter().flat_map(each).collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert!(each(all(pages)).all(|p| bitmap.contains(p) == set.contains(&p)));
            let (from, to) = (PageNumber(pages / 3), PageNumber(pages / 2));
            prop_assert_eq!(bitmap.runs(from..to).flat_map(each).collect::<Vec<_>>(), set.range(from..to).copied().collect::<Vec<_>>());
        }
    }

    #[test]
    fn full_is_all() {
        assert_eq!(Bitmap::full(130).count(), 130);
        assert_eq!(Bitmap::full(130).runs(all(130)).collect::<Vec<_>>(), vec![all(130)]);
    }
}
