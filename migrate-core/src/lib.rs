//! Moves a running guest between hosts: shadow VM, pre-copy, SDPS, stun, resume.
//!
//! A VMM brings three things, the traits of [`guest`]: a [`guest::Guest`] on the source (memory,
//! vCPUs, device state), a [`guest::Shadow`] on the destination, and a [`guest::DirtyTracker`].
//! [`source::migrate`] and [`destination::receive`] do the rest over TCP or mutual TLS.
//!
//! From pure to real: [`memory`] (pages, groups, sets of them), [`policy`] (what to do next; no
//! clock, no socket), [`codec`] (pages as bytes), [`guest`] (the seam), [`driver`] (rounds and
//! sweeps as a machine), [`proto`] (messages), [`predict`] (the same driver and policies on a virtual
//! clock, and what no migration can beat), [`session`] (who runs the guest), [`report`] (what
//! happened), [`link`] (streams, TLS, pacing), [`operator`] (records on disk, words from beside),
//! [`source`] and [`destination`] (the shells), and with the feature `builtin` the module `trial` (one
//! migration as an experiment, proven). [`guest`] says how to embed it. `docs/architecture.md` says what is deliberately
//! absent.

mod clock;
pub mod codec;
mod conductor;
pub mod destination;
pub mod driver;
pub mod error;
pub mod guest;
pub mod link;
pub mod memory;
pub mod operator;
pub mod policy;
pub mod predict;
pub mod proto;
pub mod report;
pub mod session;
pub mod source;
#[cfg(feature = "builtin")]
pub mod trial;
mod wire;

pub use error::Error;

/// What threads share lock-free, in the one place where tests of every interleaving put their own.
mod sync {
    pub(crate) use std::sync::atomic;
}
