//! The data streams of the destination: each thread receives its own shard into the shadow.

use std::sync::Arc;

use crate::Error;
use crate::codec::block::{Malformed, Packer, patch};
use crate::codec::{CHECK_BYTES, UNCHECKED, check};
use crate::error::lost;
use crate::guest::MemoryView;
use crate::link::channel::Channel;
use crate::memory::{Bitmap, PageNumber, pages_of, shard};
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
                self.checked(&header)?;
                let count = u64::from(header.b.count_ones());
                self.payload.resize((count * CHECK_BYTES) as usize, 0);
                self.channel
                    .read_pages(&mut self.payload, &self.memory, header.a, header.b)
                    .map_err(lost(doing))?;
                for (index, page) in pages_of(header.a, header.b).enumerate() {
                    let check =
                        self.payload[index * 8..].first_chunk().copied().unwrap_or_default();
                    self.written.insert(page..page + 1);
                    self.judge(page, u64::from_le_bytes(check));
                }
                self.received += count;
            }
            Kind::ZeroPages => {
                self.checked(&header)?;
                for page in pages_of(header.a, header.b) {
                    if self.written.remove(page) {
                        self.memory.zero(&(page..page + 1));
                    }
                    self.suspected.remove(page);
                }
                self.received += u64::from(header.b.count_ones());
            }
            Kind::Packed | Kind::Lines => {
                self.checked(&header)?;
                let pages: Vec<_> = pages_of(header.a, header.b).collect();
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

    /// Whether the pages of a frame are all inside memory and in this stream's shard.
    fn checked(&self, header: &Header) -> Result<(), Error> {
        let last = header.a + (u64::BITS - 1 - header.b.leading_zeros()) as u64;
        let unexpected = |why| Err(ProtoError::Unexpected { kind: header.kind, why }.into());
        if last >= self.memory.pages() {
            return unexpected("pages beyond the end of memory");
        }
        // A group lies in one chunk, and so in one shard.
        if shard(header.a, self.streams) != self.stream {
            return unexpected("pages of another stream's shard");
        }
        Ok(())
    }
}
