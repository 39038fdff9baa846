//! What happened, as serde types that read back what they write, under one schema version. Printing
//! is not here.
//!
//! Times are milliseconds, rates bytes per second, unless a name says otherwise.

mod attempt;
#[cfg(feature = "builtin")]
mod bench;
#[cfg(feature = "builtin")]
mod compare;
#[cfg(feature = "builtin")]
pub mod metric;
#[cfg(feature = "builtin")]
mod run;
mod status;
#[cfg(feature = "builtin")]
mod sweep;

pub use attempt::{Contents, Decision, Downtime, MigrationReport, Overrun, RoundReport};
#[cfg(feature = "builtin")]
pub use bench::{BenchReport, BenchRun, RatioReport};
#[cfg(feature = "builtin")]
pub use compare::{CompareReport, Compared, Spread};
#[cfg(feature = "builtin")]
pub use run::{
    Course, GuestCost, LatencyPoint, LinkReport, ReceiveReport, RunReport, RunVerdict, Witnesses,
};
pub use status::{Phase, Status, StatusKind};
#[cfg(feature = "builtin")]
pub use sweep::{SweepCase, SweepRun};

/// Version of every type of this module. Within it, fields may be added; none goes or changes its
/// meaning.
pub const SCHEMA: u32 = 5;
