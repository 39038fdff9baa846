//! The heart of a guest: reads the watermarks at a steady pace, and has its voice say them.
//!
//! It beats only while the guest runs; a paused guest has no heartbeat, which is how a stun is
//! seen from outside. Writers take turns; each is heard at least once a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::beat::said::Kind;
use crate::beat::writer::{Incomplete, JournalWriter, Thread};
use crate::clock::monotonic_ns;
use crate::writer::Watermarks;

/// Time between two beats where nothing else is asked for.
const BEAT_INTERVAL: Duration = Duration::from_millis(5);
/// Longest time between two beats of one writer.
pub const TURN_MAX: Duration = Duration::from_secs(1);
/// Time between two ticks of a guest that stands still.
const TICK: Duration = Duration::from_millis(100);

/// Time between two beats of so many writers, where nothing else is asked for.
pub fn interval(writers: u32) -> Duration {
    BEAT_INTERVAL.min(TURN_MAX / writers.max(1))
}

/// A thread that beats until it is stopped.
#[derive(Debug)]
pub struct Heart {
    stop: Arc<AtomicBool>,
    voice: Arc<Mutex<Voice>>,
    thread: Option<JoinHandle<()>>,
}

/// Who says what the guest did.
#[derive(Debug)]
struct Voice {
    journal: JournalWriter,
    watermarks: Watermarks,
    epoch: u64,
    /// The guest stands still.
    held: bool,
    /// Whose turn it is.
    turn: usize,
}

impl Voice {
    fn all(&mut self, kind: Kind) {
        let watermarks = self.watermarks.read();
        self.journal.beats(kind, self.epoch, &watermarks, monotonic_ns() / 1000);
    }

    fn next(&mut self) {
        if self.held {
            return self.journal.tick();
        }
        let watermarks = self.watermarks.read();
        self.turn = (self.turn + 1) % watermarks.len().max(1);
        let clock_us = monotonic_ns() / 1000;
        if let Some(watermark) = watermarks.get(self.turn) {
            let writer = self.turn as u16;
            self.journal.beat(Kind::Running, self.epoch, writer, *watermark, clock_us);
        }
    }
}

impl Heart {
    /// Says every watermark, and starts beating.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(
        watermarks: Watermarks,
        epoch: u64,
        journal: JournalWriter,
    ) -> std::io::Result<Self> {
        let heart = Self::start_held(watermarks, epoch, journal)?;
        heart.resume();
        Ok(heart)
    }

    /// The heart of a guest that stands still: it does not beat before [`Heart::resume`].
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start_held(
        watermarks: Watermarks,
        epoch: u64,
        journal: JournalWriter,
    ) -> std::io::Result<Self> {
        let interval = journal.interval();
        let voice = Voice { journal, watermarks, epoch, held: true, turn: 0 };
        let (stop, voice) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(voice)));
        let (stopping, speaking) = (stop.clone(), voice.clone());
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            while !stopping.load(Ordering::Acquire) {
                let held = {
                    let mut voice = lock(&speaking);
                    voice.next();
                    voice.held
                };
                std::thread::park_timeout(if held { TICK } else { interval });
            }
        })?;
        Ok(Self { stop, voice, thread: Some(thread) })
    }

    /// Says that the guest stands still, at watermarks that do not move any more; and is silent.
    pub fn hold(&self) {
        let mut voice = lock(&self.voice);
        if !std::mem::replace(&mut voice.held, true) {
            voice.all(Kind::Held);
        }
    }

    /// Says every watermark, before the guest moves one; and goes on beating.
    pub fn resume(&self) {
        let mut voice = lock(&self.voice);
        if std::mem::replace(&mut voice.held, false) {
            voice.all(Kind::Running);
            drop(voice);
            self.wake();
        }
    }

    /// What the run takes along if it goes on elsewhere.
    pub fn run_thread(&self) -> Thread {
        lock(&self.voice).journal.thread()
    }

    /// Ends for good. If the guest's owner ends it, that is said.
    ///
    /// # Errors
    /// [`Incomplete`] says what the journal lacks.
    pub fn stop(mut self, end: End) -> (u64, Result<(), Incomplete>) {
        self.join();
        let mut voice = lock(&self.voice);
        if end == End::ByOwner {
            voice.all(Kind::Ended);
        }
        (voice.journal.refused(), voice.journal.complete())
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.join();
        }
    }
}

/// Who ends a guest's beating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its owner, and the guest with it.
    ByOwner,
    /// The guest is gone, or goes on elsewhere.
    Otherwise,
}

fn lock(voice: &Mutex<Voice>) -> MutexGuard<'_, Voice> {
    voice.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PageFormat;
    use crate::outlet::OutletAddress;
    use crate::spec::WorkloadSpec;
    use crate::units::Bytes;

    #[test]
    fn a_heart_beats_on_where_nothing_can_be_written() {
        let spec = WorkloadSpec {
            format: PageFormat::fresh(),
            seed: 1,
            memory: Bytes(1 << 20),
            writers: 2,
            workload: "stream".parse().unwrap(),
        };
        let nowhere = OutletAddress::File("/dev/full".into());
        let journal = JournalWriter::start(&nowhere, &spec, interval(2)).unwrap();
        let heart = Heart::start(Watermarks::new(&[0, 0]), 1, journal).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let incomplete = heart.stop(End::ByOwner).1.unwrap_err();
        assert!(incomplete.lost >= 4, "{incomplete}");
        assert!(incomplete.why.contains("No space left"), "{incomplete}");
    }
}
