//! The heart of a guest: reads the watermarks at 200 Hz and hands them to a journal.
//!
//! It beats only while the guest runs; a paused guest has no heartbeat, which is how a stun is
//! seen from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::journal::{Beat, JournalWriter, Motion};
use crate::writer::Watermarks;

/// Time between two beats where nothing else is asked for.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(5);

/// A thread that beats until it is stopped.
#[derive(Debug)]
pub struct Heart {
    stop: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    thread: JoinHandle<JournalWriter>,
}

impl Heart {
    /// Starts beating into `journal` every [`BEAT_INTERVAL`].
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(
        watermarks: Watermarks,
        epoch: u64,
        journal: JournalWriter,
    ) -> std::io::Result<Self> {
        Self::start_every(BEAT_INTERVAL, watermarks, epoch, journal)
    }

    /// Starts beating into `journal` at an interval of choice.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start_every(
        interval: Duration,
        watermarks: Watermarks,
        epoch: u64,
        journal: JournalWriter,
    ) -> std::io::Result<Self> {
        Self::spawn(interval, watermarks, epoch, journal, Motion::Running)
    }

    /// The heart of a guest that is held still: it does not beat before [`Heart::resume`].
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start_held(
        watermarks: Watermarks,
        epoch: u64,
        journal: JournalWriter,
    ) -> std::io::Result<Self> {
        Self::spawn(BEAT_INTERVAL, watermarks, epoch, journal, Motion::AtRest)
    }

    fn spawn(
        interval: Duration,
        watermarks: Watermarks,
        epoch: u64,
        mut journal: JournalWriter,
        motion: Motion,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let paused = Arc::new(AtomicBool::new(motion == Motion::AtRest));
        let (stopping, pausing) = (stop.clone(), paused.clone());
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            while !stopping.load(Ordering::Acquire) {
                if !pausing.load(Ordering::Acquire) {
                    beat(&watermarks, epoch, Motion::Running, &mut journal);
                }
                std::thread::sleep(interval);
            }
            journal
        })?;
        Ok(Self { stop, paused, thread })
    }

    /// Stops beating while the guest is held.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Release);
    }

    /// Goes on beating.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Release);
    }

    /// Stops for good and gives the journal back, which knows whether it is complete.
    pub fn stop(self) -> JournalWriter {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Writes one beat for every writer.
pub fn beat(watermarks: &Watermarks, epoch: u64, motion: Motion, journal: &mut JournalWriter) {
    let guest_ns = monotonic_ns();
    for (writer, watermark) in watermarks.read().into_iter().enumerate() {
        journal.beat(&Beat {
            motion,
            epoch,
            number: 0,
            writer: writer as u32,
            watermark,
            guest_ns,
            journal_ns: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunId;
    use std::path::Path;

    #[test]
    fn a_heart_beats_on_where_nothing_can_be_written() {
        let journal = JournalWriter::append(Path::new("/dev/full"), RunId(1)).unwrap();
        let heart = Heart::start(Watermarks::new(&[0, 0]), 1, journal).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let incomplete = heart.stop().complete().unwrap_err();
        assert!(incomplete.lost >= 4, "{incomplete}");
        assert!(incomplete.why.contains("No space left"), "{incomplete}");
    }
}
