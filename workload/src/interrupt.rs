//! Ctrl-C (and SIGTERM) as a count that long-running loops look at.

use std::sync::atomic::{AtomicUsize, Ordering};

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Counts SIGINT, SIGTERM and SIGHUP from now on instead of dying of them.
///
/// # Errors
/// A handler is installed already, or the system refused one.
pub fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        COUNT.fetch_add(1, Ordering::Relaxed);
    })
}

/// How many times the user asked us to stop.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}
