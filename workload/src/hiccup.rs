//! What the guest feels: times in which a CPU did not run us, told apart by their shape.
//!
//! One thread per CPU, pinned to it, sleeps for [`PERIOD`] over and over and notes when it woke up
//! late. A **stun** is a gap on all CPUs at once; a **throttle** is a comb of gaps with running
//! time between. The clock is `CLOCK_MONOTONIC`. A hypervisor may stop it for the time of a stun, and
//! then no gap is felt at all: the wall clock moving against it is noticed and reported as a jump.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::realtime_ns;

/// Time that each thread sleeps.
pub const PERIOD: Duration = Duration::from_micros(500);
/// The clock used, for reports.
pub const CLOCK: &str = "CLOCK_MONOTONIC";
/// Shortest gap that is noted: below, it is the scheduler's own grain.
const GAP_MIN_NS: u64 = 1_500_000;
/// Shortest stun that is reported.
const STUN_MIN_NS: u64 = 10_000_000;
/// Fewest gaps that make a comb, and its least length: less is a busy scheduler.
const COMB_GAPS_MIN: usize = 8;
const COMB_LENGTH_MIN_NS: u64 = 100_000_000;
/// Longest running time between two teeth of a comb, apart from four times the gap before it.
const COMB_RUN_MAX_NS: u64 = 20_000_000;
/// A comb that takes less than this share of the time is the scheduler at work.
const COMB_SHARE_MIN: f64 = 0.1;
/// A gap so many times longer than the comb's median is a stun in the middle of a throttle.
const STUN_IN_COMB: u64 = 5;
/// Step of the timeline.
pub const STEP: Duration = Duration::from_millis(100);
/// Most gaps kept per CPU.
const GAPS_MAX: usize = 1 << 20;
/// The wall clock moving by this much against the monotonic one is a jump.
const JUMP_MIN_NS: i64 = 5_000_000;

/// A time in which one CPU did not run us, in nanoseconds from the start of the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When it began.
    pub start_ns: u64,
    /// How long it was.
    pub length_ns: u64,
}

impl Gap {
    fn end_ns(&self) -> u64 {
        self.start_ns + self.length_ns
    }
}

/// A gap on all CPUs at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stun {
    /// When it began, seconds from the start of the watch.
    pub start_s: f64,
    /// How long all CPUs stood still, in milliseconds.
    pub length_ms: f64,
}

/// A comb of short gaps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Throttle {
    /// When it began, seconds from the start of the watch.
    pub start_s: f64,
    /// How long it went on, in seconds.
    pub length_s: f64,
    /// Share of that time in which the CPUs ran, 0 to 1.
    pub duty: f64,
    /// Gaps, on all throttled CPUs together.
    pub gaps: u64,
    /// CPUs throttled.
    pub cpus: u64,
}

/// The wall clock moving against the monotonic one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Jump {
    /// When it was noticed, seconds from the start of the watch.
    pub start_s: f64,
    /// By how much; above zero, the monotonic clock stood still (or the wall clock was set ahead).
    pub by_ms: f64,
}

/// What was felt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Felt {
    /// The clock that times are of.
    pub clock: String,
    /// CPUs watched.
    pub cpus: u64,
    /// Gaps on all CPUs at once.
    pub stuns: Vec<Stun>,
    /// Combs of gaps.
    pub throttles: Vec<Throttle>,
    /// Clock jumps: a stun may hide in each.
    pub jumps: Vec<Jump>,
    /// Share of each 100 ms in which the CPUs ran, 0 to 1.
    pub duty: Vec<f32>,
}

/// Threads that watch for gaps.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    start: Instant,
    threads: Vec<JoinHandle<Vec<Gap>>>,
    jumps: JoinHandle<Vec<Jump>>,
}

impl Watch {
    /// Starts one thread on each CPU that this process may use.
    ///
    /// # Errors
    /// No threads could be had.
    pub fn start() -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let threads = cpus().into_iter().map(|cpu| {
            let stop = stop.clone();
            std::thread::Builder::new().name(format!("hiccup-{cpu}")).spawn(move || {
                pin(cpu);
                watch_gaps(start, &stop)
            })
        });
        let threads = threads.collect::<Result<_, _>>();
        let stopping = stop.clone();
        let jumps = std::thread::Builder::new()
            .name("hiccup-clock".into())
            .spawn(move || watch_jumps(start, &stopping));
        match (threads, jumps) {
            (Ok(threads), Ok(jumps)) => Ok(Self { stop, start, threads, jumps }),
            (Err(e), _) | (_, Err(e)) => {
                // Those that did start end by themselves.
                stop.store(true, Ordering::Release);
                Err(e)
            }
        }
    }

    /// Stops watching and says what was felt.
    pub fn stop(self) -> Felt {
        self.stop.store(true, Ordering::Release);
        let gaps: Vec<Vec<Gap>> = self
            .threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        let jumps = self.jumps.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Felt { jumps, ..analyse(&gaps, self.start.elapsed()) }
    }
}

fn watch_gaps(start: Instant, stop: &AtomicBool) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let now_ns = || start.elapsed().as_nanos() as u64;
    let period_ns = PERIOD.as_nanos() as u64;
    let mut before = now_ns();
    while !stop.load(Ordering::Acquire) {
        std::thread::sleep(PERIOD);
        let now = now_ns();
        // Where in the sleep the gap began is not known: half of it, on average.
        let length_ns = (now - before).saturating_sub(period_ns / 2);
        if length_ns >= GAP_MIN_NS && gaps.len() < GAPS_MAX {
            gaps.push(Gap { start_ns: before + period_ns / 2, length_ns });
        }
        before = now;
    }
    gaps
}

fn watch_jumps(start: Instant, stop: &AtomicBool) -> Vec<Jump> {
    let mut jumps = Vec::new();
    let offset = || {
        // Read in one breath, as often as it takes: a gap between the two looks like a jump.
        let sample = || {
            let before = start.elapsed().as_nanos() as i64;
            let wall = realtime_ns() as i64;
            let after = start.elapsed().as_nanos() as i64;
            (after - before, wall - after)
        };
        (0..5).map(|_| sample()).min().map_or(0, |(_, offset)| offset)
    };
    let mut before = offset();
    while !stop.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(20));
        let now = offset();
        if (now - before).abs() >= JUMP_MIN_NS {
            let start_s = start.elapsed().as_secs_f64();
            jumps.push(Jump { start_s, by_ms: (now - before) as f64 / 1e6 });
        }
        before = now;
    }
    jumps
}

/// Tells stuns from throttles in the gaps of each CPU, noted over `length`.
pub fn analyse(gaps: &[Vec<Gap>], length: Duration) -> Felt {
    let combs: Vec<Vec<Comb>> = gaps.iter().map(|gaps| combs(gaps)).collect();
    let is_tooth = |gap: &Gap| {
        let mut combs = combs.iter().flatten();
        combs.any(|comb| comb.covers(gap) && gap.length_ns < STUN_IN_COMB * comb.median_ns)
    };
    let stuns = common(gaps)
        .into_iter()
        .filter(|gap| gap.length_ns >= STUN_MIN_NS && !is_tooth(gap))
        .map(|gap| Stun {
            start_s: gap.start_ns as f64 / 1e9,
            length_ms: gap.length_ns as f64 / 1e6,
        })
        .collect();
    Felt {
        clock: CLOCK.to_owned(),
        cpus: gaps.len() as u64,
        stuns,
        throttles: merge(&combs),
        jumps: Vec::new(),
        duty: duty(gaps, length),
    }
}

/// A run of gaps of one CPU with little running time between.
struct Comb {
    start_ns: u64,
    end_ns: u64,
    /// Time in its teeth; a stun among them counts as one of the median length.
    lost_ns: u64,
    /// Length of the comb without what a stun among its teeth is too long.
    length_ns: u64,
    median_ns: u64,
    gaps: u64,
}

impl Comb {
    fn covers(&self, gap: &Gap) -> bool {
        self.start_ns <= gap.start_ns && gap.start_ns < self.end_ns
    }
}

fn combs(gaps: &[Gap]) -> Vec<Comb> {
    let belongs = |pair: &[Gap]| {
        let run = pair[1].start_ns.saturating_sub(pair[0].end_ns());
        run <= COMB_RUN_MAX_NS.max(4 * pair[0].length_ns)
    };
    let mut combs = Vec::new();
    let mut first = 0;
    for end in 1..=gaps.len() {
        if end < gaps.len() && belongs(&gaps[end - 1..=end]) {
            continue;
        }
        let teeth = &gaps[first..end];
        first = end;
        if teeth.len() < COMB_GAPS_MIN {
            continue;
        }
        let mut lengths: Vec<u64> = teeth.iter().map(|gap| gap.length_ns).collect();
        lengths.sort_unstable();
        let median_ns = lengths[lengths.len() / 2];
        let too_long: u64 = lengths
            .iter()
            .filter(|length| **length >= STUN_IN_COMB * median_ns)
            .map(|length| length - median_ns)
            .sum();
        let (start_ns, end_ns) = (teeth[0].start_ns, teeth[teeth.len() - 1].end_ns());
        // The running time after the last tooth is not known; as much as one between, on average.
        let running = end_ns - start_ns - lengths.iter().sum::<u64>();
        let length_ns = end_ns - start_ns - too_long + running / (teeth.len() as u64 - 1);
        let lost_ns = lengths.iter().sum::<u64>() - too_long;
        let long_enough = end_ns - start_ns >= COMB_LENGTH_MIN_NS;
        if long_enough && lost_ns as f64 >= COMB_SHARE_MIN * length_ns as f64 {
            let gaps = teeth.len() as u64;
            combs.push(Comb { start_ns, end_ns, lost_ns, length_ns, median_ns, gaps });
        }
    }
    combs
}

/// Combs of several CPUs at the same time are one throttle.
fn merge(combs: &[Vec<Comb>]) -> Vec<Throttle> {
    let mut all: Vec<&Comb> = combs.iter().flatten().collect();
    all.sort_by_key(|comb| comb.start_ns);
    let mut throttles: Vec<(Throttle, u64)> = Vec::new();
    for comb in all {
        let duty = 1.0 - comb.lost_ns as f64 / comb.length_ns as f64;
        let start_s = comb.start_ns as f64 / 1e9;
        match throttles.last_mut() {
            Some((last, end_ns)) if comb.start_ns < *end_ns => {
                *end_ns = comb.end_ns.max(*end_ns);
                last.length_s = *end_ns as f64 / 1e9 - last.start_s;
                last.duty = (last.duty * last.cpus as f64 + duty) / (last.cpus + 1) as f64;
                last.gaps += comb.gaps;
                last.cpus += 1;
            }
            _ => {
                let length_s = (comb.end_ns - comb.start_ns) as f64 / 1e9;
                let throttle = Throttle { start_s, length_s, duty, gaps: comb.gaps, cpus: 1 };
                throttles.push((throttle, comb.end_ns));
            }
        }
    }
    throttles.into_iter().map(|(throttle, _)| throttle).collect()
}

/// The times in which every CPU had a gap.
fn common(gaps: &[Vec<Gap>]) -> Vec<Gap> {
    let Some((first, rest)) = gaps.split_first() else { return Vec::new() };
    rest.iter().fold(first.clone(), |common, other| {
        let mut both = Vec::new();
        let mut next = 0;
        for gap in &common {
            while next < other.len() && other[next].end_ns() <= gap.start_ns {
                next += 1;
            }
            for with in other[next..].iter().take_while(|with| with.start_ns < gap.end_ns()) {
                let start_ns = gap.start_ns.max(with.start_ns);
                let length_ns = gap.end_ns().min(with.end_ns()) - start_ns;
                both.push(Gap { start_ns, length_ns });
            }
        }
        both
    })
}

/// Share of each step in which the CPUs ran.
fn duty(gaps: &[Vec<Gap>], length: Duration) -> Vec<f32> {
    let step_ns = STEP.as_nanos() as u64;
    let length_ns = length.as_nanos() as u64;
    let mut lost = vec![0u64; length_ns.div_ceil(step_ns) as usize];
    for gap in gaps.iter().flatten() {
        let (mut start, end) = (gap.start_ns, gap.end_ns().min(length_ns));
        while start < end {
            let until = ((start / step_ns + 1) * step_ns).min(end);
            lost[(start / step_ns) as usize] += until - start;
            start = until;
        }
    }
    let cpus = gaps.len().max(1) as u64;
    let of_step = |(index, lost): (usize, u64)| {
        let step = step_ns.min(length_ns - index as u64 * step_ns) * cpus;
        1.0 - lost as f32 / step as f32
    };
    lost.into_iter().enumerate().map(of_step).collect()
}

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_default();
    let found: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    if found.is_empty() { vec![0] } else { found }
}

/// Keeps the calling thread on one CPU; where that fails it may run anywhere.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn gap(start_ms: u64, length_ms: u64) -> Gap {
        Gap { start_ns: start_ms * MS, length_ns: length_ms * MS }
    }

    fn comb(start_ms: u64, teeth: u64, gap_ms: u64, run_ms: u64) -> Vec<Gap> {
        (0..teeth).map(|i| gap(start_ms + i * (gap_ms + run_ms), gap_ms)).collect()
    }

    fn felt(gaps: &[Vec<Gap>]) -> Felt {
        analyse(gaps, Duration::from_secs(2))
    }

    #[test]
    fn a_stun_is_a_gap_on_all_cpus() {
        let felt = felt(&[vec![gap(500, 300)], vec![gap(20, 15), gap(502, 300)]]);
        assert_eq!(felt.stuns, [Stun { start_s: 0.502, length_ms: 298.0 }]);
        assert_eq!(felt.throttles, []);
        assert!((felt.duty[5] - 0.01).abs() < 1e-5 && felt.duty[9] == 1.0);
        assert_eq!(felt.duty.len(), 20);
    }

    #[test]
    fn a_comb_is_a_throttle_and_no_stun() {
        let felt = felt(&[comb(100, 50, 10, 10), comb(100, 50, 10, 10)]);
        assert_eq!(felt.stuns, []);
        assert_eq!(felt.throttles.len(), 1);
        let throttle = &felt.throttles[0];
        assert!((throttle.duty - 0.5).abs() < 1e-9, "{throttle:?}");
        assert_eq!((throttle.gaps, throttle.cpus), (100, 2));
        assert!((felt.duty[5] - 0.5).abs() < 1e-5);
    }

    #[test]
    fn a_harsh_throttle_has_long_teeth() {
        let felt = felt(&[comb(0, 9, 190, 10)]);
        assert_eq!(felt.stuns, []);
        assert!((felt.throttles[0].duty - 0.05).abs() < 1e-9, "{:?}", felt.throttles);
    }

    #[test]
    fn a_stun_ends_a_throttle() {
        let mut gaps = comb(0, 30, 10, 10);
        gaps.push(gap(600, 400));
        let felt = felt(&[gaps.clone(), gaps]);
        assert_eq!(felt.stuns, [Stun { start_s: 0.6, length_ms: 400.0 }]);
        assert!((felt.throttles[0].duty - 0.5).abs() < 0.01, "{:?}", felt.throttles);
    }

    #[test]
    fn scheduler_noise_is_neither() {
        let noise: Vec<Gap> = (0..50).map(|i| gap(i * 40, 3)).collect();
        let felt = felt(&[noise.clone(), noise]);
        assert_eq!((felt.stuns.len(), felt.throttles.len()), (0, 0));
    }
}
