//! A control connection of a session: a thread that reads messages, and one that writes what is
//! queued, so that a peer that does not read holds nobody up but itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Error;
use crate::error::spawn;
use crate::link::channel::Channel;
use crate::proto::header::{HEADER_BYTES, Header};
use crate::proto::message::Message;
use crate::session::{ConnectionId, Failure, Heard};

/// Messages that may wait to be written: a session says little, so a peer for which so many wait
/// does not read.
const QUEUE_MAX: usize = 1024;
/// How long the peer has to see the end of a connection before it is cut.
const FAREWELL: Duration = Duration::from_millis(500);

/// A connection with its two threads.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    channel: Arc<Channel>,
    queue: Option<SyncSender<Vec<u8>>>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    closed: Arc<AtomicBool>,
}

impl Connection {
    /// Begins to read and write; `deliver` hears each message and, once, the end.
    pub(super) fn start(
        id: ConnectionId,
        channel: Arc<Channel>,
        tag: u64,
        deliver: impl Fn(Heard) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let deliver = Arc::new(deliver);
        let (queue, queued) = mpsc::sync_channel::<Vec<u8>>(QUEUE_MAX);
        let closed = Arc::new(AtomicBool::new(false));
        let (to, lost) = (channel.clone(), deliver.clone());
        let writer = spawn("control", move || {
            for frame in queued {
                if let Err(error) = to.write(&frame) {
                    to.close();
                    lost(Heard::Lost(Failure::LinkLost(said("saying how it stands", &error))));
                    return;
                }
            }
            to.finish();
        })?;
        let (from, over) = (channel.clone(), closed.clone());
        let reader = spawn("control", move || {
            let read = catch_unwind(AssertUnwindSafe(|| {
                loop {
                    match read(&from, tag) {
                        Ok(message) if !over.load(Ordering::Acquire) => {
                            deliver(Heard::Message(message));
                        }
                        // Drained, so that what was written last is not lost with the connection.
                        Ok(_) => {}
                        Err(failure) => return failure,
                    }
                }
            }));
            let failure = read
                .unwrap_or_else(|_| Failure::Local("the thread that listens panicked".to_owned()));
            deliver(Heard::Lost(failure));
        });
        let reader = match reader {
            Ok(reader) => reader,
            Err(error) => {
                channel.close();
                return Err(error);
            }
        };
        Ok(Self { id, channel, queue: Some(queue), reader, writer, closed })
    }

    /// Writes this after what was queued before. A peer that does not read is hung up on, and the
    /// reader says so.
    pub(super) fn queue(&self, frame: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(frame) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => self.channel.close(),
        }
    }

    /// What was queued is still written; nothing more is heard.
    pub(super) fn close(&mut self) {
        self.closed.store(true, Ordering::Release);
        self.queue = None;
    }

    /// Whether it was closed here.
    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_none()
    }

    /// Ends it at once, whatever is under way.
    pub(super) fn cut(&self) {
        self.channel.close();
    }

    /// Whether both threads are done.
    pub(super) fn is_over(&self) -> bool {
        self.queue.is_none() && self.reader.is_finished() && self.writer.is_finished()
    }

    /// Closes, and waits for it.
    pub(super) fn end(mut self) {
        self.close();
        let deadline = Instant::now() + FAREWELL;
        while !(self.reader.is_finished() && self.writer.is_finished()) && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.channel.close();
        let _ = self.writer.join();
        let _ = self.reader.join();
    }
}

fn said(doing: &'static str, error: &std::io::Error) -> String {
    format!("link lost while {doing}: {error}")
}

/// The next message of a control connection.
pub(crate) fn read(channel: &Channel, tag: u64) -> Result<Message, Failure> {
    let lost = |error: std::io::Error| Failure::LinkLost(said("listening to the peer", &error));
    let mut head = [0; HEADER_BYTES];
    channel.read_exact(&mut head).map_err(lost)?;
    let header = Header::decode(head, tag).map_err(Failure::Breach)?;
    let mut payload = vec![0; header.length];
    channel.read_exact(&mut payload).map_err(lost)?;
    Message::decode(&header, payload).map_err(Failure::Breach)
}
