//! When the guest's writes are looked at, and which of them a sweep passes over.

use std::time::Duration;

use crate::memory::PAGE_BYTES;
use crate::policy::{Window, send_time};

/// Longest time between two harvests.
pub const HARVEST_INTERVAL_MAX: Duration = Duration::from_millis(50);
/// The same in a sweep, while the guest writes.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_millis(10);
/// Shortest time between two harvests of a sweep, and the time to its first.
pub const HARVEST_INTERVAL_MIN: Duration = Duration::from_millis(2);
/// A guest that writes less than this share of what is sent need not be watched as closely.
const IDLE_SHARE: f64 = 0.01;
/// Harvests may take at most this share of the time.
const HARVEST_SHARE_MAX: f64 = 0.05;
/// However long they take, the guest is not left unwatched for longer.
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How long the last two harvests took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HarvestCost([Duration; 2]);

impl HarvestCost {
    pub(super) fn took(&mut self, time: Duration) {
        self.0 = [self.0[1], time];
    }

    /// The least time to the next harvest: by the lesser of the two, because one that was held up
    /// by something else would leave the guest unwatched for seconds.
    pub(super) fn interval_min(&self) -> Duration {
        self.0[0].min(self.0[1]).div_f64(HARVEST_SHARE_MAX).min(INTERVAL_MAX)
    }
}

fn rest(owed_pages: u64, sent: &Window) -> Option<Duration> {
    let rate = (sent.sent * PAGE_BYTES) as f64 / sent.elapsed.as_secs_f64().max(1e-9);
    send_time(owed_pages, (rate > 0.0).then_some(rate))
}

/// When a sweep harvests again: often enough that what is written between two harvests is little
/// beside what is owed, or the rest could never fit a short goal.
pub(super) fn sweep_interval(owed_pages: u64, sent: &Window) -> Duration {
    let idle = (sent.dirtied as f64) < IDLE_SHARE * sent.sent as f64;
    let most = if idle { HARVEST_INTERVAL_MAX } else { SWEEP_INTERVAL_MAX };
    rest(owed_pages, sent).map_or(most, |rest| rest / 16).clamp(HARVEST_INTERVAL_MIN, most)
}

/// Whether a sweep passes over what was written since it began: not when what is owed is so
/// little that what was passed over would be most of it.
pub(super) fn leaves_hot_pages(owed_pages: u64, sent: &Window) -> bool {
    rest(owed_pages, sent).is_none_or(|rest| rest > HARVEST_INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_harvest_that_was_held_up_does_not_leave_the_guest_unwatched() {
        let mut cost = HarvestCost::default();
        let (usual, held_up) = (Duration::from_micros(100), Duration::from_millis(100));
        let mut after = |time| {
            cost.took(time);
            cost.interval_min()
        };
        // The very first as well.
        assert_eq!(after(held_up), Duration::ZERO);
        assert_eq!(after(usual), usual.div_f64(HARVEST_SHARE_MAX));
        assert_eq!(after(held_up), usual.div_f64(HARVEST_SHARE_MAX));
        // Two in a row are what harvests cost now.
        assert_eq!(after(held_up), INTERVAL_MAX);
    }
}
