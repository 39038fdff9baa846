//! The name of a run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for RunId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        hexadecimal(text).map(Self).ok_or_else(|| {
            format!("'{text}' names no run: it takes 16 hexadecimal digits, in small letters")
        })
    }
}

/// Sixteen digits as they are written here, and nothing else that could be read as a number.
pub(crate) fn hexadecimal(text: &str) -> Option<u64> {
    let written = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    written.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

impl TryFrom<String> for RunId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(run: RunId) -> Self {
        run.to_string()
    }
}

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
