//! KVM's dirty log as a tracker: read whole, cleared by range.
//!
//! With manual protection reading the log clears nothing. Exactly the pages that were seen dirty are
//! cleared, which protects them again; a page that is written between the two is among them or keeps
//! its bit for the next harvest. And a page is only read for sending after it was cleared.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VmFd};

use super::sys::{self, Logging, MemorySlot};
use crate::guest::{DirtyTracker, GuestError};
use crate::memory::{Bitmap, Group, PageNumber, PageRange};

/// Pages that are protected before the log is told to protect nothing by itself.
const MODE: u32 = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;

/// Whether this KVM lacks such a log.
pub(super) fn missing(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) & MODE as i32 != MODE as i32
}

/// Asks for it; before memory is logged.
pub(super) fn enable(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    cap.args[0] = MODE.into();
    vm.enable_cap(&cap)
}

/// The log of one machine's memory, all slots of it.
pub(super) struct DirtyLog {
    vm: Arc<VmFd>,
    slots: Vec<MemorySlot>,
    logging: Logging,
}

impl DirtyLog {
    pub(super) fn new(vm: Arc<VmFd>, slots: Vec<MemorySlot>) -> Self {
        Self { vm, slots, logging: Logging::Off }
    }

    /// Changes how all slots are logged.
    fn set(&self, logging: Logging) -> io::Result<()> {
        self.slots.iter().try_for_each(|slot| sys::map_memory(&self.vm, slot, logging))
    }

    fn clear(&self, slot: &MemorySlot, words: Range<usize>, bitmap: &[u64]) -> io::Result<()> {
        let first = words.start as u64 * 64;
        // Up to the end of the slot where that is no multiple of 64.
        let pages = (words.end as u64 * 64).min(slot.region.pages()) - first;
        sys::clear_log(&self.vm, slot.number, first, pages as u32, bitmap)
    }

    /// The dirty ones of a slot's own pages, which are clean from here on.
    fn harvest_slot(&self, slot: &MemorySlot, pages: Range<u64>) -> io::Result<Vec<Group>> {
        let log = self.vm.get_dirty_log(slot.number, slot.region.bytes() as usize)?;
        let words = (pages.start / 64) as usize..pages.end.div_ceil(64) as usize;
        let mut seen = log[words.clone()].to_vec();
        // Pages outside of the range keep their bits.
        if let Some(first) = seen.first_mut() {
            *first &= u64::MAX << (pages.start % 64);
        }
        if let Some(last) = seen.last_mut().filter(|_| !pages.end.is_multiple_of(64)) {
            *last &= u64::MAX >> (64 - pages.end % 64);
        }
        if seen.iter().any(|word| *word != 0) {
            self.clear(slot, words.clone(), &seen)?;
        }
        let firsts = (words.start as u64 * 64..).step_by(64);
        Ok(firsts
            .zip(seen)
            .filter_map(|(first, word)| Group::new(PageNumber(first), word))
            .collect())
    }
}

impl DirtyTracker for DirtyLog {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let started = || {
            if self.logging == Logging::On {
                self.set(Logging::Off)?;
            }
            self.set(Logging::On)?;
            // All bits are set at first and nothing is protected: clearing does that.
            self.slots.iter().try_for_each(|slot| {
                let words = slot.region.pages().div_ceil(64) as usize;
                self.clear(slot, 0..words, &vec![u64::MAX; words])
            })
        };
        started().map_err(|e| GuestError::new("start KVM's dirty log", e))?;
        self.logging = Logging::On;
        Ok(())
    }

    fn harvest(&mut self, range: PageRange, into: &mut Bitmap) -> Result<u64, GuestError> {
        let mut pages = 0;
        let mut first = PageNumber(0);
        for slot in &self.slots {
            let all = first..first + slot.region.pages();
            first = all.end;
            let (start, end) = (range.start.max(all.start), range.end.min(all.end));
            if start >= end {
                continue;
            }
            let found = self.harvest_slot(slot, start - all.start..end - all.start);
            let found = found.map_err(|e| GuestError::new("read KVM's dirty log", e))?;
            for run in found.into_iter().flat_map(Group::runs) {
                pages += run.end - run.start;
                into.insert(all.start + run.start.0..all.start + run.end.0);
            }
        }
        Ok(pages)
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        if self.logging == Logging::On {
            // An untracked guest pays nothing; if that fails it pays on.
            let _ = self.set(Logging::Off);
        }
    }
}
