//! The source's first look at memory: while the destination makes its shadow, which takes as long
//! as its system needs to find that much memory, the source has nothing else to do.
//!
//! What is found, which pages are zero and the checks of the others, is what they were at some
//! moment after write tracking began. A page written since is dirty, so what is known of it is
//! forgotten at the harvest that finds it, before it is owed again; until then, sending it with
//! what is known is no worse than having read it just before it was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::Error;
use crate::codec::looks::{Look, Looks};
use crate::codec::{Checks, check};
use crate::error::spawn;
use crate::guest::MemoryView;
use crate::memory::{Bitmap, Group, PAGE_BYTES, PageNumber, groups_of_shard};

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
                    for page in present.group(first).into_iter().flat_map(Group::pages) {
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
        memory.copy_out(&page.alone(), &mut contents);
        looks.set(page, Look::Check(check(page, &contents)));
    }
}
