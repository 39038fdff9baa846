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
use workload::region::Region;

use super::sys::{self, Logging, SLOT};
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

/// The log of one machine's memory.
pub(super) struct DirtyLog {
    vm: Arc<VmFd>,
    region: Arc<Region>,
    logging: Logging,
}

impl DirtyLog {
    pub(super) fn new(vm: Arc<VmFd>, region: Arc<Region>) -> Self {
        Self { vm, region, logging: Logging::Off }
    }

    fn read(&self) -> io::Result<Vec<u64>> {
        Ok(self.vm.get_dirty_log(SLOT, self.region.bytes() as usize)?)
    }

    fn clear(&self, words: Range<usize>, bitmap: &[u64]) -> io::Result<()> {
        let first = words.start as u64 * 64;
        // Up to the end of the slot where that is no multiple of 64.
        let pages = (words.end as u64 * 64).min(self.region.pages()) - first;
        sys::clear_log(&self.vm, first, pages as u32, bitmap)
    }
}

impl DirtyTracker for DirtyLog {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn start(&mut self) -> Result<(), GuestError> {
        let started = || {
            if self.logging == Logging::On {
                sys::map_memory(&self.vm, &self.region, Logging::Off)?;
            }
            sys::map_memory(&self.vm, &self.region, Logging::On)?;
            // All bits are set at first and nothing is protected: clearing does that.
            let words = self.region.pages().div_ceil(64) as usize;
            self.clear(0..words, &vec![u64::MAX; words])
        };
        started().map_err(|e| GuestError::new("start KVM's dirty log", e))?;
        self.logging = Logging::On;
        Ok(())
    }

    fn harvest(&mut self, range: PageRange, into: &mut Bitmap) -> Result<u64, GuestError> {
        let failed = |e| GuestError::new("read KVM's dirty log", e);
        if range.is_empty() {
            return Ok(0);
        }
        let log = self.read().map_err(failed)?;
        let words = (range.start.0 / 64) as usize..range.end.0.div_ceil(64) as usize;
        let mut seen = log[words.clone()].to_vec();
        // Pages outside of the range keep their bits.
        if let Some(first) = seen.first_mut() {
            *first &= u64::MAX << (range.start.0 % 64);
        }
        if let Some(last) = seen.last_mut().filter(|_| !range.end.0.is_multiple_of(64)) {
            *last &= u64::MAX >> (64 - range.end.0 % 64);
        }
        if seen.iter().all(|word| *word == 0) {
            return Ok(0);
        }
        self.clear(words.clone(), &seen).map_err(failed)?;
        let mut pages = 0;
        for (word, first) in seen.iter().zip((words.start as u64 * 64..).step_by(64)) {
            for run in Group::new(PageNumber(first), *word).into_iter().flat_map(Group::runs) {
                pages += run.end - run.start;
                into.insert(run);
            }
        }
        Ok(pages)
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        if self.logging == Logging::On {
            // An untracked guest pays nothing; if that fails it pays on.
            let _ = sys::map_memory(&self.vm, &self.region, Logging::Off);
        }
    }
}
