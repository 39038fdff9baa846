//! A control connection as the session sees it: when something was last heard on it, when it is time
//! to say that we live, and whether the peer gets on with what it does.

use std::time::Duration;

use super::{Failure, Moment};
use crate::proto::message::{Message, Progress};

/// Signs of life go out so many times in a link timeout.
const ALIVE_DIVISOR: u32 = 4;

/// A control connection, numbered by its shell: a later one has a greater number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// The connection in use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) id: ConnectionId,
    /// The link timeout that both ends keep to.
    pub(super) timeout: Duration,
    pub(super) opened: Moment,
    heard: Moment,
    alive: Moment,
    peer: Progress,
    moved: Moment,
}

impl Line {
    pub(super) fn new(id: ConnectionId, timeout: Duration, now: Moment) -> Self {
        let peer = Progress::default();
        Self { id, timeout, opened: now, heard: now, alive: now, peer, moved: now }
    }

    /// Something came. Alive moves patience only where the peer got on; anything else always does.
    pub(super) fn hear(&mut self, message: &Message, now: Moment) {
        self.heard = now;
        match message {
            Message::Alive(progress) if *progress == self.peer => {}
            Message::Alive(progress) => (self.peer, self.moved) = (*progress, now),
            _ => self.moved = now,
        }
    }

    /// A new wait begins.
    pub(super) fn await_from(&mut self, now: Moment) {
        self.moved = now;
    }

    fn alive_due(&self) -> Moment {
        self.alive.after(self.timeout / ALIVE_DIVISOR)
    }

    /// The sign of life that is due, if one is.
    pub(super) fn alive(&mut self, progress: Progress, now: Moment) -> Option<Message> {
        (now >= self.alive_due()).then(|| {
            self.alive = now;
            Message::Alive(progress)
        })
    }

    /// Why the connection is as good as lost.
    pub(super) fn lost(&self, now: Moment) -> Option<Failure> {
        (now.since(self.heard) > self.timeout).then_some(Failure::Silent(self.timeout))
    }

    /// Why waiting for `what` is over.
    pub(super) fn stuck(
        &self,
        what: &'static str,
        limit: Duration,
        now: Moment,
    ) -> Option<Failure> {
        (now.since(self.moved) > limit).then_some(Failure::Stuck(limit, what))
    }

    /// When to look again.
    pub(super) fn wake(&self) -> Moment {
        // Patience is looked at then as well.
        self.alive_due().min(self.heard.after(self.timeout + Duration::from_millis(1)))
    }

    /// As if it had been made just now: an explorer itself says when a connection is lost.
    pub(super) fn rebase(&mut self, most: Duration) {
        let now = Moment(most);
        (self.opened, self.heard, self.alive, self.moved) = (now, now, now, now);
    }
}
