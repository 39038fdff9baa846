//! How fast to write: a rate, a ramp or steps, in bytes of records or in distinct pages.
//!
//! ```text
//! 100MB/s                          one rate
//! 100MB/s..1GB/s/10s               a ramp over 10 s, then the rate that it reached
//! 100MB/s/5s,1GB/s/5s,200MB/s      steps; the last one holds
//! 20000pages/s                     distinct pages in each second
//! unlimited                        as fast as memory takes it
//! ```
//!
//! [`Demand`] is what people type; [`Plan`] is the same as operations per second of one writer,
//! which the [`schedule`](crate::schedule) follows.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Rate, parse_duration};

/// Most legs of a demand.
const LEGS_MAX: usize = 1000;

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes of records per second, reads included.
    Bytes,
    /// Distinct pages written in a second.
    Pages,
}

/// A stretch of time in which the rate changes evenly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leg {
    /// Rate at its beginning, per second.
    pub from: f64,
    /// Rate at its end.
    pub to: f64,
    /// How long it is; `None` for the last one, which holds `to`.
    pub length: Option<Duration>,
}

/// How fast all writers together are to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String")]
pub enum Demand {
    /// By a schedule.
    Scheduled {
        /// What the rates count.
        unit: Unit,
        /// The stretches, in order.
        legs: Vec<Leg>,
        /// As it was typed.
        text: String,
    },
    /// As fast as memory takes it.
    Unlimited,
}

impl From<Demand> for String {
    fn from(demand: Demand) -> Self {
        match demand {
            Demand::Scheduled { text, .. } => text,
            Demand::Unlimited => "unlimited".to_owned(),
        }
    }
}

impl TryFrom<String> for Demand {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Demand {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let (mut legs, mut units) = (Vec::new(), Vec::new());
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        if parts.len() > LEGS_MAX {
            return Err(format!("more than {LEGS_MAX} steps"));
        }
        for (i, part) in parts.iter().enumerate() {
            let (rates, length) = split_length(part);
            let (from, to) = rates.split_once("..").unwrap_or((rates, rates));
            let ((from, unit), (to, other)) = (parse_rate(from)?, parse_rate(to)?);
            units.extend([unit, other]);
            if length.is_none() && (rates.contains("..") || i + 1 < parts.len()) {
                return Err(format!("'{part}' needs a length: {rates}/10s"));
            }
            legs.push(Leg { from, to, length });
        }
        if units.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(format!("'{text}' mixes bytes and pages"));
        }
        Ok(Self::Scheduled { unit: units[0], legs, text: text.to_owned() })
    }
}

/// Splits `RATE/10s`; the rate has a slash of its own.
fn split_length(text: &str) -> (&str, Option<Duration>) {
    match text.rsplit_once('/') {
        Some((rate, length)) if length != "s" => match parse_duration(length) {
            Ok(length) if !length.is_zero() => (rate, Some(length)),
            _ => (text, None),
        },
        _ => (text, None),
    }
}

fn parse_rate(text: &str) -> Result<(f64, Unit), String> {
    if let Some(number) = text.trim().strip_suffix("pages/s") {
        let pages = number.trim().parse::<f64>().ok();
        return match pages.filter(|p| (1.0..=1e12).contains(p)) {
            Some(pages) => Ok((pages, Unit::Pages)),
            None => Err(format!("'{text}' is no number of pages per second; use 20000pages/s")),
        };
    }
    let rate = text.parse::<Rate>();
    rate.map(|rate| (rate.0 as f64, Unit::Bytes)).map_err(|e| format!("{e}, or pages/s"))
}

/// Operations per second of one writer, over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    legs: Vec<PlannedLeg>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct PlannedLeg {
    start_s: f64,
    start_operations: f64,
    rate: f64,
    /// Change of the rate, per second.
    slope: f64,
}

impl Plan {
    /// A constant rate, more than zero.
    pub fn constant(operations_per_s: f64) -> Self {
        Self::new(&[Leg { from: operations_per_s, to: operations_per_s, length: None }])
    }

    /// Legs of operations per second, at least one, all rates above zero.
    pub fn new(legs: &[Leg]) -> Self {
        assert!(legs.iter().all(|l| l.from > 0.0 && l.to > 0.0), "a schedule needs a rate");
        let (mut planned, mut start_s, mut start_operations) = (Vec::new(), 0.0, 0.0);
        for leg in legs {
            let seconds = leg.length.map_or(0.0, |l| l.as_secs_f64());
            let slope = if seconds > 0.0 { (leg.to - leg.from) / seconds } else { 0.0 };
            planned.push(PlannedLeg { start_s, start_operations, rate: leg.from, slope });
            start_s += seconds;
            start_operations += seconds * (leg.from + leg.to) / 2.0;
        }
        if let Some(Leg { to, length: Some(_), .. }) = legs.last() {
            planned.push(PlannedLeg { start_s, start_operations, rate: *to, slope: 0.0 });
        }
        Self { legs: planned }
    }

    /// Operations due after `seconds`.
    pub fn due(&self, seconds: f64) -> f64 {
        let leg = self.legs[self.legs.partition_point(|l| l.start_s <= seconds).max(1) - 1];
        let t = (seconds - leg.start_s).max(0.0);
        leg.start_operations + leg.rate * t + leg.slope * t * t / 2.0
    }

    /// Seconds after which `operations` are due.
    pub fn when(&self, operations: f64) -> f64 {
        let after = self.legs.partition_point(|l| l.start_operations <= operations).max(1);
        let leg = self.legs[after - 1];
        let rest = operations - leg.start_operations;
        // The root of the quadratic, in the form that is good for a slope of zero as well.
        let root = (leg.rate * leg.rate + 2.0 * leg.slope * rest).max(0.0).sqrt();
        leg.start_s + 2.0 * rest / (leg.rate + root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn legs(text: &str) -> (Unit, Vec<Leg>) {
        match text.parse() {
            Ok(Demand::Scheduled { unit, legs, .. }) => (unit, legs),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn rates_ramps_and_steps_are_read() {
        let s = |n| Some(Duration::from_secs(n));
        assert_eq!(legs("1MB/s"), (Unit::Bytes, vec![Leg { from: 1e6, to: 1e6, length: None }]));
        let ramp = vec![Leg { from: 1e8, to: 1e9, length: s(10) }];
        assert_eq!(legs("100MB/s..1GB/s/10s"), (Unit::Bytes, ramp));
        assert_eq!(legs("8gbit/2s,1GB/s").1.len(), 2);
        assert_eq!(legs("20000pages/s").0, Unit::Pages);
        assert_eq!("unlimited".parse(), Ok(Demand::Unlimited));
        for (text, part) in [
            ("", "number"),
            ("100MB", "unit"),
            ("1MB/s..2MB/s", "needs a length"),
            ("1MB/s,2MB/s", "needs a length"),
            ("1MB/s/5s,10pages/s", "mixes"),
            ("0pages/s", "no number of pages"),
            ("1MB/s/0s", "unit"),
        ] {
            let error = text.parse::<Demand>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        /// The oracle: sum the rate in small steps.
        #[test]
        fn what_is_due_is_the_integral_of_the_rate(rates in prop::collection::vec((1.0f64..1e4, 1.0f64..1e4, 1u64..2000), 1..5), at_ms in 0u64..12_000) {
            let legs: Vec<Leg> = rates.iter().map(|(from, to, ms)| Leg { from: *from, to: *to, length: Some(Duration::from_millis(*ms)) }).collect();
            let plan = Plan::new(&legs);
            let mut sum = 0.0;
            for ms in 0..at_ms {
                let mut t = ms as f64 + 0.5;
                let mut rate = rates.last().map_or(0.0, |(_, to, _)| *to);
                for (from, to, length) in &rates {
                    if t < *length as f64 {
                        rate = from + (to - from) * t / *length as f64;
                        break;
                    }
                    t -= *length as f64;
                }
                sum += rate / 1000.0;
            }
            let due = plan.due(at_ms as f64 / 1000.0);
            prop_assert!((due - sum).abs() < 1e-6 * sum.max(1.0), "{} not {}", due, sum);
            prop_assert!((plan.when(due) - at_ms as f64 / 1000.0).abs() < 1e-6);
        }
    }
}
