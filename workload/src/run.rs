//! The name of a run.

use serde::{Deserialize, Serialize};

use crate::digits::written_in_digits;
use crate::fresh;

/// Identifies one run of one workload: in journals, and in every line of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(pub u64);

impl RunId {
    /// One that no run had before, also where there is no entropy yet.
    pub fn fresh() -> Self {
        Self(fresh::bits())
    }
}

written_in_digits!(RunId, u64, 16, "run");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_reads_back_and_nothing_else_does() {
        let run = RunId(0xab);
        assert_eq!(run.to_string().parse(), Ok(run));
        for text in ["", "ab", "+0000000000000ab", "00000000000000AB", "00000000000000abc"] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }
}
