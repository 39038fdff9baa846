//! What stands at a place where something else must stand.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::PAGE_LINES;
use workload::line::{Line, LineAddress, PlaceKey, ZERO_LINE, place_of};
use workload::run::RunId;
use workload::spec::Workload;

use crate::case::KnownRun;

/// What a page of memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Held {
    /// Nothing: the image has no such place.
    Outside,
    /// Only zeros.
    Zeros,
    /// A page of this run.
    Page {
        /// Which.
        page: u64,
    },
    /// A page of another run.
    OtherRun {
        /// What its lines are known by, if they stand at their own addresses.
        key: PlaceKey,
        /// The run, if it was heard.
        run: Option<RunId>,
        /// Which of its pages, if it was heard.
        page: Option<u64>,
    },
    /// Bytes that no run wrote as lines.
    Other,
}

impl Held {
    /// What a page at the place of `page` holds; `claimed` is the page of this run that it is.
    pub fn of(page: u64, lines: &[Line], claimed: Option<u64>, known: &[KnownRun]) -> Self {
        if let Some(page) = claimed {
            return Self::Page { page };
        }
        if lines.iter().all(|line| *line == ZERO_LINE) {
            return Self::Zeros;
        }
        let places = (page * PAGE_LINES..).zip(lines).map(|(at, line)| place_of(line, at));
        let mut places = places.flatten();
        match places.next() {
            Some(key) if places.all(|other| other == key) => {
                Self::of_other(key, page * PAGE_LINES, known)
            }
            _ => Self::Other,
        }
    }

    /// A line at `address` of the run with that key there. A line that stands elsewhere than it should
    /// changes the key by as much as the addresses differ.
    pub fn of_other(key: PlaceKey, address: LineAddress, known: &[KnownRun]) -> Self {
        let whose = known.iter().find(|known| known.key.0 ^ key.0 < ADDRESSES_MAX);
        let page = whose.map(|known| (address ^ known.key.0 ^ key.0) / PAGE_LINES);
        Self::OtherRun { key, run: whose.map(|known| known.run), page }
    }
}

/// Addresses of lines are below this: a region has 16 TiB at most. Keys of two runs do not agree in
/// the 26 bits above it, but for one time in 67 million.
const ADDRESSES_MAX: u64 = 1 << 38;

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("nothing: the image has no such place"),
            Self::Zeros => f.write_str("zeros"),
            Self::Page { page } => write!(f, "page {page}"),
            Self::OtherRun { run: Some(run), page: Some(page), .. } => {
                write!(f, "page {page} of run {run}")
            }
            Self::OtherRun { key, .. } => write!(f, "a page of a run not heard (key {key})"),
            Self::Other => f.write_str("bytes that are no line of any run"),
        }
    }
}

/// Pages of a region, next to each other, that are nowhere in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// The first.
    pub page: u64,
    /// How many.
    pub pages: u64,
    /// Guest-physical address at which the first should be, as a map or their neighbours say.
    pub physical: Option<u64>,
    /// What is there instead: in the first, and in so many in a row alike.
    pub holds: Option<Held>,
}

/// Gathers missing pages; what stands there is asked for by page of the region and guest-physical
/// address.
pub fn gather(
    workload: &Workload,
    missing: &[u64],
    place: impl Fn(u64) -> Option<u64>,
    holds: impl Fn(u64, u64) -> Held,
) -> Vec<Missing> {
    let region = workload.spec().memory.0 / workload::PAGE_BYTES;
    let mut gathered: Vec<Missing> = Vec::new();
    for stretch in missing.chunk_by(|page, next| page + 1 == *next) {
        let (first, last) = (stretch[0], stretch[stretch.len() - 1]);
        // Where those before and behind them say; if both are there they have to agree.
        let before = first.checked_sub(1).and_then(&place).map(|at| at + workload::PAGE_BYTES);
        let behind = Some(last + 1).filter(|page| *page < region).and_then(&place);
        let length = stretch.len() as u64 * workload::PAGE_BYTES;
        let behind = behind.and_then(|at| at.checked_sub(length));
        let start = match (before, behind) {
            (Some(before), Some(behind)) => Some(before).filter(|before| *before == behind),
            (one, other) => one.or(other),
        };
        for (index, page) in stretch.iter().enumerate() {
            let by_neighbours = start.map(|start| start + index as u64 * workload::PAGE_BYTES);
            let physical = place(*page).or(by_neighbours);
            let held = physical.map(|physical| holds(*page, physical));
            match gathered.last_mut() {
                Some(last) if last.goes_on(*page, physical, held) => last.pages += 1,
                _ => gathered.push(Missing { page: *page, pages: 1, physical, holds: held }),
            }
        }
    }
    gathered
}

impl Missing {
    /// Whether a page that is missing too is its next one, with the like of it in its place.
    fn goes_on(&self, page: u64, physical: Option<u64>, holds: Option<Held>) -> bool {
        let alike = match (self.holds, holds) {
            (Some(Held::Page { page: first }), Some(Held::Page { page })) => {
                page == first + self.pages
            }
            (
                Some(Held::OtherRun { run, page: Some(first), .. }),
                Some(Held::OtherRun { run: other, page: Some(page), .. }),
            ) => run == other && page == first + self.pages,
            (first, other) => first == other,
        };
        let bytes = self.pages * workload::PAGE_BYTES;
        alike
            && page == self.page + self.pages
            && physical == self.physical.map(|start| start + bytes)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pages {
            1 => write!(f, "page {}", self.page)?,
            pages => write!(f, "pages {} to {}", self.page, self.page + pages - 1)?,
        }
        write!(f, " (region {:#x}): MISSING", self.page * workload::PAGE_BYTES)?;
        match (self.physical, self.holds) {
            (Some(physical), Some(holds)) => {
                write!(f, "; guest-physical {physical:#x} holds {holds}")?;
                match (self.pages, holds) {
                    (2.., Held::Page { .. } | Held::OtherRun { .. }) => {
                        f.write_str(" and those that follow")
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
