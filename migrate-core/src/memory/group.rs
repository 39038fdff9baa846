//! The group: some of 64 pages that lie in one word of a bitmap. It is what a stream takes out of
//! what is owed, what is encoded together, and what one frame carries.

use super::page::{PageNumber, PageRange};

/// Pages that a group can have.
pub const GROUP_PAGES: u64 = 64;

/// At least one of the 64 pages from a multiple of 64 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    first: PageNumber,
    mask: u64,
}

impl Group {
    /// The pages `first + i` for each bit i of `mask`; `None` if that is no page, or `first` no
    /// multiple of 64.
    pub fn new(first: PageNumber, mask: u64) -> Option<Self> {
        (mask != 0 && first.0.is_multiple_of(GROUP_PAGES)).then_some(Self { first, mask })
    }

    /// The page of bit 0, in the group or not.
    pub fn first(self) -> PageNumber {
        self.first
    }

    /// Which pages: bit i is page `first + i`.
    pub fn mask(self) -> u64 {
        self.mask
    }

    /// The greatest page of the group.
    pub fn last(self) -> PageNumber {
        self.first + u64::from(self.mask.ilog2())
    }

    /// How many pages.
    pub fn count(self) -> u64 {
        u64::from(self.mask.count_ones())
    }

    /// The bit of a page of these 64.
    pub fn bit(self, page: PageNumber) -> u64 {
        1 << (page - self.first)
    }

    /// Those pages of the group that `mask` names; `None` if there are none.
    pub fn only(self, mask: u64) -> Option<Self> {
        Self::new(self.first, self.mask & mask)
    }

    /// Its pages, ascending.
    pub fn pages(self) -> impl Iterator<Item = PageNumber> + Clone {
        let mut left = self.mask;
        std::iter::from_fn(move || {
            let page = (left != 0).then(|| self.first + u64::from(left.trailing_zeros()))?;
            left &= left - 1;
            Some(page)
        })
    }

    /// Its pages as runs, ascending, each as long as can be.
    pub fn runs(self) -> impl Iterator<Item = PageRange> {
        let mut left = self.mask;
        std::iter::from_fn(move || {
            let start = left.trailing_zeros();
            let length = left.checked_shr(start)?.trailing_ones();
            left &= u64::MAX.checked_shl(start + length).unwrap_or(0);
            let start = self.first + u64::from(start);
            Some(start..start + u64::from(length))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::{all, each};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn masks_are_runs_and_pages(mask in 1u64.., other: u64) {
            let pages: Vec<_> = (0..64).filter(|i| mask >> i & 1 == 1).map(|i| PageNumber(128 + i)).collect();
            let group = Group::new(PageNumber(128), mask).expect("a group");
            prop_assert_eq!(group.pages().collect::<Vec<_>>(), pages.clone());
            prop_assert_eq!(group.count(), pages.len() as u64);
            prop_assert_eq!(Some(group.last()), pages.last().copied());
            prop_assert!(group.pages().all(|page| mask & group.bit(page) != 0));
            let runs: Vec<_> = group.runs().collect();
            prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start), "runs are as long as can be");
            prop_assert_eq!(runs.into_iter().flat_map(each).collect::<Vec<_>>(), pages);
            prop_assert_eq!(group.only(other).map_or(0, Group::mask), mask & other);
        }
    }

    #[test]
    fn what_is_no_group() {
        assert_eq!(Group::new(PageNumber(64), 0), None);
        assert_eq!(Group::new(PageNumber(65), 1), None);
        let whole = Group::new(PageNumber(0), u64::MAX).expect("a group");
        assert_eq!(whole.runs().collect::<Vec<_>>(), vec![all(64)]);
    }
}
