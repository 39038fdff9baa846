//! Long computations, as they look to those who wait for them: how much is done, and a word that
//! the rest is not wanted any more.
//!
//! The unit is an operation replayed or a line looked at: both take about as long.

/// Whoever waits for a long computation.
pub trait Watch: Sync {
    /// So many units are to be done that nobody had counted yet.
    fn expect(&self, units: u64) {
        let _ = units;
    }

    /// So many more units are done; said every few milliseconds.
    fn done(&self, units: u64) {
        let _ = units;
    }

    /// Whether to give up; asked every few milliseconds.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody: the computation runs to its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {}

/// Whoever waited called it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// What becomes of a computation that nobody can call off.
pub fn to_its_end<T>(result: Result<T, Cancelled>) -> T {
    result.unwrap_or_else(|Cancelled| unreachable!("nobody could call it off"))
}
