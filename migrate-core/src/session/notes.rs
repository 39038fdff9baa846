//! Notes between the embedders of both ends, carried beside a guest that has arrived: each is said
//! again on every new connection until the other side took it, and is taken once.

use crate::proto::message::Message;

/// Both directions of it, as one end sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Notes {
    /// Those that the other side has not taken, by number.
    untaken: Vec<(u64, Vec<u8>)>,
    /// How many were added here.
    added: u64,
    /// The greatest number that was taken here.
    heard: u64,
}

impl Notes {
    /// One more for the other side: what is to be said, once it may be.
    pub(super) fn add(&mut self, note: Vec<u8>) -> Message {
        self.added += 1;
        self.untaken.push((self.added, note.clone()));
        Message::Note { number: self.added, note }
    }

    /// What is to be said on a new connection.
    pub(super) fn untaken(&self) -> Vec<Message> {
        let say =
            |(number, note): &(u64, Vec<u8>)| Message::Note { number: *number, note: note.clone() };
        self.untaken.iter().map(say).collect()
    }

    /// The other side took them up to this one; whether it now has all.
    pub(super) fn taken(&mut self, number: u64) -> bool {
        self.untaken.retain(|(untaken, _)| *untaken > number);
        self.untaken.is_empty()
    }

    /// One came; whether it was not heard before. It need not be the next, if an earlier engine took
    /// those before it.
    pub(super) fn hear(&mut self, number: u64) -> bool {
        let new = number > self.heard;
        self.heard = self.heard.max(number);
        new
    }
}
