//! Wishes about a run: `downtime<50ms`.

use std::str::FromStr;

use migrate_core::report::RunReport;
use migrate_core::report::metric::{Metric, Unit};
use workload::units::{Bytes, Rate, parse_duration};

use crate::show::figure;

/// How a figure must stand to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Below,
    AtMost,
    Above,
    AtLeast,
}

/// In the order in which they are looked for.
const ORDERS: [(&str, Order); 4] =
    [("<=", Order::AtMost), (">=", Order::AtLeast), ("<", Order::Below), (">", Order::Above)];

/// One wish.
#[derive(Clone, Debug)]
pub(crate) struct Requirement {
    metric: &'static Metric,
    order: Order,
    limit: f64,
    /// As it was typed.
    text: String,
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = ORDERS.iter().find_map(|(sign, order)| {
            text.split_once(sign).map(|(name, limit)| (name.trim(), *order, limit.trim()))
        });
        let Some((name, order, limit)) = found else {
            return Err(format!("'{text}' is no wish; say for example downtime<50ms"));
        };
        let metric = Metric::wanted(name)?;
        let limit = match metric.unit {
            Unit::Time => parse_duration(limit)?.as_secs_f64() * 1e3,
            Unit::Size => limit.parse::<Bytes>().map_err(|e| e.to_string())?.0 as f64,
            Unit::Rate => limit.parse::<Rate>().map_err(|e| e.to_string())?.0 as f64,
            Unit::Share => limit
                .parse::<f64>()
                .ok()
                .filter(|limit| limit.is_finite())
                .ok_or_else(|| format!("'{limit}' is no number"))?,
        };
        Ok(Self { metric, order, limit, text: text.to_owned() })
    }
}

impl Requirement {
    /// Why a guest that migrated does not fulfil it; nothing where it does, or did not migrate.
    pub(crate) fn unmet(&self, run: &RunReport) -> Option<String> {
        if !run.migrated {
            return None;
        }
        let Some(value) = (self.metric.of)(run) else {
            return Some(format!(
                "{}: the {} of this run is not known",
                self.text, self.metric.name
            ));
        };
        let met = match self.order {
            Order::Below => value < self.limit,
            Order::AtMost => value <= self.limit,
            Order::Above => value > self.limit,
            Order::AtLeast => value >= self.limit,
        };
        (!met).then(|| format!("{}: it was {}", self.text, figure(self.metric.unit, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_by_the_unit_of_their_figure() {
        let limit = |text: &str| text.parse::<Requirement>().map(|r| (r.order, r.limit));
        assert_eq!(limit("downtime<50ms"), Ok((Order::Below, 50.0)));
        assert_eq!(limit("time <= 2min"), Ok((Order::AtMost, 120_000.0)));
        assert_eq!(limit("sent<1MiB"), Ok((Order::Below, 1_048_576.0)));
        assert_eq!(limit("link-rate>=1gbit"), Ok((Order::AtLeast, 125e6)));
        assert_eq!(limit("sent-over-least<1.5"), Ok((Order::Below, 1.5)));
        for wrong in ["downtime", "downtime=5", "nothing<5ms", "downtime<fast", "rounds<NaN"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }
}
