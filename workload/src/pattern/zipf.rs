//! Ranks drawn by Zipf's law, in integers and exactly rounded arithmetic only, so that every
//! machine and every build draws the same ones.
//!
//! Rank i (from 0) is to be drawn in proportion to (i+1)^-theta. Ranks are gathered in buckets:
//! one each up to [`SINGLE_RANKS`], then [`PER_OCTAVE`] per doubling; inside a bucket all ranks are
//! alike (the law changes by at most theta * 4.4 % there). A bucket is drawn by the alias method
//! (Walker 1977, in Vose's form), so a draw costs the same for any number of ranks.

use super::{below, draw};

/// Ranks with a bucket of their own.
const SINGLE_RANKS: u64 = 256;
/// Buckets per doubling of the rank beyond.
const PER_OCTAVE: u64 = 16;
/// Binary digits of theta that count.
const THETA_DIGITS: u32 = 20;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Chosen when the coin is below this; otherwise `alias` is.
    threshold: u32,
    alias: u32,
    first: u64,
    count: u64,
}

/// Draws ranks in `0..ranks`.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    buckets: Box<[Bucket]>,
}

impl Zipf {
    /// `theta_ppm`: the exponent in millionths.
    pub(super) fn new(ranks: u64, theta_ppm: u32) -> Self {
        let theta = (u64::from(theta_ppm) << THETA_DIGITS) / 1_000_000;
        let (mut ranges, mut first, mut octave) = (Vec::new(), 0, SINGLE_RANKS);
        while first < ranks {
            let count = if first < SINGLE_RANKS {
                1
            } else {
                if first >= 2 * octave {
                    octave *= 2;
                }
                octave / PER_OCTAVE
            };
            ranges.push((first, count.min(ranks - first)));
            first += count;
        }
        let weights: Vec<f64> = ranges
            .iter()
            .map(|(first, count)| {
                // The middle of the bucket stands for all of it.
                let middle = *first as f64 + (*count as f64 + 1.0) / 2.0;
                *count as f64 / power(middle, theta)
            })
            .collect();
        Self { buckets: alias_table(&ranges, &weights) }
    }

    /// The rank of the `k`-th draw under `key`.
    #[inline]
    pub(super) fn rank(&self, key: u64, k: u64) -> u64 {
        let random = draw(key, k);
        let index = ((random & 0xFFFF_FFFF) * self.buckets.len() as u64) >> 32;
        let bucket = &self.buckets[index as usize];
        let bucket = match (random >> 32) < u64::from(bucket.threshold) {
            true => bucket,
            false => &self.buckets[bucket.alias as usize],
        };
        match bucket.count {
            1 => bucket.first,
            count => bucket.first + below(draw(!key, k), count),
        }
    }
}

/// `x` to the power `theta / 2^THETA_DIGITS`: square roots and products, which IEEE 754 rounds
/// exactly and the libraries of this world therefore agree on (of `pow` they do not).
fn power(x: f64, theta: u64) -> f64 {
    let mut result = 1.0;
    for _ in 0..theta >> THETA_DIGITS {
        result *= x;
    }
    let mut root = x;
    for digit in (0..THETA_DIGITS).rev() {
        root = root.sqrt();
        if theta >> digit & 1 == 1 {
            result *= root;
        }
    }
    result
}

fn alias_table(ranges: &[(u64, u64)], weights: &[f64]) -> Box<[Bucket]> {
    let total: f64 = weights.iter().sum();
    let scale = weights.len() as f64 / total;
    let mut share: Vec<f64> = weights.iter().map(|w| w * scale).collect();
    let mut buckets: Vec<Bucket> = ranges
        .iter()
        .zip(0..)
        .map(|((first, count), i)| Bucket {
            threshold: u32::MAX,
            alias: i,
            first: *first,
            count: *count,
        })
        .collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..share.len()).partition(|i| share[*i] < 1.0);
    while let (Some(poor), Some(rich)) = (small.pop(), large.pop()) {
        buckets[poor].threshold = (share[poor] * 4_294_967_296.0) as u32;
        buckets[poor].alias = rich as u32;
        share[rich] -= 1.0 - share[poor];
        match share[rich] < 1.0 {
            true => small.push(rich),
            false => large.push(rich),
        }
    }
    buckets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_a_power() {
        for (x, theta) in [(2.0, 0.5), (1000.0, 0.99), (1e9, 1.2), (7.0, 3.0)] {
            let mine = power(x, (theta * f64::from(1 << THETA_DIGITS)) as u64);
            assert!((mine / f64::powf(x, theta) - 1.0).abs() < 1e-4, "{x}^{theta}: {mine}");
        }
    }

    /// The obvious way: every rank its own weight.
    #[test]
    fn draws_follow_the_law() {
        const DRAWS: u64 = 2_000_000;
        for (ranks, theta) in [(50u64, 1.2), (10_000, 0.99), (100_000, 0.5)] {
            let zipf = Zipf::new(ranks, (theta * 1e6) as u32);
            let mut seen = vec![0u64; ranks as usize];
            (0..DRAWS).for_each(|k| seen[zipf.rank(5, k) as usize] += 1);
            let weight = |i: u64| f64::powf((i + 1) as f64, -theta);
            let total: f64 = (0..ranks).map(weight).sum();
            let mut start = 0;
            for end in [1, 2, 5, 20, 50, 300, 1000, 5000, 10_000, 50_000, 100_000] {
                if end > ranks {
                    break;
                }
                let share = (start..end).map(weight).sum::<f64>() / total;
                let found: u64 = seen[start as usize..end as usize].iter().sum();
                let (found, wanted) = (found as f64, share * DRAWS as f64);
                // Five standard deviations, and a little for the steps.
                let slack = 5.0 * wanted.sqrt() + 0.004 * wanted;
                assert!((found - wanted).abs() < slack, "{start}..{end}: {found} not {wanted}");
                start = end;
            }
        }
    }
}
