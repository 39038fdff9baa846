//! The data streams of the destination: each thread receives its own shard into the shadow.

use std::sync::Arc;

use crate::Error;
use crate::codec::block::{Malformed, Packer, patch};
use crate::codec::{CHECK_BYTES, UNCHECKED, check};
use crate::error::lost;
use crate::guest::MemoryView;
use crate::link::channel::Channel;
use crate::memory::{Bitmap, CHUNK_PAGES, PageNumber, pages_of, shard};
use crate::proto::ProtoError;
use crate::proto::frame::{Header, Kind};

/// Whether more frames come before the source has said that nothing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

/// Receives one shard's pages straight into the shadow's memory.
pub(super) struct Receiver {
    channel: Arc<Channel>,
    tag: u64,
    memory: MemoryView,
    stream: u64,
    streams: u64,
    epoch: u64,
    received: u64,
    /// Pages that were ever written; the others are zero as they were made.
    written: Bitmap,
    /// Pages whose last copy failed its check: written while they were sent, and so to come again,
    /// or damaged on the way.
    suspected: Bitmap,
    packer: Packer,
    payload: Vec<u8>,
}

impl Receiver {
    pub(super) fn new(
        channel: Arc<Channel>,
        tag: u64,
        memory: MemoryView,
        (stream, streams): (u64, u64),
        epoch: u64,
    ) -> Self {
        let none = Bitmap::empty(memory.pages());
        Self {
            channel,
            tag,
            memory,
            stream,
            streams,
            epoch,
            received: 0,
            written: none.clone(),
            suspected: none,
            packer: Packer::new(),
            payload: Vec::new(),
        }
    }

    /// Its connection.
    pub(super) fn channel(&self) -> Arc<Channel> {
        self.channel.clone()
    }

    /// Pages received so far, zero pages and repeats included.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Receives until the source says that nothing more comes.
    pub(super) fn run(&mut self) -> Result<(), Error> {
        while self.frame()? == More::Yes {}
        Ok(())
    }

    /// Takes one frame in.
    fn frame(&mut self) -> Result<More, Error> {
        let doing = "receiving pages";
        let header = self.channel.read_header(self.tag, doing)?;
        match header.kind {
            Kind::Pages => {
                let pages = self.checked(&header)?;
                self.payload.resize((header.b * CHECK_BYTES) as usize, 0);
                let (channel, checks) = (&self.channel, &mut self.payload);
                self.memory
                    .fill(&pages, |bytes| channel.read_both(checks, bytes))
                    .map_err(lost(doing))?;
                self.written.insert(pages.clone());
                for (index, page) in pages.enumerate() {
                    let check =
                        self.payload[index * 8..].first_chunk().copied().unwrap_or_default();
                    self.judge(page, u64::from_le_bytes(check));
                }
                self.received += header.b;
            }
            Kind::ZeroPages => {
                let pages = self.checked(&header)?;
                for run in self.written.runs(pages.clone()) {
                    self.memory.zero(&run);
                }
                for page in pages {
                    self.suspected.remove(page);
                }
                self.received += header.b;
            }
            Kind::Packed | Kind::Lines => {
                let pages = self.group(&header)?;
                self.received += pages.len() as u64;
                self.payload.resize(header.length, 0);
                self.channel.read_exact(&mut self.payload).map_err(lost(doing))?;
                self.unpack(header.kind, &pages)?;
            }
            Kind::EndOfPages if header.a == self.epoch => {
                let damaged = self.suspected.count();
                if let Some(run) = self.suspected.runs(0..self.suspected.pages()).next() {
                    return Err(Error::Damaged { pages: damaged, first: run.start });
                }
                return Ok(More::No);
            }
            kind => {
                return Err(ProtoError::Unexpected { kind, why: "on a data stream" }.into());
            }
        }
        Ok(More::Yes)
    }

    /// Suspects the page, or no longer, by its check.
    fn judge(&mut self, page: PageNumber, wanted: u64) {
        let compare = |bytes: &mut [u8]| match wanted == UNCHECKED || check(page, bytes) == wanted {
            true => Ok(()),
            false => Err(()),
        };
        let passes = self.memory.fill(&(page..page + 1), compare).is_ok();
        if passes {
            self.suspected.remove(page);
        } else {
            self.suspected.insert(page..page + 1);
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
            let Ok(()) = memory.fill(&(page..page + 1), fill);
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
            self.written.insert(*page..page + 1);
            self.judge(*page, check);
        }
        Ok(())
    }

    /// The pages of a group's frame, all of them inside memory and in this stream's shard.
    fn group(&self, header: &Header) -> Result<Vec<PageNumber>, Error> {
        let pages: Vec<_> = pages_of(header.a, header.b).collect();
        let last = pages.last().copied().unwrap_or(header.a);
        let unexpected = |why| Err(ProtoError::Unexpected { kind: header.kind, why }.into());
        if last >= self.memory.pages() {
            return unexpected("pages beyond the end of memory");
        }
        if shard(header.a, self.streams) != self.stream {
            return unexpected("pages of another stream's shard");
        }
        Ok(pages)
    }

    /// The pages of a frame, all of them inside memory and in this stream's shard.
    fn checked(&self, header: &Header) -> Result<std::ops::Range<u64>, Error> {
        let (first, last) = (header.a, header.a + header.b - 1);
        let unexpected = |why| Err(ProtoError::Unexpected { kind: header.kind, why }.into());
        if last >= self.memory.pages() {
            return unexpected("pages beyond the end of memory");
        }
        // A run may not cross chunks of other streams; with one stream there are none.
        let chunks = first / CHUNK_PAGES == last / CHUNK_PAGES;
        if shard(first, self.streams) != self.stream || !(chunks || self.streams == 1) {
            return unexpected("pages of another stream's shard");
        }
        Ok(first..last + 1)
    }
}
