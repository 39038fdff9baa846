//! The data streams of the destination: each thread receives its own shard into the shadow.

use std::sync::Arc;

use crate::Error;
use crate::error::lost;
use crate::guest::MemoryView;
use crate::link::channel::Channel;
use crate::memory::{CHUNK_PAGES, shard};
use crate::proto::ProtoError;
use crate::proto::frame::{Header, Kind};

/// Receives one shard's pages straight into the shadow's memory.
pub(super) struct Receiver {
    pub(super) channel: Arc<Channel>,
    pub(super) tag: u64,
    pub(super) memory: MemoryView,
    pub(super) stream: u64,
    pub(super) streams: u64,
    pub(super) epoch: u64,
}

impl Receiver {
    pub(super) fn run(&self) -> Result<u64, Error> {
        let doing = "receiving pages";
        let mut received = 0;
        loop {
            let header = self.channel.read_header(self.tag, doing)?;
            match header.kind {
                Kind::Pages => {
                    let pages = self.checked(&header)?;
                    self.memory
                        .fill(&pages, |bytes| self.channel.read_exact(bytes))
                        .map_err(lost(doing))?;
                    received += header.b;
                }
                Kind::ZeroPages => {
                    self.memory.zero(&self.checked(&header)?);
                    received += header.b;
                }
                Kind::EndOfPages if header.a == self.epoch => return Ok(received),
                kind => {
                    return Err(ProtoError::Unexpected { kind, why: "on a data stream" }.into());
                }
            }
        }
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
