//! `ci/bench memory`: the guest side and the verifier against what this machine's memory can do.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use verifier::manifest::Manifest;
use verifier::memory::Moment;
use verifier::scan::scan;
use workload::beat::said::{Beat, Kind, Said, Start, Tag, linked, sealed};
use workload::beat::session::{Entry, Line, Name, Opening, SessionId};
use workload::beat::writer::JournalWriter;
use workload::dirty::DirtyPages;
use workload::fill::fill;
use workload::generations::Generations;
use workload::line::{PageFormat, mix};
use workload::region::Region;
use workload::report::Summary;
use workload::spec::{Workload, WorkloadSpec};
use workload::stamp::{Isa, IsaChoice};
use workload::units::Bytes;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};
use workload::{PAGE_BYTES, exit};

use super::{Limit, Row, median, sys};
use crate::programs::{beside, report};

const MEMORY: Bytes = Bytes(512 << 20);
/// The full size that expected state must be cheap for.
const FULL: Bytes = Bytes(128 << 30);
const ZIPF_OPERATIONS: u64 = 1_000_000_000;

struct Free;
impl Vcpu for Free {
    fn checkpoint(&mut self) -> Checkpoint {
        Checkpoint::Go { held: Duration::ZERO }
    }
}

fn workload(name: &str, memory: Bytes) -> anyhow::Result<Arc<Workload>> {
    formatted(name, memory, PageFormat::fresh())
}

fn formatted(name: &str, memory: Bytes, format: PageFormat) -> anyhow::Result<Arc<Workload>> {
    let spec = WorkloadSpec { format, seed: 1, memory, writers: 1, workload: name.parse()? };
    Ok(Arc::new(spec.resolve()?))
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn gigabytes(bytes_per_s: f64) -> String {
    format!("{:.2} GB/s", bytes_per_s / 1e9)
}

pub(super) fn measure(quick: bool) -> anyhow::Result<Vec<Row>> {
    let rounds = if quick { 3 } else { 7 };
    let mut rows = bandwidths(rounds)?;
    rows.push(allocations()?);
    rows.push(touch(rounds)?);
    rows.extend(rates(if quick { (2, 1) } else { (4, 3) })?);
    rows.push(hashing(rounds)?);
    rows.extend(expected_state()?);
    rows.extend(journal(if quick { 1_000_000 } else { 10_000_000 })?);
    rows.push(sparse_image()?);
    Ok(rows)
}

/// One way of stamping and checking lines, with what was measured of it in bytes per second.
struct Way {
    name: String,
    isa: IsaChoice,
    workloads: [Arc<Workload>; 2],
    /// Records of 64 KiB and of 4 KiB written.
    stamped: [Vec<f64>; 2],
    /// On one thread and on two.
    scanned: [Vec<f64>; 2],
}

impl Way {
    fn new(name: String, isa: IsaChoice, format: PageFormat) -> anyhow::Result<Self> {
        let of = |name| formatted(name, MEMORY, format);
        let workloads = [of("stream,record=64KiB")?, of("stream,record=4KiB")?];
        Ok(Self { name, isa, workloads, stamped: Default::default(), scanned: Default::default() })
    }

    fn measure(
        &mut self,
        mut region: Region,
        pools: &[rayon::ThreadPool; 2],
    ) -> anyhow::Result<Region> {
        self.isa.apply().map_err(anyhow::Error::msg)?;
        for (workload, stamped) in self.workloads.iter().zip(&mut self.stamped) {
            let slots = workload.shares()[0].slots;
            let shared = Arc::new(region);
            let watermarks = Watermarks::new(&[0]);
            let mut writer = Writer::new(workload.clone(), shared.clone(), watermarks, 0);
            let elapsed = seconds(|| drop(writer.run(Pace::Unlimited, &mut Free, slots)));
            stamped.push(MEMORY.0 as f64 / elapsed);
            drop(writer);
            for (pool, scanned) in pools.iter().zip(&mut self.scanned) {
                let look = || scan(&*shared, workload, Moment::Exact, &[slots], |_| {});
                let mut clean = false;
                let elapsed = seconds(|| clean = pool.install(look).faults.is_empty());
                anyhow::ensure!(clean, "memory is wrong on a machine at rest");
                scanned.push(MEMORY.0 as f64 / elapsed);
            }
            region = Arc::into_inner(shared).context("the region is in use")?;
        }
        IsaChoice::Auto.apply().map_err(anyhow::Error::msg)?;
        Ok(region)
    }
}

/// Stamping against memset, scanning against reading, each way that this machine has and page format
/// 1 beside them: in turn on the same memory.
fn bandwidths(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let mut region = Region::anonymous(MEMORY)?;
    sys::memset(&mut region, 1);
    let bytes = MEMORY.0 as f64;
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pools = [pool(1)?, pool(2)?];
    let mut ways = vec![Way::new("format 1".to_owned(), IsaChoice::Auto, PageFormat::V1)?];
    for isa in Isa::here() {
        ways.push(Way::new(isa.to_string(), IsaChoice::Only(isa), PageFormat::fresh())?);
    }
    let [mut set, mut read, mut read_two]: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        set.push(bytes / seconds(|| sys::memset(&mut region, round as u8)));
        let mut word = 0;
        read.push(bytes / seconds(|| word ^= sys::read(&mut region)));
        read_two.push(
            bytes / seconds(|| word ^= pools[1].install(|| sys::read_in_halves(&mut region))),
        );
        std::hint::black_box(word);
        for way in &mut ways {
            region = way.measure(region, &pools)?;
        }
    }
    let [set, read, read_two] = [set, read, read_two].map(median);
    let row = |name: String, figure: f64, peer: f64, limit| Row {
        name,
        figure: gigabytes(figure),
        peer: gigabytes(peer),
        value: Some(figure / peer),
        limit,
    };
    let old = ways.remove(0);
    let (old_stamped, old_scanned) = (old.stamped.map(median), old.scanned.map(median));
    let mut rows = vec![
        row("stamping 64KiB, format 1 / memset".to_owned(), old_stamped[0], set, Limit::None),
        row("scan, format 1 / plain read".to_owned(), old_scanned[0], read, Limit::None),
    ];
    let mut fastest = None;
    for Way { name, isa, stamped, scanned, .. } in ways {
        let [large, small] = stamped.map(median);
        let [one, two] = scanned.map(median);
        fastest.get_or_insert((one, two));
        let share = match isa {
            IsaChoice::Only(Isa::Avx512) => Some(0.8),
            IsaChoice::Only(Isa::Avx2) => Some(0.6),
            _ => None,
        };
        let limit = share.map_or(Limit::None, Limit::AtLeast);
        // What is asked of small records is asked of the widest way.
        let small_limit = match rows.len() {
            2 => Limit::AtLeast(0.6),
            _ => Limit::None,
        };
        rows.push(row(format!("stamping 64KiB, {name} / memset"), large, set, limit));
        rows.push(row(format!("stamping 4KiB, {name} / memset"), small, set, small_limit));
        rows.push(row(format!("scan, {name} / plain read"), one, read, limit));
        if share.is_none() {
            let limit = Limit::AtLeast(1.2);
            rows.push(row(
                format!("stamping 64KiB, {name} / format 1"),
                large,
                old_stamped[0],
                limit,
            ));
            rows.push(row(format!("scan, {name} / format 1"), one, old_scanned[0], limit));
        }
    }
    let (one, two) = fastest.context("every machine has the portable way")?;
    // Two cores read no faster together than the memory gives.
    rows.push(row("plain read, 2 threads / 1 thread".to_owned(), read_two, read, Limit::None));
    let allowed = (read_two / read).min(2.0) * 0.95;
    rows.push(row(
        "scan, 2 threads / 1 thread".to_owned(),
        two,
        one,
        Limit::AtLeast(allowed.min(1.9)),
    ));
    Ok(rows)
}

/// Allocations while a writer works, on a pattern with a closed form and on a counted one.
fn allocations() -> anyhow::Result<Row> {
    const OPERATIONS: u64 = 200_000;
    let mut counted = 0;
    for name in ["uniform", "zipf,content=random*1+sparse*1+delta:3*1", "iometer"] {
        let workload = workload(name, Bytes(64 << 20))?;
        let region = Arc::new(Region::anonymous(Bytes(64 << 20))?);
        fill(&region, &workload, |_| {});
        let mut writer = Writer::new(workload, region, Watermarks::new(&[0]), 0);
        // The histograms of a run are allocated once, whatever its length.
        let of = |writer: &mut Writer, operations| {
            let before = sys::allocations();
            drop(writer.run(Pace::Unlimited, &mut Free, operations));
            sys::allocations() - before
        };
        let short = of(&mut writer, 1);
        counted += of(&mut writer, OPERATIONS).saturating_sub(short);
    }
    Ok(Row {
        name: "allocations in 600,000 operations".to_owned(),
        figure: counted.to_string(),
        peer: "-".to_owned(),
        value: Some(counted as f64),
        limit: Limit::AtMost(0.0),
    })
}

/// Distinct pages per second of `touch` on one core while the kernel tracks them.
fn touch(rounds: usize) -> anyhow::Result<Row> {
    let workload = workload("touch", MEMORY)?;
    let region = Arc::new(Region::anonymous(MEMORY)?);
    fill(&region, &workload, |_| {});
    let pages = region.pages();
    let mut row = Row {
        name: "touch under write tracking, pages/s".to_owned(),
        figure: "-".to_owned(),
        peer: "1.00 M/s".to_owned(),
        value: None,
        limit: Limit::AtLeast(1.0),
    };
    let mut dirty = match DirtyPages::watch(region.clone()) {
        Ok(dirty) => dirty,
        Err(e) => {
            workload::say!("SKIPPED: touch under write tracking: {e} (needs Linux 6.7)");
            return Ok(row);
        }
    };
    let mut writer = Writer::new(workload, region, Watermarks::new(&[0]), 0);
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let elapsed = seconds(|| drop(writer.run(Pace::Unlimited, &mut Free, pages)));
        let counted: u64 = dirty.harvest()?.iter().map(|run| run.end - run.start).sum();
        anyhow::ensure!(counted == pages, "the kernel counted {counted} of {pages} pages");
        rates.push(pages as f64 / elapsed);
    }
    let rate = median(rates);
    row.figure = format!("{:.2} M/s", rate / 1e6);
    row.value = Some(rate / 1e6);
    Ok(row)
}

/// The worst second at each rate, and what is said of a rate that cannot be met.
fn rates((length_s, runs): (u64, usize)) -> anyhow::Result<Vec<Row>> {
    let run = |rate: &str, more: &[&str]| -> anyhow::Result<Summary> {
        let output = Command::new(beside("workload")?)
            .args(["run", "--json", "--memory", "256MiB", "--rate", rate, "--duration"])
            .arg(format!("{}s", length_s + 1))
            .args(more)
            .output()
            .context("cannot run the workload")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.code() == Some(i32::from(exit::PROVEN)), "{error}");
        report(&output)
    };
    let mut rows = Vec::new();
    for rate in ["1MB/s", "10MB/s", "100MB/s", "1GB/s", "2GB/s"] {
        // One record of 4 KiB more or less is 0.4 % of a second at 1 MB/s.
        let record = if rate == "1MB/s" { "1KiB" } else { "4KiB" };
        let (mut errors, mut missed) = (Vec::new(), 0);
        for _ in 0..runs {
            let summary = run(rate, &["--record", record])?;
            errors.push(summary.window_error_max.context("no window was measured")?);
            missed += summary.missed;
        }
        let error = median(errors);
        rows.push(Row {
            name: format!("worst second at {rate}, % off"),
            figure: format!("{:.2} %", error * 100.0),
            peer: format!("{missed} missed"),
            value: Some(error * 100.0),
            limit: Limit::AtMost(0.5),
        });
    }
    let summary = run("100GB/s", &[])?;
    let record = 4096.0;
    let said = (summary.operations + summary.missed) as f64 * record / summary.seconds;
    rows.push(Row {
        name: "done + reported missed / asked, 100GB/s".to_owned(),
        figure: gigabytes(said),
        peer: gigabytes(1e11),
        value: Some(said / 1e11),
        limit: Limit::AtLeast(0.95),
    });
    Ok(rows)
}

/// A long journal, read and judged by the program: time and memory.
fn journal(beats: u64) -> anyhow::Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("journal");
    write_journal(&path, beats)?;
    let begin = Instant::now();
    let mut child = Command::new(beside("verifier")?)
        .args(["journal", "--json"])
        .arg(&path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("cannot run the verifier")?;
    let status = format!("/proc/{}/status", child.id());
    let mut most_kib = 0;
    let code = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
        most_kib = peak.unwrap_or(0).max(most_kib);
        match child.try_wait()? {
            Some(code) => break code,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let elapsed = begin.elapsed().as_secs_f64();
    anyhow::ensure!(code.code() == Some(i32::from(exit::PROVEN)), "a good journal: {code}");
    let share = beats as f64 / 10_000_000.0;
    let gibibytes = most_kib as f64 / f64::from(1 << 20);
    Ok(vec![
        Row {
            name: format!("journal of {} M beats, s", beats / 1_000_000),
            figure: format!("{elapsed:.2} s"),
            peer: format!("{:.0} MB", std::fs::metadata(&path)?.len() as f64 / 1e6),
            value: Some(elapsed),
            limit: Limit::AtMost(5.0 * share),
        },
        Row {
            name: format!("journal of {} M beats, GiB", beats / 1_000_000),
            figure: format!("{gibibytes:.2} GiB"),
            peer: "1 GiB".to_owned(),
            value: Some(gibibytes),
            limit: Limit::AtMost(share.max(0.2)),
        },
    ])
}

/// A journal as a guest of two writers leaves it that beat 100 times a second for long.
fn write_journal(path: &std::path::Path, beats: u64) -> anyhow::Result<()> {
    let spec = workload("stream", MEMORY)?.spec().clone();
    let spec = WorkloadSpec { writers: 2, ..spec };
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let (session, tag) = (SessionId(7), Tag(7));
    let mut number = 0;
    let mut note = |at_us: u64, entry: Entry| {
        let line = Line { session, number, at_us, entry };
        number += 1;
        file.write_all(sealed(&line.text()).as_bytes())
    };
    note(
        0,
        Entry::Open(Opening {
            collector: Name::of("bench"),
            boot: 1,
            boot_us: 1,
            wall_us: 1,
            late_us: 0,
            after: None,
        }),
    )?;
    let start = Start { interval_us: 10_000, weak: false, spec };
    note(0, Entry::Heard(tag, Said::Start(Box::new(start))))?;
    let bits = |number: u64| (mix(number + 1) as u32) | 0x0001_0001;
    for number in 0..beats {
        let beat = Beat {
            number,
            bits: bits(number),
            kind: Kind::Running,
            epoch: 0,
            writer: (number % 2) as u16,
            watermark: number * 100,
            clock_us: number * 10_000,
            links: linked(number).map(|number| number.map_or(0, |number| bits(number) as u16)),
        };
        note(number * 10_000, Entry::Heard(tag, Said::Beat(beat)))?;
    }
    note(beats * 10_000, Entry::Close(beats + 3))?;
    Ok(file.flush()?)
}

/// A RAM file of 64 GiB with 16 MiB of data: what is not there is not looked at.
fn sparse_image() -> anyhow::Result<Row> {
    let directory = tempfile::tempdir()?;
    let (image, journal) = (directory.path().join("image"), directory.path().join("journal"));
    let small = Bytes(16 << 20);
    let spec = workload("stream", small)?.spec().clone();
    let region = Region::create(&image, small)?;
    fill(&region, &spec.resolve()?, |_| {});
    drop(region);
    std::fs::File::options().write(true).open(&image)?.set_len(64 << 30)?;
    let mut writer = JournalWriter::create(&journal, &spec, Duration::from_millis(5))?;
    writer.beats(Kind::Ended, 0, &[0], 0);
    drop(writer);
    let mut code = None;
    let elapsed = seconds(|| {
        let mut verifier = Command::new(beside("verifier").unwrap_or_default());
        verifier.arg("image").arg(&image).arg("--journal").arg(&journal);
        code = verifier.output().ok().and_then(|output| output.status.code());
    });
    anyhow::ensure!(code == Some(i32::from(exit::PROVEN)), "a good image: {code:?}");
    Ok(Row {
        name: "sparse image of 64 GiB, 16 MiB of data".to_owned(),
        figure: format!("{elapsed:.2} s"),
        peer: "1 s".to_owned(),
        value: Some(elapsed),
        limit: Limit::AtMost(1.0),
    })
}

/// The manifest against OpenSSL on all cores.
fn hashing(rounds: usize) -> anyhow::Result<Row> {
    let cores = std::thread::available_parallelism()?.get() as f64;
    let region = Region::anonymous(MEMORY)?;
    fill(&region, &*workload("stream", MEMORY)?, |_| {});
    let mut row = Row {
        name: format!("SHA-256 manifest / openssl x {cores}"),
        figure: "-".to_owned(),
        peer: "-".to_owned(),
        value: None,
        limit: Limit::AtLeast(0.9),
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds.min(3) {
        let mut root = String::new();
        let elapsed = seconds(|| root = Manifest::of(&region).root);
        std::hint::black_box(root);
        ours.push(MEMORY.0 as f64 / elapsed);
        let Some(rate) = openssl() else {
            workload::say!(
                "SKIPPED: SHA-256 against OpenSSL: no 'openssl' (Debian package openssl)"
            );
            return Ok(row);
        };
        theirs.push(rate * cores);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    (row.figure, row.peer) = (gigabytes(ours), gigabytes(theirs));
    row.value = Some(ours / theirs);
    Ok(row)
}

/// Bytes per second of one process; `None` without the program.
fn openssl() -> Option<f64> {
    let output = Command::new("openssl")
        .args(["speed", "-mr", "-seconds", "1", "-bytes", "4096", "-evp", "sha256"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "+F:22:sha256:1234567.89": bytes per second.
    let line = text.lines().find(|line| line.starts_with("+F:"))?;
    line.rsplit(':').next()?.parse().ok()
}

/// What 128 GiB must hold, at a watermark far away.
fn expected_state() -> anyhow::Result<Vec<Row>> {
    const LOOKUPS: u64 = 5_000_000;
    let mut rows = Vec::new();
    for name in ["stream", "uniform"] {
        let workload = workload(name, FULL)?;
        let share = &workload.shares()[0];
        let mut sum = 0;
        let elapsed = seconds(|| {
            let generations = Generations::at(&share.pattern, share.slots, 1 << 50);
            for i in 0..LOOKUPS {
                sum ^= generations.of(i.wrapping_mul(0x9E37_79B9) % share.slots);
            }
        });
        std::hint::black_box(sum);
        let nanoseconds = elapsed * 1e9 / LOOKUPS as f64;
        rows.push(Row {
            name: format!("expected state of 128 GiB, {name}"),
            figure: format!("{nanoseconds:.0} ns/slot"),
            peer: "O(1)".to_owned(),
            value: Some(nanoseconds),
            limit: Limit::AtMost(1000.0),
        });
    }
    let workload = workload("zipf", FULL)?;
    let share = &workload.shares()[0];
    let mut replayed = 0;
    let elapsed = seconds(|| {
        let generations = Generations::at(&share.pattern, share.slots, ZIPF_OPERATIONS);
        replayed = (0..share.slots).map(|slot| generations.of(slot)).sum();
    });
    anyhow::ensure!(replayed == ZIPF_OPERATIONS, "{replayed} operations were replayed");
    let pages = FULL.0 / PAGE_BYTES;
    rows.push(Row {
        name: "zipf, 10^9 operations replayed".to_owned(),
        figure: format!("{elapsed:.1} s"),
        peer: format!("{} M pages", pages / 1_000_000),
        value: Some(elapsed),
        limit: Limit::AtMost(30.0),
    });
    Ok(rows)
}
