//! The source's first look at memory: while the destination makes its shadow, which takes as long
//! as its system needs to find that much memory, the source has nothing else to do.
//!
//! What is found, which pages are zero and the checks of the others, is what they were at some
//! moment after write tracking began. A page written since is dirty, so what is known of it is
//! forgotten at the harvest that finds it, before it is owed again; until then, sending it with
//! what is known is no worse than having read it just before it was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::Error;
use crate::codec::{Checks, check};
use crate::error::spawn;
use crate::guest::MemoryView;
use crate::memory::{Bitmap, PAGE_BYTES, PageNumber, groups_of_shard, pages_of};

/// Stands for a page of which nothing is known.
const UNKNOWN: u64 = 0;
/// Stands for a zero page. A page whose check happens to be the same number is not remembered.
const ZERO: u64 = 1;

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All of it is zero.
    Zero,
    /// It is not; its check.
    Check(u64),
}

/// What is known of each page: 8 bytes for each, 0.2 % of memory.
#[derive(Debug)]
pub(super) struct Looks(Box<[AtomicU64]>);

impl Looks {
    /// Nothing is known of any page.
    pub(super) fn none(pages: u64) -> Self {
        Self((0..pages).map(|_| AtomicU64::new(UNKNOWN)).collect())
    }

    /// Remembers what was found.
    fn set(&self, page: PageNumber, look: Look) {
        let known = match look {
            Look::Zero => ZERO,
            Look::Check(ZERO) => UNKNOWN,
            Look::Check(check) => check,
        };
        self.0[page as usize].store(known, Ordering::Relaxed);
    }

    /// What is known of the page, once.
    pub(super) fn take(&self, page: PageNumber) -> Option<Look> {
        let known = &self.0[page as usize];
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
    pub(super) fn forget(&self, written: &Bitmap) {
        for page in written.runs(0..written.pages()).flatten() {
            if let Some(known) = self.0.get(page as usize) {
                known.store(UNKNOWN, Ordering::Relaxed);
            }
        }
    }

    fn count(&self) -> u64 {
        self.0.iter().filter(|known| known.load(Ordering::Relaxed) != UNKNOWN).count() as u64
    }
}

/// Threads that look.
pub(super) struct FirstLook {
    looks: Arc<Looks>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl FirstLook {
    /// Begins to look at the pages of `present`, with as many threads as pages will be sent by.
    /// Write tracking must be on.
    pub(super) fn begin(
        memory: &MemoryView,
        present: Bitmap,
        checks: Checks,
        threads: u64,
    ) -> Result<Self, Error> {
        let mut first_look = Self {
            looks: Arc::new(Looks::none(memory.pages())),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let present = Arc::new(present);
        for thread in 0..threads {
            let (memory, present) = (memory.clone(), present.clone());
            let (looks, stop) = (first_look.looks.clone(), first_look.stop.clone());
            let work = move || {
                for first in groups_of_shard(thread, threads, memory.pages()) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    for page in pages_of(first, present.group(first)) {
                        look_at(&memory, page, checks, &looks);
                    }
                }
            };
            first_look.threads.push(spawn("first look", work)?);
        }
        Ok(first_look)
    }

    /// Stops looking; what is known, and of how many pages.
    pub(super) fn end(mut self) -> (Arc<Looks>, u64) {
        self.stop_and_join();
        (self.looks.clone(), self.looks.count())
    }

    fn stop_and_join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join()
                && !std::thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for FirstLook {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

fn look_at(memory: &MemoryView, page: PageNumber, checks: Checks, looks: &Looks) {
    if memory.is_zero(page) {
        looks.set(page, Look::Zero);
    } else if checks == Checks::On {
        let mut contents = [0; PAGE_BYTES as usize];
        memory.copy_out(&(page..page + 1), &mut contents);
        looks.set(page, Look::Check(check(page, &contents)));
    }
}
