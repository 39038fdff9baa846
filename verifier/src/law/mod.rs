//! The law of evidence: what the beats that were heard of a run prove, and what they do not.
//!
//! A pure function of what collectors wrote down. Less evidence never gives a better verdict; the
//! order of lines means nothing; no clock but the boot-time clock of one collector decides anything.
//! docs/verification.md has the rules.

mod court;
mod ruling;

pub use court::{Demand, Limits, judge};
pub use ruling::{Kind, Reason, Ruling};
