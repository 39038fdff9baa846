//! What every policy keeps to, whatever its rule: time, pages, and how often a stun may overrun.

use super::{Event, Settings, Time};

/// Stuns that may overrun before going on is of no use.
pub(super) const OVERRUNS_MAX: u32 = 3;

/// What was spent of a migration's budgets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Budget {
    settings: Settings,
    sent: u64,
    overruns: u32,
}

impl Budget {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, sent: 0, overruns: 0 }
    }

    pub(super) fn observe(&mut self, event: &Event) {
        match event {
            Event::Tick(window) | Event::RoundDone(window, _) => self.sent += window.sent,
            Event::Overran { .. } => self.overruns += 1,
            Event::Start { .. } => {}
        }
    }

    /// Which budget is spent, if one is.
    pub(super) fn exhausted(&self, now: Time) -> Option<String> {
        if now >= self.settings.time_max {
            Some(format!("{:.0} s were not enough", now.as_secs_f64()))
        } else if self.sent >= self.settings.pages_max {
            Some(format!("{} pages sent were not enough", self.sent))
        } else if self.overruns >= OVERRUNS_MAX {
            Some(format!("{} stuns took longer than they may", self.overruns))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Window;
    use std::time::Duration;

    #[test]
    fn each_budget_is_named_when_it_is_spent() {
        let settings =
            Settings { time_max: Duration::from_secs(10), pages_max: 100, ..Settings::default() };
        let mut budget = Budget::new(settings);
        assert_eq!(budget.exhausted(Duration::from_secs(9)), None);
        assert_eq!(budget.exhausted(Duration::from_secs(10)).unwrap(), "10 s were not enough");
        for _ in 0..OVERRUNS_MAX {
            budget.observe(&Event::Overran { took: Duration::from_millis(1), pending: 1 });
        }
        let why = budget.exhausted(Duration::ZERO).unwrap();
        assert_eq!(why, "3 stuns took longer than they may");
        budget.observe(&Event::Tick(Window { sent: 100, ..Window::default() }));
        let why = budget.exhausted(Duration::ZERO).unwrap();
        assert_eq!(why, "100 pages sent were not enough");
    }
}
