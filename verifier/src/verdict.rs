//! The one answer of every check.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::exit;

/// What was shown about a guest's memory.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// Every byte is what was last written, and the writers were seen to write.
    Proven,
    /// Nothing wrong was found, but what a proof needs is missing.
    Inconclusive,
    /// Something is wrong.
    Wrong,
}

impl Verdict {
    /// The worse of two answers.
    pub fn and(self, other: Self) -> Self {
        self.max(other)
    }

    /// The exit code for this answer.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Proven => exit::PROVEN,
            Self::Inconclusive => exit::INCONCLUSIVE,
            Self::Wrong => exit::WRONG,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Proven => "PROVEN",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Wrong => "WRONG",
        })
    }
}
