//! How far memory itself says each writer came, when nobody wrote its last watermark down.

use workload::line::{Generation, Line, LineAddress};
use workload::pattern::{Access, Operation, Slot};
use workload::spec::Workload;

use crate::expected::Expected;
use crate::memory::Memory;

/// From what memory held at the watermarks last journalled on, the one that leaves the fewest lines wrong. Operations that
/// leave no trace (reads, zeros over zeros, writes to pages that are not there) are not counted before
/// one that does.
pub fn infer_watermarks<M: Memory>(
    memory: &M,
    workload: &Workload,
    journalled: &Expected,
) -> Vec<Operation> {
    let of_writer = |writer: usize| {
        let share = &workload.shares()[writer];
        let mut generations = journalled.of_writer(writer).clone();
        // Without a trace of any of them for so long, there is nothing left to go by.
        let silent_max = 16 * share.slots + 1000;
        // A stretch of memory that was lost may be as long as this.
        let against_max = share.slots / 8 + 4096;
        // Lines that are wrong if the writer stopped here, but for those that are wrong in any case.
        let mut wrong = 0i64;
        let mut best = Stop { watermark: generations.watermark(), wrong, settled: wrong };
        let mut against = 0;
        while generations.watermark() - best.watermark < silent_max && against < against_max {
            let k = generations.watermark();
            let (Access::Write(slot), before) = generations.step() else { continue };
            let record = Record::of(memory, workload, writer, slot);
            let (old, new) =
                (record.wrong_at(workload, before), record.wrong_at(workload, before + 1));
            // Where it stopped inside the record, a prefix of it is new.
            let here = Stop {
                watermark: k,
                wrong: wrong - old + record.wrong_if_torn(workload, before),
                settled: wrong,
            };
            best = best.or(here);
            wrong += new - old;
            let done = Stop { watermark: k + 1, wrong, settled: wrong };
            if new < old {
                best = best.or(done);
            }
            against = match best.watermark > k {
                true => 0,
                false => against + u64::from(new > old),
            };
        }
        best.watermark
    };
    (0..workload.shares().len()).map(of_writer).collect()
}

/// Where a writer may have stopped.
#[derive(Clone, Copy)]
struct Stop {
    watermark: Operation,
    /// Lines wrong then, with a record that it was in the middle of.
    wrong: i64,
    /// And without such a record.
    settled: i64,
}

impl Stop {
    /// The better of two, of which `later` is the later one: of those that are as good as each other the
    /// one that needs no record to be in its middle, and of those the earlier.
    fn or(self, later: Self) -> Self {
        match (later.wrong, later.settled) < (self.wrong, self.settled) {
            true => later,
            false => self,
        }
    }
}

/// The lines of a slot that are there.
struct Record {
    first: LineAddress,
    lines: Vec<(LineAddress, Line)>,
}

impl Record {
    fn of<M: Memory>(memory: &M, workload: &Workload, writer: usize, slot: Slot) -> Self {
        let first = workload.slot_line(writer, slot);
        let there = (first..first + workload.record_lines())
            .filter(|address| memory.has(address / workload::PAGE_LINES));
        Self { first, lines: there.map(|address| (address, memory.load(address))).collect() }
    }

    fn differs(&self, workload: &Workload, place: usize, generation: Generation) -> i64 {
        let (address, line) = &self.lines[place];
        i64::from(*line != workload.line(self.first, *address, generation))
    }

    fn wrong_at(&self, workload: &Workload, generation: Generation) -> i64 {
        (0..self.lines.len()).map(|place| self.differs(workload, place, generation)).sum()
    }

    /// The fewest that are wrong if some prefix is of the generation after this one. The line between
    /// may itself be half written, and is not counted.
    fn wrong_if_torn(&self, workload: &Workload, generation: Generation) -> i64 {
        let mut wrong = self.wrong_at(workload, generation);
        let mut least = wrong;
        for place in 0..self.lines.len() {
            // Up to here old, this one in the middle.
            wrong -= self.differs(workload, place, generation);
            least = least.min(wrong);
            wrong += self.differs(workload, place, generation + 1);
        }
        least.min(wrong)
    }
}
