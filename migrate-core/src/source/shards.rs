//! The data streams of the source: each thread sends the dirty pages of its own shard.
//!
//! A page always travels on the same stream, so a newer copy can never be overtaken by an older
//! one, and rounds need no barrier at the destination.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use crate::guest::MemoryView;
use crate::link::channel::Channel;
use crate::link::pacer::Pacer;
use crate::memory::{Bitmap, CHUNK_PAGES, PAGE_BYTES, SharedBitmap, shard};
use crate::proto::frame::{HEADER_BYTES, Header, Kind};

/// Longest run in one frame: short enough that pacing is smooth and a cancel is quick.
const RUN_PAGES_MAX: u64 = 64;

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
    /// Pages written since the sweep began: left for the next one, or for the stun if they are hot.
    pub(super) recent: SharedBitmap,
    /// Set to end the sweep where it is; what was not sent stays owed.
    pub(super) halt: AtomicBool,
}

/// What a stream says: it is done with a job, or lost.
pub(super) type Done = Result<(), std::io::Error>;

/// Counters of all streams together.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Pages sent with contents.
    pub(super) pages: AtomicU64,
    /// Pages sent as zero.
    pub(super) zero_pages: AtomicU64,
    /// Bytes sent, headers included.
    pub(super) wire_bytes: AtomicU64,
}

impl Counters {
    /// Pages sent in either way.
    pub(super) fn sent(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) + self.zero_pages.load(Ordering::Relaxed)
    }
}

/// One stream's thread.
pub(super) struct Shard {
    pub(super) index: u64,
    pub(super) streams: u64,
    pub(super) tag: u64,
    pub(super) channel: Arc<Channel>,
    pub(super) memory: MemoryView,
    pub(super) pacer: Arc<Pacer>,
    pub(super) counters: Arc<Counters>,
    pub(super) abandon: Arc<AtomicBool>,
}

impl Shard {
    /// Works until the jobs end, an error, or abandonment; each job is answered.
    pub(super) fn run(self, jobs: &mpsc::Receiver<Job>, done: impl Fn(Done)) {
        while let Ok(job) = jobs.recv() {
            let result = match job {
                Job::Pages(pages) => self.send(&pages),
                Job::Sweep(sweep) => self.sweep(&sweep),
                Job::End { epoch } => {
                    self.channel.send(self.tag, &Header::new(Kind::EndOfPages, epoch, 0, 0), &[])
                }
            };
            let lost = result.is_err();
            done(result);
            if lost {
                return;
            }
        }
    }

    fn send(&self, pages: &Bitmap) -> std::io::Result<()> {
        let total = pages.pages();
        let first_chunk = self.index * CHUNK_PAGES;
        for chunk in (first_chunk..total).step_by((self.streams * CHUNK_PAGES) as usize) {
            debug_assert_eq!(shard(chunk, self.streams), self.index);
            for run in pages.runs(chunk..(chunk + CHUNK_PAGES).min(total)) {
                let mut page = run.start;
                while page < run.end {
                    if self.abandon.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    page = self.send_some(page, run.end)?;
                }
            }
        }
        Ok(())
    }

    fn sweep(&self, sweep: &Sweep) -> std::io::Result<()> {
        let total = sweep.owed.pages();
        let first_chunk = self.index * CHUNK_PAGES;
        for chunk in (first_chunk..total).step_by((self.streams * CHUNK_PAGES) as usize) {
            for first in (chunk..(chunk + CHUNK_PAGES).min(total)).step_by(64) {
                if self.abandon.load(Ordering::Relaxed) || sweep.halt.load(Ordering::Relaxed) {
                    return Ok(());
                }
                // Taken out before they are read: what is written from here on is owed again.
                let mut pages = sweep.owed.take_64(first, &sweep.recent);
                while pages != 0 {
                    let start = pages.trailing_zeros();
                    let length = (pages >> start).trailing_ones();
                    let (mut page, end) =
                        (first + u64::from(start), first + u64::from(start + length));
                    while page < end {
                        page = self.send_some(page, end)?;
                    }
                    pages &= u64::MAX.checked_shl(start + length).unwrap_or(0);
                }
            }
        }
        Ok(())
    }

    /// Sends the zero pages or the other pages at the start of a run; returns what comes next.
    fn send_some(&self, page: u64, end: u64) -> std::io::Result<u64> {
        let end = end.min(page + RUN_PAGES_MAX);
        let zero = self.memory.is_zero(page);
        let next = (page + 1..end).find(|p| self.memory.is_zero(*p) != zero).unwrap_or(end);
        let count = next - page;
        let (kind, length) = match zero {
            true => (Kind::ZeroPages, 0),
            false => (Kind::Pages, (count * PAGE_BYTES) as usize),
        };
        let header = Header::new(kind, page, count, length);
        let bytes = HEADER_BYTES + length;
        self.pacer.admit(bytes);
        if zero {
            self.channel.send(self.tag, &header, &[])?;
            self.counters.zero_pages.fetch_add(count, Ordering::Relaxed);
        } else {
            self.channel.send_pages(self.tag, &header, &self.memory, page..next)?;
            self.counters.pages.fetch_add(count, Ordering::Relaxed);
        }
        self.counters.wire_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(next)
    }
}
