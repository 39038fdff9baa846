//! What can be said of a migration without moving anything: a guest and a link on a virtual clock,
//! under the policies that run, and the bounds that no migration can beat.

pub mod bound;
pub mod closed_form;
pub mod model;
