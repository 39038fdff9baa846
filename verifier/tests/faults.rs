//! Every class of fault planted in regions of every shape: each is found, and named right.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use verifier::scan::{Moment, infer_watermarks, scan};
use workload::region::Region;
use workload::spec::{ContentKind, PatternKind, Workload, WorkloadSpec};
use workload::units::Bytes;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};

struct Free;
impl Vcpu for Free {
    fn checkpoint(&mut self) -> Checkpoint {
        Checkpoint::Go { held: Duration::ZERO }
    }
}

/// A region whose writers stopped at random watermarks.
struct Written {
    workload: Arc<Workload>,
    region: Arc<Region>,
    watermarks: Vec<u64>,
}

fn written(random: &mut SmallRng) -> Written {
    let record = 1 << random.random_range(6..=16);
    let spec = WorkloadSpec {
        seed: random.random(),
        memory: Bytes(4096 * random.random_range(40..700)),
        writers: random.random_range(1..=2),
        record: Bytes(record),
        pattern: if random.random() { PatternKind::Stream } else { PatternKind::Uniform },
        content: ContentKind::Random,
    };
    let workload = Arc::new(spec.resolve().unwrap());
    let region = Arc::new(Region::anonymous(spec.memory).unwrap());
    region.fill(&workload, |_| {});
    let watermarks = Watermarks::new(&vec![0; spec.writers as usize]);
    for index in 0..spec.writers as usize {
        // At least one whole ring, so that every slot has been written.
        let slots = workload.shares()[index].slots;
        let operations = random.random_range(slots..4 * slots);
        Writer::new(workload.clone(), region.clone(), watermarks.clone(), index).run(
            Pace::Unlimited,
            &mut Free,
            operations,
        );
    }
    let watermarks = watermarks.read();
    Written { workload, region, watermarks }
}

impl Written {
    fn classes(&self, moment: &Moment) -> Vec<String> {
        scan(&self.region, &self.workload, moment, |_| {}).faults.lines.into_keys().collect()
    }

    /// A random line inside a slot, with what must stand there.
    fn line(&self, random: &mut SmallRng) -> (usize, u64, u64) {
        let writer = random.random_range(0..self.workload.shares().len());
        let share = &self.workload.shares()[writer];
        let slot = random.random_range(0..share.slots);
        let generation = share.pattern.generation(slot, self.watermarks[writer]);
        let address = self.workload.slot_line(writer, slot)
            + random.random_range(0..self.workload.record_lines());
        (writer, address, generation)
    }
}

#[test]
fn clean_regions_raise_no_alarm() {
    for seed in 0..150 {
        let written = written(&mut SmallRng::seed_from_u64(seed));
        let exact = Moment::Exact(written.watermarks.clone());
        assert_eq!(written.classes(&exact), [""; 0], "seed {seed}");
    }
}

#[test]
fn every_planted_fault_is_found_and_named() {
    for seed in 0..400 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let written = written(random);
        let (_, address, generation) = written.line(random);
        let key = written.workload.key();
        let region = &written.region;
        let good = region.load(address);
        let page = address / 64 * 64;
        let whole_page = |age: i64| {
            for line in page..page + 64 {
                let (at, g) = key.identify(&region.load(line)).unwrap();
                region.store(at, &key.line(at, g.saturating_add_signed(age)));
            }
        };
        let expected = match seed % 7 {
            0 => {
                whole_page(-1);
                // With small records some neighbours may have had no write in between.
                &["STALE", "TORN"][..]
            }
            1 => {
                region.store(address, &key.line(address, generation + 1));
                &["FUTURE", "TORN"]
            }
            2 => {
                let other = (address + 64 * random.random_range(1..30)) % (region.pages() * 64);
                region.store(address, &key.line(other, generation));
                &["MISPLACED"]
            }
            3 => {
                region.store(address, &[0; 8]);
                &["ZEROED"]
            }
            4 => {
                let mut line = good;
                line[random.random_range(0..8)] ^= 1 << random.random_range(0..64);
                region.store(address, &line);
                &["BITFLIP"]
            }
            5 => {
                region.store(address, &std::array::from_fn(|_| random.random()));
                &["FOREIGN"]
            }
            _ => {
                // Half a line of the generation before.
                let old = key.line(address, generation - 1);
                region
                    .store(address, &std::array::from_fn(|i| if i < 4 { good[i] } else { old[i] }));
                &["TORN"]
            }
        };
        let classes = written.classes(&Moment::Exact(written.watermarks.clone()));
        assert_eq!(classes.len(), 1, "seed {seed}: {classes:?}");
        assert!(expected.contains(&classes[0].as_str()), "seed {seed}: {classes:?}");
    }
}

#[test]
fn a_record_in_flight_is_allowed_as_a_prefix_and_nothing_else() {
    for seed in 0..60 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let written = written(random);
        let lines = written.workload.record_lines();
        if lines < 2 {
            continue;
        }
        let writer = random.random_range(0..written.workload.shares().len());
        let pattern = &written.workload.shares()[writer].pattern;
        let watermark = written.watermarks[writer];
        let slot = pattern.slot(watermark);
        let generation = pattern.generation(slot, watermark) + 1;
        let first = written.workload.slot_line(writer, slot);
        let key = written.workload.key();
        let write = |line: u64| {
            written.region.store(first + line, &key.line(first + line, generation));
        };
        let prefix = random.random_range(1..lines);
        (0..prefix).for_each(write);
        let stopped = Moment::Stopped(written.watermarks.clone());
        assert_eq!(written.classes(&stopped), [""; 0], "seed {seed}");
        let exact = Moment::Exact(written.watermarks.clone());
        assert_ne!(written.classes(&exact), [""; 0], "seed {seed}: between operations it is wrong");
        if prefix + 1 < lines {
            write(lines - 1);
            assert_ne!(written.classes(&stopped), [""; 0], "seed {seed}: a hole is no prefix");
        }
    }
}

#[test]
fn memory_itself_tells_how_far_killed_writers_came() {
    for seed in 0..40 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let written = written(random);
        let journalled: Vec<u64> =
            written.watermarks.iter().map(|w| w - random.random_range(0..(*w).min(50))).collect();
        let inferred = infer_watermarks(&written.region, &written.workload, &journalled);
        assert_eq!(inferred, written.watermarks, "seed {seed}");
    }
}

/// A verifier whose cursor does not move would call everything right.
#[test]
fn every_single_line_is_looked_at() {
    let written = written(&mut SmallRng::seed_from_u64(11));
    let exact = Moment::Exact(written.watermarks.clone());
    let lines = written.region.pages() * 64;
    for address in 0..lines {
        let good = written.region.load(address);
        written.region.store(address, &[0; 8]);
        if address % 997 == 0 || address + 1 == lines {
            let faults = scan(&written.region, &written.workload, &exact, |_| {}).faults;
            assert_eq!(faults.extents.len(), 1);
            assert_eq!(faults.extents[0].address, address * 64);
        }
        written.region.store(address, &good);
    }
}
