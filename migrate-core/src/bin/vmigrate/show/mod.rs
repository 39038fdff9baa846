//! What the commands say on standard output to people: the answer first, in words, within 80 columns.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod details;
pub(crate) mod received;
pub(crate) mod run;
mod spark;
pub(crate) mod sweep;

use std::time::Duration;

use migrate_core::report::Spread;
use migrate_core::report::metric::Unit;
use workload::units::{Bytes, Rate, number};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// The answer, and what it cost.
    Answer,
    /// Rounds, pages, decisions and the optimum as well.
    All,
}

impl Detail {
    pub(crate) fn of(verbose: bool) -> Self {
        if verbose { Self::All } else { Self::Answer }
    }
}

/// Milliseconds as a person reads them: three digits.
pub(crate) fn time(ms: f64) -> String {
    match ms {
        ms if !ms.is_finite() => "-".to_owned(),
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 99_950.0 => format!("{:.1} s", ms / 1e3),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

/// A figure as a person reads it.
pub(crate) fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time => time(value),
        Unit::Size => Bytes(value as u64).to_string(),
        Unit::Rate => Rate(value as u64).to_string(),
        Unit::Share => number(value, 2),
    }
}

/// A figure of several runs: `6.5 s (6.1s to 7.0s)`, and how many of how many have it.
pub(crate) fn spread(unit: Unit, spread: &Spread) -> String {
    let how_many = match spread.n < spread.of {
        true => format!(" {}/{}", spread.n, spread.of),
        false => String::new(),
    };
    let short = |value| figure(unit, value).replace(' ', "");
    let within = match spread.n {
        1 => String::new(),
        _ => format!(" ({} to {})", short(spread.min), short(spread.max)),
    };
    format!("{}{within}{how_many}", figure(unit, spread.median))
}

/// How often something fits into another: `37.9 x`.
pub(crate) fn times(ratio: f64) -> String {
    format!("{} x", number(ratio, if ratio < 99.95 { 1 } else { 0 }))
}

/// A time that is only guessed.
pub(crate) fn about(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 90.0 => format!("about {:.0} s", s.max(1.0)),
        s => format!("about {:.0} min", s / 60.0),
    }
}

/// Words in lines of at most so many columns, the first after `first`, the others after `rest`.
pub(crate) fn wrapped(text: &str, first: &str, rest: &str, columns: usize) -> String {
    let mut lines = String::new();
    let mut line = first.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > columns {
            lines += &(line + "\n");
            line = rest.to_owned();
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line += word;
        empty = false;
    }
    lines + &line + "\n"
}

/// Columns of a page.
pub(crate) const COLUMNS: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (ms, text) in [
            (0.04, "0.0 ms"),
            (9.94, "9.9 ms"),
            (9.96, "10 ms"),
            (999.4, "999 ms"),
            (1_000.0, "1.0 s"),
            (99_949.0, "99.9 s"),
            (123_456.0, "123 s"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn words_stay_within_their_columns() {
        let text = wrapped("aa bb cc dddddddddddd e", "> ", "  ", 8);
        assert_eq!(text, "> aa bb\n  cc\n  dddddddddddd\n  e\n");
    }
}
