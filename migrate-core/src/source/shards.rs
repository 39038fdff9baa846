//! The data streams of the source: each thread sends the dirty pages of its own shard, group by
//! group; how a group goes on the wire is `sender`'s subject.
//!
//! A page always travels on the same stream, so a newer copy can never be overtaken by an older
//! one, and rounds need no barrier at the destination.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use super::sender::Sender;
use crate::memory::{Bitmap, PageNumber, SharedBitmap, groups_of_shard};

/// What a stream is asked to do.
#[derive(Clone)]
pub(super) enum Job {
    /// Send every page of the set that is in this stream's shard.
    Pages(Arc<Bitmap>),
    /// Go through this stream's shard once and send what is owed when its turn comes.
    Sweep(Arc<Sweep>),
    /// Say that nothing more comes in this epoch.
    End { epoch: u64 },
}

/// What a sweep works on, while the main thread harvests into it.
#[derive(Debug)]
pub(super) struct Sweep {
    /// Pages that the destination has not, or not as they are.
    pub(super) owed: SharedBitmap,
    /// Pages that are passed over: hot ones, and those written since the sweep began; left for the
    /// next one, or for the stun.
    pub(super) recent: SharedBitmap,
    /// Set to end the sweep where it is; what was not sent stays owed.
    pub(super) halt: AtomicBool,
}

impl Sweep {
    /// A sweep over `owed` that at first passes over `hot`.
    pub(super) fn over(owed: &Bitmap, hot: &Bitmap) -> Self {
        Self {
            owed: SharedBitmap::of(owed),
            recent: SharedBitmap::of(hot),
            halt: AtomicBool::new(false),
        }
    }
}

/// What a stream says: it is done with a job, or lost.
pub(super) type Done = Result<(), std::io::Error>;

/// One stream's thread.
pub(super) struct Shard {
    pub(super) index: u64,
    pub(super) sender: Sender,
    pub(super) abandon: Arc<AtomicBool>,
}

impl Shard {
    /// Works until the jobs end, an error, or abandonment; each job is answered.
    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>, done: impl Fn(Done)) {
        while let Ok(job) = jobs.recv() {
            let result = match job {
                Job::Pages(pages) => {
                    self.each_group(pages.pages(), |first| Some(pages.group(first)))
                }
                // Taken out before they are read: what is written from here on is owed again.
                Job::Sweep(sweep) => self.each_group(sweep.owed.pages(), |first| {
                    let goes_on = !sweep.halt.load(Ordering::Relaxed);
                    goes_on.then(|| sweep.owed.take_64(first, &sweep.recent))
                }),
                Job::End { epoch } => self.sender.end(epoch),
            };
            let lost = result.is_err();
            done(result);
            if lost {
                return;
            }
        }
    }

    /// Sends of each group of this shard the pages that `take` says, until it says `None`.
    fn each_group(
        &mut self,
        total: u64,
        take: impl Fn(PageNumber) -> Option<u64>,
    ) -> std::io::Result<()> {
        for first in groups_of_shard(self.index, self.sender.wiring.streams, total) {
            if self.abandon.load(Ordering::Relaxed) {
                return Ok(());
            }
            match take(first) {
                None => return self.sender.flush(),
                Some(0) => {}
                Some(pages) => self.sender.group(first, pages)?,
            }
        }
        self.sender.flush()
    }
}
