//! What goes on after a failed attempt while the guest runs here again: a destination that may hold
//! a prepared copy is told to refuse it, on new connections if need be, until it has.

use crate::conductor::Conductor;
use crate::operator::record::Record;
use crate::session::source::Source;

/// Tells the destination in the background, until it has refused or this value goes. Keep it while
/// the guest runs on; without it a destination that lives may keep an outdated copy until an operator
/// comes.
pub struct Withdrawal {
    over: Box<dyn FnMut() -> bool + Send>,
    ended: bool,
    record: Option<Record>,
    _session: Conductor<Source>,
}

impl std::fmt::Debug for Withdrawal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Withdrawal").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Withdrawal {
    pub(super) fn new(
        session: Conductor<Source>,
        record: Record,
        over: impl FnMut() -> bool + Send + 'static,
    ) -> Self {
        Self { over: Box::new(over), ended: false, record: Some(record), _session: session }
    }

    /// Whether the destination has refused, or there was nothing to refuse.
    pub fn is_over(&mut self) -> bool {
        self.ended |= (self.over)();
        self.ended
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        // The guest runs here: whoever asks later needs no record to be told so.
        if let Some(record) = self.record.take() {
            record.remove();
        }
    }
}
