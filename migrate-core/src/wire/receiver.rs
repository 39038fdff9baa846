//! The data streams of the destination: each thread receives its own shard into the shadow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::codec::block::{Malformed, Packer, patch};
use crate::codec::{CHECK_BYTES, UNCHECKED, check};
use crate::error::lost;
use crate::guest::MemoryView;
use crate::link::channel::Channel;
use crate::memory::{Bitmap, Group, PageNumber, shard};
use crate::proto::header::{HEADER_BYTES, Kind};
use crate::proto::page_frame::PageFrame;
use crate::proto::{ProtoError, StunNumber};

/// What is being done when the link is lost.
const DOING: &str = "receiving pages";

/// Receives one shard's pages straight into the shadow's memory.
pub(crate) struct Receiver {
    channel: Arc<Channel>,
    tag: u64,
    memory: MemoryView,
    stream: u64,
    streams: u64,
    /// Pages received on all streams, zero pages and repeats included.
    received: Arc<AtomicU64>,
    /// Pages that were ever written; the others are zero as they were made.
    written: Bitmap,
    /// Pages whose last copy failed its check: written while they were sent, and so to come again,
    /// or damaged on the way.
    suspected: Bitmap,
    packer: Packer,
    payload: Vec<u8>,
}

impl Receiver {
    pub(crate) fn new(
        channel: Arc<Channel>,
        tag: u64,
        memory: MemoryView,
        (stream, streams): (u64, u64),
        received: Arc<AtomicU64>,
    ) -> Self {
        let none = Bitmap::empty(memory.pages());
        Self {
            channel,
            tag,
            memory,
            stream,
            streams,
            received,
            written: none.clone(),
            suspected: none,
            packer: Packer::new(),
            payload: Vec::new(),
        }
    }

    /// Receives until the source says that nothing more comes in its next stun; which it is. After a
    /// stun that was called off the first thing here must be the mark that says so.
    pub(crate) fn run(&mut self, again: Option<StunNumber>) -> Result<StunNumber, Error> {
        if let Some(off) = again {
            loop {
                match self.head()? {
                    PageFrame::Alive => {}
                    PageFrame::Again(stun) if stun == off => break,
                    frame => {
                        return Err(unexpected(frame.kind(), "before the stun was called off"));
                    }
                }
            }
        }
        let next = StunNumber(again.map_or(1, |off| off.0 + 1));
        loop {
            match self.head()? {
                PageFrame::EndOfPages(stun) if stun == next => break,
                frame => self.frame(frame)?,
            }
        }
        match self.suspected.iter().next() {
            Some(first) => Err(Error::Damaged { pages: self.suspected.count(), first: first.0 }),
            None => Ok(next),
        }
    }

    fn head(&mut self) -> Result<PageFrame, Error> {
        let mut head = [0; HEADER_BYTES];
        self.channel.read_exact(&mut head).map_err(lost(DOING))?;
        Ok(PageFrame::decode(head, self.tag)?)
    }

    /// Takes one frame in.
    fn frame(&mut self, frame: PageFrame) -> Result<(), Error> {
        match frame {
            PageFrame::Pages(group) => {
                self.place(group, frame)?;
                self.payload.resize((group.count() * CHECK_BYTES) as usize, 0);
                let pages = group.runs().flat_map(|run| self.memory.stretches(&run));
                self.channel.read_memory(&mut self.payload, pages).map_err(lost(DOING))?;
                for (index, page) in group.pages().enumerate() {
                    let check =
                        self.payload[index * 8..].first_chunk().copied().unwrap_or_default();
                    self.written.insert(page.alone());
                    self.judge(page, u64::from_le_bytes(check));
                }
            }
            PageFrame::Zero(group) => {
                self.place(group, frame)?;
                for page in group.pages() {
                    if self.written.remove(page) {
                        self.memory.zero(page);
                    }
                    self.suspected.remove(page);
                }
            }
            PageFrame::Packed(group, length) | PageFrame::Lines(group, length) => {
                self.place(group, frame)?;
                self.payload.resize(length, 0);
                self.channel.read_exact(&mut self.payload).map_err(lost(DOING))?;
                let pages: Vec<_> = group.pages().collect();
                self.unpack(frame.kind(), &pages)?;
            }
            PageFrame::Alive => {}
            PageFrame::EndOfPages(_) | PageFrame::Again(_) => {
                return Err(unexpected(frame.kind(), "of another stun"));
            }
        }
        Ok(())
    }

    /// Suspects the page, or no longer, by its check.
    fn judge(&mut self, page: PageNumber, wanted: u64) {
        let compare = |bytes: &mut [u8]| match wanted == UNCHECKED || check(page, bytes) == wanted {
            true => Ok(()),
            false => Err(()),
        };
        let passes = self.memory.fill(page, compare).is_ok();
        if passes {
            self.suspected.remove(page);
        } else {
            self.suspected.insert(page.alone());
        }
    }

    fn unpack(&mut self, kind: Kind, pages: &[PageNumber]) -> Result<(), Error> {
        let malformed = |Malformed(why)| ProtoError::Unexpected { kind, why };
        let mut checks = Vec::with_capacity(pages.len());
        let memory = &self.memory;
        let put = |page: PageNumber, f: &mut dyn FnMut(&mut [u8])| {
            let fill = |bytes: &mut [u8]| {
                f(bytes);
                Ok::<_, std::convert::Infallible>(())
            };
            let Ok(()) = memory.fill(page, fill);
        };
        if kind == Kind::Packed {
            let contents = self.packer.contents(&self.payload, pages.len()).map_err(malformed)?;
            for (page, (check, contents)) in pages.iter().zip(contents) {
                put(*page, &mut |bytes| bytes.copy_from_slice(contents));
                checks.push(check);
            }
        } else {
            let lines = self.packer.lines(&self.payload, pages.len()).map_err(malformed)?;
            for (page, (check, mask, lines)) in pages.iter().zip(lines) {
                put(*page, &mut |bytes| patch(bytes, mask, lines));
                checks.push(check);
            }
        }
        for (page, check) in pages.iter().zip(checks) {
            self.written.insert(page.alone());
            self.judge(*page, check);
        }
        Ok(())
    }

    /// Counts the group's pages, if they are all inside memory and in this stream's shard.
    fn place(&mut self, group: Group, frame: PageFrame) -> Result<(), Error> {
        if group.last().0 >= self.memory.pages() {
            return Err(unexpected(frame.kind(), "pages beyond the end of memory"));
        }
        // A group lies in one chunk, and so in one shard.
        if shard(group.first(), self.streams) != self.stream {
            return Err(unexpected(frame.kind(), "pages of another stream's shard"));
        }
        self.received.fetch_add(group.count(), Ordering::Relaxed);
        Ok(())
    }
}

fn unexpected(kind: Kind, why: &'static str) -> Error {
    ProtoError::Unexpected { kind, why }.into()
}
