//! What the moment of looking excuses, and what it does not: records in flight, writers that go
//! on, writers that were killed; on every pattern and content. (Single faults of every class are
//! planted by the thousand by `ci faults`.)

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use verifier::expected::Expected;
use verifier::infer::infer_watermarks;
use verifier::memory::Moment;
use verifier::scan::{Scan, scan};
use workload::fill::fill;
use workload::generations::Generations;
use workload::line::PageFormat;
use workload::pattern::Access;
use workload::region::Region;
use workload::run::RunId;
use workload::spec::{Workload, WorkloadSpec};
use workload::units::Bytes;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};

const PATTERNS: [&str; 10] = [
    "stream",
    "stream-index,every=3",
    "uniform",
    "iid",
    "zipf,theta=0.9",
    "hotset",
    "fileio,file=256KiB,run=64KiB",
    "iometer,reads=0.3",
    "phases,of=stream*500+zipf*300",
    "touch",
];
const CONTENTS: [&str; 6] =
    ["random", "text", "sparse", "zero-flip", "delta:5", "random*2+zero-flip*1+text*1"];

struct Running(Arc<AtomicBool>);
impl Vcpu for Running {
    fn checkpoint(&mut self) -> Checkpoint {
        match self.0.load(Ordering::Relaxed) {
            true => Checkpoint::Stop,
            false => Checkpoint::Go { held: Duration::ZERO },
        }
    }
}

/// A region whose writers stopped at random watermarks.
struct Written {
    workload: Arc<Workload>,
    region: Arc<Region>,
    watermarks: Vec<u64>,
}

fn workload(random: &mut SmallRng) -> Arc<Workload> {
    let pattern = PATTERNS[random.random_range(0..PATTERNS.len())];
    let content = CONTENTS[random.random_range(0..CONTENTS.len())];
    let record = match (pattern, content) {
        ("touch", _) => 6,
        (p, "delta:5") if p != "touch" => random.random_range(12..=15),
        (p, _) if p.starts_with("fileio") => random.random_range(6..=15),
        _ => random.random_range(6..=16),
    };
    let content = if pattern == "touch" && content == "delta:5" { "sparse" } else { content };
    let spec = WorkloadSpec {
        format: PageFormat::V2 { run: RunId(random.random()) },
        seed: random.random(),
        memory: Bytes(4096 * random.random_range(80..700)),
        writers: random.random_range(1..=2),
        workload: format!("{pattern},record={},content={content}", 1 << record).parse().unwrap(),
    };
    Arc::new(spec.resolve().unwrap())
}

fn written(random: &mut SmallRng) -> Written {
    let workload = workload(random);
    let region = Arc::new(Region::anonymous(workload.spec().memory).unwrap());
    fill(&region, &workload, |_| {});
    let watermarks = Watermarks::new(&vec![0; workload.shares().len()]);
    for (index, share) in workload.shares().iter().enumerate() {
        let operations = random.random_range(share.slots..4 * share.slots + 10);
        let mut vcpu = Running(Arc::default());
        Writer::new(workload.clone(), region.clone(), watermarks.clone(), index).run(
            Pace::Unlimited,
            &mut vcpu,
            operations,
        );
    }
    let watermarks = watermarks.read();
    Written { workload, region, watermarks }
}

impl Written {
    fn scan(&self, moment: Moment) -> Scan {
        scan(&*self.region, &self.workload, moment, &self.watermarks, |_| {})
    }

    fn classes(&self, moment: Moment) -> Vec<String> {
        self.scan(moment).faults.lines.into_keys().collect()
    }

    fn name(&self) -> String {
        self.workload.spec().workload.to_string()
    }
}

#[test]
fn a_record_in_flight_is_allowed_as_a_prefix_and_nothing_else() {
    let mut holes = 0;
    for seed in 0..200 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let written = written(random);
        let (workload, lines) = (&written.workload, written.workload.record_lines());
        let writer = random.random_range(0..workload.shares().len());
        let share = &workload.shares()[writer];
        let watermark = written.watermarks[writer];
        let Access::Write(slot) = share.pattern.access(watermark) else { continue };
        let generation = Generations::at(&share.pattern, share.slots, watermark).of(slot) + 1;
        let first = workload.slot_line(writer, slot);
        let differs = |line: u64| {
            written.region.load(first + line) != workload.line(first, first + line, generation)
        };
        let changed: Vec<u64> = (0..lines).filter(|line| differs(*line)).collect();
        let write = |line: u64| {
            let content = workload.line(first, first + line, generation);
            written.region.store(first + line, &content);
        };
        if changed.is_empty() {
            continue;
        }
        let prefix = random.random_range(1..=changed.len());
        changed[..prefix].iter().for_each(|line| write(*line));
        let name = format!("seed {seed}, {}", written.name());
        assert_eq!(written.classes(Moment::Stopped), [""; 0], "{name}");
        assert_ne!(
            written.classes(Moment::Exact),
            [""; 0],
            "{name}: between operations it is wrong"
        );
        if prefix < changed.len() {
            // A vCPU stops between any two instructions: the next line may be half written.
            let border = first + changed[prefix];
            let (old, new) =
                (written.region.load(border), workload.line(first, border, generation));
            let words = random.random_range(1..8);
            let mut half = old;
            half[..words].copy_from_slice(&new[..words]);
            written.region.store(border, &half);
            assert_eq!(written.classes(Moment::Stopped), [""; 0], "{name}: half a line");
            half = new;
            half[..words].copy_from_slice(&old[..words]);
            if half != new && half != old {
                written.region.store(border, &half);
                assert_ne!(written.classes(Moment::Stopped), [""; 0], "{name}: its other half");
            }
            written.region.store(border, &old);
        }
        if prefix + 1 < changed.len() {
            write(changed[changed.len() - 1]);
            assert_ne!(written.classes(Moment::Stopped), [""; 0], "{name}: a hole is no prefix");
            holes += 1;
        }
    }
    assert!(holes > 50, "only {holes} holes were tried");
}

#[test]
fn memory_itself_tells_how_far_killed_writers_came() {
    for seed in 0..200 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let mut written = written(random);
        let journalled: Vec<u64> =
            written.watermarks.iter().map(|w| w - random.random_range(0..(*w).min(50))).collect();
        let inferred = infer_watermarks(
            &*written.region,
            &written.workload,
            &Expected::at(&written.workload, &journalled),
        );
        // Reads, and zeros over zeros, leave no trace: then the memory is the same.
        let traced = written.name().starts_with("iometer")
            || written.name().contains("zero-flip")
            || written.name().contains("sparse");
        if !traced {
            assert_eq!(inferred, written.watermarks, "seed {seed}, {}", written.name());
        }
        written.watermarks = inferred;
        assert_eq!(written.classes(Moment::Stopped), [""; 0], "seed {seed}, {}", written.name());
    }
}

/// A record that was lost or spoilt after the last heartbeat is a fault, and no end of what was done.
#[test]
fn a_fault_among_the_last_operations_does_not_hide_those_after_it() {
    for seed in 0..200 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let mut written = written(random);
        let name = written.name();
        let journalled: Vec<u64> =
            written.watermarks.iter().map(|w| w.saturating_sub(40)).collect();
        // The record of an operation that others of a ring follow.
        let spoilt = written.watermarks[0].saturating_sub(20);
        if !name.starts_with("stream,") || !name.contains("random") || spoilt < journalled[0] + 5 {
            continue;
        }
        let slot = spoilt % written.workload.shares()[0].slots;
        let address = written.workload.slot_line(0, slot);
        written.region.store(address, &[7; 8]);
        let inferred = infer_watermarks(
            &*written.region,
            &written.workload,
            &Expected::at(&written.workload, &journalled),
        );
        assert_eq!(inferred, written.watermarks, "seed {seed}, {name}");
        written.watermarks = inferred;
        assert_eq!(written.classes(Moment::Stopped), ["FOREIGN"], "seed {seed}, {name}");
    }
}

#[test]
fn running_writers_are_no_fault_and_a_loss_among_them_is_one() {
    for seed in 0..24 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let mut written = written(random);
        let watermarks = Watermarks::new(&written.watermarks);
        let stop = Arc::new(AtomicBool::new(false));
        let mut writer =
            Writer::new(written.workload.clone(), written.region.clone(), watermarks.clone(), 0);
        let mut vcpu = Running(stop.clone());
        let share = 20e6;
        let pace = Pace::bytes_per_second(share, &written.workload);
        let thread = std::thread::spawn(move || writer.run(pace, &mut vcpu, u64::MAX));
        std::thread::sleep(Duration::from_millis(5));
        written.watermarks = watermarks.read();
        let seen = written.scan(Moment::Running);
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        let name = format!("seed {seed}, {}", written.name());
        assert!(seen.faults.is_empty(), "{name}: {:?}", seen.faults.extents.first());
        let after = watermarks.read();
        for (newest, after) in seen.newest.iter().zip(&after) {
            assert!(newest <= after, "{name}: {newest} seen, {after} done");
        }
        // What was lost before stays lost, whether writers go on or not.
        let address = written.workload.slot_line(written.workload.shares().len() - 1, 0);
        written.region.store(address, &[7; 8]);
        written.watermarks = after;
        assert_eq!(written.classes(Moment::Running), ["FOREIGN"], "{name}");
    }
}

/// B9: memory that is wrong all over is told in seconds, also where its writers are said to run.
#[test]
fn a_running_region_that_is_wrong_all_over_is_told_soon() {
    let memory = Bytes(32 << 20);
    let spec = WorkloadSpec {
        format: PageFormat::fresh(),
        seed: 3,
        memory,
        writers: 1,
        workload: "stream".parse().unwrap(),
    };
    let workload = spec.resolve().unwrap();
    // Never filled: every line is zero, and must be something else.
    let region = Region::anonymous(memory).unwrap();
    let start = std::time::Instant::now();
    let scanned = scan(&region, &workload, Moment::Running, &[100], |_| {});
    assert_eq!(scanned.faults.lines.values().sum::<u64>(), workload.lines());
    // A page in 500 ms, as before, would be more than an hour.
    assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
}
