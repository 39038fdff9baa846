//! What each end keeps on disk about a handover, as values. How they get there is the subject of
//! [`crate::operator::record`].

/// What the source's record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceRecord {
    /// Nothing was decided: the guest runs here.
    Open,
    /// The destination may be told to run the guest. Synced before it is.
    Committed,
    /// A commit that was taken back. Synced before the guest runs here again.
    TakenBack,
    /// The guest runs, or ran, at the destination. Synced.
    Released,
}

/// What the destination's record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationRecord {
    /// Pages arrive; nothing runs here.
    Receiving,
    /// Everything is here and waits for Run. Written before Ready is said.
    Prepared,
    /// The gate is about to open. Written before it does.
    Opening,
    /// The gate is open.
    Running,
    /// The guest ran here and went on to another host.
    GoneOn,
    /// The guest ran here and was ended.
    Ended,
    /// It never ran here and never will. Synced before that is said.
    Refused,
}

/// A guest beside a record that a new engine takes up, as its holder says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// There is none: it died with its engine.
    Gone,
    /// It stands still, and never ran here.
    Stopped,
    /// It was started here; it runs, or stands still since.
    Started,
}

/// Whether a record was written since this host booted: what was not synced may be missing from an
/// older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Boot {
    /// It was.
    This,
    /// It was not.
    Earlier,
}

impl SourceRecord {
    /// All, for parsers.
    pub const ALL: [Self; 4] = [Self::Open, Self::Committed, Self::TakenBack, Self::Released];

    /// Its word in a file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Committed => "committed",
            Self::TakenBack => "taken-back",
            Self::Released => "released",
        }
    }
}

impl DestinationRecord {
    /// All, for parsers.
    pub const ALL: [Self; 7] = [
        Self::Receiving,
        Self::Prepared,
        Self::Opening,
        Self::Running,
        Self::GoneOn,
        Self::Ended,
        Self::Refused,
    ];

    /// Its word in a file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Prepared => "prepared",
            Self::Opening => "opening",
            Self::Running => "running",
            Self::GoneOn => "gone-on",
            Self::Ended => "ended",
            Self::Refused => "refused",
        }
    }
}
