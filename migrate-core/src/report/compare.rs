//! Two sets of runs beside each other.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::provenance::Provenance;

use super::RunReport;
use super::metric::{Better, Metric};

/// Least, middle and most of the runs that have a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// Runs that have it.
    pub n: usize,
    /// Runs in all.
    pub of: usize,
    /// The least.
    pub min: f64,
    /// The middle.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these runs; `None` where none of them has the figure.
    pub fn of(metric: &Metric, runs: &[&RunReport]) -> Option<Self> {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| (metric.of)(run)).collect();
        values.sort_by(f64::total_cmp);
        let (n, of) = (values.len(), runs.len());
        let (min, max) = (*values.first()?, *values.last()?);
        let median = match n % 2 {
            0 => (values[n / 2 - 1] + values[n / 2]) / 2.0,
            _ => values[n / 2],
        };
        Some(Self { n, of, min, median, max })
    }

    /// Whether there is a value that could be of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// One figure of one case in both sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Compared {
    /// What the runs were.
    pub case: String,
    /// The figure.
    pub metric: String,
    /// In the first set; null where no run of it has the figure.
    pub a: Option<Spread>,
    /// In the second.
    pub b: Option<Spread>,
    /// The second median over the first, less one.
    pub change: Option<f64>,
    /// Whether the two spreads overlap: with several runs, a difference within them is chance.
    pub overlap: bool,
    /// Whether the second is worse by more than was allowed.
    pub worse: bool,
}

impl Compared {
    /// Holds two sets of runs of one case against each other. The second is worse if fewer of its runs
    /// have the figure, or if its median is by more than this share, and no overlap explains it.
    pub fn of(case: &str, metric: &Metric, a: &[&RunReport], b: &[&RunReport], share: f64) -> Self {
        let (of_a, of_b) = (Spread::of(metric, a), Spread::of(metric, b));
        let change = of_a.zip(of_b).map(|(a, b)| b.median / a.median - 1.0);
        // One run has no spread to overlap with.
        let overlap = of_a.zip(of_b).is_some_and(|(a, b)| (a.n > 1 || b.n > 1) && a.overlaps(&b));
        let share_of = |spread: Option<Spread>| spread.map_or(0.0, |s| s.n as f64 / s.of as f64);
        let fewer = share_of(of_b) < share_of(of_a);
        let by = change.map_or(0.0, |change| match metric.better {
            Better::Less => change,
            Better::More => -change,
        });
        Self {
            case: case.to_owned(),
            metric: metric.name.to_owned(),
            a: of_a,
            b: of_b,
            change,
            overlap,
            worse: fewer || (by > share && !overlap),
        }
    }
}

/// Two sets of runs beside each other.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CompareReport {
    /// Version of this format.
    pub schema: u32,
    /// What made it.
    pub provenance: Provenance,
    /// Where the first set is.
    pub a: String,
    /// Where the second is.
    pub b: String,
    /// By how much, as a share, a figure may be worse.
    pub allowed: f64,
    /// Every figure of every case that is in both.
    pub compared: Vec<Compared>,
    /// Cases of the first set alone.
    pub only_a: Vec<String>,
    /// Cases of the second set alone.
    pub only_b: Vec<String>,
    /// Whether anything is worse.
    pub worse: bool,
    /// Exit code of the command.
    pub exit_code: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(min: f64, max: f64) -> Spread {
        Spread { n: 2, of: 2, min, median: (min + max) / 2.0, max }
    }

    #[test]
    fn spreads_overlap_where_a_value_is_in_both() {
        assert!(spread(1.0, 2.0).overlaps(&spread(2.0, 3.0)));
        assert!(spread(1.0, 9.0).overlaps(&spread(2.0, 3.0)));
        assert!(!spread(1.0, 2.0).overlaps(&spread(2.1, 3.0)));
        assert!(!spread(2.1, 3.0).overlaps(&spread(1.0, 2.0)));
    }
}
