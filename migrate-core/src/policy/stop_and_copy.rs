//! `stop-and-copy`: stun first, send everything while the guest stands still.

use super::{Action, Event, Fit, Policy, Stun, Time};

#[derive(Debug)]
pub(super) struct StopAndCopy;

impl Policy for StopAndCopy {
    fn name(&self) -> &'static str {
        "stop-and-copy"
    }

    fn step(&mut self, event: Event, _now: Time) -> Vec<Action> {
        match event {
            Event::Start { pages } => {
                vec![Action::Stun(Stun { pending_pages: pages, fit: Fit::StopAndCopy })]
            }
            Event::Tick(_) | Event::RoundDone(..) => vec![],
        }
    }
}
