//! What a run writes: the seed, the region, who owns which page, and the pattern.
//!
//! [`WorkloadSpec`] is what people type and journals carry; [`Workload`] is the same thing
//! validated and resolved, from which every address and generation follows.

use serde::{Deserialize, Serialize};

use crate::line::StampKey;
use crate::pattern::Pattern;
use crate::units::Bytes;
use crate::{LINE_BYTES, PAGE_BYTES};

/// Smallest record.
pub const RECORD_BYTES_MIN: u64 = LINE_BYTES;
/// Largest record.
pub const RECORD_BYTES_MAX: u64 = 2 << 20;
/// Most writers a region may have.
pub const WRITERS_MAX: u32 = 1024;

/// The order in which a writer visits its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatternKind {
    /// A ring of records, written one after the other: streaming data.
    Stream,
    /// A fresh random permutation of all slots in each epoch: nothing repeats until all was written.
    Uniform,
}

impl PatternKind {
    /// Every pattern, with the line that a list shows.
    pub const ALL: [(Self, &'static str, &'static str); 2] = [
        (Self::Stream, "stream", "a ring of records, one after the other (streaming data)"),
        (Self::Uniform, "uniform", "every slot once per epoch, in a fresh random order"),
    ];

    /// The name used on command lines and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Uniform => "uniform",
        }
    }
}

impl std::str::FromStr for PatternKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, name, _)| *name == text).map(|(kind, ..)| *kind).ok_or_else(
            || {
                let names = Self::ALL.map(|(_, name, _)| name).join(", ");
                format!("no workload is called '{text}'; there are: {names}")
            },
        )
    }
}

/// What the body of a line holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentKind {
    /// Incompressible words.
    #[default]
    Random,
}

/// A run, as typed or as read from a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Determines every byte together with the rest of this spec and the watermarks.
    pub seed: u64,
    /// Size of the region in bytes, a multiple of 4096.
    pub memory: Bytes,
    /// Number of writers; each owns a contiguous share of the pages.
    pub writers: u32,
    /// Bytes that one operation writes: a power of two from 64 to 2 MiB.
    pub record: Bytes,
    /// The order of writing.
    pub pattern: PatternKind,
    /// What is written.
    #[serde(default)]
    pub content: ContentKind,
}

/// Settings that contradict each other or the format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The region is not made of whole pages.
    #[error("memory of {0} bytes is not a multiple of the 4 KiB page; round it to one")]
    PartialPage(u64),
    /// No writer, or more than the limit.
    #[error("{0} writers; choose 1 to {WRITERS_MAX}")]
    Writers(u32),
    /// The record is no power of two in range.
    #[error("a record of {0}; choose a power of two from 64 B to 2 MiB")]
    Record(Bytes),
    /// Some writer would own no slot.
    #[error(
        "{memory} split among {writers} writers leaves no room for a record of {record}; use more memory, fewer writers or smaller records"
    )]
    NoSlot {
        /// Region size.
        memory: Bytes,
        /// Number of writers.
        writers: u32,
        /// Record size.
        record: Bytes,
    },
}

/// One writer's share of the region.
#[derive(Clone, Debug)]
pub struct Share {
    /// First page owned.
    pub first_page: u64,
    /// Number of pages owned.
    pub pages: u64,
    /// Number of whole records that fit; what is left over stays at generation 0.
    pub slots: u64,
    /// The order in which the slots are written.
    pub pattern: Pattern,
}

/// A validated run.
#[derive(Clone, Debug)]
pub struct Workload {
    spec: WorkloadSpec,
    key: StampKey,
    shares: Vec<Share>,
}

impl WorkloadSpec {
    /// Checks the settings and resolves them.
    ///
    /// # Errors
    /// [`SpecError`] names the setting that cannot be.
    pub fn resolve(&self) -> Result<Workload, SpecError> {
        let record = self.record.0;
        if self.memory.0 == 0 || !self.memory.0.is_multiple_of(PAGE_BYTES) {
            return Err(SpecError::PartialPage(self.memory.0));
        }
        if self.writers == 0 || self.writers > WRITERS_MAX {
            return Err(SpecError::Writers(self.writers));
        }
        if !record.is_power_of_two() || !(RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&record) {
            return Err(SpecError::Record(self.record));
        }
        let pages = self.memory.0 / PAGE_BYTES;
        let writers = u64::from(self.writers);
        // Written so that it cannot overflow for any region that fits an address space.
        let boundary = |w: u64| pages / writers * w + (pages % writers) * w / writers;
        let shares: Vec<Share> = (0..writers)
            .map(|w| {
                let (first_page, end) = (boundary(w), boundary(w + 1));
                let slots = (end - first_page) * PAGE_BYTES / record;
                let pattern = Pattern::new(self.pattern, self.seed, w, slots);
                Share { first_page, pages: end - first_page, slots, pattern }
            })
            .collect();
        if shares.iter().any(|s| s.slots == 0) {
            return Err(SpecError::NoSlot {
                memory: self.memory,
                writers: self.writers,
                record: self.record,
            });
        }
        Ok(Workload { spec: self.clone(), key: StampKey::from_seed(self.seed), shares })
    }
}

impl Workload {
    /// The settings this was resolved from.
    pub fn spec(&self) -> &WorkloadSpec {
        &self.spec
    }

    /// The keys of every stamp.
    pub fn key(&self) -> StampKey {
        self.key
    }

    /// The writers' shares, by writer.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Which writer owns `page`.
    pub fn owner(&self, page: u64) -> usize {
        self.shares.partition_point(|s| s.first_page <= page) - 1
    }

    /// Lines in a record.
    pub fn record_lines(&self) -> u64 {
        self.spec.record.0 / LINE_BYTES
    }

    /// Address of the first line of a writer's slot.
    pub fn slot_line(&self, writer: usize, slot: u64) -> u64 {
        self.shares[writer].first_page * (PAGE_BYTES / LINE_BYTES) + slot * self.record_lines()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn spec() -> WorkloadSpec {
        WorkloadSpec {
            seed: 7,
            memory: Bytes(1 << 20),
            writers: 2,
            record: Bytes(4096),
            pattern: PatternKind::Stream,
            content: ContentKind::Random,
        }
    }

    proptest! {
        #[test]
        fn every_page_has_exactly_one_owner(pages in 1u64..5000, writers in 1u32..40) {
            let spec = WorkloadSpec { memory: Bytes(pages * PAGE_BYTES), writers, record: Bytes(64), ..spec() };
            let Ok(workload) = spec.resolve() else { prop_assert!(u64::from(writers) > pages); return Ok(()) };
            let mut next = 0;
            for (w, share) in workload.shares().iter().enumerate() {
                prop_assert_eq!(share.first_page, next);
                next += share.pages;
                prop_assert_eq!(workload.owner(share.first_page), w);
                prop_assert_eq!(workload.owner(next - 1), w);
            }
            prop_assert_eq!(next, pages);
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let bad = |f: fn(&mut WorkloadSpec)| {
            let mut s = spec();
            f(&mut s);
            s.resolve().err()
        };
        assert_eq!(bad(|s| s.memory = Bytes(4097)), Some(SpecError::PartialPage(4097)));
        assert_eq!(bad(|s| s.memory = Bytes(0)), Some(SpecError::PartialPage(0)));
        assert_eq!(bad(|s| s.writers = 0), Some(SpecError::Writers(0)));
        assert_eq!(bad(|s| s.record = Bytes(96)), Some(SpecError::Record(Bytes(96))));
        assert_eq!(bad(|s| s.record = Bytes(4 << 20)), Some(SpecError::Record(Bytes(4 << 20))));
        assert!(matches!(bad(|s| s.record = Bytes(2 << 20)), Some(SpecError::NoSlot { .. })));
    }
}
