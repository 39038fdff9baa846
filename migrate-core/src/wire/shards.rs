//! The data streams of the source: each thread sends the dirty pages of its own shard, group by
//! group; how a group goes on the wire is `sender`'s subject.
//!
//! A page always travels on the same stream, so a newer copy can never be overtaken by an older
//! one, and rounds need no barrier at the destination.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::sender::Sender;
use crate::memory::{Bitmap, Group, PageNumber, SharedBitmap, groups_of_shard};
use crate::proto::StunNumber;

/// What a stream is asked to do.
#[derive(Clone)]
pub(crate) enum Job {
    /// Send every page of the set that is in this stream's shard.
    Pages(Arc<Bitmap>),
    /// Go through this stream's shard once and send what is owed when its turn comes.
    Sweep(Arc<Sweep>),
    /// Say that nothing more comes in this stun.
    End(StunNumber),
    /// Say that this stun is off.
    Again(StunNumber),
}

/// What a sweep works on, while the main thread harvests into it.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// Pages that the destination has not, or not as they are.
    pub(crate) owed: SharedBitmap,
    /// Pages that are passed over: hot ones, and those written since the sweep began; left for the
    /// next one, or for the stun.
    pub(crate) recent: SharedBitmap,
    /// Pages that streams took out of what is owed; some of them may not be sent yet.
    pub(crate) taken: AtomicU64,
    /// Set to end the sweep where it is; what was not sent stays owed.
    pub(crate) halt: AtomicBool,
}

impl Sweep {
    /// A sweep over `owed` that at first passes over `hot`.
    pub(crate) fn over(owed: &Bitmap, hot: &Bitmap) -> Self {
        Self {
            owed: SharedBitmap::of(owed),
            recent: SharedBitmap::of(hot),
            taken: AtomicU64::new(0),
            halt: AtomicBool::new(false),
        }
    }

    /// Takes out what is owed of a group, but for what is passed over.
    pub(crate) fn take(&self, first: PageNumber) -> Option<Group> {
        let group = self.owed.take_group(first, &self.recent)?;
        self.taken.fetch_add(group.count(), Ordering::AcqRel);
        Some(group)
    }
}

/// What a stream says: it is done with a job, or lost.
pub(crate) type Done = Result<(), std::io::Error>;

/// One stream's thread.
pub(crate) struct Shard {
    pub(crate) index: u64,
    pub(crate) sender: Sender,
    pub(crate) abandon: Arc<AtomicBool>,
}

impl Shard {
    /// Works until the jobs end, an error, or abandonment; each job is answered. A stream without a
    /// job for a `quiet` time says that it lives: idle connections are dropped by what lies between
    /// the hosts.
    pub(crate) fn run(mut self, jobs: &mpsc::Receiver<Job>, quiet: Duration, done: impl Fn(Done)) {
        loop {
            let (answered, result) = match jobs.recv_timeout(quiet) {
                Ok(job) => (true, self.job(job)),
                Err(RecvTimeoutError::Timeout) => (false, self.sender.alive()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let lost = result.is_err();
            if answered || lost {
                done(result);
            }
            if lost {
                return;
            }
        }
    }

    /// Does one job; whatever goes wrong in it is an error with a name, and never silence.
    fn job(&mut self, job: Job) -> Done {
        let work = AssertUnwindSafe(|| match job {
            Job::Pages(pages) => {
                self.each_group(pages.pages(), |first| Next::of(pages.group(first)))
            }
            // Taken out before they are read: what is written from here on is owed again.
            Job::Sweep(sweep) => self.each_group(sweep.owed.pages(), |first| {
                match sweep.halt.load(Ordering::Relaxed) {
                    true => Next::Halt,
                    false => Next::of(sweep.take(first)),
                }
            }),
            Job::End(stun) => self.sender.end(stun),
            Job::Again(stun) => self.sender.again(stun),
        });
        catch_unwind(work)
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread that sends panicked")))
    }

    /// Sends of each group of this shard the pages that `take` says.
    fn each_group(&mut self, total: u64, take: impl Fn(PageNumber) -> Next) -> std::io::Result<()> {
        for first in groups_of_shard(self.index, self.sender.wiring.streams, total) {
            if self.abandon.load(Ordering::Relaxed) {
                return Ok(());
            }
            match take(first) {
                Next::Halt => return self.sender.flush(),
                Next::Nothing => {}
                Next::Send(group) => self.sender.group(group)?,
            }
        }
        self.sender.flush()
    }
}

/// What becomes of a group when its turn comes.
enum Next {
    Send(Group),
    Nothing,
    Halt,
}

impl Next {
    fn of(group: Option<Group>) -> Self {
        group.map_or(Self::Nothing, Self::Send)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::codec::Encoding;
    use crate::codec::looks::Looks;
    use crate::guest::MemoryView;
    use crate::link::endpoint::Endpoint;
    use crate::link::pacer::Pacer;
    use crate::link::{LinkSettings, connect};
    use crate::proto::Epoch;
    use crate::proto::hello::{Features, Hello, MigrationId, Role, Welcome};
    use crate::wire::sender::{Counters, Wiring};

    /// B4: its jobs were never done, and the guest may have stood still meanwhile.
    #[test]
    fn a_stream_that_panics_says_so() {
        let link = LinkSettings::default();
        let address = "127.0.0.1:0".parse().expect("an address");
        let endpoint = Endpoint::bind(address, link.clone()).expect("a port");
        let hello = Hello {
            migration: MigrationId(7),
            role: Role::Control,
            epoch: Epoch(1),
            link_timeout: link.timeout,
            features: Features::OURS,
        };
        let peer = endpoint.address().into();
        let answering = std::thread::spawn(move || {
            let caller = endpoint.arrival(Instant::now() + Duration::from_secs(5));
            caller.map(|caller| caller.answer(&Welcome::Ok))
        });
        let (channel, _) = connect(&peer, hello, &link).expect("it answers");
        let _there = answering.join().expect("it does not panic");
        let sender = Sender::new(Wiring {
            streams: 1,
            tag: 7,
            channel: Arc::new(channel),
            memory: MemoryView::for_ever(2),
            looks: Arc::new(Looks::none(128)),
            pacer: Arc::new(Pacer::new(None)),
            counters: Arc::new(Counters::default()),
            encoding: Encoding::default(),
        });
        let shard = Shard { index: 0, sender, abandon: Arc::default() };
        // Pages that this memory has not.
        let mut beyond = Bitmap::empty(128);
        beyond.insert(PageNumber(64)..PageNumber(128));
        let (job, jobs) = mpsc::channel();
        job.send(Job::Pages(Arc::new(beyond))).expect("it listens");
        let (done, results) = mpsc::channel();
        shard.run(&jobs, Duration::from_secs(10), |result| drop(done.send(result)));
        let error = results.recv().expect("each job is answered").expect_err("it panicked");
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
