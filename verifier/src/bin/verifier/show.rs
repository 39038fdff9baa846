//! What `scan` and `image` print alike: faulty extents, what the journal says, progress.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use verifier::evidence::Evidence;
use verifier::extent::Faults;
use workload::journal::Follower;
use workload::say;
use workload::spec::Workload;

/// Extents shown as text; JSON has all that were kept.
const EXTENTS_SHOWN: usize = 40;
/// Fewest pages that are worth a progress line.
const PROGRESS_PAGES_MIN: u64 = 1 << 18;

/// Prints faulty extents, a line each, and what they have in common; `place` adds where an
/// address lies.
pub(crate) fn faults(
    out: &mut impl Write,
    faults: &Faults,
    workload: &Workload,
    place: impl Fn(u64) -> String,
) -> std::io::Result<()> {
    for extent in faults.extents.iter().take(EXTENTS_SHOWN) {
        let found = extent.found.map_or("none".to_owned(), |g| g.to_string());
        writeln!(
            out,
            "{:#014x}  {:>8} bytes  page {:<8} writer {:<3} expected generation {}, found {found}: \
             {}, first wrong byte at {:#x}{}",
            extent.address,
            extent.bytes,
            extent.page,
            extent.writer,
            extent.expected,
            extent.class,
            extent.first_wrong_byte,
            place(extent.address)
        )?;
    }
    let hidden = faults.extents.len().saturating_sub(EXTENTS_SHOWN);
    if hidden > 0 {
        writeln!(out, "... and {hidden} more extents (see --json)")?;
    }
    for fact in faults.in_common(workload) {
        writeln!(out, "in common: {fact}")?;
    }
    Ok(())
}

/// What keeps a journal from proving, in words.
pub(crate) fn notes(evidence: &Evidence) -> Vec<String> {
    let mut notes: Vec<String> = evidence.breaches.iter().map(ToString::to_string).collect();
    for writer in evidence.idle_writers() {
        notes.push(format!("writer {writer} was never seen to advance"));
    }
    if let Some(Follower { run, key }) = evidence.followed_by {
        let key = key.map_or(String::new(), |key| format!(" (key {key})"));
        notes.push(format!(
            "run {run}{key} began where this one was heard: the guest started again, or another one \
             beats into the same link; collect each run into a journal of its own"
        ));
    }
    notes
}

/// A percentage on standard error while much memory is looked at; gone when dropped.
pub(crate) struct Progress {
    pages: u64,
    done: AtomicU64,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(pages: u64) -> Self {
        let shown = pages >= PROGRESS_PAGES_MIN && std::io::stderr().is_terminal();
        Self { pages, done: AtomicU64::new(0), shown }
    }

    pub(crate) fn add(&self, pages: u64) {
        let before = self.done.fetch_add(pages, Ordering::Relaxed);
        let percent = |done: u64| done * 100 / self.pages.max(1);
        if self.shown && percent(before) != percent(before + pages) {
            say::status(&format!("verifier: {:>3} % looked at", percent(before + pages)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            say::status("");
        }
    }
}
