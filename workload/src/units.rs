//! Sizes, rates and durations as people type them and as programs print them.
//!
//! Sizes are binary with an `i` (`KiB`) and decimal without (`KB`). Rates are bytes per second
//! (`110MB/s`, `1GiB/s`) or bits per second (`1gbit`, `800mbit`), decimal as networks count.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::Unit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Bytes per second.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Rate(pub u64);

/// What was typed is not a quantity of the kind that was wanted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No number in front.
    #[error("'{0}' does not start with a number")]
    NoNumber(String),
    /// A unit that this kind of quantity does not have.
    #[error("'{text}': unknown unit '{unit}'; {hint}")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The part that was not understood.
        unit: String,
        /// Units that would be.
        hint: &'static str,
    },
    /// More than 64 bits hold.
    #[error("'{0}' is too large")]
    Overflow(String),
    /// The quantity is zero where nothing can be done with zero.
    #[error("'{0}' is zero; it must be more")]
    Zero(String),
}

const SIZE_HINT: &str = "use B, KiB, MiB, GiB, TiB, or decimal KB, MB, GB, TB";
const RATE_HINT: &str = "use bytes (110MB/s, 1GiB/s) or bits per second (800mbit, 1gbit)";

fn split(text: &str) -> Result<(f64, &str), UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().map_err(|_| UnitError::NoNumber(text.to_owned()))?;
    Ok((number, text[end..].trim()))
}

/// A letter alone is binary, as in command lines of other programs.
fn size_factor(unit: &str) -> Option<u64> {
    let unit = match unit.as_bytes() {
        [] => "B".to_owned(),
        [b'k' | b'K' | b'm' | b'M' | b'g' | b'G' | b't' | b'T'] => format!("{unit}iB"),
        _ => unit.to_owned(),
    };
    unit.parse::<Unit>().ok().map(|unit| unit * 1u64)
}

fn scale(number: f64, factor: u64, divisor: u64, text: &str) -> Result<u64, UnitError> {
    let value = number * factor as f64 / divisor as f64;
    // 2^63, far above any machine, keeps later sums from overflowing.
    if value >= 9_223_372_036_854_775_808.0 {
        return Err(UnitError::Overflow(text.to_owned()));
    }
    Ok(value.round() as u64)
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text)?;
        let factor = size_factor(unit).ok_or_else(|| UnitError::UnknownUnit {
            text: text.to_owned(),
            unit: unit.to_owned(),
            hint: SIZE_HINT,
        })?;
        match scale(number, factor, 1, text)? {
            0 => Err(UnitError::Zero(text.to_owned())),
            value => Ok(Bytes(value)),
        }
    }
}

impl FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text)?;
        let lower = unit.to_ascii_lowercase();
        let bits = match lower.trim_end_matches("/s").trim_end_matches("ps") {
            "bit" => Some(1),
            "kbit" => Some(1_000),
            "mbit" => Some(1_000_000),
            "gbit" => Some(1_000_000_000),
            _ => None,
        };
        let value = match (bits, lower.strip_suffix("/s").and_then(size_factor)) {
            (Some(factor), _) => scale(number, factor, 8, text)?,
            (None, Some(factor)) => scale(number, factor, 1, text)?,
            (None, None) => {
                return Err(UnitError::UnknownUnit {
                    text: text.to_owned(),
                    unit: unit.to_owned(),
                    hint: RATE_HINT,
                });
            }
        };
        match value {
            0 => Err(UnitError::Zero(text.to_owned())),
            value => Ok(Rate(value)),
        }
    }
}

impl Bytes {
    /// The same number as text that reads back exactly: `4KiB`, or plain bytes.
    pub fn exact(self) -> String {
        const STEPS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match STEPS.iter().find(|(size, _)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((size, unit)) => format!("{}{unit}", self.0 / size),
            None => self.0.to_string(),
        }
    }
}

/// Longest duration: added to any time of this century or the next it is still a time.
const DURATION_MAX: Duration = Duration::from_secs(100 * 31_557_600);

/// Parses `300ms`, `30s`, `2min`.
///
/// # Errors
/// A text that is no duration, or one of more than a hundred years, with the reason.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration > DURATION_MAX => {
            Err(format!("too long; at most {}", format_duration(DURATION_MAX)))
        }
        other => other.map_err(|e| format!("{e}; use for example 300ms, 30s or 2min")),
    }
}

/// A duration as it would be typed.
pub fn format_duration(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(duration)
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEPS: [(u64, &str); 4] =
            [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let text = match STEPS.iter().find(|(size, _)| self.0 >= *size) {
            None => format!("{} B", self.0),
            Some((size, unit)) if self.0.is_multiple_of(*size) => {
                format!("{} {unit}", self.0 / size)
            }
            Some((size, unit)) => format!("{:.1} {unit}", self.0 as f64 / *size as f64),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            r if r >= 1_000_000_000 => format!("{:.2} GB/s", r as f64 / 1e9),
            r if r >= 1_000_000 => format!("{:.1} MB/s", r as f64 / 1e6),
            r if r >= 1_000 => format!("{:.1} kB/s", r as f64 / 1e3),
            r => format!("{r} B/s"),
        };
        f.pad(&text)
    }
}

impl Rate {
    /// The same rate the way networks are named: `1 Gbit/s`.
    pub fn as_bits(self) -> String {
        let bits = self.0 as f64 * 8.0;
        match bits {
            b if b >= 1e9 => format!("{} Gbit/s", trim(b / 1e9)),
            b if b >= 1e6 => format!("{} Mbit/s", trim(b / 1e6)),
            b => format!("{} kbit/s", trim(b / 1e3)),
        }
    }
}

/// A number with so many digits after the point; `-` where nothing was divided by nothing.
pub fn number(value: f64, digits: usize) -> String {
    match value.is_finite() {
        true => format!("{value:.digits$}"),
        false => "-".to_owned(),
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_binary_and_decimal() {
        assert_eq!("4GiB".parse(), Ok(Bytes(4 << 30)));
        assert_eq!("512 MiB".parse(), Ok(Bytes(512 << 20)));
        assert_eq!("1.5GB".parse(), Ok(Bytes(1_500_000_000)));
        assert_eq!("4096".parse(), Ok(Bytes(4096)));
    }

    #[test]
    fn rates_in_bytes_and_bits() {
        assert_eq!("110MB/s".parse(), Ok(Rate(110_000_000)));
        assert_eq!("1gbit".parse(), Ok(Rate(125_000_000)));
        assert_eq!("10Gbit/s".parse(), Ok(Rate(1_250_000_000)));
        assert_eq!("1GiB/s".parse(), Ok(Rate(1 << 30)));
        assert_eq!(Rate(125_000_000).as_bits(), "1 Gbit/s");
    }

    #[test]
    fn what_is_no_number_is_a_dash() {
        assert_eq!(number(2.0 / 3.0, 2), "0.67");
        assert_eq!([number(f64::NAN, 2), number(f64::INFINITY, 0)], ["-", "-"]);
    }

    #[test]
    fn nonsense_is_named() {
        assert!(matches!("".parse::<Bytes>(), Err(UnitError::NoNumber(_))));
        assert!(matches!("-1GiB".parse::<Bytes>(), Err(UnitError::NoNumber(_))));
        assert!(matches!("0".parse::<Bytes>(), Err(UnitError::Zero(_))));
        assert!(matches!("9e9GiB".parse::<Bytes>(), Err(UnitError::UnknownUnit { .. })));
        assert!(matches!("99999999999TiB".parse::<Bytes>(), Err(UnitError::Overflow(_))));
        assert!(matches!("100MB".parse::<Rate>(), Err(UnitError::UnknownUnit { .. })));
        assert!(matches!("1parsec/s".parse::<Rate>(), Err(UnitError::UnknownUnit { .. })));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("100years").is_ok());
        assert_eq!(parse_duration("101years").unwrap_err(), "too long; at most 100years");
    }
}
