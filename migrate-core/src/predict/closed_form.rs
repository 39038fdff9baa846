//! Rounds of pre-copy under a throttle, summed up in closed form.

/// Time to migrate `m` bytes at bandwidth `b` with dirty rate `d`: a full round that leaves
/// min(1, d/b) of memory, then rounds that each leave min(d/b, beta) of what they sent. Below
/// beta this is M/(B-D), at d >= b it is (M/B)(1 + 1/(1-beta)).
pub fn time(m: f64, b: f64, d: f64, beta: f64) -> f64 {
    let rho = d / b;
    m / b * (1.0 + rho.min(1.0) / (1.0 - rho.min(beta)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_white_papers_ratios() {
        let ratio = |r: f64| time(1.0, 1.0, r, 0.914) / time(1.0, 4.0, r, 0.914);
        assert!((ratio(1.0) - 38.0).abs() < 0.5, "{}", ratio(1.0));
        assert!((ratio(3.565) - 5.5).abs() < 0.1, "{}", ratio(3.565));
    }
}
