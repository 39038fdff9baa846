//! What `scan` and `image` print alike: faulty extents, what the journal says, progress.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use verifier::case::KnownRun;
use verifier::classify::Class;
use verifier::evidence::Evidence;
use verifier::extent::{Extent, Faults};
use verifier::held::Held;
use workload::say;
use workload::spec::Workload;
use workload::work::Watch;

/// Extents shown as text; JSON has all that were kept.
const EXTENTS_SHOWN: usize = 40;
/// Fewest operations and lines that are worth a progress line.
const PROGRESS_UNITS_MIN: u64 = 1 << 24;

/// Prints faulty extents, a line each, and what they have in common; `place` adds where an
/// address lies.
pub(crate) fn faults(
    out: &mut impl Write,
    faults: &Faults,
    workload: &Workload,
    known: &[KnownRun],
    place: impl Fn(u64) -> String,
) -> std::io::Result<()> {
    for extent in faults.extents.iter().take(EXTENTS_SHOWN) {
        let found = extent.found.map_or("none".to_owned(), |g| g.to_string());
        writeln!(
            out,
            "{:#014x}  {:>8} bytes  page {:<8} writer {:<3} expected generation {}, found {found}: \
             {}{}, first wrong byte at {:#x}{}",
            extent.address,
            extent.bytes,
            extent.page,
            extent.writer,
            extent.expected,
            extent.class,
            holds(extent, known),
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

/// What stands there instead, where its lines say so: of which page, and of which run if it was heard.
fn holds(extent: &Extent, known: &[KnownRun]) -> String {
    match extent.class {
        Class::Misplaced { offset_bytes } => {
            let page = extent.address.wrapping_add_signed(offset_bytes) / workload::PAGE_BYTES;
            format!(" (holds page {page})")
        }
        Class::OtherRun { place } => {
            match Held::of_other(place, extent.address / workload::LINE_BYTES, known) {
                Held::OtherRun { run: Some(run), page: Some(page), .. } if page == extent.page => {
                    format!(" of run {run}")
                }
                held @ Held::OtherRun { run: Some(_), .. } => format!(" (holds {held})"),
                _ => String::new(),
            }
        }
        _ => String::new(),
    }
}

/// What keeps a journal from proving, in words.
pub(crate) fn notes(evidence: &Evidence) -> Vec<String> {
    let mut notes = evidence.wrong();
    notes.extend(evidence.doubts());
    match &evidence.ruling {
        None => notes.push(
            "the journal is of format 1: beats of a guest that went back while nobody heard it are \
             not told from its own"
                .to_owned(),
        ),
        Some(ruling) => {
            if ruling.restored {
                notes.push("RESTORED from an earlier moment, as was told".to_owned());
            }
            if ruling.weak {
                notes.push(
                    "the guest has no source of bits that a copy of it does not have: beats that are \
                     the same may be of two"
                        .to_owned(),
                );
            }
        }
    }
    notes
}

/// Who heard a run, and until when, for the end of a line.
pub(crate) fn heard(evidence: &Evidence) -> String {
    let Some(ruling) = &evidence.ruling else { return String::new() };
    let who: Vec<String> = ruling
        .collectors
        .iter()
        .map(|(name, sessions)| match sessions {
            1 => name.to_string(),
            sessions => format!("{name} ({sessions} sessions)"),
        })
        .collect();
    let until = match (ruling.ended, ruling.until_us) {
        (true, _) => ", until its end".to_owned(),
        (false, Some(us)) => {
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_micros(us);
            format!(", until {}", humantime::format_rfc3339_millis(at))
        }
        (false, None) => String::new(),
    };
    format!(" (heard by {}{until})", who.join(", "))
}

/// A percentage on standard error while there is much to replay and to look at; gone when dropped.
#[derive(Default)]
pub(crate) struct Progress {
    expected: AtomicU64,
    done: AtomicU64,
    /// The percentage last shown.
    shown: AtomicU64,
}

impl Watch for Progress {
    fn expect(&self, units: u64) {
        self.expected.fetch_add(units, Ordering::Relaxed);
    }

    fn done(&self, units: u64) {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        let expected = self.expected.load(Ordering::Relaxed).max(1);
        let percent = done.saturating_mul(100) / expected;
        let is_news = self.shown.swap(percent, Ordering::Relaxed) != percent;
        if expected >= PROGRESS_UNITS_MIN && is_news && std::io::stderr().is_terminal() {
            say::status(&format!(
                "verifier: {percent:>3} % of what there is to replay and look at"
            ));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if *self.shown.get_mut() > 0 && std::io::stderr().is_terminal() {
            say::status("");
        }
    }
}
