//! What is known of pages that were not sent yet: that they are zero, or their checks. Found by the
//! source's first look at memory, used up by its streams.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{Bitmap, PageNumber};

/// Stands for a page of which nothing is known.
const UNKNOWN: u64 = 0;
/// Stands for a zero page. A page whose check happens to be the same number is not remembered.
const ZERO: u64 = 1;

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// All of it is zero.
    Zero,
    /// It is not; its check.
    Check(u64),
}

/// What is known of each page: 8 bytes for each, 0.2 % of memory.
#[derive(Debug)]
pub(crate) struct Looks(Box<[AtomicU64]>);

impl Looks {
    /// Nothing is known of any page.
    pub(crate) fn none(pages: u64) -> Self {
        Self((0..pages).map(|_| AtomicU64::new(UNKNOWN)).collect())
    }

    /// Remembers what was found.
    pub(crate) fn set(&self, page: PageNumber, look: Look) {
        let known = match look {
            Look::Zero => ZERO,
            Look::Check(ZERO) => UNKNOWN,
            Look::Check(check) => check,
        };
        self.0[page.index()].store(known, Ordering::Relaxed);
    }

    /// What is known of the page, once.
    pub(crate) fn take(&self, page: PageNumber) -> Option<Look> {
        let known = &self.0[page.index()];
        // Each page is its stream's alone; a harvest that forgets meanwhile owes the page again.
        match known.load(Ordering::Relaxed) {
            UNKNOWN => None,
            look => {
                known.store(UNKNOWN, Ordering::Relaxed);
                Some(if look == ZERO { Look::Zero } else { Look::Check(look) })
            }
        }
    }

    /// Nothing is known any more of pages that were written.
    pub(crate) fn forget(&self, written: &Bitmap) {
        for page in written.iter() {
            if let Some(known) = self.0.get(page.index()) {
                known.store(UNKNOWN, Ordering::Relaxed);
            }
        }
    }

    /// Of how many pages something is known.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().filter(|known| known.load(Ordering::Relaxed) != UNKNOWN).count() as u64
    }
}
