//! Which way pages are put on the wire: the one that gets them across soonest, by measurement.
//!
//! Packing overlaps with the wire (sockets hold what was sent), so a page packed by method m takes
//! max(CPU of m, share of m * wire time of a page). The wire time is known whenever sending, not
//! packing, took the time; while the CPU is the limit it is only known to be shorter, and is taken
//! to be shorter and shorter, until sending pages whole pays again. What a method would do is known
//! from samples that take a hundredth of the time. So a fast link, whose pages pass in less time
//! than they can be packed in, pays nothing but the samples.

use std::time::Duration;

use super::block::Method;
use super::{Compress, Delta, Encoding};
use crate::memory::PAGE_BYTES;

/// Groups are gathered until they took this long.
const WINDOW_MIN: Duration = Duration::from_millis(10);
/// Weight of the newest window or sample.
const WEIGHT: f64 = 0.3;
/// Where sending took at least this share of the time, the wire was the limit.
const WIRE_SHARE: f64 = 0.3;
/// By so much the wire is taken to be faster with every window that it was not the limit.
const UNSEEN: f64 = 0.97;
/// A change of method must promise this much.
const GAIN: f64 = 0.9;
/// Packing takes this much longer than measured: it competes with the receiver, the guest, us.
const CPU_MARGIN: f64 = 1.15;
/// Samples may take this share of the time.
const SAMPLE_SHARE: f64 = 0.01;
/// Comparing a page with its signature may take this share of its time on the wire.
const SIGN_SHARE: f64 = 0.25;
/// After so many pages that could be compared, deltas must have saved at least this share.
const TRIAL_PAGES: u64 = 4096;
const SAVED_SHARE: f64 = 0.02;
/// Pages sent before deltas that saved nothing are tried again.
const DORMANT_PAGES: u64 = 16 * TRIAL_PAGES;
/// Time to sign a page, until measured.
const SIGN_GUESS_S: f64 = 1e-6;

/// What sending a group came to. Groups of zero pages alone do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    /// Pages with contents, however they were sent.
    pub pages: u64,
    /// Pages that were packed.
    pub packed: u64,
    /// Pages that were compared with, or got, a signature.
    pub signed: u64,
    /// Pages whose signature was known.
    pub compared: u64,
    /// Of their bytes, how many did not have to be sent.
    pub saved_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Time spent signing.
    pub signing: Duration,
    /// Time spent packing.
    pub packing: Duration,
    /// Time in all.
    pub elapsed: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Seconds per page.
    cpu_s: f64,
    /// Bytes out per byte in.
    share: f64,
}

/// The choice of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    setting: Encoding,
    method: Method,
    /// Seconds that a whole page takes on the wire.
    wire_s: Option<f64>,
    sign_s: f64,
    trials: [Option<Trial>; 2],
    window: Spent,
    total: Duration,
    sampled: Duration,
    /// How often; whose turn it is follows from it.
    samples: usize,
    compared: u64,
    saved_bytes: u64,
    dormant_pages: u64,
}

const PACKED: [Method; 2] = [Method::Lz4, Method::Zstd];

impl Choice {
    /// A choice within what is set.
    pub(crate) fn new(setting: Encoding) -> Self {
        Self {
            setting,
            method: match setting.compress {
                Compress::Lz4 => Method::Lz4,
                Compress::Zstd => Method::Zstd,
                Compress::Auto | Compress::Off => Method::Plain,
            },
            wire_s: None,
            sign_s: SIGN_GUESS_S,
            trials: [None; 2],
            window: Spent::default(),
            total: Duration::ZERO,
            sampled: Duration::ZERO,
            samples: 0,
            compared: 0,
            saved_bytes: 0,
            dormant_pages: 0,
        }
    }

    /// How the next pages are packed.
    pub(crate) fn method(&self) -> Method {
        self.method
    }

    /// Whether the next pages are compared with their signatures.
    pub(crate) fn signs(&self) -> bool {
        match self.setting.delta {
            Delta::Off => false,
            Delta::On => true,
            Delta::Auto => {
                self.dormant_pages == 0
                    && self.wire_s.is_some_and(|wire| self.sign_s < SIGN_SHARE * wire)
            }
        }
    }

    /// The method to try on a few of the next pages, if it is time.
    pub(crate) fn wants_sample(&self) -> Option<Method> {
        let affordable = self.sampled.as_secs_f64() <= SAMPLE_SHARE * self.total.as_secs_f64();
        if self.setting.compress != Compress::Auto || !affordable {
            return None;
        }
        // Whichever is unknown, and then in turn.
        let unknown = PACKED.iter().zip(&self.trials).find(|(_, trial)| trial.is_none());
        let turn = PACKED[self.samples % PACKED.len()];
        Some(unknown.map_or(turn, |(method, _)| *method)).filter(|m| *m != self.method)
    }

    /// A sample of `pages` pages became `share` of their size in `elapsed`.
    pub(crate) fn sample(&mut self, method: Method, pages: u64, share: f64, elapsed: Duration) {
        self.sampled += elapsed;
        self.samples += 1;
        self.learn(method, elapsed.as_secs_f64() / pages as f64, share);
    }

    fn learn(&mut self, method: Method, cpu_s: f64, share: f64) {
        let Some(index) = PACKED.iter().position(|m| *m == method) else { return };
        let old = self.trials[index].unwrap_or(Trial { cpu_s, share });
        let mix = |old: f64, new: f64| old + WEIGHT * (new - old);
        self.trials[index] =
            Some(Trial { cpu_s: mix(old.cpu_s, cpu_s), share: mix(old.share, share) });
    }

    /// Takes in what a group took, and what packing made of it: `packed_share` of its size.
    pub(crate) fn spent(&mut self, spent: &Spent, packed_share: Option<f64>) {
        let window = &mut self.window;
        window.signed += spent.signed;
        window.wire_bytes += spent.wire_bytes;
        window.signing += spent.signing;
        window.packing += spent.packing;
        window.elapsed += spent.elapsed;
        self.total += spent.elapsed;
        self.compared += spent.compared;
        self.saved_bytes += spent.saved_bytes;
        self.dormant_pages = self.dormant_pages.saturating_sub(spent.pages);
        if let Some(share) = packed_share.filter(|_| spent.packed > 0) {
            self.learn(self.method, spent.packing.as_secs_f64() / spent.packed as f64, share);
        }
        if self.compared >= TRIAL_PAGES {
            let bytes = (self.compared * PAGE_BYTES) as f64;
            if (self.saved_bytes as f64) < SAVED_SHARE * bytes {
                self.dormant_pages = DORMANT_PAGES;
            }
            (self.compared, self.saved_bytes) = (0, 0);
        }
        if self.window.elapsed >= WINDOW_MIN && self.window.wire_bytes > 0 {
            let window = std::mem::take(&mut self.window);
            self.measure(&window);
            self.decide();
        }
    }

    fn measure(&mut self, window: &Spent) {
        let elapsed = window.elapsed.as_secs_f64();
        let working = (window.signing + window.packing).as_secs_f64();
        if window.signed > 0 {
            let sign_s = window.signing.as_secs_f64() / window.signed as f64;
            self.sign_s += WEIGHT * (sign_s - self.sign_s);
        }
        self.wire_s = if elapsed - working >= WIRE_SHARE * elapsed {
            let seen = elapsed * PAGE_BYTES as f64 / window.wire_bytes as f64;
            Some(self.wire_s.map_or(seen, |old| old + WEIGHT * (seen - old)))
        } else {
            self.wire_s.map(|old| old * UNSEEN)
        };
    }

    fn decide(&mut self) {
        let (Compress::Auto, Some(wire)) = (self.setting.compress, self.wire_s) else { return };
        let cost = |method| match PACKED.iter().position(|m| *m == method) {
            None => Some(wire),
            Some(index) => self.trials[index].map(|t| (CPU_MARGIN * t.cpu_s).max(t.share * wire)),
        };
        let now = cost(self.method).unwrap_or(wire);
        let best = [Method::Plain, Method::Lz4, Method::Zstd]
            .into_iter()
            .filter_map(|method| Some((method, cost(method)?)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b));
        if let Some((method, cost)) = best
            && cost < GAIN * now
        {
            self.method = method;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream on a link of `bytes_per_s`, with packers of given CPU time and share; returns the
    /// method it settled on and pages per second.
    fn settle(
        choice: &mut Choice,
        bytes_per_s: f64,
        lz4: (f64, f64),
        zstd: (f64, f64),
    ) -> (Method, f64) {
        let of = |method| match method {
            Method::Plain => (0.0, 1.0),
            Method::Lz4 => lz4,
            Method::Zstd => zstd,
        };
        let (mut pages, mut seconds) = (0, 0.0);
        for _ in 0..4000 {
            let (cpu, share) = of(choice.method());
            let wire = share * 64.0 * PAGE_BYTES as f64 / bytes_per_s;
            let elapsed = (64.0 * cpu).max(wire).max(64.0 * 0.5e-6);
            let spent = Spent {
                pages: 64,
                packed: if share < 1.0 { 64 } else { 0 },
                wire_bytes: (share * 64.0 * PAGE_BYTES as f64) as u64,
                packing: Duration::from_secs_f64(64.0 * cpu),
                elapsed: Duration::from_secs_f64(elapsed),
                ..Spent::default()
            };
            choice.spent(&spent, Some(share));
            if let Some(method) = choice.wants_sample() {
                let (cpu, share) = of(method);
                choice.sample(method, 8, share, Duration::from_secs_f64(8.0 * cpu));
                seconds += 8.0 * cpu;
            }
            (pages, seconds) = (pages + 64, seconds + elapsed);
        }
        (choice.method(), pages as f64 / seconds)
    }

    #[test]
    fn it_packs_where_the_wire_is_slower_than_the_packer() {
        let (lz4, zstd) = ((5e-6, 0.45), (7e-6, 0.25));
        let mut choice = Choice::new(Encoding::default());
        let (method, rate) = settle(&mut choice, 125e6, lz4, zstd);
        assert_eq!(method, Method::Zstd);
        // Four times the plain rate, bounded by the packer.
        assert!(rate > 3.3 * 125e6 / 4096.0, "{rate}");
        // The link becomes fast: whole pages again, at no less than plain speed.
        settle(&mut choice, 4e9, lz4, zstd);
        let (method, rate) = settle(&mut choice, 4e9, lz4, zstd);
        assert_eq!(method, Method::Plain);
        assert!(rate > 0.97 * 4e9 / 4096.0, "{rate}");
        // And slow again.
        assert_eq!(settle(&mut choice, 125e6, lz4, zstd).0, Method::Zstd);
    }

    /// The same measurements lead to the same choices: whose turn it is, is no clock's parity.
    #[test]
    fn both_packers_are_sampled_in_turn() {
        let mut choice = Choice::new(Encoding::default());
        let mut asked = Vec::new();
        for _ in 0..4000 {
            let elapsed = Duration::from_millis(20);
            choice.spent(&Spent { pages: 64, elapsed, ..Spent::default() }, None);
            if let Some(method) = choice.wants_sample() {
                asked.push(method);
                choice.sample(method, 8, 1.0, Duration::from_micros(200));
            }
        }
        let lz4 = asked.iter().filter(|method| **method == Method::Lz4).count();
        assert!(
            asked.len() > 100 && lz4.abs_diff(asked.len() / 2) <= 1,
            "{lz4} of {}",
            asked.len()
        );
    }

    #[test]
    fn a_link_in_between_gets_the_lighter_packer() {
        let mut choice = Choice::new(Encoding::default());
        let (method, rate) = settle(&mut choice, 500e6, (3e-6, 0.45), (14e-6, 0.25));
        assert_eq!(method, Method::Lz4);
        assert!(rate > 1.9 * 500e6 / 4096.0, "{rate}");
    }

    #[test]
    fn what_cannot_be_packed_is_sent_whole() {
        let mut choice = Choice::new(Encoding::default());
        let (method, rate) = settle(&mut choice, 125e6, (4e-6, 1.0), (9e-6, 1.0));
        assert_eq!(method, Method::Plain);
        assert!(rate > 0.98 * 125e6 / 4096.0, "{rate}");
    }

    #[test]
    fn deltas_that_save_nothing_rest() {
        let mut choice = Choice::new(Encoding::default());
        assert!(!choice.signs(), "nothing is known of the link");
        let group = |saved_bytes| Spent {
            pages: 64,
            signed: 64,
            compared: 64,
            saved_bytes,
            wire_bytes: 64 * PAGE_BYTES - saved_bytes,
            signing: Duration::from_micros(32),
            elapsed: Duration::from_millis(2),
            ..Spent::default()
        };
        (0..200).for_each(|_| choice.spent(&group(64 * PAGE_BYTES / 2), None));
        assert!(choice.signs(), "half is saved");
        (0..200).for_each(|_| choice.spent(&group(0), None));
        assert!(!choice.signs(), "nothing is saved");
        (0..1100).for_each(|_| choice.spent(&Spent { signed: 0, compared: 0, ..group(0) }, None));
        assert!(choice.signs(), "it is tried again");
    }
}
