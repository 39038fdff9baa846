//! Heat: how often each page was written, and so which pages a sweep should leave for later.
//!
//! A page that is sent and then written has to be sent again, so pages are best sent in the order
//! of how often they are written, the hottest last. What is known of that is the number of
//! harvests that found a page written. The first sweep passes over whatever was written since
//! tracking began; each later one begins by passing over what is much hotter than the coldest
//! pages that are owed, until only hot ones are left.
//!
//! Much hotter, because pages written equally often differ in what was counted by chance, and
//! those that a streaming writer will write next have been written least.

use crate::memory::{Bitmap, all};

/// Counts go up to here; then all are halved.
const COUNT_MAX: u8 = u8::MAX;
/// The coldest pages are the first of so many parts of what is owed.
const PARTS: u64 = 8;

/// Harvests that found each page written: a byte per page, 0.03 % of memory.
#[derive(Clone, Debug)]
pub(crate) struct Heat(Vec<u8>);

impl Heat {
    /// Nothing was written yet.
    pub(crate) fn new(pages: u64) -> Self {
        Self(vec![0; pages as usize])
    }

    /// Counts the pages that one harvest found.
    pub(crate) fn observe(&mut self, written: &Bitmap) {
        let mut full = false;
        for run in written.runs(all(written.pages())) {
            for count in &mut self.0[run.start.index()..run.end.index()] {
                *count = count.saturating_add(1);
                full |= *count == COUNT_MAX;
            }
        }
        if full {
            self.0.iter_mut().for_each(|count| *count /= 2);
        }
    }

    /// The pages of `owed` that were written much more often than the coldest of them: a sweep
    /// should pass over them. At least the coldest eighth is not among them.
    pub(crate) fn hot(&self, owed: &Bitmap) -> Bitmap {
        let mut hot = Bitmap::empty(owed.pages());
        let mut histogram = [0; COUNT_MAX as usize + 1];
        for page in owed.iter() {
            histogram[usize::from(self.0[page.index()])] += 1;
        }
        let wanted = owed.count().div_ceil(PARTS);
        let mut below = 0;
        let cold = histogram.iter().position(|pages| {
            below += pages;
            below >= wanted
        });
        // What was never written is colder than what was, once is enough.
        let limit = match cold.unwrap_or_default() {
            0 => 0,
            cold => cold + 1,
        };
        for page in owed.iter() {
            if usize::from(self.0[page.index()]) > limit {
                hot.insert(page.alone());
            }
        }
        hot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PageNumber;
    use proptest::prelude::*;

    fn of(pages: &[u64]) -> Bitmap {
        let mut set = Bitmap::empty(100);
        for page in pages {
            set.insert(PageNumber(*page).alone());
        }
        set
    }

    #[test]
    fn what_was_written_much_more_often_is_hot() {
        let mut heat = Heat::new(100);
        assert!(heat.hot(&Bitmap::full(100)).is_empty());
        heat.observe(&of(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(heat.hot(&Bitmap::full(100)), of(&[1, 2, 3, 4, 5, 6]));
        (0..3).for_each(|_| heat.observe(&of(&[4, 5, 6])));
        assert_eq!(heat.hot(&of(&[1, 2, 3, 4, 5])), of(&[4, 5]));
        // What is not owed does not matter; where all is hot the coldest go on.
        assert!(heat.hot(&of(&[4, 5])).is_empty());
        (0..9).for_each(|_| heat.observe(&of(&[5])));
        assert_eq!(heat.hot(&of(&[4, 5])), of(&[5]));
    }

    proptest! {
        #[test]
        fn some_of_what_is_owed_is_never_hot(
            counts in prop::collection::vec(0..600u32, 1..40),
            owed in prop::collection::vec(0..40u64, 1..40),
        ) {
            let mut heat = Heat::new(100);
            for round in 0..600 {
                let written: Vec<u64> =
                    (0..).zip(&counts).filter(|(_, n)| round < **n).map(|(page, _)| page).collect();
                heat.observe(&of(&written));
            }
            let owed = of(&owed);
            let hot = heat.hot(&owed);
            prop_assert!(hot.count() <= owed.count() - owed.count().div_ceil(PARTS));
            prop_assert!(hot.iter().all(|page| owed.contains(page)));
        }
    }
}
