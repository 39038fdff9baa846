//! How far the writers were when: their watermarks, sampled while a migration goes on.
//!
//! From it follow the guest's slowest tenth of a second and, since the operations themselves are
//! known, when each page was last written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use workload::pattern::Access;
use workload::spec::Workload;
use workload::writer::Watermarks;

use crate::guest::{GuestError, threads};

/// Time between samples, until there are too many.
const INTERVAL: Duration = Duration::from_millis(2);
/// Most watermarks in all samples together, 8 bytes each; when they are as many, every other sample
/// is dropped and they come half as often.
const WATERMARKS_MAX: usize = 1 << 21;
/// Most samples, however few writers there are.
const SAMPLES_MAX: usize = 1 << 17;
/// Operations followed back at most to find when pages were last written.
const OPERATIONS_MAX: u64 = 1 << 28;

/// Most windows of a [`Timeline::course`].
const WINDOWS_MAX: usize = 4096;

/// Samples the watermarks of a running guest.
#[derive(Debug)]
pub struct Gauge {
    /// Until it is joined.
    thread: Option<JoinHandle<Timeline>>,
    stop: Arc<AtomicBool>,
}

impl Gauge {
    pub(super) fn start(watermarks: Watermarks) -> Result<Self, GuestError> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = threads::start("the gauge".to_owned(), move || {
            let mut timeline = Timeline { samples: Vec::new() };
            let (begin, mut interval) = (Instant::now(), INTERVAL);
            let samples_max = (WATERMARKS_MAX / watermarks.read().len().max(1)).min(SAMPLES_MAX);
            while !told.load(Ordering::Relaxed) {
                timeline.samples.push((begin.elapsed().as_secs_f64(), watermarks.read()));
                if timeline.samples.len() >= samples_max {
                    let mut number = 0;
                    timeline.samples.retain(|_| {
                        number += 1;
                        number % 2 == 1
                    });
                    interval *= 2;
                }
                std::thread::park_timeout(interval);
            }
            timeline.samples.push((begin.elapsed().as_secs_f64(), watermarks.read()));
            timeline
        })?;
        Ok(Self { thread: Some(thread), stop })
    }

    /// Ends sampling.
    pub fn finish(mut self) -> Timeline {
        let end = |thread| Self::end(&self.stop, thread);
        self.thread.take().map(end).unwrap_or_default()
    }

    fn end(stop: &AtomicBool, thread: JoinHandle<Timeline>) -> Timeline {
        stop.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Gauge {
    /// An attempt that failed needs no samples any more.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            Self::end(&self.stop, thread);
        }
    }
}

/// Watermarks over time.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Seconds since sampling began, and each writer's operations by then.
    samples: Vec<(f64, Vec<u64>)>,
}

impl Timeline {
    /// When the writers were last seen to advance, in seconds since sampling began: the stun.
    fn stopped_at(&self) -> usize {
        let last = self.samples.last().map(|(_, watermarks)| watermarks);
        self.samples.iter().position(|(_, w)| Some(w) == last).unwrap_or(0)
    }

    /// The fewest operations per second in any `window` seconds before the writers stopped, counted
    /// from `from` seconds on; `None` if it was over sooner.
    pub fn slowest(&self, window: f64, from: f64) -> Option<f64> {
        let samples = &self.samples[..self.stopped_at()];
        let total = |watermarks: &[u64]| watermarks.iter().sum::<u64>();
        let mut end = 0;
        let mut slowest: Option<f64> = None;
        for (start, before) in samples.iter().skip_while(|(at, _)| *at < from) {
            while end < samples.len() && samples[end].0 < start + window {
                end += 1;
            }
            let Some((at, after)) = samples.get(end) else { break };
            let rate = (total(after) - total(before)) as f64 / (at - start);
            slowest = Some(slowest.map_or(rate, |slowest| slowest.min(rate)));
        }
        slowest
    }

    /// Operations per second in windows of equal length, from when sampling began to its end; at most
    /// 4096, of `window` seconds or a power of two as much. The length that they have.
    pub fn course(&self, window: f64) -> (f64, Vec<f64>) {
        let total = |(_, watermarks): &(f64, Vec<u64>)| watermarks.iter().sum::<u64>() as f64;
        let (Some(first), Some(last)) = (self.samples.first(), self.samples.last()) else {
            return (window, Vec::new());
        };
        let mut window = window;
        while (last.0 - first.0) / window > WINDOWS_MAX as f64 {
            window *= 2.0;
        }
        // Between two samples the writers are taken to write evenly.
        let mut index = 0;
        let mut at = |time: f64| {
            while index + 2 < self.samples.len() && self.samples[index + 1].0 < time {
                index += 1;
            }
            let Some(next) = self.samples.get(index + 1) else { return total(first) };
            let before = &self.samples[index];
            let share = ((time - before.0) / (next.0 - before.0).max(1e-9)).clamp(0.0, 1.0);
            total(before) + share * (total(next) - total(before))
        };
        let windows = ((last.0 - first.0) / window).ceil() as usize;
        let mut done = total(first);
        let rates = (1..=windows).map(|number| {
            let end = (first.0 + number as f64 * window).min(last.0);
            let (before, length) = (done, end - first.0 - (number - 1) as f64 * window);
            done = at(end);
            (done - before) / length.max(1e-9)
        });
        (window, rates.collect())
    }

    /// For every page written since sampling began, the seconds between its last write and the
    /// moment the writers stopped, ascending; ages beyond `horizon_s` are left out.
    pub fn ages(&self, workload: &Workload, horizon_s: f64) -> Vec<f64> {
        let samples = &self.samples[..=self.stopped_at().min(self.samples.len().max(1) - 1)];
        let Some((stopped, last)) = samples.last() else { return Vec::new() };
        let mut ages = Vec::new();
        for (writer, share) in workload.shares().iter().enumerate() {
            let mut seen = vec![0u64; share.pages.div_ceil(64) as usize];
            let (mut index, mut new) = (samples.len() - 1, 0);
            let first = samples[0].1[writer].max(last[writer].saturating_sub(OPERATIONS_MAX));
            for k in (first..last[writer]).rev() {
                // Operation k was done between the samples around its watermark.
                while index > 0 && samples[index].1[writer] > k {
                    index -= 1;
                }
                let (before, after) = (&samples[index], &samples[index + 1]);
                let steps = (after.1[writer] - before.1[writer]) as f64;
                let share_of = (k + 1 - before.1[writer]) as f64 / steps;
                let age = stopped - (before.0 + share_of * (after.0 - before.0));
                if age > horizon_s || new == share.pages {
                    break;
                }
                let Access::Write(slot) = share.pattern.access(k) else { continue };
                for page in workload.slot_pages(writer, slot) {
                    let (word, bit) =
                        ((page - share.first_page) / 64, (page - share.first_page) % 64);
                    let word = &mut seen[word as usize];
                    if *word >> bit & 1 == 0 {
                        *word |= 1 << bit;
                        new += 1;
                        ages.push(age.max(0.0));
                    }
                }
            }
        }
        ages.sort_by(f64::total_cmp);
        ages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use workload::line::PageFormat;
    use workload::spec::WorkloadSpec;
    use workload::units::Bytes;

    fn timeline(points: &[(f64, u64)]) -> Timeline {
        Timeline { samples: points.iter().map(|(at, w)| (*at, vec![*w])).collect() }
    }

    #[test]
    fn the_course_has_every_window_and_no_operation_twice() {
        let timeline = timeline(&[(0.0, 0), (0.1, 10), (0.15, 30), (0.3, 30), (0.35, 60)]);
        let (window, rates) = timeline.course(0.1);
        assert_eq!((window, rates.len()), (0.1, 4));
        for (rate, wanted) in rates.iter().zip([100.0, 200.0, 0.0, 600.0]) {
            assert!((rate - wanted).abs() < 1e-6, "{rates:?}");
        }
        let (window, rates) =
            Timeline { samples: (0..=10_000).map(|at| (f64::from(at), vec![at as u64])).collect() }
                .course(0.1);
        assert_eq!((window, rates.len()), (0.1 * 32.0, 3125));
        assert_eq!(Timeline::default().course(0.1).1, Vec::<f64>::new());
    }

    #[test]
    fn a_gauge_that_is_dropped_ends_its_thread() {
        let watermarks = Watermarks::new(&[0]);
        let gauge = Gauge::start(watermarks.clone()).unwrap();
        let sampling = Arc::downgrade(&gauge.stop);
        drop(gauge);
        assert_eq!(sampling.strong_count(), 0, "the thread holds its flag no more");
    }

    #[test]
    fn the_slowest_window_is_found_and_the_stun_is_not_it() {
        let mut points: Vec<_> = (0..100).map(|i| (f64::from(i) * 0.01, i as u64 * 10)).collect();
        // A stretch at a fifth of the speed, then standing still for ever.
        for (i, point) in points.iter_mut().enumerate().skip(50) {
            point.1 = 500 + (i as u64 - 50).min(20) * 2 + (i as u64).saturating_sub(70) * 10;
        }
        let last = points[99].1;
        points.extend((100..200).map(|i| (f64::from(i) * 0.01, last)));
        let slowest = timeline(&points).slowest(0.1, 0.0).unwrap();
        assert!((slowest - 200.0).abs() < 1.0, "{slowest}");
        assert_eq!(timeline(&points[..5]).slowest(0.1, 0.0), None);
    }

    /// The oracle runs forward and remembers the time of every write.
    #[test]
    fn ages_are_those_of_the_last_writes() {
        for name in ["stream,record=16KiB", "uniform,record=64", "zipf,record=512", "touch"] {
            let spec = WorkloadSpec {
                format: PageFormat::fresh(),
                seed: 3,
                memory: Bytes(64 * 4096),
                writers: 1,
                workload: name.parse().unwrap(),
            };
            let workload = spec.resolve().unwrap();
            let points: Vec<_> = (0..=50).map(|i| (f64::from(i) * 0.02, i as u64 * 13)).collect();
            let mut still = points.clone();
            still.extend((51..60).map(|i| (f64::from(i) * 0.02, 50 * 13)));
            let mut at = BTreeMap::new();
            for k in 0..50 * 13 {
                if let Access::Write(slot) = workload.shares()[0].pattern.access(k) {
                    let done = (k + 1) as f64 / 13.0 * 0.02;
                    at.extend(workload.slot_pages(0, slot).map(|page| (page, 1.0 - done)));
                }
            }
            let mut wanted: Vec<f64> = at.into_values().filter(|age| *age <= 0.5).collect();
            wanted.sort_by(f64::total_cmp);
            let ages = timeline(&still).ages(&workload, 0.5);
            assert_eq!(ages.len(), wanted.len(), "{name}");
            assert!(ages.iter().zip(&wanted).all(|(a, w)| (a - w.max(0.0)).abs() < 1e-9), "{name}");
        }
    }
}
