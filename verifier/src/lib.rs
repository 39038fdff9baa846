//! What memory must hold, and what it does hold.
//!
//! From a workload and its watermarks every byte of a region follows: [`expected`]. [`scan`]
//! compares, all cores at work, a region or the pages that [`image`] found in a memory dump;
//! [`classify`] says what is wrong with a line that differs; [`extent`] gathers faults into runs
//! and says what they have in common, [`held`] what stands where something else must; [`infer`] reads lost watermarks from memory; [`law`]
//! judges what was heard of a run (liveness, rollback, fork), and [`evidence`] says it; [`case`] reads
//! it; [`cache`] keeps what was replayed; [`manifest`] compares memory across hosts by hash; [`verdict`] is the one answer. The law it follows is written down in `docs/verification.md`.
//!
//! How the memory came to be is `workload`'s business.

pub mod cache;
pub mod case;
pub mod classify;
pub mod evidence;
pub mod expected;
pub mod extent;
pub mod held;
pub mod image;
pub mod infer;
pub mod law;
pub mod manifest;
pub mod map;
pub mod memory;
mod page;
pub mod report;
pub mod scan;
pub mod self_test;
pub mod verdict;
