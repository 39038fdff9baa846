//! Both ends of a migration, their disks and guests, the network between them and two operators, in
//! virtual time: the machines of `session` are walked through everything that can happen.
//!
//! [`world`] is what there is: two [`ends`], under [`rules`]. [`choices`] is what can happen next,
//! [`step`] and [`faults`] what that does, [`shell`] what the programs around the machines do.
//! [`explorer`] goes through all of it breadth first, within the bounds of [`walks`]; [`mutants`]
//! are mistakes around the machines, and [`found`] says that the walk finds them. [`histories`] are
//! random ones beyond its bounds, in finer time. [`tables`] are the machines' own, kept in `docs`.
//!
//! Not built on the crate `stateright`: its liveness is "eventually, on each path that ends", and
//! what is asked here is "from each state some way leads to one running guest", which needs the
//! edges backwards.
//!
//! `VMIGRATE_PAIR=long` walks larger bounds (minutes); `VMIGRATE_PAIR_CHARTS=1` draws what each
//! mutant does, `VMIGRATE_PAIR_SEED=n` one random history; `VMIGRATE_PAIR_WRITE=1` writes tables and
//! the drawn run anew instead of comparing them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test fails by panicking and says what it did"
)]

mod action;
mod chart;
mod choices;
mod ends;
mod explorer;
mod faults;
mod fingerprint;
mod found;
mod histories;
mod mutants;
mod rules;
mod shell;
mod step;
mod tables;
mod walks;
mod world;
