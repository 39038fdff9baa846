//! What memory must hold at given watermarks: generations of every slot, and, where it matters
//! for naming a fault, when each was written.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use workload::cores;
use workload::generations::{Generations, find_operations};
use workload::line::{Generation, ZERO_LINE};
use workload::pattern::{Operation, Slot};
use workload::spec::Workload;
use workload::work::{Cancelled, Unwatched, Watch, to_its_end};

use crate::cache::{Cache, Cause};

/// Most pages whose slots' histories are replayed: enough to name what is wrong with a gigabyte.
pub(crate) const HISTORY_PAGES_MAX: usize = 1 << 18;

/// The generations of a region's slots at one moment.
#[derive(Clone, Debug)]
pub struct Expected {
    generations: Vec<Generations>,
    /// For patterns without a closed form: operations by writer and slot, where asked for.
    history: Option<Vec<HashMap<Slot, Vec<Operation>>>>,
}

impl Expected {
    /// What `workload` has written at `watermarks`.
    ///
    /// # Panics
    /// There is not one watermark per writer.
    pub fn at(workload: &Workload, watermarks: &[Operation]) -> Self {
        to_its_end(Self::replay(workload, watermarks, &Unwatched))
    }

    /// The same, watched: operations of patterns without a closed form are replayed.
    ///
    /// # Errors
    /// Whoever watches called it off.
    ///
    /// # Panics
    /// There is not one watermark per writer.
    pub fn replay(
        workload: &Workload,
        watermarks: &[Operation],
        watch: &dyn Watch,
    ) -> Result<Self, Cancelled> {
        Self::recall(workload, watermarks, None, watch)
    }

    /// The same, from what was replayed and kept before; and kept for the next time.
    ///
    /// # Errors
    /// Whoever watches called it off.
    ///
    /// # Panics
    /// There is not one watermark per writer.
    pub fn recall(
        workload: &Workload,
        watermarks: &[Operation],
        cache: Option<&Cache>,
        watch: &dyn Watch,
    ) -> Result<Self, Cancelled> {
        let shares = workload.shares();
        assert_eq!(watermarks.len(), shares.len(), "one watermark per writer");
        let known = |writer: usize| {
            let share = &shares[writer];
            let recalled = cache
                .filter(|_| !share.pattern.is_closed_form())
                .and_then(|cache| cache.recall(&Cause::of(workload, writer), watermarks[writer]));
            match recalled {
                Some((watermark, counts)) => Generations::known(&share.pattern, watermark, counts),
                None => Generations::none(&share.pattern, share.slots),
            }
        };
        let known = Self { generations: (0..shares.len()).map(known).collect(), history: None };
        let expected = known.forward(watermarks, watch)?;
        for (writer, generations) in expected.generations.iter().enumerate() {
            // What cannot be kept is replayed again the next time.
            let _ = cache.map(|cache| cache.keep(&Cause::of(workload, writer), generations));
        }
        Ok(expected)
    }

    /// What stands there at later watermarks.
    ///
    /// # Errors
    /// Whoever watches called it off.
    ///
    /// # Panics
    /// There is not one watermark per writer.
    pub fn forward(self, watermarks: &[Operation], watch: &dyn Watch) -> Result<Self, Cancelled> {
        assert_eq!(watermarks.len(), self.generations.len(), "one watermark per writer");
        let way = self.generations.iter().zip(watermarks);
        watch.expect(
            way.filter(|(known, _)| !known.counts().is_empty()).fold(0, |sum, (known, until)| {
                sum.saturating_add(until.saturating_sub(known.watermark()))
            }),
        );
        let writers: Vec<Mutex<Option<Generations>>> =
            self.generations.into_iter().map(|g| Mutex::new(Some(g))).collect();
        let generations = cores::map(writers.len() as u64, |writer| {
            let writer = writer as usize;
            let known = writers[writer].lock().unwrap_or_else(PoisonError::into_inner).take();
            known
                .unwrap_or_else(|| unreachable!("each is taken once"))
                .forward(watermarks[writer], watch)
        });
        Ok(Self { generations: generations.into_iter().collect::<Result<_, _>>()?, history: None })
    }

    /// Operations completed, by writer.
    pub fn watermarks(&self) -> Vec<Operation> {
        self.generations.iter().map(Generations::watermark).collect()
    }

    /// By writer, for writers that go on from here.
    pub fn into_generations(self) -> Vec<Generations> {
        self.generations
    }

    /// The table of one writer.
    pub(crate) fn of_writer(&self, writer: usize) -> &Generations {
        &self.generations[writer]
    }

    /// How often a slot has been written.
    #[inline]
    pub fn generation(&self, writer: usize, slot: Slot) -> Generation {
        self.generations[writer].of(slot)
    }

    /// Whether a page must be all zero.
    pub fn is_zero(&self, workload: &Workload, page: u64) -> bool {
        let writer = workload.owner(page);
        workload.segments(writer, page).all(|segment| {
            let generation = segment.slot.map_or(0, |slot| self.generation(writer, slot));
            let mut lines = segment.lines;
            lines.all(|a| workload.line(segment.place, a, generation) == ZERO_LINE)
        })
    }

    /// Whether [`Expected::written_by`] answers for every slot without more.
    pub(crate) fn knows_history(&self, workload: &Workload) -> bool {
        self.history.is_some() || workload.shares().iter().all(|s| s.pattern.is_closed_form())
    }

    /// Replays which operations wrote the slots of `pages`.
    pub(crate) fn learn_history(
        &mut self,
        workload: &Workload,
        pages: &[u64],
        watch: &dyn Watch,
    ) -> Result<(), Cancelled> {
        watch.expect(workload.replayed_operations(&self.watermarks()));
        let mut slots = vec![HashSet::new(); workload.shares().len()];
        for page in pages {
            let writer = workload.owner(*page);
            slots[writer].extend(workload.segments(writer, *page).filter_map(|s| s.slot));
        }
        let shares = workload.shares().iter().zip(&slots).zip(&self.generations);
        let history = shares.map(|((share, slots), generations)| {
            find_operations(&share.pattern, slots, generations.watermark(), watch)
        });
        self.history = Some(history.collect::<Result<_, _>>()?);
        Ok(())
    }

    /// The operation that wrote `slot` for the `generation`-th time, where that is known: `None`
    /// for the fill, for the future of random patterns, and where no history was learned.
    pub(crate) fn written_by(
        &self,
        workload: &Workload,
        writer: usize,
        slot: Slot,
        generation: Generation,
    ) -> Option<Operation> {
        let pattern = &workload.shares()[writer].pattern;
        if pattern.is_closed_form() {
            return pattern.written_by(slot, generation);
        }
        let operations = self.history.as_ref()?[writer].get(&slot)?;
        operations.get(usize::try_from(generation.checked_sub(1)?).ok()?).copied()
    }
}
