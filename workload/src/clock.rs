//! The two clocks this project stamps with, as nanosecond counts.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall clock, nanoseconds since 1970-01-01 UTC (`CLOCK_REALTIME`). The one clock that two hosts
/// can compare; as exact across hosts as their time synchronisation.
pub fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as u64
}

/// Monotonic clock, nanoseconds since this process first asked (`CLOCK_MONOTONIC`).
pub fn monotonic_ns() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
