//! Smoothed send and dirty rates from windows of any length.

use std::time::Duration;

use super::Window;
use crate::memory::PAGE_BYTES;

/// Shorter windows are gathered until they are this long: ratios of small counts mislead.
const WINDOW_MIN: Duration = Duration::from_millis(20);
/// Time over which older windows fade to a third.
const MEMORY: Duration = Duration::from_millis(250);
/// The same for a send rate that keeps still where little is sent in a window.
const MEMORY_STEADY: Duration = Duration::from_millis(500);
/// The same for the growth of what is owed, which changes as a sweep passes the guest's writes.
const MEMORY_FRESH: Duration = Duration::from_millis(80);

/// Rates in bytes per second, once known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Estimate {
    pending: Window,
    send: Option<f64>,
    steady: Option<f64>,
    dirty: Option<f64>,
    fresh: Option<f64>,
}

impl Estimate {
    /// Page data sent per second; from a first window that is still short if there is no better.
    pub(super) fn send(&self) -> Option<f64> {
        let seconds = self.pending.elapsed.as_secs_f64();
        let provisional = (self.pending.sent * PAGE_BYTES) as f64 / seconds;
        self.send.or((seconds > 0.0 && self.pending.sent > 0).then_some(provisional))
    }

    /// Page data sent per second where it goes on as it did: a window without a page, as there are
    /// many over a slow link, is not taken for a slower one.
    pub(super) fn steady_send(&self) -> Option<f64> {
        Some(self.send()?.max(self.steady.unwrap_or_default()))
    }

    /// Page data dirtied per second.
    pub(super) fn dirty(&self) -> Option<f64> {
        self.dirty
    }

    /// Page data per second by which what is owed grows.
    pub(super) fn fresh(&self) -> Option<f64> {
        self.fresh
    }

    /// Takes a window in; returns the gathered one when it was long enough to count.
    pub(super) fn update(&mut self, window: Window) -> Option<Window> {
        self.pending.elapsed += window.elapsed;
        self.pending.sent += window.sent;
        self.pending.dirtied += window.dirtied;
        self.pending.fresh += window.fresh;
        self.pending.pending = window.pending;
        if self.pending.elapsed < WINDOW_MIN {
            return None;
        }
        let window = std::mem::take(&mut self.pending);
        let seconds = window.elapsed.as_secs_f64();
        let smooth_over = |memory: Duration, old: Option<f64>, pages: u64| {
            let weight = 1.0 - (-seconds / memory.as_secs_f64()).exp();
            let new = (pages * PAGE_BYTES) as f64 / seconds;
            Some(old.map_or(new, |old| old + weight * (new - old)))
        };
        let smooth = |old, pages| smooth_over(MEMORY, old, pages);
        self.send = smooth(self.send, window.sent).filter(|rate| *rate > 0.0);
        self.steady = smooth_over(MEMORY_STEADY, self.steady, window.sent);
        self.dirty = smooth(self.dirty, window.dirtied);
        self.fresh = smooth_over(MEMORY_FRESH, self.fresh, window.fresh);
        Some(window)
    }
}
