//! `ci faults`: single faults by the thousand, of every class, on every pattern and content; each
//! must be found at its place and called by its name, and clean regions must raise no alarm.
//!
//! What a fault is to be called is decided here from the page's history, state by state, not with
//! the verifier's own rules.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args as ClapArgs;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use verifier::memory::Moment;
use verifier::scan::scan;
use workload::exit;
use workload::fill::fill;
use workload::generations::operations;
use workload::line::{Line, ZERO_LINE};
use workload::machine;
use workload::region::Region;
use workload::spec::{Workload, WorkloadSpec};
use workload::trace::Trace;
use workload::units::Bytes;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};
use workload::{PAGE_BYTES, PAGE_LINES};

use crate::samples::{CONTENTS, PATTERNS};
use workload::line::PageFormat;

/// A region beyond 4 GiB, of an odd number of pages.
const LARGE: Bytes = Bytes((4 << 30) + 3 * PAGE_BYTES);

#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  cargo run --release -p ci -- faults --count 10000 --clean 1000"
)]
pub(crate) struct Args {
    /// Faults to plant
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// Clean regions to scan
    #[arg(long, default_value_t = 1_000)]
    clean: u64,
    /// Determines every region and fault
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Plant {
    Stale,
    Future,
    Torn,
    TornLine,
    Misplaced,
    MisplacedPage,
    Zeroed,
    ZeroedPage,
    Unzeroed,
    BitFlip,
    Foreign,
}

const PLANTS: [Plant; 11] = [
    Plant::Stale,
    Plant::Future,
    Plant::Torn,
    Plant::TornLine,
    Plant::Misplaced,
    Plant::MisplacedPage,
    Plant::Zeroed,
    Plant::ZeroedPage,
    Plant::Unzeroed,
    Plant::BitFlip,
    Plant::Foreign,
];

/// A planted fault: what the page holds now, and what that is to be called.
struct Planted {
    page: u64,
    lines: Vec<Line>,
    /// Classes that must be reported.
    must: BTreeSet<&'static str>,
    /// Classes that may be, for lines where two causes look the same.
    may: BTreeSet<&'static str>,
}

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

#[derive(Default)]
struct Tally {
    planted: u64,
    detected: u64,
    named: u64,
    clean: u64,
    false_alarms: u64,
    combinations: BTreeSet<(Plant, usize, usize)>,
    classes: BTreeMap<&'static str, u64>,
    wrong: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let directory = tempfile::tempdir().context("cannot make a directory for traces")?;
    let mut tally = Tally::default();
    let regions = args.clean.max(args.count.div_ceil(20)).max(1);
    for number in 0..regions {
        let seed = args.seed.wrapping_add(number.wrapping_mul(0x9E37_79B9));
        let random = &mut SmallRng::seed_from_u64(seed);
        // In turn, so that every pair of them comes up.
        let pattern = number as usize % (PATTERNS.len() + 1);
        let content = number as usize / (PATTERNS.len() + 1) % CONTENTS.len();
        let workload = small_workload(random, pattern, content, directory.path())?;
        let written = write(workload, random)?;
        if tally.clean < args.clean {
            tally.clean += 1;
            tally.false_alarms += u64::from(!written.classes().is_empty());
        }
        let faults = (args.count - tally.planted).div_ceil(regions - number);
        for _ in 0..faults {
            let plant = PLANTS[tally.planted as usize % PLANTS.len()];
            let page = written.page(random);
            let Some(planted) = written.plant(plant, page, random) else {
                // Not every page can have every fault: zero lines, for one, are not everywhere.
                let instead = written.plant(Plant::BitFlip, page, random);
                let instead = instead.unwrap_or_else(|| unreachable!("any bit can be flipped"));
                tally.judge(&written, &[instead], (Plant::BitFlip, pattern, content), seed);
                continue;
            };
            let mut all = vec![planted];
            if random.random_ratio(1, 8) {
                let other = (page + random.random_range(1..written.region.pages()))
                    % written.region.pages();
                all.extend(written.plant(Plant::Foreign, other, random));
            }
            tally.judge(&written, &all, (plant, pattern, content), seed);
        }
    }
    let large = large_region(&mut tally, args.seed)?;
    for wrong in tally.wrong.iter().take(20) {
        workload::say!("ci: {wrong}");
    }
    let share = 100.0 * tally.named as f64 / tally.planted.max(1) as f64;
    use std::io::Write;
    writeln!(
        std::io::stdout(),
        "faults (seed {}): {} planted, {} detected, {share:.2} % of the right class; {} clean \
         scans, {} false alarms; {} fault x pattern x content combinations{large}; {}",
        args.seed,
        tally.planted,
        tally.detected,
        tally.clean,
        tally.false_alarms,
        tally.combinations.len(),
        tally.classes.iter().map(|(c, n)| format!("{n} {c}")).collect::<Vec<_>>().join(", ")
    )?;
    let good = tally.detected == tally.planted && share >= 99.9 && tally.false_alarms == 0;
    Ok(if good { exit::PROVEN } else { exit::WRONG })
}

fn small_workload(
    random: &mut SmallRng,
    pattern: usize,
    content: usize,
    directory: &Path,
) -> anyhow::Result<Workload> {
    let pages = random.random_range(520..1100);
    // Beyond the list there are recorded traces.
    let pattern = PATTERNS.get(pattern).copied().unwrap_or("trace");
    let content = CONTENTS[content];
    let whole_pages = content == "delta:5";
    let name = match pattern {
        // Lines of pages cannot be rewritten one by one where a record is a line.
        "touch" => format!("touch,content={}", if whole_pages { "random" } else { content }),
        "trace" => {
            let file = directory.join("trace");
            let run = |random: &mut SmallRng| {
                let start = random.random_range(0..pages);
                start..(start + random.random_range(1..20)).min(pages)
            };
            let mut intervals: Vec<_> = (0..400).map(|_| vec![run(random)]).collect();
            // No writer is to be without work.
            intervals.push(vec![0..1, pages - 1..pages]);
            Trace { pages, interval_ns: 1, intervals, sum: 0 }.write(&file)?;
            format!("trace,file={},content={content}", file.display())
        }
        _ => {
            let most = if pattern.starts_with("fileio") { 15 } else { 16 };
            let record: u64 = 1 << random.random_range(if whole_pages { 12 } else { 6 }..=most);
            format!("{pattern},record={record},content={content}")
        }
    };
    let spec = WorkloadSpec {
        format: PageFormat::fresh(),
        seed: random.random(),
        memory: Bytes(PAGE_BYTES * pages),
        writers: random.random_range(1..=2),
        workload: name.parse()?,
    };
    Ok(spec.resolve()?)
}

fn write(workload: Workload, random: &mut SmallRng) -> anyhow::Result<Written> {
    let workload = Arc::new(workload);
    let region = Arc::new(Region::anonymous(workload.spec().memory)?);
    fill(&region, &workload, |_| {});
    let counters = Watermarks::new(&vec![0; workload.shares().len()]);
    for (index, share) in workload.shares().iter().enumerate() {
        let operations = random.random_range(share.slots / 2..3 * share.slots + 10);
        let mut writer = Writer::new(workload.clone(), region.clone(), counters.clone(), index);
        writer.run(Pace::Unlimited, &mut Free, operations);
    }
    let watermarks = counters.read();
    Ok(Written { workload, region, watermarks })
}

/// One fault of each kind beyond 4 GiB; says so when the machine is too small.
fn large_region(tally: &mut Tally, seed: u64) -> anyhow::Result<&'static str> {
    if machine::require_memory(Bytes(LARGE.0 + (1 << 30))).is_err() {
        workload::say!("SKIPPED: faults beyond 4 GiB: this machine has less than 5 GiB available");
        return Ok("");
    }
    let spec = WorkloadSpec {
        format: PageFormat::fresh(),
        seed,
        memory: LARGE,
        writers: 1,
        workload: "stream,record=2MiB,content=sparse".parse()?,
    };
    let workload = Arc::new(spec.resolve()?);
    let region = Arc::new(Region::anonymous(spec.memory)?);
    fill(&region, &workload, |_| {});
    let counters = Watermarks::new(&[0]);
    let share = &workload.shares()[0];
    // The ring's last records, once.
    let last = share.slots - 2;
    let mut writer = Writer::new(workload.clone(), region.clone(), counters.clone(), 0);
    writer.run(Pace::Unlimited, &mut Free, last + 2);
    let watermarks = counters.read();
    let written = Written { workload, region, watermarks };
    let random = &mut SmallRng::seed_from_u64(seed);
    for (i, plant) in PLANTS.into_iter().enumerate() {
        let page = (4 << 30) / PAGE_BYTES - 1 - i as u64 % 2;
        if let Some(planted) = written.plant(plant, page, random) {
            tally.judge(&written, &[planted], (plant, 0, 2), seed);
        }
    }
    for page in [(4 << 30) / PAGE_BYTES, (4 << 30) / PAGE_BYTES + 2] {
        let planted = written.plant(Plant::BitFlip, page, random);
        let planted = planted.unwrap_or_else(|| unreachable!("any bit can be flipped"));
        tally.judge(&written, &[planted], (Plant::BitFlip, 0, 2), seed);
    }
    Ok(", 4 GiB and beyond among them")
}

impl Tally {
    fn judge(
        &mut self,
        written: &Written,
        planted: &[Planted],
        what: (Plant, usize, usize),
        seed: u64,
    ) {
        let page_lines = |page: u64| page * PAGE_LINES..(page + 1) * PAGE_LINES;
        let good: Vec<(u64, Line)> = planted
            .iter()
            .flat_map(|p| page_lines(p.page))
            .map(|address| (address, written.region.load(address)))
            .collect();
        for fault in planted {
            for (address, line) in page_lines(fault.page).zip(&fault.lines) {
                written.region.store(address, line);
            }
        }
        let faults =
            scan(&*written.region, &written.workload, Moment::Exact, &written.watermarks, |_| {})
                .faults;
        for (address, line) in &good {
            written.region.store(*address, line);
        }
        let places: BTreeSet<u64> = faults.extents.iter().map(|e| e.page).collect();
        let detected = planted.iter().all(|p| places.contains(&p.page))
            && faults.extents.iter().all(|e| {
                let last = (e.address + e.bytes - 1) / PAGE_BYTES;
                [e.page, last].iter().all(|page| planted.iter().any(|p| p.page == *page))
            });
        let found: BTreeSet<&str> = faults.lines.keys().map(String::as_str).collect();
        let must: BTreeSet<&str> = planted.iter().flat_map(|p| p.must.clone()).collect();
        let may: BTreeSet<&str> = planted.iter().flat_map(|p| p.may.clone()).collect();
        let named =
            must.is_subset(&found) && found.iter().all(|c| must.contains(c) || may.contains(c));
        self.planted += 1;
        self.detected += u64::from(detected);
        self.named += u64::from(detected && named);
        self.combinations.insert(what);
        for class in must.iter().chain(&may) {
            if let Some(name) = CLASSES.iter().find(|name| *name == class) {
                *self.classes.entry(name).or_default() += u64::from(must.contains(class));
            }
        }
        if !(detected && named) {
            self.wrong.push(format!(
                "seed {seed}, {}: {:?} in page {}: found {found:?} in pages {places:?}, must be \
                 {must:?}, may be {may:?}",
                written.workload.spec().workload,
                what.0,
                planted[0].page
            ));
        }
    }
}

const CLASSES: [&str; 8] =
    ["STALE", "FUTURE", "TORN", "MISPLACED", "ZEROED", "UNZEROED", "BITFLIP", "FOREIGN"];

impl Written {
    fn classes(&self) -> Vec<String> {
        let scan = scan(&*self.region, &self.workload, Moment::Exact, &self.watermarks, |_| {});
        scan.faults.lines.into_keys().collect()
    }

    /// A page: the first, the last, one at a 2 MiB boundary, or any.
    fn page(&self, random: &mut SmallRng) -> u64 {
        let pages = self.region.pages();
        match random.random_range(0..8) {
            0 => 0,
            1 => pages - 1,
            2 => 511,
            3 => 512,
            _ => random.random_range(0..pages),
        }
    }

    fn lines(&self, page: u64) -> Vec<Line> {
        (page * PAGE_LINES..(page + 1) * PAGE_LINES).map(|a| self.region.load(a)).collect()
    }

    /// What a page held after each write to it, from the fill on, and some way into the future;
    /// and which of these states is the present one.
    fn states(&self, page: u64) -> (Vec<Vec<Line>>, usize) {
        let writer = self.workload.owner(page);
        let share = &self.workload.shares()[writer];
        let watermark = self.watermarks[writer];
        let segments: Vec<_> = self.workload.segments(writer, page).collect();
        let slots: HashSet<u64> = segments.iter().filter_map(|s| s.slot).collect();
        let until = watermark + 2 * share.slots;
        let mut writes: Vec<(u64, u64)> = operations(&share.pattern, &slots, until)
            .into_iter()
            .flat_map(|(slot, operations)| operations.into_iter().map(move |k| (k, slot)))
            .collect();
        writes.sort_unstable();
        let mut generations = BTreeMap::<u64, u64>::new();
        let content = |generations: &BTreeMap<u64, u64>| -> Vec<Line> {
            segments
                .iter()
                .flat_map(|s| {
                    let g = s.slot.and_then(|s| generations.get(&s)).copied().unwrap_or(0);
                    s.lines.clone().map(move |a| self.workload.line(s.place, a, g))
                })
                .collect()
        };
        let mut states = vec![content(&generations)];
        for (_, slot) in &writes {
            *generations.entry(*slot).or_default() += 1;
            states.push(content(&generations));
        }
        (states, writes.iter().filter(|(k, _)| *k < watermark).count())
    }

    /// A fault of the kind, if the page can have it.
    fn plant(&self, plant: Plant, page: u64, random: &mut SmallRng) -> Option<Planted> {
        let good = self.lines(page);
        let simple = |lines, class| {
            let must = BTreeSet::from([class]);
            Some(Planted { page, lines, must, may: BTreeSet::new() })
        };
        let at = match random.random_range(0..4) {
            0 => 0,
            1 => 63,
            _ => random.random_range(0..64),
        };
        let mut lines = good.clone();
        match plant {
            Plant::Zeroed => {
                let at = (0..64).map(|i| (at + i) % 64).find(|i| good[*i] != ZERO_LINE)?;
                lines[at] = ZERO_LINE;
                simple(lines, "ZEROED")
            }
            Plant::ZeroedPage => {
                lines.fill(ZERO_LINE);
                if lines == good { None } else { simple(lines, "ZEROED") }
            }
            Plant::BitFlip => {
                let bits: BTreeSet<usize> =
                    (0..random.random_range(1..=3)).map(|_| random.random_range(0..512)).collect();
                for bit in bits {
                    lines[at][bit / 64] ^= 1 << (bit % 64);
                }
                simple(lines, "BITFLIP")
            }
            Plant::Foreign => {
                lines[at] = std::array::from_fn(|_| random.random());
                simple(lines, "FOREIGN")
            }
            Plant::Misplaced => {
                let all = self.workload.lines();
                let mut from = || random.random_range(0..all);
                let from = (0..50).map(|_| from()).find(|from| {
                    *from != page * PAGE_LINES + at as u64 && self.region.load(*from) != ZERO_LINE
                })?;
                lines[at] = self.region.load(from);
                simple(lines, "MISPLACED")
            }
            Plant::MisplacedPage => {
                let other =
                    (page + random.random_range(1..self.region.pages())) % self.region.pages();
                let lines = self.lines(other);
                aged(page, &good, lines, "MISPLACED")
            }
            Plant::Unzeroed => {
                let (states, now) = self.states(page);
                let at = (0..64).map(|i| (at + i) % 64).find(|i| {
                    good[*i] == ZERO_LINE && states[..now].iter().any(|s| s[*i] != ZERO_LINE)
                })?;
                let older = states[..now].iter().rev().find(|s| s[at] != ZERO_LINE)?;
                lines[at] = older[at];
                simple(lines, "UNZEROED")
            }
            Plant::TornLine => {
                let (states, now) = self.states(page);
                let older = states[..now].iter().rev().find(|s| s[at] != good[at])?[at];
                let cut = random.random_range(1..8);
                lines[at][cut..].copy_from_slice(&older[cut..]);
                // A mixture that equals either of the two is not torn; one that differs by a word
                // or two of few bits would be flipped bits.
                let apart = |other: &Line| workload::line::distance_bits(&lines[at], other) > 16;
                (apart(&good[at]) && apart(&older)).then_some(())?;
                simple(lines, "TORN")
            }
            Plant::Stale | Plant::Future => {
                let (states, now) = self.states(page);
                let range = if plant == Plant::Stale { 0..now } else { now + 1..states.len() };
                if range.is_empty() {
                    return None;
                }
                let state = states[random.random_range(range)].clone();
                let class = if plant == Plant::Stale { "STALE" } else { "FUTURE" };
                aged(page, &good, state, class)
            }
            Plant::Torn => {
                let (states, now) = self.states(page);
                let older = &states[random.random_range(0..now.max(1)).min(now)];
                let cut = random.random_range(1..64);
                lines[..cut].copy_from_slice(&older[..cut]);
                if random.random() {
                    lines.copy_from_slice(&good);
                    lines[cut..].copy_from_slice(&older[cut..]);
                }
                // Torn is what no moment of the page's history explains.
                let explains = |state: &Vec<Line>| {
                    lines.iter().zip(state).all(|(l, s)| *l == ZERO_LINE || l == s)
                };
                if states[..=now].iter().any(explains) {
                    return None;
                }
                aged(page, &good, lines, "TORN")
            }
        }
    }
}

/// A page of another time or place: `class` for every line that says so; where one of the two
/// contents is zero, only that can be said.
fn aged(page: u64, good: &[Line], lines: Vec<Line>, class: &'static str) -> Option<Planted> {
    let differ = || good.iter().zip(&lines).filter(|(g, l)| g != l);
    let plain = differ().any(|(g, l)| *g != ZERO_LINE && *l != ZERO_LINE);
    let zero = differ().any(|(g, l)| *g == ZERO_LINE || *l == ZERO_LINE);
    differ().next()?;
    let must = if plain { BTreeSet::from([class]) } else { BTreeSet::new() };
    let may = match zero {
        true => BTreeSet::from([class, "ZEROED", "UNZEROED"]),
        false => BTreeSet::new(),
    };
    Some(Planted { page, lines, must, may })
}
