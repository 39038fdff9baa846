//! Guest-side load generator: what is written, where, and how fast.
//!
//! Everything here serves one idea: **the whole content of memory is a pure function of
//! (seed, workload, one counter per writer)**. A [`profile::Profile`] is what people call a workload
//! and a [`spec::WorkloadSpec`] says what a run writes; a [`pattern::Pattern`] says where operation
//! *k* goes, [`generations`] how often a slot was written, [`content`] and [`mod@line`] which 64
//! bytes stand at an address at a generation; a [`writer::Writer`] puts them there on an open-loop
//! [`schedule`]. The counters leave the guest as heartbeats into a [`journal`].
//!
//! What memory *should* hold at given counters is the `verifier` crate's subject; how a guest is
//! moved while it writes is `migrate-core`'s.

pub mod beat;
pub mod clock;
pub mod content;
pub mod cores;
mod digits;
pub mod dirty;
pub mod document;
pub mod exit;
pub mod fill;
pub mod fresh;
pub mod gate;
pub mod generations;
pub mod heartbeat;
pub mod hiccup;
pub mod interrupt;
pub mod journal;
pub mod line;
pub mod machine;
pub mod manual;
pub mod outlet;
pub mod pattern;
pub mod pipe;
#[cfg(feature = "pipeline")]
pub mod pipeline;
pub mod profile;
pub mod provenance;
pub mod rate;
pub mod region;
pub mod regular;
pub mod report;
pub mod run;
pub mod say;
pub mod schedule;
pub mod spec;
pub mod stamp;
pub mod stats;
pub mod trace;
pub mod unique;
pub mod units;
pub mod work;
pub mod writer;

/// Bytes in a page. The unit of ownership, of tracking and of transfer.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes in a stamped line.
pub const LINE_BYTES: u64 = 64;
/// Stamped lines in a page.
pub const PAGE_LINES: u64 = PAGE_BYTES / LINE_BYTES;
/// Little-endian 64-bit words in a stamped line.
pub const LINE_WORDS: usize = 8;

/// What threads share, in the one place where tests of every interleaving put their own.
mod sync {
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};
}
