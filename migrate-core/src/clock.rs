//! This host's clocks, for shells and reports. Sessions and policies read no clock at all.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::session::Moment;

/// CPU time of all threads of this process so far.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Time since this host booted, sleep included: a Run must not outlive its lease because a host slept.
pub(crate) fn now() -> Moment {
    Moment(Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default())
}
