//! Where the pages of a region lay in an image: what the next image is held against.

use std::io::Read as _;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::regular;

use crate::report::Moved;

/// Version of this format.
const SCHEMA: u32 = 1;

/// Where the pages of a region lay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Map {
    schema: u32,
    run: String,
    /// Guest-physical address by page of the region; null where not found.
    places: Vec<Option<u64>>,
}

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It could not be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// It cannot be of this region.
    #[error("it has {bytes} bytes; a map of this region has {most} at most")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The most it can have.
        most: u64,
    },
    /// It is none.
    #[error("it is no map written by --write-map: {0}")]
    Format(#[from] serde_json::Error),
    /// Of a version that does not exist yet.
    #[error("it is of schema {0}; this program reads schema {SCHEMA}")]
    Schema(u32),
    /// Of another guest.
    #[error("it is of {found_pages} pages of run {found}, the journal of {pages} of run {run}")]
    Other {
        /// Its run.
        found: String,
        /// Its pages.
        found_pages: usize,
        /// The journal's run.
        run: String,
        /// The region's pages.
        pages: usize,
    },
}

impl Map {
    /// Where the pages of a run lie.
    pub fn new(run: String, places: Vec<Option<u64>>) -> Self {
        Self { schema: SCHEMA, run, places }
    }

    /// Reads one back.
    ///
    /// # Errors
    /// Nobody can have written it.
    pub fn parse(text: &[u8]) -> Result<Self, MapError> {
        let map: Self = serde_json::from_slice(text)?;
        if map.schema != SCHEMA {
            return Err(MapError::Schema(map.schema));
        }
        Ok(map)
    }

    /// Reads the map of an earlier image of the same run.
    ///
    /// # Errors
    /// It cannot be read, or is of another run.
    pub fn read(path: &Path, now: &Self) -> Result<Self, MapError> {
        let (file, bytes) = regular::open(path)?;
        // A place takes 20 digits and a comma at most.
        let most = 200 + 21 * now.places.len() as u64;
        if bytes > most {
            return Err(MapError::TooLarge { bytes, most });
        }
        let mut text = Vec::new();
        file.take(most).read_to_end(&mut text)?;
        let map = Self::parse(&text)?;
        if map.run != now.run || map.places.len() != now.places.len() {
            return Err(MapError::Other {
                found: map.run,
                found_pages: map.places.len(),
                run: now.run.clone(),
                pages: now.places.len(),
            });
        }
        Ok(map)
    }

    /// Where a page of the region lay.
    pub fn place(&self, page: u64) -> Option<u64> {
        self.places.get(usize::try_from(page).ok()?).copied().flatten()
    }

    /// Pages that lie elsewhere now.
    pub fn moved(&self, now: &Self) -> Vec<Moved> {
        let places = self.places.iter().zip(&now.places).zip(0..);
        let moved = places.filter_map(|((before, now), page)| {
            let (expected_physical, physical) = ((*before)?, (*now)?);
            (expected_physical != physical).then_some(Moved { page, physical, expected_physical })
        });
        moved.collect()
    }

    /// Pages that are there now, and of which this says nothing.
    pub fn unplaced(&self, now: &Self) -> usize {
        let places = self.places.iter().zip(&now.places);
        places.filter(|(before, now)| before.is_none() && now.is_some()).count()
    }
}
