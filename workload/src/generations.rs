//! How often each slot of a writer has been written at a watermark, and by which operations.
//!
//! In closed form where the pattern allows it; counted by replaying the operations, all cores at
//! work, where it draws at random. A writer keeps the same table up to date as it goes.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::cores;
use crate::line::Generation;
use crate::pattern::{Access, Operation, Pattern, Slot};
use crate::work::{Cancelled, Unwatched, Watch, to_its_end};

/// Operations that are worth a task of their own, and after which a replay looks up: some
/// milliseconds.
const TASK_OPERATIONS: u64 = 1 << 16;
/// Most operations that one counter of 32 bits may see.
const COUNTER_OPERATIONS_MAX: u64 = 1 << 31;
/// Memory that all tasks' counters together may take.
const COUNTERS_BYTES_MAX: u64 = 1 << 30;

/// Generations of one writer's slots at one watermark.
#[derive(Clone, Debug)]
pub struct Generations {
    pattern: Pattern,
    watermark: Operation,
    /// By slot; empty where the pattern has a closed form.
    counts: Vec<Generation>,
}

impl Generations {
    /// The generations of `slots` slots after the operations before `watermark`.
    pub fn at(pattern: &Pattern, slots: u64, watermark: Operation) -> Self {
        to_its_end(Self::replay(pattern, slots, watermark, &Unwatched))
    }

    /// The same, watched: where there is no closed form, each operation is a unit of work.
    ///
    /// # Errors
    /// Whoever watches called it off.
    pub fn replay(
        pattern: &Pattern,
        slots: u64,
        watermark: Operation,
        watch: &dyn Watch,
    ) -> Result<Self, Cancelled> {
        Self::none(pattern, slots).forward(watermark, watch)
    }

    /// Those of memory that nothing was written to yet.
    pub fn none(pattern: &Pattern, slots: u64) -> Self {
        let counts = if pattern.is_closed_form() { Vec::new() } else { vec![0; slots as usize] };
        Self { pattern: pattern.clone(), watermark: 0, counts }
    }

    /// Those of a pattern without a closed form that were counted before, by slot.
    pub fn known(pattern: &Pattern, watermark: Operation, counts: Vec<Generation>) -> Self {
        Self { pattern: pattern.clone(), watermark, counts }
    }

    /// The same writer's at a later watermark; each operation between is a unit of work where there is
    /// no closed form.
    ///
    /// # Errors
    /// Whoever watches called it off.
    pub fn forward(mut self, watermark: Operation, watch: &dyn Watch) -> Result<Self, Cancelled> {
        if !self.counts.is_empty() {
            count(&self.pattern, &mut self.counts, self.watermark..watermark, watch)?;
        }
        self.watermark = watermark.max(self.watermark);
        Ok(self)
    }

    /// By slot; empty where the pattern has a closed form.
    pub fn counts(&self) -> &[Generation] {
        &self.counts
    }

    /// The watermark this is of.
    pub fn watermark(&self) -> Operation {
        self.watermark
    }

    /// How often `slot` has been written.
    #[inline]
    pub fn of(&self, slot: Slot) -> Generation {
        match self.counts.is_empty() {
            true => self.pattern.generation(slot, self.watermark),
            false => self.counts[slot as usize],
        }
    }

    /// Performs the next operation; returns what it does, and the slot's generation before it.
    #[inline]
    pub fn step(&mut self) -> (Access, Generation) {
        let k = self.watermark;
        let access = self.pattern.access(k);
        self.watermark += 1;
        let generation = match (access, self.counts.is_empty()) {
            (Access::Write(slot) | Access::Read(slot), true) => {
                self.pattern.generation_before(k, slot)
            }
            (Access::Read(slot), false) => self.counts[slot as usize],
            (Access::Write(slot), false) => {
                let count = &mut self.counts[slot as usize];
                *count += 1;
                *count - 1
            }
        };
        (access, generation)
    }
}

fn count(
    pattern: &Pattern,
    totals: &mut [Generation],
    Range { mut start, end: watermark }: Range<Operation>,
    watch: &dyn Watch,
) -> Result<(), Cancelled> {
    let slots = totals.len() as u64;
    let tasks = (COUNTERS_BYTES_MAX / (slots * 4))
        .min(cores::threads() as u64)
        .min(watermark.saturating_sub(start).div_ceil(TASK_OPERATIONS))
        .max(1);
    while start < watermark {
        let end = watermark.min(start + tasks * COUNTER_OPERATIONS_MAX);
        let boundary = |task: u64| {
            start + ((end - start) / tasks) * task + (end - start) % tasks * task / tasks
        };
        // A table for each task: hot slots would otherwise be fought over.
        let tables = cores::map(tasks, |task| {
            let mut table: Vec<u32> = vec![0; slots as usize];
            for_each(boundary(task)..boundary(task + 1), watch, |k| {
                let (write, raw) = pattern.draw(k);
                table[raw as usize] += u32::from(write);
            })?;
            Ok(table)
        });
        for table in tables {
            let table = table?;
            for (raw, count) in table.iter().enumerate().filter(|(_, count)| **count > 0) {
                totals[pattern.slot_of(raw as u64) as usize] += u64::from(*count);
            }
        }
        start = end;
    }
    Ok(())
}

/// Performs operations one after the other, and looks up now and then.
#[inline]
fn for_each(
    mut operations: Range<Operation>,
    watch: &dyn Watch,
    mut perform: impl FnMut(Operation),
) -> Result<(), Cancelled> {
    while !operations.is_empty() {
        if watch.cancelled() {
            return Err(Cancelled);
        }
        let end = operations.end.min(operations.start + TASK_OPERATIONS);
        (operations.start..end).for_each(&mut perform);
        watch.done(end - operations.start);
        operations.start = end;
    }
    Ok(())
}

/// The operations before `until` that wrote any of `slots`, in order, by slot.
pub fn operations(
    pattern: &Pattern,
    slots: &HashSet<Slot>,
    until: Operation,
) -> HashMap<Slot, Vec<Operation>> {
    to_its_end(find_operations(pattern, slots, until, &Unwatched))
}

/// The same, watched; each operation is a unit of work.
///
/// # Errors
/// Whoever watches called it off.
pub fn find_operations(
    pattern: &Pattern,
    slots: &HashSet<Slot>,
    until: Operation,
    watch: &dyn Watch,
) -> Result<HashMap<Slot, Vec<Operation>>, Cancelled> {
    let tasks = cores::map(until.div_ceil(TASK_OPERATIONS), |task| {
        let range = task * TASK_OPERATIONS..((task + 1) * TASK_OPERATIONS).min(until);
        let mut written = Vec::new();
        for_each(range, watch, |k| match pattern.access(k) {
            Access::Write(slot) if slots.contains(&slot) => written.push((slot, k)),
            _ => {}
        })?;
        Ok(written)
    });
    let mut found: HashMap<Slot, Vec<Operation>> = HashMap::new();
    for task in tasks {
        for (slot, k) in task? {
            found.entry(slot).or_default().push(k);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Ground;
    use proptest::prelude::*;

    const NAMES: [&str; 8] = [
        "stream",
        "uniform",
        "iid",
        "zipf,theta=0.8",
        "hotset,p=0.9,f=0.1",
        "fileio,file=64KiB,run=16KiB",
        "iometer",
        "phases,of=stream*50+zipf:theta=1.2*300+iometer*20",
    ];

    proptest! {
        /// The oracle: one operation after the other, on one table.
        #[test]
        fn replay_agrees_with_counting(name in prop::sample::select(NAMES.to_vec()), seed: u64, slots in 2u64..200, watermark in 0u64..200_000) {
            let ground = Ground { seed, writer: 0, first_page: 0, pages: slots, slots, record: 4096 };
            let pattern = Pattern::new(&name.parse().unwrap(), &ground, None).unwrap();
            let mut counted = vec![0; slots as usize];
            let mut by_slot: Vec<Vec<u64>> = vec![vec![]; slots as usize];
            let mut stepped = Generations::at(&pattern, slots, 0);
            for k in 0..watermark {
                let (access, before) = stepped.step();
                prop_assert_eq!(access, pattern.access(k));
                let (Access::Write(slot) | Access::Read(slot)) = access;
                prop_assert_eq!(before, counted[slot as usize]);
                if matches!(access, Access::Write(_)) {
                    counted[slot as usize] += 1;
                    by_slot[slot as usize].push(k);
                }
            }
            let replayed = Generations::at(&pattern, slots, watermark / 3);
            let replayed = to_its_end(replayed.forward(watermark, &Unwatched));
            let wanted: HashSet<u64> = [0, slots - 1].into();
            let written = operations(&pattern, &wanted, watermark);
            for slot in 0..slots {
                prop_assert_eq!(replayed.of(slot), counted[slot as usize]);
                prop_assert_eq!(stepped.of(slot), counted[slot as usize]);
                if wanted.contains(&slot) {
                    let found = written.get(&slot).cloned().unwrap_or_default();
                    prop_assert_eq!(&found, &by_slot[slot as usize]);
                }
            }
        }
    }
}
