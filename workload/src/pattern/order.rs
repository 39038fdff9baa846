//! A fixed sequence of slots, over and over: how traces are replayed.

use super::{Operation, Slot};
use crate::line::Generation;

/// A sequence of slots and, for each slot, its positions in it.
#[derive(Debug)]
pub(super) struct Order {
    sequence: Box<[Slot]>,
    /// Positions of slot s: `positions[starts[s]..starts[s + 1]]`, ascending.
    starts: Box<[usize]>,
    positions: Box<[u64]>,
}

impl Order {
    /// `None` for an empty sequence.
    pub(super) fn new(sequence: impl Iterator<Item = Slot>, slots: u64) -> Option<Self> {
        let sequence: Box<[Slot]> = sequence.collect();
        if sequence.is_empty() {
            return None;
        }
        let mut starts = vec![0; slots as usize + 1];
        for slot in &sequence {
            starts[*slot as usize + 1] += 1;
        }
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut next = starts.clone();
        let mut positions = vec![0; sequence.len()];
        for (position, slot) in sequence.iter().enumerate() {
            positions[next[*slot as usize]] = position as u64;
            next[*slot as usize] += 1;
        }
        Some(Self { sequence, starts: starts.into(), positions: positions.into() })
    }

    pub(super) fn at(&self, k: Operation) -> Slot {
        self.sequence[(k % self.sequence.len() as u64) as usize]
    }

    pub(super) fn generation(&self, slot: Slot, watermark: Operation) -> Generation {
        let length = self.sequence.len() as u64;
        let positions = &self.positions[self.starts[slot as usize]..self.starts[slot as usize + 1]];
        let rest = watermark % length;
        watermark / length * positions.len() as u64
            + positions.partition_point(|position| *position < rest) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn generations_agree_with_counting(sequence in prop::collection::vec(0u64..20, 1..60), watermark in 0u64..200) {
            let order = Order::new(sequence.iter().copied(), 20).unwrap();
            for slot in 0..20 {
                let counted = (0..watermark).filter(|k| order.at(*k) == slot).count() as u64;
                prop_assert_eq!(order.generation(slot, watermark), counted);
            }
        }
    }

    #[test]
    fn nothing_is_no_order() {
        assert!(Order::new([].into_iter(), 5).is_none());
    }
}
