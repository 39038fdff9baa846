//! How far memory itself says each writer came, when nobody wrote its last watermark down.

use workload::generations::Generations;
use workload::line::{Generation, Line, LineAddress, ZERO_LINE};
use workload::pattern::{Access, Operation, Slot};
use workload::spec::Workload;

use crate::memory::Memory;

/// From the watermarks last journalled on: the first operation whose record does not stand
/// complete in memory. Operations that leave no trace (reads, zeros over zeros, writes to pages
/// that are not there) are passed over, and are done if a later one is.
pub fn infer_watermarks<M: Memory>(
    memory: &M,
    workload: &Workload,
    journalled: &[Operation],
) -> Vec<Operation> {
    let of_writer = |(writer, from): (usize, &Operation)| {
        let share = &workload.shares()[writer];
        let mut generations = Generations::at(&share.pattern, share.slots, *from);
        // Without a trace of any of them for so long, there is nothing left to go by.
        let silent_max = 16 * share.slots + 1000;
        let (mut reached, mut doubt) = (*from, None);
        while generations.watermark() - reached < silent_max {
            let k = generations.watermark();
            let (Access::Write(slot), before) = generations.step() else { continue };
            match trace(memory, workload, writer, slot, before + 1) {
                Trace::None => {}
                Trace::Doubt => doubt = doubt.or(Some(k)),
                Trace::Complete => (reached, doubt) = (k + 1, None),
                // What lies between left no trace, and belongs to either side.
                Trace::Incomplete => return doubt.unwrap_or(k),
            }
        }
        doubt.unwrap_or(reached)
    };
    journalled.iter().enumerate().map(of_writer).collect()
}

/// What memory shows of an operation.
enum Trace {
    /// Nothing: it would look the same without it.
    None,
    /// A zero record where the operation writes content: it was zero before, and may be so again.
    Doubt,
    /// It, or a later one of the same slot, was done.
    Complete,
    /// It was not done, or not to its end.
    Incomplete,
}

fn trace<M: Memory>(
    memory: &M,
    workload: &Workload,
    writer: usize,
    slot: Slot,
    generation: Generation,
) -> Trace {
    let key = workload.key();
    let first = workload.slot_line(writer, slot);
    let lines: Vec<(LineAddress, Line)> = (first..first + workload.record_lines())
        .filter(|address| memory.has(address / workload::PAGE_LINES))
        .map(|address| (address, memory.load(address)))
        .collect();
    if lines.is_empty() {
        return Trace::None;
    }
    let stamps = lines.iter().filter_map(|(address, line)| {
        let (at, found) = key.identify(line)?;
        (at == *address).then_some(found)
    });
    let newest = stamps.max().unwrap_or(0);
    let stands_at = |generation| {
        lines.iter().all(|(address, line)| *line == workload.line(first, *address, generation))
    };
    let zero_at = |generation| {
        lines.iter().all(|(address, _)| workload.line(first, *address, generation) == ZERO_LINE)
    };
    if newest > generation {
        return Trace::Complete;
    }
    if stands_at(generation) {
        return if stands_at(generation - 1) { Trace::None } else { Trace::Complete };
    }
    match lines.iter().all(|(_, line)| *line == ZERO_LINE) {
        false => Trace::Incomplete,
        true if zero_at(generation - 1) => Trace::Doubt,
        true => Trace::Complete,
    }
}
