//! Faults gathered into runs, counted by class, and searched for what they have in common.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::line::PlaceKey;
use workload::spec::Workload;
use workload::{LINE_BYTES, PAGE_BYTES, PAGE_LINES};

use crate::classify::{Class, LineFault};

/// Most extents kept; beyond that faults are only counted.
pub const EXTENTS_MAX: usize = 4096;

/// A run of neighbouring lines with the same fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Extent {
    /// Byte offset of the first line in the region.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Byte offset in the region of the first byte that is wrong.
    pub first_wrong_byte: u64,
    /// Page of the first line.
    pub page: u64,
    /// Which writer owns it.
    pub writer: u32,
    /// What is wrong.
    #[serde(flatten)]
    pub class: Class,
    /// Generation that the first line must have.
    pub expected: u64,
    /// Generation that it has, where that could be told.
    pub found: Option<u64>,
}

/// What runs of bytes, more than one and ascending, have in common by where they lie.
pub fn regularity(places: &[(u64, u64)]) -> Vec<String> {
    let mut facts = Vec::new();
    let [first, second, ..] = places else { return facts };
    let alignment = places.iter().fold(u64::MAX, |align, (address, bytes)| {
        align.min(1 << (address | bytes).trailing_zeros().min(63))
    });
    if alignment >= PAGE_BYTES {
        facts.push(format!("all start and end at multiples of {alignment} bytes"));
    }
    let step = second.0 - first.0;
    if places.len() > 2 && places.windows(2).all(|pair| pair[1].0 - pair[0].0 == step) {
        facts.push(format!("they repeat every {step} bytes"));
    }
    facts
}

/// All faults of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Faults {
    /// Runs in ascending order, at most [`EXTENTS_MAX`].
    pub extents: Vec<Extent>,
    /// Faulty lines by class name: complete, also where extents were left out.
    pub lines: BTreeMap<String, u64>,
}

impl Faults {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether each is a line of the run with that key.
    pub fn are_of(&self, key: PlaceKey) -> bool {
        let class = Class::OtherRun { place: key };
        self.extents.len() < EXTENTS_MAX
            && self.lines.keys().all(|name| name == class.name())
            && self.extents.iter().all(|extent| extent.class == class)
    }

    /// Whether each is a line of this run of another time, that other watermarks may explain.
    pub fn are_aged(&self) -> bool {
        self.lines.keys().all(|name| name == "STALE" || name == "FUTURE")
    }

    /// Adds one line; lines come in ascending order.
    pub fn push(&mut self, address: u64, writer: usize, expected: u64, fault: LineFault) {
        *self.lines.entry(fault.class.name().to_owned()).or_default() += 1;
        let offset = address * LINE_BYTES;
        let writer = writer as u32;
        if !self.grow_last(offset, LINE_BYTES, fault.class, writer)
            && self.extents.len() < EXTENTS_MAX
        {
            self.extents.push(Extent {
                address: offset,
                bytes: LINE_BYTES,
                first_wrong_byte: offset + u64::from(fault.first_byte),
                page: address / PAGE_LINES,
                writer,
                class: fault.class,
                expected,
                found: fault.found,
            });
        }
    }

    /// Adds the faults of a range that follows.
    pub fn append(&mut self, other: Self) {
        for (class, count) in other.lines {
            *self.lines.entry(class).or_default() += count;
        }
        for extent in other.extents {
            if !self.grow_last(extent.address, extent.bytes, extent.class, extent.writer)
                && self.extents.len() < EXTENTS_MAX
            {
                self.extents.push(extent);
            }
        }
    }

    /// Extends the last extent by what follows it and is of the same kind.
    fn grow_last(&mut self, address: u64, bytes: u64, class: Class, writer: u32) -> bool {
        match self.extents.last_mut() {
            Some(last)
                if last.address + last.bytes == address
                    && last.class == class
                    && last.writer == writer =>
            {
                last.bytes += bytes;
                true
            }
            _ => false,
        }
    }

    /// What the extents have in common: hints at the cause, in words.
    pub fn in_common(&self, workload: &Workload) -> Vec<String> {
        let mut facts = Vec::new();
        let [first, .., _] = self.extents.as_slice() else { return facts };
        let extents = &self.extents;
        if extents.iter().all(|e| e.class == first.class) {
            facts.push(format!("all are {}", first.class));
        }
        let places: Vec<(u64, u64)> = extents.iter().map(|e| (e.address, e.bytes)).collect();
        facts.extend(regularity(&places));
        let slot = |e: &Extent| {
            let line = e.address / LINE_BYTES;
            let mut segments = workload.segments(e.writer as usize, e.page);
            (e.writer, segments.find(|s| s.lines.contains(&line)).and_then(|s| s.slot))
        };
        let (_, first_slot) = slot(first);
        if let Some(number) = first_slot
            && extents.iter().all(|e| slot(e) == (first.writer, first_slot))
        {
            facts.push(format!("all are in slot {number} of writer {}", first.writer));
        } else if extents.iter().all(|e| e.writer == first.writer) && workload.shares().len() > 1 {
            facts.push(format!("all belong to writer {}", first.writer));
        }
        facts
    }
}
