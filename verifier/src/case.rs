//! One run as it was heard: its journal, and what the law says of it.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::PAGE_LINES;
use workload::beat::books::Books;
use workload::beat::said::Tag;
use workload::journal::{Journal, JournalError, is_old};
use workload::line::{PlaceKey, StampKey};
use workload::run::RunId;

use crate::evidence::{self, Evidence};
use crate::law::{self, Demand, Limits, Ruling};
use crate::memory::Memory;

/// Most pages that are looked at to see whose memory it is.
const PAGES_ASKED: u64 = 4096;

/// A run, as it was heard.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its beats.
    pub journal: Journal,
    /// What the law says of it; journals of format 1 are judged by themselves.
    pub ruling: Option<Ruling>,
}

/// A run whose lines are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KnownRun {
    /// Its name.
    pub run: RunId,
    /// What its lines are known by.
    pub key: PlaceKey,
}

impl Case {
    /// Every run that is heard in books whose description was heard as well, by tag; and the tags of
    /// those without.
    pub fn of_books(books: &Books, demand: &Demand) -> (Vec<Self>, Vec<Tag>) {
        let (mut cases, mut nameless) = (Vec::new(), Vec::new());
        for ruling in law::judge(books, demand, &Limits::DEFAULT) {
            match Journal::of(books, ruling.tag) {
                Some(journal) => cases.push(Self { journal, ruling: Some(ruling) }),
                None => nameless.push(ruling.tag),
            }
        }
        (cases, nameless)
    }

    /// Every run of some journals; of one alone if it is of format 1.
    ///
    /// # Errors
    /// A journal cannot be read, or holds no run.
    pub fn read_all<P: AsRef<Path>>(
        paths: &[P],
        demand: &Demand,
    ) -> Result<Vec<Self>, JournalError> {
        if let [only] = paths
            && is_old(only.as_ref())?
        {
            return Ok(vec![Self { journal: Journal::read_old(only.as_ref())?, ruling: None }]);
        }
        let (cases, runs) = Self::of_books(&Books::read(paths)?, demand);
        match cases.is_empty() {
            true => {
                let path = paths.first().map(|path| path.as_ref().to_owned()).unwrap_or_default();
                Err(JournalError::Runs { path, runs })
            }
            false => Ok(cases),
        }
    }

    /// The only run of a journal.
    ///
    /// # Errors
    /// It cannot be read, or holds several runs.
    pub fn read(path: &Path) -> Result<Self, JournalError> {
        let cases = Self::read_all(&[path], &Demand::default())?;
        let runs = cases.iter().filter_map(|case| case.journal.tag).collect();
        match <[Self; 1]>::try_from(cases) {
            Ok([case]) => Ok(case),
            Err(_) => Err(JournalError::Runs { path: path.to_owned(), runs }),
        }
    }

    /// What it proves.
    pub fn evidence(&self) -> Evidence {
        Evidence { ruling: self.ruling.clone(), ..evidence::judge(&self.journal) }
    }

    /// How its lines are known.
    pub fn known(&self) -> Option<KnownRun> {
        let spec = &self.journal.spec;
        let key = StampKey::new(spec.format, spec.seed).place();
        spec.run().map(|run| KnownRun { run, key })
    }

    /// Which of several runs memory is of, by the lines that stand in it; the last if none.
    pub fn whose<M: Memory>(cases: &[Self], memory: &M, pages: u64) -> usize {
        let step = (pages / PAGES_ASKED).max(1);
        let stands = |case: &Self| {
            let spec = &case.journal.spec;
            let key = StampKey::new(spec.format, spec.seed);
            let pages = (0..pages.min(spec.memory.0 / workload::PAGE_BYTES)).step_by(step as usize);
            let first = pages.filter(|page| memory.has(*page)).map(|page| page * PAGE_LINES);
            first
                .filter(|line| key.identify(&memory.load(*line)).is_some_and(|(at, _)| at == *line))
                .count()
        };
        (0..cases.len()).max_by_key(|place| stands(&cases[*place])).unwrap_or(0)
    }
}
