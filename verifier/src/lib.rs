//! What memory must hold, and what it does hold.
//!
//! From a workload and its watermarks every byte of a region follows. [`scan`] compares, all cores
//! at work; [`classify`] says what is wrong with a line or page that differs; [`extent`] gathers
//! faults into runs and says what they have in common; [`evidence`] judges the journal (liveness,
//! rollback, fork); [`manifest`] compares memory across hosts by hash; [`verdict`] is the one
//! answer. The law it follows is written down in `docs/verification.md`.
//!
//! How the memory came to be is `workload`'s business.

pub mod classify;
pub mod evidence;
pub mod extent;
pub mod manifest;
pub mod scan;
pub mod verdict;
