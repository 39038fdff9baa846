//! Lies, each with what must be said of it: histories of guests, memory, manifests.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::beat::books::Books;
use workload::beat::said::{Beat, Kind as Motion, Said, Start, Tag, linked, sealed};
use workload::beat::session::{Entry, Line, Name, Opening, Restored, SessionId};
use workload::fill::fill;
use workload::line::{LineAddress, PageFormat, StampKey, ZERO_LINE, mix};
use workload::region::Region;
use workload::run::RunId;
use workload::spec::WorkloadSpec;
use workload::units::Bytes;
use workload::{LINE_BYTES, PAGE_BYTES, PAGE_LINES};

use crate::case::Case;
use crate::law::Demand;
use crate::manifest::Manifest;
use crate::memory::Moment;
use crate::scan::scan;

/// Time between two beats.
const INTERVAL_US: u64 = 10_000;

/// A lie, and what was said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lie {
    /// What was planted.
    pub planted: String,
    /// What must be said of it.
    pub wanted: String,
    /// What was said.
    pub told: String,
    /// Whether that is it.
    pub found: bool,
}

impl Lie {
    fn of(planted: &str, wanted: &str, told: String) -> Self {
        let found = wanted.split(" + ").all(|part| told.contains(part));
        Self { planted: planted.to_owned(), wanted: wanted.to_owned(), told, found }
    }
}

/// Every lie, told and judged.
///
/// # Errors
/// No memory could be had, or nothing could be planted.
pub fn all() -> Result<Vec<Lie>, String> {
    let mut lies = histories();
    lies.extend(lines()?);
    lies.extend(manifests()?);
    Ok(lies)
}

/// One place where a run goes on; a copy of it is a snapshot.
#[derive(Clone)]
struct Guest {
    tag: Tag,
    number: u64,
    watermark: u64,
    bits: BTreeMap<u64, u16>,
}

impl Guest {
    fn new(tag: u32) -> Self {
        Self { tag: Tag(tag), number: 0, watermark: 0, bits: BTreeMap::new() }
    }
}

/// A collector's file, as it is written.
struct Collector {
    session: SessionId,
    lines: u64,
    now: u64,
    begun: u64,
    text: Vec<String>,
    /// Anything drawn anew comes from here.
    drawn: u64,
    deaf: bool,
    idle: bool,
}

impl Collector {
    fn open() -> Self {
        let mut collector = Self {
            session: SessionId(1),
            lines: 0,
            now: 0,
            begun: 0,
            text: Vec::new(),
            drawn: 0,
            deaf: false,
            idle: false,
        };
        collector.begin(None);
        collector
    }

    fn begin(&mut self, after: Option<(SessionId, u64)>) {
        self.begun = self.now;
        self.note(Entry::Open(Opening {
            collector: Name::of("lab"),
            boot: 1,
            boot_us: self.now,
            wall_us: 1_800_000_000_000_000 + self.now,
            late_us: 0,
            after,
        }));
    }

    /// Closed or killed, and started again in its file.
    fn again(&mut self) {
        let before = (self.session, self.lines);
        (self.session, self.lines) = (SessionId(self.session.0 + 1), 0);
        self.begin(Some(before));
    }

    fn note(&mut self, entry: Entry) {
        let at_us = self.now - self.begun;
        let line = Line { session: self.session, number: self.lines, at_us, entry };
        self.lines += 1;
        self.text.push(sealed(&line.text()));
    }

    fn describe(&mut self, guest: &Guest) {
        let spec = WorkloadSpec {
            format: PageFormat::V2 { run: RunId(u64::from(guest.tag.0)) },
            seed: 1,
            memory: Bytes(1 << 20),
            writers: 1,
            workload: "stream".parse().unwrap_or_else(|_| unreachable!("it is a workload")),
        };
        let start = Start { interval_us: INTERVAL_US, weak: false, spec };
        self.note(Entry::Heard(guest.tag, Said::Start(Box::new(start))));
    }

    fn beat(&mut self, guest: &mut Guest, kind: Motion) {
        self.drawn += 1;
        let bits = mix(self.drawn) as u32 | 0x0001_0001;
        let links = linked(guest.number)
            .map(|number| number.and_then(|n| guest.bits.get(&n)).copied().unwrap_or(0));
        let beat = Beat {
            number: guest.number,
            bits,
            kind,
            epoch: 0,
            writer: 0,
            watermark: guest.watermark,
            clock_us: self.now,
            links,
        };
        guest.bits.insert(guest.number, bits as u16);
        guest.number += 1;
        if !self.deaf {
            self.note(Entry::Heard(guest.tag, Said::Beat(beat)));
        }
    }

    fn run(&mut self, guest: &mut Guest, beats: u64) {
        self.run_both(&mut [guest], beats);
    }

    fn run_both(&mut self, guests: &mut [&mut Guest], beats: u64) {
        for _ in 0..beats {
            self.now += INTERVAL_US;
            for guest in &mut *guests {
                guest.watermark += if self.idle { 0 } else { 3 };
                self.beat(guest, Motion::Running);
            }
        }
    }

    fn end(&mut self, guest: &mut Guest) {
        (0..5).for_each(|_| self.beat(guest, Motion::Ended));
    }

    fn close(mut self) -> Vec<String> {
        self.note(Entry::Close(self.lines + 1));
        self.text
    }
}

/// A run of a hundred beats, and what is done to it.
fn history(story: impl FnOnce(&mut Collector, &mut Guest)) -> Vec<String> {
    let (mut collector, mut guest) = (Collector::open(), Guest::new(7));
    collector.describe(&guest);
    collector.run(&mut guest, 100);
    story(&mut collector, &mut guest);
    collector.close()
}

/// What is said of such lines.
fn judged(lines: &[String]) -> String {
    let mut books = Books::default();
    let text = lines.concat();
    let read = books.take(Path::new("planted"), 1, text.as_bytes()).and_then(|()| books.settle());
    if let Err(error) = read {
        return format!("refused: {error}");
    }
    let (cases, _) = Case::of_books(&books, &Demand::default());
    let said = cases.iter().map(|case| {
        let evidence = case.evidence();
        let restored = case.ruling.as_ref().is_some_and(|ruling| ruling.restored);
        let restored = restored.then(|| "RESTORED".to_owned());
        let why: Vec<String> =
            evidence.wrong().into_iter().chain(evidence.doubts()).chain(restored).collect();
        let gap = format!("longest gap {:.0} ms", evidence.longest_gap_ms);
        format!("{} ({})", evidence.verdict(), [vec![gap], why].concat().join("; "))
    });
    said.collect::<Vec<_>>().join(", ")
}

fn histories() -> Vec<Lie> {
    let good = || history(|collector, guest| collector.end(guest));
    let back = |guest: &Guest, snapshot: &Guest| Guest { tag: guest.tag, ..snapshot.clone() };
    let word = |snapshot: &Guest, collector: &mut Collector, drawn: u64| {
        let last = snapshot.number - 1;
        let bits = mix(drawn) as u32 | 0x0001_0001;
        collector.note(Entry::Restored(Restored { tag: snapshot.tag, first: last, last, bits }));
    };
    let say =
        |planted: &str, wanted: &str, lines: Vec<String>| Lie::of(planted, wanted, judged(&lines));
    vec![
        say("nothing: a run that its owner ended", "PROVEN", good()),
        say("its lines backwards, and each of them twice", "PROVEN", {
            let lines = good();
            lines.iter().rev().chain(&lines).cloned().collect()
        }),
        say(
            "the guest goes back to a snapshot, and nobody said so",
            "WRONG + ROLLBACK",
            history(|collector, guest| {
                let snapshot = guest.clone();
                collector.run(guest, 50);
                collector.now += 5 * INTERVAL_US;
                let mut again = back(guest, &snapshot);
                collector.run(&mut again, 100);
                collector.end(&mut again);
            }),
        ),
        say(
            "the same, and the collector was told",
            "PROVEN + RESTORED",
            history(|collector, guest| {
                let (snapshot, drawn) = (guest.clone(), collector.drawn);
                collector.run(guest, 50);
                word(&snapshot, collector, drawn);
                let mut again = back(guest, &snapshot);
                collector.run(&mut again, 100);
                collector.end(&mut again);
            }),
        ),
        say(
            "it goes back while the collector is deaf, until no number comes twice",
            "WRONG",
            history(|collector, guest| {
                let snapshot = guest.clone();
                collector.run(guest, 50);
                let mut again = back(guest, &snapshot);
                collector.deaf = true;
                collector.run(&mut again, 60);
                collector.deaf = false;
                collector.run(&mut again, 100);
                collector.end(&mut again);
            }),
        ),
        say(
            "two guests from one snapshot",
            "WRONG + FORK",
            history(|collector, guest| {
                let mut twin = guest.clone();
                collector.run_both(&mut [guest, &mut twin], 100);
                collector.end(guest);
            }),
        ),
        say(
            "the guest is killed; the collector listens on",
            "INCONCLUSIVE + silent",
            history(|collector, _| collector.now += 5_000_000),
        ),
        say("its writer stands still", "INCONCLUSIVE + never seen to advance", {
            let (mut collector, mut guest) = (Collector::open(), Guest::new(7));
            collector.describe(&guest);
            collector.idle = true;
            collector.run(&mut guest, 100);
            collector.end(&mut guest);
            collector.close()
        }),
        say("the guest stands still for 2 s, and says so", "PROVEN + longest gap 20", {
            history(|collector, guest| {
                (0..5).for_each(|_| collector.beat(guest, Motion::Held));
                collector.now += 2_000_000;
                collector.run(guest, 100);
                collector.end(guest);
            })
        }),
        say("the collector is killed", "INCONCLUSIVE + its end is", {
            let mut lines = good();
            lines.pop();
            lines
        }),
        say("it is killed, and started again in its file", "PROVEN + gap 10 ms", {
            history(|collector, guest| {
                collector.again();
                collector.run(guest, 100);
                collector.end(guest);
            })
        }),
        say("of its two sessions the first is cut out", "INCONCLUSIVE + must be there", {
            let lines = history(|collector, guest| {
                collector.again();
                collector.describe(guest);
                collector.run(guest, 100);
                collector.end(guest);
            });
            lines.into_iter().filter(|line| !line.starts_with("00000001 ")).collect()
        }),
        say("one digit of one line is changed", "INCONCLUSIVE + missing", {
            let mut lines = good();
            lines[50] = lines[50].replacen(" 7", " 8", 1).replacen("00000007", "00000009", 1);
            lines
        }),
        say("a whole line that nobody wrote: journal format 3", "refused", {
            let mut lines = good();
            lines.push(sealed("00000009 0 0 C 3 lab"));
            lines
        }),
        say("a whole line says something else under a number that is taken", "refused", {
            let mut lines = good();
            lines.push(sealed("00000001 50 0 M other"));
            lines
        }),
        say("a guest is reset under one collector", "INCONCLUSIVE + PROVEN", {
            history(|collector, _| {
                collector.now += 3_000_000;
                let mut next = Guest::new(8);
                collector.describe(&next);
                collector.run(&mut next, 100);
                collector.end(&mut next);
            })
        }),
    ]
}

/// A line of each wrong kind, in memory at rest.
fn lines() -> Result<Vec<Lie>, String> {
    const PAGES: u64 = 64;
    let spec = |run| WorkloadSpec {
        format: PageFormat::V2 { run: RunId(run) },
        seed: 1,
        memory: Bytes(PAGES * PAGE_BYTES),
        writers: 1,
        workload: "stream".parse().unwrap_or_else(|_| unreachable!("it is a workload")),
    };
    let workload = spec(1).resolve().map_err(|e| e.to_string())?;
    let region = Region::anonymous(spec(1).memory).map_err(|e| e.to_string())?;
    fill(&region, &workload, |_| {});
    // Once around the ring: everything is at generation 1.
    let watermarks = [workload.shares()[0].slots];
    let key = workload.key();
    for address in 0..workload.lines() {
        region.store(address, &key.line(address, 1));
    }
    let first: LineAddress = 7 * PAGE_LINES;
    let at = first + 5;
    let good = region.load(at);
    let flipped = {
        let mut line = good;
        line[3] ^= 1 << 17;
        line
    };
    let half = {
        let mut line = good;
        line[4..].copy_from_slice(&key.line(at, 0)[4..]);
        line
    };
    let other = StampKey::new(spec(2).format, 1).line(at, 1);
    let planted = [
        ("the last write of a page is lost", "STALE", key.line(at, 0)),
        ("a page is newer than the last beat", "FUTURE", key.line(at, 2)),
        ("half of a line is old", "TORN", half),
        ("a line of another place", "MISPLACED", key.line(at + PAGE_LINES, 1)),
        ("zeros", "ZEROED", ZERO_LINE),
        ("one bit is flipped", "BITFLIP", flipped),
        ("a line of an earlier life of the guest, with the same seed", "OTHER-RUN", other),
        ("garbage", "FOREIGN", [0x5A5A_5A5A_5A5A_5A5A; 8]),
    ];
    let mut lies = Vec::new();
    for (what, class, line) in planted {
        region.store(at, &line);
        if matches!(class, "STALE" | "FUTURE") {
            // Of a page that is of another time as a whole.
            let generation = if class == "STALE" { 0 } else { 2 };
            (0..PAGE_LINES).for_each(|i| region.store(first + i, &key.line(first + i, generation)));
        }
        let faults = scan(&region, &workload, Moment::Exact, &watermarks, |_| {}).faults;
        (0..PAGE_LINES).for_each(|i| region.store(first + i, &key.line(first + i, 1)));
        let told = match faults.extents.as_slice() {
            [one] => format!("{} at {:#x}", one.class, one.address),
            extents => format!("{} extents", extents.len()),
        };
        let place = if matches!(class, "STALE" | "FUTURE") { first } else { at };
        lies.push(Lie::of(what, &format!("{class} + at {:#x}", place * LINE_BYTES), told));
    }
    Ok(lies)
}

/// Manifests that cannot be what any memory hashes to.
fn manifests() -> Result<Vec<Lie>, String> {
    let region = Region::anonymous(Bytes(4 << 20)).map_err(|e| e.to_string())?;
    let good = Manifest::of(&region);
    let with = |change: &dyn Fn(&mut Manifest)| {
        let mut lie = good.clone();
        change(&mut lie);
        lie.check().map_or_else(|flaw| format!("refused: {flaw}"), |()| "taken".to_owned())
    };
    Ok(vec![
        Lie::of("nothing: a manifest", "taken", with(&|_| {})),
        Lie::of("half of its leaves are cut off", "refused", with(&|m| m.leaves.truncate(1))),
        Lie::of("all of its leaves are", "refused", with(&|m| m.leaves.clear())),
        Lie::of("another root over the same leaves", "refused", with(&|m| m.root = "0".repeat(64))),
        Lie::of("leaves of another size", "refused", with(&|m| m.leaf_bytes = 4096)),
        Lie::of("a version that is not known", "refused", with(&|m| m.schema = 99)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lie_is_told() {
        for lie in all().unwrap() {
            assert!(lie.found, "{lie:?}");
        }
    }
}
