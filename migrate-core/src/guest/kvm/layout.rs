//! What lies where in the machine's memory.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0 | the workload's region |
//! | M | page map, level 4: one entry |
//! | M + 1 page | page directory pointers: one entry per GiB |
//! | M + 2 pages | page directories: pages of 2 MiB, each address mapped to itself |
//! | then | the payload |
//! | then | a page for each vCPU: its operation counter, and what its writer needs to know |
//!
//! All of it is the guest's memory, and moves with it.

use std::sync::atomic::{AtomicU64, Ordering};

use workload::PAGE_BYTES;
use workload::pattern::Simple;
use workload::region::Region;
use workload::spec::Workload;

use super::payload;

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = PAGE_BYTES / 8;
/// Page table flags: present, writable, accessed, dirty (set, so that the processor has nothing to
/// write into the tables).
const TABLE: u64 = 0x63;
/// The same, and a page of 2 MiB.
const LARGE: u64 = TABLE | 0x80;

/// Where everything is, in bytes from guest-physical 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    workload_bytes: u64,
    directories: u64,
    writers: u64,
}

impl Layout {
    pub(super) fn of(workload: &Workload) -> Self {
        let workload_bytes = workload.spec().memory.0;
        let writers = workload.shares().len() as u64;
        // The directories must reach the end of what comes behind them as well.
        let mut this = Self { workload_bytes, directories: 0, writers };
        while this.directories * GIB < workload_bytes + this.system_bytes() {
            this.directories += 1;
        }
        this
    }

    /// Bytes behind the workload's region.
    pub(super) fn system_bytes(&self) -> u64 {
        (2 + self.directories + 1 + self.writers) * PAGE_BYTES
    }

    /// The page map, for CR3.
    pub(super) fn page_map(&self) -> u64 {
        self.workload_bytes
    }

    /// The payload's first instruction.
    pub(super) fn code(&self) -> u64 {
        self.workload_bytes + (2 + self.directories) * PAGE_BYTES
    }

    /// The page of a vCPU.
    pub(super) fn parameters(&self, vcpu: usize) -> u64 {
        self.code() + (1 + vcpu as u64) * PAGE_BYTES
    }

    /// Most memory that the tables can map.
    pub(super) const fn workload_bytes_max() -> u64 {
        (ENTRIES - 1) * GIB
    }

    /// Operations that a vCPU's writer has completed.
    pub(super) fn counter<'a>(&self, region: &'a Region, vcpu: usize) -> &'a AtomicU64 {
        &region.words()[(self.parameters(vcpu) / 8) as usize]
    }
}

/// Writes everything behind the workload's region, for a machine that begins.
pub(super) fn write(layout: &Layout, region: &Region, workload: &Workload) {
    for (address, value) in words(layout, workload) {
        region.words()[(address / 8) as usize].store(value.to_le(), Ordering::Relaxed);
    }
}

/// The first address where what never changes behind the workload's region is not what was written
/// there when the machine began.
pub(super) fn first_difference(
    layout: &Layout,
    region: &Region,
    workload: &Workload,
) -> Option<u64> {
    let counters = 0..workload.shares().len();
    let counters: Vec<u64> = counters.map(|vcpu| layout.parameters(vcpu)).collect();
    let differs = |(address, value): &(u64, u64)| {
        let found = region.words()[(address / 8) as usize].load(Ordering::Relaxed);
        u64::from_le(found) != *value && !counters.contains(address)
    };
    words(layout, workload).into_iter().find(differs).map(|(address, _)| address)
}

/// Every word behind the workload's region that is not zero when the machine begins.
fn words(layout: &Layout, workload: &Workload) -> Vec<(u64, u64)> {
    let mut words = Vec::new();
    let mut put = |address: u64, value: u64| words.push((address, value));
    let pointers = layout.page_map() + PAGE_BYTES;
    put(layout.page_map(), pointers | TABLE);
    for gib in 0..layout.directories {
        let directory = pointers + (1 + gib) * PAGE_BYTES;
        put(pointers + 8 * gib, directory | TABLE);
        for entry in 0..ENTRIES {
            put(directory + 8 * entry, (gib * GIB + entry * LARGE_PAGE) | LARGE);
        }
    }
    for (code, index) in payload::code().chunks(8).zip(0..) {
        let mut word = [0; 8];
        word[..code.len()].copy_from_slice(code);
        put(layout.code() + 8 * index, u64::from_le_bytes(word));
    }
    let ([place, age], multipliers, body) = workload.key().constants();
    for (index, share) in workload.shares().iter().enumerate() {
        // `payload::check` has seen to it that it is.
        let (kind, slots, key) = match share.pattern.simple() {
            Some(Simple::Uniform { slots, key }) => (1, slots, key),
            Some(Simple::Ring { slots }) => (0, slots, 0),
            None => unreachable!("a pattern that the payload knows"),
        };
        let bits = u64::from((64 - (slots - 1).leading_zeros()).max(1));
        let parameters = payload::Parameters {
            operations: 0,
            kind,
            slots,
            key,
            mask: u64::MAX >> (64 - bits),
            shift: bits.div_ceil(2),
            first_line: workload.slot_line(index, 0),
            record_lines: workload.record_lines(),
            place,
            age,
            multipliers,
            body,
        };
        for (offset, word) in parameters.words().into_iter().enumerate() {
            put(layout.parameters(index) + 8 * offset as u64, word);
        }
    }
    words
}
