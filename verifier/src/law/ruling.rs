//! What the law says of a run, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::beat::said::Tag;
use workload::beat::session::Name;

use crate::verdict::Verdict;

/// What is wrong with a run that contradicts itself.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// Two guests went on as this one.
    Fork,
    /// The guest went on from an earlier moment than it had reached.
    Rollback,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fork => "FORK",
            Self::Rollback => "ROLLBACK",
        })
    }
}

/// Why a run that is not wrong is not proven.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(tag = "reason", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reason {
    /// Lines are missing that were written, or nothing says where a session ends.
    Hole,
    /// A session, or a collector that was expected, is missing.
    Lost,
    /// The run's description was not heard.
    NoDescription,
    /// What was heard later does not vouch for all that was heard before.
    NotJoined,
    /// Beats were heard by a collector that was not told of the restore.
    NotToldThere,
    /// The beat that a restore is said to go on from was not heard.
    BeatNotHeard,
    /// From which beat the guest went on after a restore is not clear.
    WhichBeat,
    /// The run contradicts itself, unless a line that is missing said "restored".
    Contradiction,
    /// A writer did not advance in an epoch.
    WriterIdle {
        /// Which.
        writer: u32,
        /// In which epoch; none for the time since the last restore.
        epoch: Option<u32>,
    },
    /// A writer did not advance in a phase that was told to a collector.
    PhaseIdle {
        /// The phase's name.
        phase: Name,
    },
    /// Of an epoch nothing was heard.
    EpochUnheard {
        /// The first such.
        epoch: u32,
    },
    /// The run was not ended, and nobody heard it until the collectors were closed.
    Silence,
}

impl Reason {
    /// Whether it counts against memory too, which shows by itself how far its writers came.
    pub fn counts_for_memory(&self) -> bool {
        !matches!(
            self,
            Self::WriterIdle { .. }
                | Self::PhaseIdle { .. }
                | Self::EpochUnheard { .. }
                | Self::Silence
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hole => f.write_str(
                "lines of a collector's session are missing, or its end is: the collector was killed, \
                 or the file was cut or edited",
            ),
            Self::Lost => f.write_str(
                "a session or a collector is missing that must be there: give its journal as well",
            ),
            Self::NoDescription => f.write_str("the run's description was not heard"),
            Self::NotJoined => f.write_str(
                "too many heartbeats in a row were lost on the way: what was heard after them does not \
                 vouch for what was heard before",
            ),
            Self::NotToldThere => f.write_str(
                "heartbeats were heard by a collector that was not told of the restore: say \"restored\" \
                 to each collector that hears the guest",
            ),
            Self::BeatNotHeard => {
                f.write_str("the heartbeat that a restore was said to go on from was not heard")
            }
            Self::WhichBeat => {
                f.write_str("from which heartbeat the guest went on after the restore is not clear")
            }
            Self::Contradiction => f.write_str(
                "heartbeats contradict each other, unless a line that is missing said \"restored\"",
            ),
            Self::WriterIdle { writer, epoch: Some(epoch) } => {
                write!(f, "writer {writer} was never seen to advance in epoch {epoch}")
            }
            Self::WriterIdle { writer, epoch: None } => {
                write!(f, "writer {writer} was never seen to advance since the last restore")
            }
            Self::PhaseIdle { phase } => {
                write!(f, "not every writer was seen to advance in phase {phase}")
            }
            Self::EpochUnheard { epoch } => write!(f, "nothing was heard of epoch {epoch}"),
            Self::Silence => f.write_str(
                "the run was not ended, and was silent before its collectors were closed: stopped, \
                 killed, or not heard any more",
            ),
        }
    }
}

/// What the law says of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ruling {
    /// Which.
    pub tag: Tag,
    /// The answer, for the run.
    pub verdict: Verdict,
    /// What is wrong.
    pub kinds: BTreeSet<Kind>,
    /// The first two beats that contradict each other, in words.
    pub because: Option<String>,
    /// What keeps it from being proven.
    pub reasons: BTreeSet<Reason>,
    /// It was restored from an earlier moment, as was told.
    pub restored: bool,
    /// Every writer was ended by the guest's owner.
    pub ended: bool,
    /// Most operations that each writer of the line that goes on was heard to have completed.
    pub watermarks: Vec<u64>,
    /// Until when it was heard, microseconds since 1970, where it was not ended.
    pub until_us: Option<u64>,
    /// Who collected, and how many sessions of each there are.
    pub collectors: BTreeMap<Name, u64>,
    /// A copy of the guest may draw the same bits: beats that are the same may be of two.
    pub weak: bool,
}

impl Ruling {
    /// What the law says of memory whose lines are all right at the watermarks that it shows.
    pub fn of_memory(&self, shown: &[u64]) -> Verdict {
        let below = self.watermarks.iter().zip(shown).any(|(heard, shown)| shown < heard);
        if self.verdict == Verdict::Wrong {
            Verdict::Wrong
        } else if self.reasons.iter().any(Reason::counts_for_memory) {
            Verdict::Inconclusive
        } else if below {
            Verdict::Wrong
        } else {
            Verdict::Proven
        }
    }
}
