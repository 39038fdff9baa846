//! What a walk allows, how its time passes, and what must not happen in it.

use std::time::Duration;

use migrate_core::session::Moment;

use crate::mutants::Mutant;

/// The link timeout of both ends.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// No constraint asks for more than two link timeouts.
pub const MOST: Duration = Duration::from_secs(20);
/// Now, where time is counted in whole link timeouts.
pub const NOW: Moment = Moment(MOST);
/// Pages of the guest.
pub const PAGES: usize = 2;

/// What becomes of a guest whose engine crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// It dies.
    Dies,
    /// It goes on as it was.
    Outlives,
    /// It stands still from then on.
    Stops,
}

/// How time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// In link timeouts; silence and patience are the walk's to decide.
    Whole,
    /// In quarters of them; machines are ticked when they want to be.
    Quarters,
}

/// What a walk allows, and what is wrong with its shells.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub crash: Crash,
    pub clock: Clock,
    /// Whether hosts lose their power, too.
    pub power: bool,
    /// Whether ends give up by themselves after a while.
    pub gives_up: bool,
    /// Whether the destination may stand still between its look at the lease and the gate: the
    /// exception that the documents name.
    pub gap: bool,
    pub left: Left,
    pub mutant: Option<Mutant>,
}

/// How many faults, words and decisions are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    pub cuts: u8,
    pub crashes: u8,
    pub words: u8,
    pub agains: u8,
    /// Records that cannot be synced.
    pub syncs: u8,
    /// Shadows that cannot be built, guests that cannot be loaded, shells that cannot go on.
    pub setbacks: u8,
    /// Hops to a third host, or ends by the owner.
    pub hops: u8,
    /// Further attempts to move the same guest.
    pub attempts: u8,
    /// Notes of the embedders.
    pub notes: u8,
}

/// No faults, no words.
pub const NONE: Left = Left {
    cuts: 0,
    crashes: 0,
    words: 0,
    agains: 0,
    syncs: 0,
    setbacks: 0,
    hops: 0,
    attempts: 0,
    notes: 0,
};

/// Both ends alone.
pub const RULES: Rules = Rules {
    crash: Crash::Dies,
    clock: Clock::Whole,
    power: false,
    gives_up: false,
    gap: false,
    left: NONE,
    mutant: None,
};

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Violation {
    TwoRun,
    /// An older state runs after a newer one ran.
    Rollback,
    /// A copy runs that is not one moment of the guest.
    Torn,
    /// An answer is not true.
    Untrue(&'static str),
    /// The gate opens at a destination that had refused.
    BrokenRefusal,
    /// The last whole copy is dropped without a crash and without a word that gives it up.
    Lost,
    /// One end takes the other for one that does not keep to the protocol.
    Breach,
    /// A shell is asked to run a guest that is not there.
    Absent,
}
