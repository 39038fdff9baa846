//! The figures of a migration by which runs are compared, wished for and exported: one table.

use super::{RunReport, StatusKind};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Time,
    /// Bytes.
    Size,
    /// Bytes per second.
    Rate,
    /// A number of its own.
    Share,
}

/// Which of two values people would rather have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The smaller.
    Less,
    /// The larger.
    More,
}

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// What it is called, everywhere.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Which value is better.
    pub better: Better,
    /// What it is, in words.
    pub about: &'static str,
    /// Of a run; `None` where it has none.
    pub of: fn(&RunReport) -> Option<f64>,
}

/// Every figure.
pub const METRICS: [Metric; 12] = [
    Metric {
        name: "time",
        unit: Unit::Time,
        better: Better::Less,
        about: "from the first page to the guest running at the destination",
        of: |run| moved(run).map(|m| m.migration_ms),
    },
    Metric {
        name: "setup",
        unit: Unit::Time,
        better: Better::Less,
        about: "connecting, and making the memory there",
        of: |run| moved(run).map(|m| m.setup_ms),
    },
    Metric {
        name: "downtime",
        unit: Unit::Time,
        better: Better::Less,
        about: "from before the pause to the guest running there, without the proof",
        of: |run| moved(run).map(|m| m.downtime.total_ms),
    },
    Metric {
        name: "felt",
        unit: Unit::Time,
        better: Better::Less,
        about: "the standstill that the guest itself felt, without the proof",
        of: |run| run.witnesses.as_ref().and_then(|w| w.felt_ms),
    },
    Metric {
        name: "seen",
        unit: Unit::Time,
        better: Better::Less,
        about: "the silence between two heartbeats at the change of hosts, without the proof",
        of: |run| run.witnesses.as_ref().and_then(|w| w.seen_ms),
    },
    Metric {
        name: "lost",
        unit: Unit::Time,
        better: Better::Less,
        about: "time that each vCPU lost: slower writes, throttle, stun",
        of: |run| run.guest.as_ref().map(|guest| guest.lost_ms),
    },
    Metric {
        name: "sent",
        unit: Unit::Size,
        better: Better::Less,
        about: "bytes on the wire",
        of: |run| moved(run).map(|m| m.wire_bytes as f64),
    },
    Metric {
        name: "sent-over-least",
        unit: Unit::Share,
        better: Better::Less,
        about: "pages sent over the fewest that could have been",
        of: |run| run.optimality.as_ref().map(|o| o.bytes_ratio),
    },
    Metric {
        name: "link-rate",
        unit: Unit::Rate,
        better: Better::More,
        about: "page data per second while pages were sent",
        of: |run| moved(run).map(super::MigrationReport::send_rate),
    },
    Metric {
        name: "guest-rate",
        unit: Unit::Rate,
        better: Better::More,
        about: "records that the guest wrote from the first page to the stun",
        of: |run| moved(run).map(|_| run.rate_achieved),
    },
    Metric {
        name: "rounds",
        unit: Unit::Share,
        better: Better::Less,
        about: "rounds until the stun",
        of: |run| moved(run).map(|m| m.rounds.len() as f64),
    },
    Metric {
        name: "cpu",
        unit: Unit::Time,
        better: Better::Less,
        about: "CPU time of the process at the source",
        of: |run| moved(run).map(|m| m.cpu_ms),
    },
];

impl Metric {
    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        METRICS.iter().find(|metric| metric.name == name)
    }

    /// The same for whoever typed the name.
    ///
    /// # Errors
    /// There is none; those that there are.
    pub fn wanted(name: &str) -> Result<&'static Self, String> {
        Self::named(name).ok_or_else(|| {
            let names = METRICS.map(|metric| metric.name).join(", ");
            format!("nothing is called '{name}'; there are {names}")
        })
    }
}

/// The attempt that brought the guest across.
fn moved(run: &RunReport) -> Option<&super::MigrationReport> {
    run.last().filter(|last| run.migrated && last.status.kind == StatusKind::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_a_name_of_its_own() {
        let mut names = METRICS.map(|metric| metric.name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(names.iter().all(|name| Metric::named(name).is_some()));
        assert!(Metric::named("nothing").is_none());
    }
}
