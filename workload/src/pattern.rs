//! Where operation *k* of a writer goes, and how often a slot has been written by then.
//!
//! Every pattern is a pure function of (seed, writer, operation), and answers in O(1) the two
//! questions a verifier asks: the generation of a slot at a watermark, and which operation wrote
//! a generation.

use crate::line::{Generation, inverse_mod_2_64, mix};
use crate::spec::PatternKind;

/// Index of an operation of one writer, from 0.
pub type Operation = u64;

/// Index of a record-sized slot in a writer's share, from 0.
pub type Slot = u64;

/// The order in which one writer visits its slots.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Slot `k mod slots`.
    Stream {
        /// Number of slots.
        slots: u64,
    },
    /// In epoch `e = k / slots`, slot `permutation_e(k mod slots)`.
    Uniform {
        /// Number of slots.
        slots: u64,
        /// What the permutations are derived from.
        key: u64,
    },
}

impl Pattern {
    /// The pattern of `writer` over `slots` slots.
    pub fn new(kind: PatternKind, seed: u64, writer: u64, slots: u64) -> Self {
        match kind {
            PatternKind::Stream => Self::Stream { slots },
            PatternKind::Uniform => {
                Self::Uniform { slots, key: mix(seed ^ mix(writer ^ 0x756E_6966_6F72_6D00)) }
            }
        }
    }

    /// The slot that operation `k` writes.
    #[inline]
    pub fn slot(&self, k: Operation) -> Slot {
        match *self {
            Self::Stream { slots } => k % slots,
            Self::Uniform { slots, key } => Permutation::new(slots, key, k / slots).at(k % slots),
        }
    }

    /// How often `slot` was written by the operations before `watermark`.
    #[inline]
    pub fn generation(&self, slot: Slot, watermark: Operation) -> Generation {
        let (slots, position) = match *self {
            Self::Stream { slots } => (slots, slot),
            Self::Uniform { slots, key } => {
                (slots, Permutation::new(slots, key, watermark / slots).position(slot))
            }
        };
        watermark / slots + u64::from(position < watermark % slots)
    }

    /// The operation that wrote `slot` for the `generation`-th time; `None` for generation 0,
    /// which is the fill, and for generations beyond any watermark.
    pub fn written_by(&self, slot: Slot, generation: Generation) -> Option<Operation> {
        let epoch = generation.checked_sub(1)?;
        let (slots, position) = match *self {
            Self::Stream { slots } => (slots, slot),
            Self::Uniform { slots, key } => {
                (slots, Permutation::new(slots, key, epoch).position(slot))
            }
        };
        epoch.checked_mul(slots)?.checked_add(position)
    }
}

/// A pseudo-random permutation of `0..size`: invertible steps on the enclosing power of two,
/// repeated while the result falls outside (cycle walking; fewer than two steps on average).
#[derive(Clone, Copy, Debug)]
struct Permutation {
    size: u64,
    mask: u64,
    shift: u32,
    multiply: [u64; 2],
    add: [u64; 2],
}

impl Permutation {
    fn new(size: u64, key: u64, epoch: u64) -> Self {
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

    fn at(&self, mut x: u64) -> u64 {
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

    fn position(&self, mut x: u64) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = PatternKind> {
        prop_oneof![Just(PatternKind::Stream), Just(PatternKind::Uniform)]
    }

    proptest! {
        /// The oracle: run the operations one by one and count.
        #[test]
        fn generations_agree_with_counting(kind in kinds(), seed: u64, slots in 1u64..300, watermark in 0u64..2000) {
            let pattern = Pattern::new(kind, seed, 1, slots);
            let mut written: Vec<Vec<u64>> = vec![vec![]; slots as usize];
            for k in 0..watermark {
                written[pattern.slot(k) as usize].push(k);
            }
            for (slot, operations) in written.iter().enumerate() {
                prop_assert_eq!(pattern.generation(slot as u64, watermark), operations.len() as u64);
                for (i, k) in operations.iter().enumerate() {
                    prop_assert_eq!(pattern.written_by(slot as u64, i as u64 + 1), Some(*k));
                }
            }
        }

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
    }

    #[test]
    fn epochs_differ() {
        let p = Pattern::new(PatternKind::Uniform, 1, 0, 1000);
        let same = (0..1000).filter(|k| p.slot(*k) == p.slot(k + 1000)).count();
        assert!(same < 20, "{same} of 1000 positions are the same in the next epoch");
    }
}
