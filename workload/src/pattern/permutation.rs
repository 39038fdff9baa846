//! Pseudo-random permutations that can be asked both ways, and ranks spread over pages by one.

use super::Slot;
use crate::line::{inverse_mod_2_64, mix};

/// A pseudo-random permutation of `0..size`: invertible steps on the enclosing power of two,
/// repeated while the result falls outside (cycle walking; fewer than two steps on average).
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    size: u64,
    mask: u64,
    shift: u32,
    multiply: [u64; 2],
    add: [u64; 2],
}

impl Permutation {
    pub(super) fn new(size: u64, key: u64, epoch: u64) -> Self {
        let bits = (64 - (size - 1).leading_zeros()).max(1);
        let k0 = mix(key ^ epoch);
        let k1 = mix(k0 ^ key.rotate_left(17));
        Self {
            size,
            mask: u64::MAX >> (64 - bits),
            shift: bits.div_ceil(2),
            multiply: [k0 | 1, k1 | 1],
            add: [mix(k1), mix(k0 ^ k1)],
        }
    }

    pub(super) fn at(&self, mut x: u64) -> u64 {
        loop {
            for i in 0..2 {
                x = x.wrapping_add(self.add[i]).wrapping_mul(self.multiply[i]) & self.mask;
                x ^= x >> self.shift;
            }
            if x < self.size {
                return x;
            }
        }
    }

    pub(super) fn position(&self, mut x: u64) -> u64 {
        let inverse = self.multiply.map(inverse_mod_2_64);
        loop {
            for i in [1, 0] {
                // Shifting by at least half the bits makes this its own inverse.
                x ^= x >> self.shift;
                x = x.wrapping_mul(inverse[i]).wrapping_sub(self.add[i]) & self.mask;
            }
            if x < self.size {
                return x;
            }
        }
    }
}

/// Where the slot of a rank lies: ranks that follow each other share a page, and the pages of
/// high and low ranks are strewn over the share, as hot pages are in a real machine.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    slots: u64,
    per_page: u64,
    pages: Permutation,
}

impl Spread {
    pub(super) fn new(slots: u64, per_page: u64, key: u64) -> Self {
        // Slots of a last, partial page keep their places.
        let pages = (slots / per_page).max(1);
        Self { slots, per_page, pages: Permutation::new(pages, key, 0) }
    }

    pub(super) fn slot(&self, rank: u64) -> Slot {
        let page = rank / self.per_page;
        if page < self.slots / self.per_page {
            self.pages.at(page) * self.per_page + rank % self.per_page
        } else {
            rank
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn permutations_are_permutations(size in 1u64..2000, key: u64, epoch: u64) {
            let p = Permutation::new(size, key, epoch);
            let mut seen = vec![false; size as usize];
            for x in 0..size {
                let y = p.at(x);
                prop_assert!(!std::mem::replace(&mut seen[y as usize], true));
                prop_assert_eq!(p.position(y), x);
            }
        }

        #[test]
        fn a_spread_is_a_permutation_that_keeps_pages_together(slots in 1u64..2000, shift in 0u32..7, key: u64) {
            let per_page = 1 << shift;
            let spread = Spread::new(slots, per_page, key);
            let mut seen = vec![false; slots as usize];
            for rank in 0..slots {
                let slot = spread.slot(rank);
                prop_assert!(!std::mem::replace(&mut seen[slot as usize], true));
                prop_assert_eq!(slot % per_page, rank % per_page);
            }
        }
    }
}
