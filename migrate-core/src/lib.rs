//! Moves a running guest between hosts: shadow VM, pre-copy, SDPS, stun, resume.
//!
//! A VMM brings three things, the traits of [`guest`]: a [`guest::Guest`] on the source (memory,
//! vCPUs, device state), a [`guest::Shadow`] on the destination, and a [`guest::DirtyTracker`].
//! [`source::migrate`] and [`destination::receive`] do the rest over TCP or mutual TLS.
//!
//! From pure to real: [`memory`] (pages and bitmaps), [`codec`] (pages as bytes on the wire), [`policy`] (what to do next; no clock, no
//! socket), [`sim`] (the same policies on a virtual clock), [`proto`] (frames and states as data),
//! [`link`] (streams, TLS, pacing), [`guest`] (the seam), [`source`] and [`destination`] (the
//! wiring), [`report`] (what happened), [`bound`] (what no migration can beat). `docs/architecture.md` says what is deliberately absent.

pub mod bound;
mod clock;
pub mod codec;
mod conductor;
pub mod destination;
pub mod error;
pub mod guest;
pub mod link;
pub mod memory;
pub mod operator;
pub mod policy;
pub mod proto;
pub mod report;
pub mod session;
pub mod sim;
pub mod source;
mod wire;

pub use error::Error;
