//! Smoothed send and dirty rates from windows of any length.

use super::{Tuning, Window};
use crate::memory::PAGE_BYTES;

/// Rates in bytes per second, once known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    tuning: Tuning,
    pending: Window,
    send: Option<f64>,
    steady: Option<f64>,
    dirty: Option<f64>,
    fresh: Option<f64>,
}

impl Estimate {
    pub(super) fn new(tuning: &Tuning) -> Self {
        let pending = Window::default();
        Self { tuning: *tuning, pending, send: None, steady: None, dirty: None, fresh: None }
    }

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
        if self.pending.elapsed.as_secs_f64() < self.tuning.window_s {
            return None;
        }
        let window = std::mem::take(&mut self.pending);
        let seconds = window.elapsed.as_secs_f64();
        let Tuning { memory_s, memory_steady_s, memory_fresh_s, .. } = self.tuning;
        let smooth_over = |memory_s: f64, old: Option<f64>, pages: u64| {
            let weight = 1.0 - (-seconds / memory_s).exp();
            let new = (pages * PAGE_BYTES) as f64 / seconds;
            Some(old.map_or(new, |old| old + weight * (new - old)))
        };
        let smooth = |old, pages| smooth_over(memory_s, old, pages);
        self.send = smooth(self.send, window.sent).filter(|rate| *rate > 0.0);
        self.steady = smooth_over(memory_steady_s, self.steady, window.sent);
        self.dirty = smooth(self.dirty, window.dirtied);
        self.fresh = smooth_over(memory_fresh_s, self.fresh, window.fresh);
        Some(window)
    }
}
