//! A long computation, as its other side sees it: how far it is, and that it is not wanted any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A handle on a long computation; clones are of the same one.
#[derive(Clone, Debug, Default)]
pub struct Work(Arc<State>);

#[derive(Debug, Default)]
struct State {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Work {
    /// Calls it off: whoever does it gives up within some milliseconds.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
    }

    /// Whether it was called off; whoever does it asks every few milliseconds.
    pub fn cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Says that `done` units of `total` are done, in any unit that is the same for all.
    pub fn advance(&self, done: u64, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
        self.0.done.store(done, Ordering::Relaxed);
    }

    /// How many units are done, and of how many; the second is 0 while nobody knows, and may grow.
    pub fn progress(&self) -> (u64, u64) {
        let total = self.0.total.load(Ordering::Relaxed);
        (self.0.done.load(Ordering::Relaxed).min(total), total)
    }
}

#[cfg(feature = "builtin")]
impl workload::work::Watch for Work {
    fn expect(&self, units: u64) {
        self.0.total.fetch_add(units, Ordering::Relaxed);
    }

    fn done(&self, units: u64) {
        self.0.done.fetch_add(units, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        Self::cancelled(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_of_the_same_work() {
        let (here, there) = (Work::default(), Work::default());
        let seen = here.clone();
        here.advance(3, 8);
        assert_eq!((seen.progress(), there.progress()), ((3, 8), (0, 0)));
        seen.cancel();
        assert!(here.cancelled() && !there.cancelled());
    }
}
