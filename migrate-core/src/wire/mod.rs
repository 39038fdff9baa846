//! Between groups of pages and the frames of data connections: what a stream of the source sends
//! ([`shards`], [`sender`]), and what one of the destination makes of it ([`receiver`]).

pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod shards;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::receiver::Receiver;
    use super::sender::{Counters, Sender, Wiring};
    use crate::Error;
    use crate::codec::looks::Looks;
    use crate::codec::{Checks, Compress, Delta, Encoding};
    use crate::guest::MemoryView;
    use crate::link::channel::Channel;
    use crate::link::pacer::Pacer;
    use crate::memory::{Bitmap, Group, PAGE_BYTES, PageNumber, all, each};
    use crate::proto::StunNumber;

    const TAG: u64 = 9;
    const PAGES: u64 = 200;
    const STUN: StunNumber = StunNumber(1);

    fn channels() -> [Arc<Channel>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("it answers");
        let from = listener.accept().expect("it was called").0;
        from.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        [to, from].map(|stream| Arc::new(Channel::plain(stream)))
    }

    /// Memory of regions that end within a group.
    fn memory() -> MemoryView {
        MemoryView::joined([70, 3, PAGES - 73].map(MemoryView::for_ever))
    }

    fn sender(channel: &Arc<Channel>, memory: &MemoryView, encoding: Encoding) -> Sender {
        Sender::new(Wiring {
            streams: 1,
            tag: TAG,
            channel: channel.clone(),
            memory: memory.clone(),
            looks: Arc::new(Looks::none(PAGES)),
            pacer: Arc::new(Pacer::new(None)),
            counters: Arc::new(Counters::default()),
            encoding,
        })
    }

    fn page(memory: &MemoryView, page: PageNumber) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES as usize];
        memory.copy_out(&page.alone(), &mut bytes);
        bytes
    }

    /// Writes to a page as guests do: all zero, a few lines, text that packs, or noise.
    fn write(memory: &MemoryView, page: PageNumber, random: &mut SmallRng) {
        let put = |bytes: &mut [u8]| {
            match random.random_range(0..4) {
                0 => bytes.fill(0),
                1 => {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] ^= 1;
                }
                2 => bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 64) as u8),
                _ => random.fill(bytes),
            }
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(()) = memory.fill(page, put);
    }

    /// What one end has is what the other sent, whatever way each page took, again and again.
    #[test]
    fn what_is_sent_arrives_in_every_encoding() {
        let mut random = SmallRng::seed_from_u64(11);
        for compress in [Compress::Off, Compress::Lz4, Compress::Zstd, Compress::Auto] {
            for delta in [Delta::Off, Delta::On, Delta::Auto] {
                for checks in [Checks::On, Checks::Off] {
                    let encoding = Encoding { compress, delta, checks, delta_cache_bytes: 1 << 20 };
                    arrives(encoding, &mut random);
                }
            }
        }
    }

    fn arrives(encoding: Encoding, random: &mut SmallRng) {
        let ([to, from], here, there) = (channels(), memory(), memory());
        let received = Arc::new(AtomicU64::new(0));
        let mut receiver = Receiver::new(from, TAG, there.clone(), (0, 1), received);
        let receiving = std::thread::spawn(move || receiver.run(None));
        let mut sender = sender(&to, &here, encoding);
        for _ in 0..12 {
            let mut dirty = Bitmap::empty(PAGES);
            let written: Vec<_> = each(all(PAGES)).filter(|_| random.random_ratio(1, 3)).collect();
            for page in written {
                write(&here, page, random);
                dirty.insert(page.alone());
            }
            for first in each(all(PAGES)).step_by(64) {
                dirty.group(first).into_iter().for_each(|group| {
                    sender.group(group).expect("it is read");
                });
            }
        }
        sender.end(STUN).expect("it is read");
        assert_eq!(receiving.join().expect("no panic").expect("all is well"), STUN);
        for number in each(all(PAGES)) {
            assert!(page(&here, number) == page(&there, number), "page {number}: {encoding:?}");
        }
    }

    /// The error that a receiver with little memory, on another stream, ends with.
    fn refused(send: impl FnOnce(&mut Sender)) -> Error {
        let ([to, from], here) = (channels(), memory());
        let there = MemoryView::for_ever(128);
        let mut receiver = Receiver::new(from, TAG, there, (0, 2), Arc::default());
        let receiving = std::thread::spawn(move || receiver.run(None));
        let mut sender = sender(&to, &here, Encoding::PLAIN);
        send(&mut sender);
        sender.flush().expect("written");
        receiving.join().expect("no panic").expect_err("it is refused")
    }

    #[test]
    fn what_does_not_belong_to_a_stream_is_refused() {
        let group = |first| Group::new(PageNumber(first), 1).expect("a group");
        let beyond = refused(|sender| sender.group(group(128)).expect("written"));
        assert!(beyond.to_string().contains("beyond the end of memory"), "{beyond}");
        let again = refused(|sender| sender.again(STUN).expect("written"));
        assert!(again.to_string().contains("of another stun"), "{again}");
        let early = refused(|sender| sender.end(StunNumber(2)).expect("written"));
        assert!(early.to_string().contains("of another stun"), "{early}");
    }
}
