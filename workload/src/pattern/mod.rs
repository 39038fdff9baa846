//! Where operation *k* of a writer goes, and how often a slot has been written by then.
//!
//! Every pattern is a pure function of (seed, writer, operation). Rings, permutations and traces
//! answer in closed form the two questions a verifier asks: the generation of a slot at a
//! watermark, and which operation wrote a generation. Patterns that draw at random with
//! replacement cannot; theirs are counted by replay, which is [`generations`](crate::generations)'
//! subject. What the parameters are called is [`profile`](crate::profile)'s.

mod order;
mod permutation;
mod zipf;

use std::sync::Arc;

use crate::line::{Generation, mix};
use crate::profile::PatternSpec;
use crate::trace::Trace;
use order::Order;
use permutation::{Permutation, Spread};
use zipf::Zipf;

/// Index of an operation of one writer, from 0.
pub type Operation = u64;

/// Index of a record-sized slot in a writer's share, from 0.
pub type Slot = u64;

/// What one operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The record in this slot is written at the slot's next generation.
    Write(Slot),
    /// The record in this slot is read and compared with what it must hold.
    Read(Slot),
}

/// The share a pattern works on.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// The run's seed.
    pub seed: u64,
    /// Which writer.
    pub writer: u64,
    /// First page of its share.
    pub first_page: u64,
    /// Pages of its share.
    pub pages: u64,
    /// Slots of its share, at least 1.
    pub slots: u64,
    /// Bytes per record.
    pub record: u64,
}

/// The order in which one writer visits its slots.
#[derive(Clone, Debug)]
pub struct Pattern(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Slot `k mod slots`.
    Ring { slots: u64 },
    /// A ring behind some header slots, one of which is written after every `every` records.
    Indexed { header: u64, ring: u64, every: u64 },
    /// In epoch `e = k / slots`, slot `permutation_e(k mod slots)`.
    Uniform { slots: u64, key: u64 },
    /// The positions of a trace, over and over.
    Trace(Arc<Order>),
    /// Any slot at any time; a share of the operations only reads.
    Iid { slots: u64, key: u64, reads_below: u64 },
    /// Ranks by Zipf's law.
    Zipf { key: u64, zipf: Arc<Zipf>, spread: Spread },
    /// The first `hot` ranks with one probability, the others with the rest of it.
    Hotset { slots: u64, key: u64, hot_below: u64, hot: u64, spread: Spread },
    /// Runs of `run` slots inside files of `file` slots.
    Files { slots: u64, key: u64, file: u64, files: u64, run: u64 },
    /// One pattern after the other, each going on where it was.
    Phases { parts: Arc<[(u64, Pattern)]>, cycle: u64 },
}

/// An order of slots that is computed in a few instructions (docs/page-format.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simple {
    /// Slot `k mod slots`.
    Ring {
        /// Slots of the share.
        slots: u64,
    },
    /// In epoch `e = k / slots`, slot `permutation_e(k mod slots)`.
    Uniform {
        /// Slots of the share.
        slots: u64,
        /// Key of the permutations.
        key: u64,
    },
}

/// Settings of a pattern that its share cannot meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No slot is left for the ring.
    #[error(
        "a share of {slots} records has no room behind its {header} header records; use more memory or smaller records"
    )]
    NoRing {
        /// Slots of the share.
        slots: u64,
        /// Slots that the header takes.
        header: u64,
    },
    /// A run of `fileio` shorter than a record.
    #[error("a run of {run} bytes is shorter than the record of {record} bytes")]
    ShortRun {
        /// Bytes per run.
        run: u64,
        /// Bytes per record.
        record: u64,
    },
    /// A writer for which the trace has nothing to do.
    #[error("the trace dirties no page of writer {0}'s share; use fewer writers")]
    IdleWriter(u64),
}

/// A well mixed number for draw `k` under `key`.
#[inline(always)]
fn draw(key: u64, k: u64) -> u64 {
    // The second mix takes out what consecutive inputs still have in common after the first.
    mix(mix(k ^ key).wrapping_add(key))
}

/// A random number mapped to `0..limit` (the high half of a 128-bit product).
#[inline(always)]
fn below(random: u64, limit: u64) -> u64 {
    ((u128::from(random) * u128::from(limit)) >> 64) as u64
}

/// The random numbers below which a draw comes out with a probability of `ppm` millionths.
fn threshold(ppm: u32) -> u64 {
    ((u128::from(ppm) << 64) / 1_000_000).min(u128::from(u64::MAX)) as u64
}

impl Pattern {
    /// The pattern of one writer on its share; `trace` is the file that a trace pattern names.
    ///
    /// # Errors
    /// [`PatternError`] where the share is too small for the settings.
    pub fn new(
        spec: &PatternSpec,
        ground: &Ground,
        trace: Option<&Trace>,
    ) -> Result<Self, PatternError> {
        let &Ground { seed, writer, slots, record, .. } = ground;
        let per_page = (crate::PAGE_BYTES / record).max(1);
        let key = |tag: u64| mix(seed ^ mix(writer ^ tag));
        let spread = |key: u64| Spread::new(slots, per_page, !key);
        Ok(Self(match spec {
            PatternSpec::Stream | PatternSpec::Touch => Kind::Ring { slots },
            PatternSpec::StreamIndex { every } => {
                let header = per_page;
                if slots <= header {
                    return Err(PatternError::NoRing { slots, header });
                }
                Kind::Indexed { header, ring: slots - header, every: u64::from(*every) }
            }
            PatternSpec::Uniform => Kind::Uniform { slots, key: key(0x756E_6966_6F72_6D00) },
            PatternSpec::Iid => {
                Kind::Iid { slots, key: key(0x6969_6400_0000_0000), reads_below: 0 }
            }
            PatternSpec::Iometer { reads_ppm } => Kind::Iid {
                slots,
                key: key(0x696F_6D65_7465_7200),
                reads_below: threshold(*reads_ppm),
            },
            PatternSpec::Zipf { theta_ppm } => {
                let key = key(0x7A69_7066_0000_0000);
                Kind::Zipf {
                    key,
                    zipf: Arc::new(Zipf::new(slots, *theta_ppm)),
                    spread: spread(key),
                }
            }
            PatternSpec::Hotset { probability_ppm, fraction_ppm } => {
                let key = key(0x686F_7473_6574_0000);
                let hot = (u128::from(slots) * u128::from(*fraction_ppm) / 1_000_000) as u64;
                Kind::Hotset {
                    slots,
                    key,
                    hot_below: threshold(*probability_ppm),
                    hot: hot.clamp(1, slots),
                    spread: spread(key),
                }
            }
            PatternSpec::FileIo { file, run } => {
                if run.0 < record {
                    return Err(PatternError::ShortRun { run: run.0, record });
                }
                // A share smaller than a file is one file.
                let file = (file.0 / record).clamp(1, slots);
                let run = run.0 / record;
                Kind::Files {
                    slots,
                    key: key(0x6669_6C65_696F_0000),
                    file,
                    files: slots / file,
                    run,
                }
            }
            PatternSpec::Trace { .. } => {
                let trace = trace.unwrap_or_else(|| unreachable!("a trace pattern has its trace"));
                let pages = ground.first_page..ground.first_page + ground.pages;
                let slots = trace.pages_in(pages).map(|page| page - ground.first_page);
                Kind::Trace(Arc::new(
                    Order::new(slots, ground.slots).ok_or(PatternError::IdleWriter(writer))?,
                ))
            }
            PatternSpec::Phases(phases) => {
                let parts = phases
                    .iter()
                    .zip(1..)
                    .map(|(phase, number)| {
                        // Two phases of the same pattern are not to draw the same numbers.
                        let ground = Ground { seed: seed ^ mix(number), ..*ground };
                        Ok((phase.operations, Self::new(&phase.pattern, &ground, trace)?))
                    })
                    .collect::<Result<Vec<_>, PatternError>>()?;
                let cycle = parts.iter().map(|(operations, _)| operations).sum();
                Kind::Phases { parts: parts.into(), cycle }
            }
        }))
    }

    /// The order of slots if it is one that a guest of a few instructions can follow.
    pub fn simple(&self) -> Option<Simple> {
        match &self.0 {
            Kind::Ring { slots } => Some(Simple::Ring { slots: *slots }),
            Kind::Uniform { slots, key } => Some(Simple::Uniform { slots: *slots, key: *key }),
            _ => None,
        }
    }

    /// What operation `k` does.
    #[inline]
    pub fn access(&self, k: Operation) -> Access {
        let (write, raw) = self.draw(k);
        let slot = self.slot_of(raw);
        if write { Access::Write(slot) } else { Access::Read(slot) }
    }

    /// Whether operation `k` writes, and the slot or rank it draws: the part of a replay that has
    /// to be done for each operation.
    #[inline]
    pub(crate) fn draw(&self, k: Operation) -> (bool, u64) {
        match &self.0 {
            Kind::Ring { slots } => (true, k % slots),
            Kind::Indexed { header, ring, every } => {
                let (turn, step) = (k / (every + 1), k % (every + 1));
                (
                    true,
                    if step == *every {
                        turn % header
                    } else {
                        header + (turn * every + step) % ring
                    },
                )
            }
            Kind::Uniform { slots, key } => {
                (true, Permutation::new(*slots, *key, k / slots).at(k % slots))
            }
            Kind::Trace(order) => (true, order.at(k)),
            Kind::Iid { slots, key, reads_below } => {
                let write = *reads_below == 0 || draw(!key, k) >= *reads_below;
                (write, below(draw(*key, k), *slots))
            }
            Kind::Zipf { key, zipf, .. } => (true, zipf.rank(*key, k)),
            Kind::Hotset { slots, key, hot_below, hot, .. } => {
                let random = draw(!key, k);
                let rank = if hot == slots || draw(*key, k) < *hot_below {
                    below(random, *hot)
                } else {
                    hot + below(random, slots - hot)
                };
                (true, rank)
            }
            Kind::Files { slots, key, file, files, run } => {
                let (turn, step) = (k / run, k % run);
                let index = below(draw(*key, turn), *files);
                // The last file has what the division left over.
                let first = index * file;
                let length = if index + 1 == *files { slots - first } else { *file };
                (true, first + (below(draw(!key, turn), length) + step) % length)
            }
            Kind::Phases { parts, cycle } => {
                let (part, k) = phase(parts, *cycle, k);
                let pattern = &parts[part].1;
                let (write, raw) = pattern.draw(k);
                (write, pattern.slot_of(raw))
            }
        }
    }

    /// The slot that a drawn slot or rank stands for.
    #[inline]
    pub(crate) fn slot_of(&self, raw: u64) -> Slot {
        match &self.0 {
            Kind::Zipf { spread, .. } | Kind::Hotset { spread, .. } => spread.slot(raw),
            _ => raw,
        }
    }

    /// Whether generations follow in closed form, without replay.
    pub fn is_closed_form(&self) -> bool {
        match &self.0 {
            Kind::Ring { .. } | Kind::Indexed { .. } | Kind::Uniform { .. } | Kind::Trace(_) => {
                true
            }
            Kind::Iid { .. } | Kind::Zipf { .. } | Kind::Hotset { .. } | Kind::Files { .. } => {
                false
            }
            Kind::Phases { parts, .. } => parts.iter().all(|(_, p)| p.is_closed_form()),
        }
    }

    /// How often `slot` was written by the operations before `watermark`.
    ///
    /// # Panics
    /// The pattern is not of closed form.
    #[inline]
    pub fn generation(&self, slot: Slot, watermark: Operation) -> Generation {
        let cyclic = |slots: u64, position: u64, done: u64| {
            done / slots + u64::from(position < done % slots)
        };
        match &self.0 {
            Kind::Ring { slots } => cyclic(*slots, slot, watermark),
            Kind::Uniform { slots, key } => {
                let permutation = Permutation::new(*slots, *key, watermark / slots);
                cyclic(*slots, permutation.position(slot), watermark)
            }
            Kind::Indexed { header, ring, every } => {
                let (turns, rest) = (watermark / (every + 1), watermark % (every + 1));
                if slot < *header {
                    cyclic(*header, slot, turns)
                } else {
                    cyclic(*ring, slot - header, turns * every + rest)
                }
            }
            Kind::Trace(order) => order.generation(slot, watermark),
            Kind::Phases { parts, cycle } => (0..parts.len())
                .map(|part| parts[part].1.generation(slot, share(parts, *cycle, part, watermark)))
                .sum(),
            _ => unreachable!("generations of this pattern are counted by replay"),
        }
    }

    /// The generation of `slot` just before operation `k`, which writes it; closed form, and
    /// cheaper than asking for any slot.
    #[inline]
    pub(crate) fn generation_before(&self, k: Operation, slot: Slot) -> Generation {
        match &self.0 {
            Kind::Ring { slots } | Kind::Uniform { slots, .. } => k / slots,
            _ => self.generation(slot, k),
        }
    }

    /// The operation that wrote `slot` for the `generation`-th time; `None` for generation 0,
    /// which is the fill, and for generations beyond any watermark.
    ///
    /// # Panics
    /// The pattern is not of closed form.
    pub fn written_by(&self, slot: Slot, generation: Generation) -> Option<Operation> {
        let turn = generation.checked_sub(1)?;
        match &self.0 {
            Kind::Ring { slots } => turn.checked_mul(*slots)?.checked_add(slot),
            Kind::Uniform { slots, key } => {
                let position = Permutation::new(*slots, *key, turn).position(slot);
                turn.checked_mul(*slots)?.checked_add(position)
            }
            _ => {
                // Generations never fall, so the first watermark that reaches one is found by
                // halving; 2^62 operations are beyond any run.
                const FAR: u64 = 1 << 62;
                let reached = |watermark| self.generation(slot, watermark) >= generation;
                if !reached(FAR) {
                    return None;
                }
                let (mut no, mut yes) = (0, FAR);
                while yes - no > 1 {
                    let middle = no + (yes - no) / 2;
                    if reached(middle) { yes = middle } else { no = middle }
                }
                Some(yes - 1)
            }
        }
    }
}

/// Which part operation `k` belongs to, and which operation of that part it is.
fn phase(parts: &[(u64, Pattern)], cycle: u64, k: Operation) -> (usize, Operation) {
    let (turn, mut rest) = (k / cycle, k % cycle);
    for (index, (operations, _)) in parts.iter().enumerate() {
        if rest < *operations {
            return (index, turn * operations + rest);
        }
        rest -= operations;
    }
    unreachable!("the parts make up the cycle")
}

/// How many of the operations before `watermark` belong to part `index`.
fn share(parts: &[(u64, Pattern)], cycle: u64, index: usize, watermark: Operation) -> u64 {
    let before: u64 = parts[..index].iter().map(|(operations, _)| operations).sum();
    let operations = parts[index].0;
    watermark / cycle * operations + (watermark % cycle).saturating_sub(before).min(operations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn closed_form() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "stream",
            "uniform",
            "touch",
            "stream-index,every=3",
            "phases,of=stream*7+uniform*100+stream-index:every=2*11",
        ])
    }

    fn pattern(name: &str, seed: u64, slots: u64) -> Result<Pattern, PatternError> {
        let ground = Ground { seed, writer: 1, first_page: 5, pages: slots, slots, record: 4096 };
        Pattern::new(&name.parse().unwrap(), &ground, None)
    }

    proptest! {
        /// The oracle: run the operations one by one and count.
        #[test]
        fn generations_agree_with_counting(name in closed_form(), seed: u64, slots in 2u64..300, watermark in 0u64..2000) {
            let pattern = pattern(name, seed, slots).unwrap();
            prop_assert!(pattern.is_closed_form());
            let mut written: Vec<Vec<u64>> = vec![vec![]; slots as usize];
            for k in 0..watermark {
                let Access::Write(slot) = pattern.access(k) else { panic!("{name} only writes") };
                prop_assert_eq!(pattern.generation_before(k, slot), written[slot as usize].len() as u64);
                written[slot as usize].push(k);
            }
            for (slot, operations) in written.iter().enumerate() {
                prop_assert_eq!(pattern.generation(slot as u64, watermark), operations.len() as u64);
                for (i, k) in operations.iter().enumerate() {
                    prop_assert_eq!(pattern.written_by(slot as u64, i as u64 + 1), Some(*k));
                }
            }
        }

        #[test]
        fn slots_stay_in_the_share(name in prop::sample::select(vec!["iid", "zipf,theta=1.1", "hotset,p=0.9,f=0.1", "fileio,file=64KiB,run=16KiB", "iometer"]), seed: u64, slots in 1u64..300, k: u32) {
            let pattern = pattern(name, seed, slots).unwrap();
            prop_assert!(!pattern.is_closed_form());
            for k in u64::from(k)..u64::from(k) + 50 {
                let (Access::Write(slot) | Access::Read(slot)) = pattern.access(k);
                prop_assert!(slot < slots);
            }
        }
    }

    #[test]
    fn epochs_differ() {
        let p = pattern("uniform", 1, 1000).unwrap();
        let same = (0..1000).filter(|k| p.access(*k) == p.access(k + 1000)).count();
        assert!(same < 20, "{same} of 1000 positions are the same in the next epoch");
    }

    #[test]
    fn shares_of_operations_are_what_was_asked_for() {
        const DRAWS: u64 = 200_000;
        let share = |name: &str, of: &dyn Fn(Access) -> bool| {
            let pattern = pattern(name, 3, 1000).unwrap();
            (0..DRAWS).filter(|k| of(pattern.access(*k))).count() as f64 / DRAWS as f64
        };
        let reads = share("iometer,reads=0.67", &|a| matches!(a, Access::Read(_)));
        assert!((reads - 0.67).abs() < 0.005, "{reads} are reads");
        let hot = pattern("hotset,p=0.9,f=0.1", 3, 1000).unwrap();
        let Kind::Hotset { spread, .. } = &hot.0 else { panic!("a hot set") };
        let slots: std::collections::HashSet<u64> = (0..100).map(|r| spread.slot(r)).collect();
        let hot = share(
            "hotset,p=0.9,f=0.1",
            &|a| matches!(a, Access::Write(slot) if slots.contains(&slot)),
        );
        assert!((hot - 0.9).abs() < 0.005, "{hot} are hot");
    }

    #[test]
    fn files_are_written_in_long_runs() {
        let pattern = pattern("fileio,file=256KiB,run=64KiB", 9, 1024).unwrap();
        let slot = |k| match pattern.access(k) {
            Access::Write(slot) | Access::Read(slot) => slot,
        };
        let breaks = (1..16_000).filter(|k| slot(*k) != slot(k - 1) + 1).count();
        // One in sixteen, and one more where a run passes the end of its file.
        assert!((1000..1300).contains(&breaks), "{breaks} breaks");
    }

    #[test]
    fn what_a_share_cannot_hold_is_named() {
        let error = |name, slots| pattern(name, 1, slots).unwrap_err();
        assert_eq!(error("stream-index", 1), PatternError::NoRing { slots: 1, header: 1 });
        assert!(matches!(
            error("fileio,file=64KiB,run=1KiB", 9),
            PatternError::ShortRun { run: 1024, record: 4096 }
        ));
    }
}
