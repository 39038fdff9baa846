//! A guest that stands still until a peer or an operator speaks: since when, and how often that is
//! said.

use std::time::Duration;

use super::{Moment, NOTICE_INTERVAL};

/// One standstill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Standstill {
    since: Moment,
    reminder: Moment,
    given_up: Option<Moment>,
}

impl Standstill {
    /// It begins; it is spoken of again after `limit`, and given up after another time, if ever.
    pub(super) fn new(now: Moment, limit: Duration, give_up_after: Option<Duration>) -> Self {
        let given_up = give_up_after.map(|time| now.after(time));
        Self { since: now, reminder: now.after(limit), given_up }
    }

    /// When to look again.
    pub(super) fn wake(&self) -> Moment {
        self.given_up.map_or(self.reminder, |given_up| given_up.min(self.reminder))
    }

    /// Whether it has lasted too long.
    pub(super) fn is_given_up(&self, now: Moment) -> bool {
        self.given_up.is_some_and(|given_up| now >= given_up)
    }

    /// How long it has lasted, if that is to be said now.
    pub(super) fn reminder(&mut self, now: Moment) -> Option<Duration> {
        (now >= self.reminder).then(|| {
            self.reminder = now.after(NOTICE_INTERVAL);
            now.since(self.since)
        })
    }
}
