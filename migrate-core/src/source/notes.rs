//! The embedder's notes to and from the other side after the handover. They outlive a connection:
//! what was not acknowledged is said again on the next.

use std::time::{Duration, Instant};

use crate::Error;
use crate::proto::NOTE_BYTES_MAX;
use crate::proto::message::Standing;
use crate::session::Failure;

/// How often a wait asks whether it is still wanted.
const TICK: Duration = Duration::from_millis(20);

/// What comes of notes.
pub(crate) enum NoteSignal {
    /// One of the other side.
    Note(Vec<u8>),
    /// All of ours were taken.
    Heard,
    /// No more will come.
    Over,
}

/// To the other side of a migration that is done.
pub struct Notes {
    send: Box<dyn Fn(Vec<u8>) + Send>,
    next: Box<dyn FnMut(Duration) -> Option<NoteSignal> + Send>,
    /// Came while something else was waited for.
    early: Vec<Vec<u8>>,
    left: Option<Box<dyn Fn(Standing) + Send>>,
    /// The session, which ends with this value.
    _session: Box<dyn std::any::Any + Send>,
}

impl std::fmt::Debug for Notes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notes").finish_non_exhaustive()
    }
}

impl Notes {
    pub(crate) fn new(
        send: impl Fn(Vec<u8>) + Send + 'static,
        next: impl FnMut(Duration) -> Option<NoteSignal> + Send + 'static,
        session: impl std::any::Any + Send,
    ) -> Self {
        let (send, next) = (Box::new(send), Box::new(next));
        Self { send, next, early: Vec::new(), left: None, _session: Box::new(session) }
    }

    pub(crate) fn with_left(mut self, left: impl Fn(Standing) + Send + 'static) -> Self {
        self.left = Some(Box::new(left));
        self
    }

    /// At a destination: sources that ask from now on are told that the guest went on to another
    /// host. Without it they are told, once this value goes, that it was ended.
    pub fn gone_on(&self) {
        if let Some(left) = &self.left {
            left(Standing::GoneOn);
        }
    }

    /// Sends one note, at most [`NOTE_BYTES_MAX`] long, and waits until the other side has it;
    /// `cancelled` is asked often.
    ///
    /// # Errors
    /// It was not taken within `patience`, the other side wants none, or the wait was cancelled.
    pub fn send(
        &mut self,
        note: &[u8],
        patience: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        if note.len() > NOTE_BYTES_MAX {
            let why = format!("a note of {} bytes; at most {NOTE_BYTES_MAX}", note.len());
            return Err(Error::Session(Failure::Local(why)));
        }
        (self.send)(note.to_vec());
        self.wait(patience, cancelled, "handing a note over", |signal, early| match signal {
            NoteSignal::Heard => Some(()),
            NoteSignal::Note(note) => {
                early.push(note);
                None
            }
            NoteSignal::Over => None,
        })
    }

    /// Waits for the next note; `cancelled` is asked often.
    ///
    /// # Errors
    /// Nothing came within `patience`, nothing will, or the wait was cancelled.
    pub fn receive(
        &mut self,
        patience: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Error> {
        if !self.early.is_empty() {
            return Ok(self.early.remove(0));
        }
        self.wait(patience, cancelled, "waiting for a note", |signal, _| match signal {
            NoteSignal::Note(note) => Some(note),
            NoteSignal::Heard | NoteSignal::Over => None,
        })
    }

    fn wait<T>(
        &mut self,
        patience: Duration,
        cancelled: &dyn Fn() -> bool,
        doing: &'static str,
        wanted: impl Fn(NoteSignal, &mut Vec<Vec<u8>>) -> Option<T>,
    ) -> Result<T, Error> {
        let start = Instant::now();
        loop {
            let signal = (self.next)(TICK);
            let over = matches!(signal, Some(NoteSignal::Over));
            if let Some(found) = signal.and_then(|signal| wanted(signal, &mut self.early)) {
                return Ok(found);
            }
            if cancelled() {
                return Err(Error::Cancelled);
            }
            if over || start.elapsed() >= patience {
                return Err(Error::PeerSilent(start.elapsed(), doing));
            }
        }
    }
}
