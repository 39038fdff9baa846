//! What the destination has not, or not as it is: the pages that are owed, and which of them are left
//! for later.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::Bitmap;
use crate::policy::heat::Heat;
use crate::wire::shards::Sweep;

/// The debt of an attempt. Nothing is ever struck off but by being handed to the streams: a page that
/// is taken out before it is read, and written meanwhile, is owed again by the next harvest.
#[derive(Debug)]
pub(crate) struct Debt {
    /// But for what a sweep that is under way has of it.
    owed: Bitmap,
    sweep: Option<Arc<Sweep>>,
    /// Pages that had been sent when it began.
    sent_at_begin: u64,
    /// What the last harvest found.
    harvested: Bitmap,
    heat: Heat,
}

impl Debt {
    /// All of memory.
    pub(crate) fn of(pages: u64) -> Self {
        Self {
            owed: Bitmap::full(pages),
            sweep: None,
            sent_at_begin: 0,
            harvested: Bitmap::empty(pages),
            heat: Heat::new(pages),
        }
    }

    /// Only these pages, of which some were written already.
    pub(crate) fn begin(&mut self, present: Bitmap, written: &Bitmap) {
        self.heat.observe(written);
        self.owed = present;
    }

    /// Pages of memory.
    pub(crate) fn pages(&self) -> u64 {
        self.owed.pages()
    }

    /// Pages that are owed; those of a round that is under way are not.
    pub(crate) fn count(&self) -> u64 {
        self.sweep.as_ref().map_or_else(|| self.owed.count(), |sweep| sweep.owed.count())
    }

    /// The same, and those that a sweep's streams took and have not sent, `sent` having been by now:
    /// over a slow link a group takes longer than a stun may.
    pub(crate) fn count_unsent(&self, sent: u64) -> u64 {
        let taken = self.sweep.as_ref().map_or(0, |sweep| sweep.taken.load(Ordering::Acquire));
        self.count() + taken.saturating_sub(sent - self.sent_at_begin)
    }

    /// Takes in what a harvest found; how many of them were not owed before. Owed as soon as they are
    /// protected again: streams take out what they send.
    pub(crate) fn add(&mut self, written: Bitmap) -> u64 {
        let fresh = match &self.sweep {
            Some(sweep) => {
                // Rounds do not ask what is hot.
                self.heat.observe(&written);
                sweep.owed.add(&written)
            }
            None => self.owed.add(&written),
        };
        self.harvested = written;
        fresh
    }

    /// The same of a guest that stands still, which says nothing of what is hot; how many of them were
    /// not owed before.
    pub(crate) fn add_rest(&mut self, written: &Bitmap) -> u64 {
        self.owed.add(written)
    }

    /// Everything that is owed now, to be sent once.
    pub(crate) fn begin_round(&mut self) -> Arc<Bitmap> {
        Arc::new(self.owed.take())
    }

    /// Everything that is owed when its turn comes, but for hot pages; `sent` were sent before.
    pub(crate) fn begin_sweep(&mut self, sent: u64) -> Arc<Sweep> {
        self.sent_at_begin = sent;
        let sweep = Arc::new(Sweep::over(&self.owed, &self.heat.hot(&self.owed)));
        self.sweep = Some(sweep.clone());
        sweep
    }

    /// Everything that is owed, for the last time: the guest stands still.
    pub(crate) fn begin_rest(&mut self) -> Arc<Sweep> {
        let rest = Arc::new(Sweep::over(&self.owed, &Bitmap::empty(self.pages())));
        self.sweep = Some(rest.clone());
        rest
    }

    /// The sweep also passes over what the last harvest found.
    pub(crate) fn pass_over_written(&self) {
        if let Some(sweep) = &self.sweep {
            sweep.recent.add(&self.harvested);
        }
    }

    /// The sweep passes over nothing any more.
    pub(crate) fn pass_over_nothing(&self) {
        if let Some(sweep) = &self.sweep {
            sweep.recent.clear();
        }
    }

    /// The sweep ends where it is.
    pub(crate) fn halt(&self) {
        if let Some(sweep) = &self.sweep {
            sweep.halt.store(true, Ordering::Relaxed);
        }
    }

    /// The streams stand still: what they did not take is owed as before.
    pub(crate) fn settle(&mut self) {
        if let Some(sweep) = self.sweep.take() {
            self.owed = sweep.owed.snapshot();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::driver::{Driver, End, Event, Harvest, Order, World, drive};
    use crate::memory::{Group, PAGE_BYTES, PageNumber};
    use crate::policy::{PolicyKind, Settings};
    use crate::predict::model::{
        Model, ModelGuest, ModelHost, ModelLink, Owed, Plain, Scenario, Writes,
    };

    /// The debt as the engine's streams see it, in the model's time.
    impl Owed for Debt {
        fn add(&mut self, written: Bitmap) -> u64 {
            Self::add(self, written)
        }
        fn count_unsent(&self, sent: u64) -> u64 {
            Self::count_unsent(self, sent)
        }
        fn begin_round(&mut self) -> u64 {
            Self::begin_round(self).count()
        }
        fn begin_sweep(&mut self, sent: u64) {
            Self::begin_sweep(self, sent);
        }
        fn pass_over_written(&mut self) {
            Self::pass_over_written(self);
        }
        fn pass_over_nothing(&mut self) {
            Self::pass_over_nothing(self);
        }
        fn take(&mut self, first: PageNumber) -> Option<Group> {
            self.sweep.as_ref()?.take(first)
        }
        fn halt(&mut self) {
            Self::halt(self);
        }
        fn is_halted(&self) -> bool {
            self.sweep.as_ref().is_some_and(|sweep| sweep.halt.load(Ordering::Relaxed))
        }
        fn settle(&mut self) {
            Self::settle(self);
        }
    }

    /// A world, and all that it was ordered.
    struct Recorded<W>(W, Vec<Order>);

    impl<W: World<Error = Infallible>> World for Recorded<W> {
        type Error = Infallible;
        fn now(&self) -> Duration {
            self.0.now()
        }
        fn harvest(&mut self) -> Result<Harvest, Infallible> {
            self.0.harvest()
        }
        fn carry_out(&mut self, order: Order) -> Result<(), Infallible> {
            self.1.push(order.clone());
            self.0.carry_out(order)
        }
        fn next(&mut self, wake: Duration) -> Result<Event, Infallible> {
            self.0.next(wake)
        }
    }

    fn history<O: Owed>(seed: u64, owed: impl FnOnce(u64) -> O) -> (Vec<Order>, End) {
        let mut random = SmallRng::seed_from_u64(seed);
        let pages = random.random_range(64..6000);
        let bytes_per_s = 10f64.powf(random.random_range(6.0..9.0));
        let r = 10f64.powf(random.random_range(-2.0..1.0));
        let writable = random.random_range(1..=pages);
        let guest = ModelGuest {
            pages,
            writable,
            pages_per_s: r * bytes_per_s / PAGE_BYTES as f64,
            writes: Writes::Uniform,
        };
        let link = ModelLink { bytes_per_s, jitter: 0.0 };
        let scenario = Scenario { guest, host: ModelHost::default(), link };
        let policy = PolicyKind::ALL[random.random_range(0..PolicyKind::ALL.len())].0;
        let goal = Duration::from_secs_f64(random.random_range(0.001..0.5));
        let mut driver = Driver::new(policy.build(Settings { goal, ..Settings::default() }), 1);
        let mut write_next = |random: &mut SmallRng| PageNumber(random.random_range(0..writable));
        let model = Model::new(scenario, owed(pages), &mut write_next, seed);
        let mut world = Recorded(model, Vec::new());
        let Ok(start) = world.harvest();
        let Ok(end) = drive(&mut driver, &mut world, Event::Start(start));
        (world.1, end)
    }

    /// What the engine keeps for its streams to share, and plain sets of pages: over a link without
    /// noise they lead to the same orders, window by window, and to the same end.
    #[test]
    fn engine_and_model_come_to_the_same_decisions() {
        let (mut orders, mut sweeps, mut throttles) = (0, 0, 0);
        for seed in 0..400 {
            let (engine, model) = (history(seed, Debt::of), history(seed, Plain::of));
            for (index, (engine, model)) in engine.0.iter().zip(&model.0).enumerate() {
                assert_eq!(engine, model, "seed {seed}, order {index}");
            }
            assert_eq!(engine, model, "seed {seed}");
            orders += engine.0.len();
            sweeps += engine.0.iter().filter(|order| **order == Order::BeginSweep).count();
            throttles += engine.0.iter().filter(|o| matches!(o, Order::Throttle(_))).count();
        }
        assert!(
            orders > 20_000 && sweeps > 300 && throttles > 300,
            "{orders} {sweeps} {throttles}"
        );
        println!("400 seeds: {orders} orders, {sweeps} sweeps, {throttles} throttles, all alike");
    }
}
