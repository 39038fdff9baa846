//! What lies where in the machine's memory.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0 to M | the workload's region |
//! | M to S | nothing: a hole of [`HOLE_PAGES`] |
//! | S | page map, level 4: one entry |
//! | S + 1 page | page directory pointers: one entry per GiB |
//! | S + 2 pages | page directories: pages of 2 MiB, each address mapped to itself |
//! | then | the payload |
//! | then | a page for each vCPU: its operation counter, and what its writer needs to know |
//!
//! All of it is the guest's memory, two regions of it, and moves with it.

use std::sync::atomic::{AtomicU64, Ordering};

use workload::PAGE_BYTES;
use workload::region::Region;
use workload::spec::Workload;

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES: u64 = PAGE_BYTES / 8;
/// Page table flags: present, writable, accessed, dirty (set, so that the processor has nothing to
/// write into the tables).
const TABLE: u64 = 0x63;
/// The same, and a page of 2 MiB.
const LARGE: u64 = TABLE | 0x80;

/// Pages between the two regions: no multiple of a group or of a chunk of them, as in the machines
/// of others.
const HOLE_PAGES: u64 = 77;

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
        while this.directories * GIB < this.system_base() + this.system_bytes() {
            this.directories += 1;
        }
        this
    }

    /// Where the machine's own region begins.
    pub(super) fn system_base(&self) -> u64 {
        self.workload_bytes + HOLE_PAGES * PAGE_BYTES
    }

    /// Bytes of it.
    pub(super) fn system_bytes(&self) -> u64 {
        (2 + self.directories + 1 + self.writers) * PAGE_BYTES
    }

    /// The page map, for CR3.
    pub(super) fn page_map(&self) -> u64 {
        self.system_base()
    }

    /// The payload's first instruction.
    pub(super) fn code(&self) -> u64 {
        self.system_base() + (2 + self.directories) * PAGE_BYTES
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
    pub(super) fn counter<'a>(&self, system: &'a Region, vcpu: usize) -> &'a AtomicU64 {
        self.word(system, self.parameters(vcpu))
    }

    fn word<'a>(&self, system: &'a Region, address: u64) -> &'a AtomicU64 {
        &system.words()[((address - self.system_base()) / 8) as usize]
    }

    /// Writes these words at their guest-physical addresses into the machine's own region.
    pub(super) fn write(&self, system: &Region, words: &[(u64, u64)]) {
        for (address, value) in words {
            self.word(system, *address).store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// The first of these words that is another one now, counters aside.
    pub(super) fn first_difference(&self, system: &Region, words: &[(u64, u64)]) -> Option<u64> {
        let counters: Vec<u64> =
            (0..self.writers).map(|vcpu| self.parameters(vcpu as usize)).collect();
        let differs = |(address, value): &&(u64, u64)| {
            let found = self.word(system, *address).load(Ordering::Relaxed);
            u64::from_le(found) != *value && !counters.contains(address)
        };
        words.iter().find(differs).map(|(address, _)| *address)
    }

    /// The page tables.
    pub(super) fn tables(&self) -> Vec<(u64, u64)> {
        let pointers = self.page_map() + PAGE_BYTES;
        let mut words = vec![(self.page_map(), pointers | TABLE)];
        for gib in 0..self.directories {
            let directory = pointers + (1 + gib) * PAGE_BYTES;
            words.push((pointers + 8 * gib, directory | TABLE));
            for entry in 0..ENTRIES {
                words.push((directory + 8 * entry, (gib * GIB + entry * LARGE_PAGE) | LARGE));
            }
        }
        words
    }
}
