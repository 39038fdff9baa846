//! The kernel interfaces behind guests and trackers; the only unsafe code on this side.

pub(crate) mod fault;
pub(crate) mod uffd;
pub(crate) mod view;
