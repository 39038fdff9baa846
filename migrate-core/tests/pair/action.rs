//! One step of the world, named.

use migrate_core::session::Word;

/// One step of the world. Connections and attempts are named by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A link timeout passes.
    Time,
    /// A connection breaks; what is on its way may still arrive.
    Break(u8),
    SourceNotices(u8),
    /// Nothing is on its way, nobody is busy: the source's patience ends.
    SourceTires(u8),
    DestinationNotices(u8),
    SourceHears(u8),
    DestinationHears(u8),
    /// A connection is taken by the destination's program.
    Accepts(u8),
    Connects,
    CannotConnect,
    /// The source tries again.
    Retries,
    /// An embedder has something to say.
    SourceNotes,
    DestinationNotes(u8),
    /// A machine wanted to be woken.
    SourceTicks,
    DestinationTicks(u8),
    /// The next order of the shell is carried out.
    SourceOrder,
    DestinationOrder(u8),
    /// A record reaches the disk.
    SourceWrites,
    DestinationWrites(u8),
    /// It is written, and cannot be synced; or not even written.
    SourceWritesUnsynced,
    SourceCannotWrite,
    DestinationWritesUnsynced(u8),
    DestinationCannotWrite(u8),
    SourceRecorded,
    /// The shell's first answer, by its place.
    DestinationAnswers(u8, u8),
    DestinationFails(u8, u8),
    ReadsPages(u8),
    Superseded(u8),
    Stun,
    Commit,
    GoBack,
    Abandon,
    SourceWord(Word),
    DestinationWord(u8, Word),
    Look,
    GoesOn(u8),
    Ends(u8),
    SourceGoesOn,
    Again,
    SourceCrashes,
    DestinationCrashes,
    SourceLosesPower(u8),
    DestinationLosesPower(u8),
    SourceRestarts,
    DestinationRestarts,
    /// What only a mutant does.
    Mutated(u8),
}

impl Action {
    /// Whether it takes from what is left of faults: a way out must not need it.
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Break(_)
                | Self::SourceCrashes
                | Self::DestinationCrashes
                | Self::SourceLosesPower(_)
                | Self::DestinationLosesPower(_)
                | Self::SourceWritesUnsynced
                | Self::SourceCannotWrite
                | Self::DestinationWritesUnsynced(_)
                | Self::DestinationCannotWrite(_)
                | Self::DestinationFails(..)
                | Self::Abandon
                | Self::Mutated(_)
        )
    }

    /// Whether an operator speaks.
    pub fn is_word(self) -> bool {
        matches!(self, Self::SourceWord(_) | Self::DestinationWord(..) | Self::Look)
    }
}
