//! What runs the writers of a guest, behind one trait.

use std::time::Instant;

use verifier::memory::Moment;
use workload::gate::DoesNotStop;
use workload::stats::Stats;

use super::tracker::TrackerKind;
use super::{DirtyTracker, GuestError, MemoryView};

/// What runs the writers of a guest.
pub(super) trait Machine: Send + std::fmt::Debug {
    /// How many there are, one on each vCPU.
    fn vcpus(&self) -> usize;
    /// Has all vCPUs stand still.
    fn pause(&mut self) -> Result<(), GuestError>;
    /// Lets them go on.
    fn resume(&mut self);
    /// Waits until all stand at the closed gate they were started with, ready to run.
    fn await_standing(&self, deadline: Instant) -> Result<(), GuestError>;
    /// When the last of them began to run behind a gate that had been closed, by the wall clock.
    fn passed_at_ns(&self) -> u64;
    /// Waits until all run.
    fn await_running(&self, deadline: Instant) -> Result<(), GuestError>;
    /// Holds each for its share of time.
    fn throttle(&mut self, held_shares: &[f64]);
    /// Lines that each has stored.
    fn written(&self) -> Vec<u64>;
    /// How they stand when paused: between operations, or anywhere.
    fn moment(&self) -> Moment;
    /// A tracker of what they write.
    fn tracker(
        &self,
        kind: TrackerKind,
        memory: MemoryView,
    ) -> Result<Box<dyn DirtyTracker>, GuestError>;
    /// State beyond memory and watermarks; they stand still.
    fn save(&mut self) -> Result<serde_json::Value, GuestError> {
        Ok(serde_json::Value::Null)
    }
    /// What they did since they began or were asked last.
    fn lap(&self) -> Result<Stats, GuestError>;
    /// Ends them; what they did since they were asked last.
    fn halt(&mut self) -> Result<Stats, GuestError>;
}

/// What it means that a writer does not come to its gate.
pub(super) fn not_paused(error: DoesNotStop) -> GuestError {
    GuestError::new("pause the guest", error)
}
