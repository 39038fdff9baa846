//! What a run writes: the seed, the region, who owns which page, and the workload.
//!
//! [`WorkloadSpec`] is what journals carry; [`Workload`] is the same thing validated and resolved,
//! from which every address, generation and line follows.

use std::ops::Range;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::content::{Content, SlotAddress};
use crate::line::{Generation, Line, LineAddress, PageFormat, StampKey, mix};
use crate::pattern::{Ground, Operation, Pattern, PatternError, Slot};
use crate::profile::{PatternSpec, Profile};
use crate::region::Region;
use crate::run::RunId;
use crate::stamp;
use crate::trace::{Trace, TraceError};
use crate::units::Bytes;
use crate::{LINE_BYTES, PAGE_BYTES, PAGE_LINES};

/// Most writers a region may have.
pub const WRITERS_MAX: u32 = 1024;
/// Most operations of a writer: ten million a second for most of a year.
pub const OPERATIONS_MAX: Operation = 1 << 48;
/// Most operations, of all writers together, that are replayed to know memory: a quarter of an hour
/// on the cores of a desk.
pub const REPLAYED_OPERATIONS_MAX: Operation = 1 << 36;

/// Where the trace that a pattern replays is read from.
#[derive(Clone, Copy, Debug)]
pub enum Traces<'a> {
    /// From the path that the pattern names: for a spec of one's own.
    Named,
    /// From the file in this folder that has its checksum: for a spec that somebody else sent.
    Folder(&'a Path),
    /// From nowhere.
    None,
}

/// A run, as read from a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Description", into = "Description")]
#[schemars(with = "Description")]
pub struct WorkloadSpec {
    /// How lines are stamped.
    pub format: PageFormat,
    /// Determines every byte together with the rest of this spec and the watermarks.
    pub seed: u64,
    /// Size of the region in bytes, a multiple of 4096.
    pub memory: Bytes,
    /// Number of writers; each owns a contiguous share of the pages.
    pub writers: u32,
    /// What is written where, in what pieces.
    pub workload: Profile,
}

/// A spec as it is written down.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "WorkloadSpec")]
struct Description {
    /// Version of the page format; 1 where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    seed: u64,
    memory: Bytes,
    /// Size of the disk of stamped lines that devices read from: none that this version reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<Bytes>,
    writers: u32,
    workload: Profile,
}

impl TryFrom<Description> for WorkloadSpec {
    type Error = String;
    fn try_from(description: Description) -> Result<Self, String> {
        let Description { format, run, seed, memory, disk, writers, workload } = description;
        let format = match (format.unwrap_or(1), run) {
            (1, None) => PageFormat::V1,
            (1, Some(_)) => return Err("page format 1 knows no run; format 2 does".to_owned()),
            (2, Some(run)) => PageFormat::V2 { run },
            (2, None) => return Err("page format 2 needs the run whose key stamps it".to_owned()),
            (other, _) => {
                return Err(format!(
                    "page format {other} is not known here; 1 and 2 are: use a newer version"
                ));
            }
        };
        if disk.is_some() {
            return Err("a disk of stamped lines is not read by this version".to_owned());
        }
        Ok(Self { format, seed, memory, writers, workload })
    }
}

impl From<WorkloadSpec> for Description {
    fn from(spec: WorkloadSpec) -> Self {
        let WorkloadSpec { format, seed, memory, writers, workload } = spec;
        let (format, run) = match format {
            PageFormat::V1 => (None, None),
            PageFormat::V2 { run } => (Some(2), Some(run)),
        };
        Self { format, run, seed, memory, disk: None, writers, workload }
    }
}

/// Settings that contradict each other or the format.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The region is not made of whole pages.
    #[error("memory of {0} bytes is not a multiple of the 4 KiB page; round it to one")]
    PartialPage(u64),
    /// No writer, or more than the limit.
    #[error("{0} writers; choose 1 to {WRITERS_MAX}")]
    Writers(u32),
    /// Parts of the workload contradict each other.
    #[error("{0}")]
    Profile(String),
    /// Some writer would own no slot.
    #[error(
        "{memory} split among {writers} writers leaves no room for a record of {record}; use more memory, fewer writers or smaller records"
    )]
    NoSlot {
        /// Region size.
        memory: Bytes,
        /// Number of writers.
        writers: u32,
        /// Record size.
        record: Bytes,
    },
    /// A share is too small for the pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The trace is of another memory.
    #[error(
        "trace {file} is of {trace} pages, the region has {region}; use --memory {trace_bytes}"
    )]
    TraceSize {
        /// The trace file.
        file: String,
        /// Pages of the trace.
        trace: u64,
        /// Pages of the region.
        region: u64,
        /// Bytes of the trace's memory.
        trace_bytes: u64,
    },
    /// A trace that is known by its path alone.
    #[error("the workload does not say by a checksum which trace it replays")]
    Unpinned,
    /// A trace that nobody said where to look for.
    #[error(
        "the workload replays the trace with checksum {sum:016x}; name a folder that holds it (vmigrate receive --traces DIR)"
    )]
    NoTraces {
        /// XXH3-64 of the trace.
        sum: u64,
    },
    /// Not the trace that the run used.
    #[error("trace {0} is not the one that the run replayed: its checksum differs")]
    OtherTrace(String),
}

/// Watermarks that no run of this workload has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatermarkError {
    /// Not one for each writer.
    #[error("there are {found} watermarks for {writers} writers")]
    Count {
        /// How many there are.
        found: usize,
        /// How many there must be.
        writers: usize,
    },
    /// More operations than any writer does.
    #[error(
        "writer {writer} is said to have done {operations} operations; at most {OPERATIONS_MAX} are believed"
    )]
    Operations {
        /// Which writer.
        writer: usize,
        /// Its watermark.
        operations: Operation,
    },
    /// More operations than anybody would replay.
    #[error(
        "the writers are said to have done {operations} operations that must be replayed to know memory; the limit is {limit} (`verifier` takes another: --replay-limit)"
    )]
    Replay {
        /// Of all writers together.
        operations: Operation,
        /// Most that are replayed.
        limit: Operation,
    },
}

/// One writer's share of the region.
#[derive(Clone, Debug)]
pub struct Share {
    /// First page owned.
    pub first_page: u64,
    /// Number of pages owned.
    pub pages: u64,
    /// Number of whole records that fit; what is left over stays at generation 0.
    pub slots: u64,
    /// The order in which the slots are written.
    pub pattern: Pattern,
}

/// How slots lie in a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// One record after the other.
    Packed,
    /// One line in each page, at a place that depends on the page.
    LinePerPage,
}

/// A validated run.
#[derive(Clone, Debug)]
pub struct Workload {
    spec: WorkloadSpec,
    key: StampKey,
    content: Content,
    layout: Layout,
    shares: Vec<Share>,
}

/// Neighbouring lines of a page that share a slot, or that belong to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The lines.
    pub lines: Range<LineAddress>,
    /// The slot; `None` where no whole record fits, and between the lines of `touch`: there
    /// memory stays at generation 0.
    pub slot: Option<Slot>,
    /// What the content of these lines depends on beside address and generation.
    pub place: SlotAddress,
}

impl WorkloadSpec {
    /// The run whose key stamps the lines; journals of format 1 name it beside the spec alone.
    pub fn run(&self) -> Option<RunId> {
        match self.format {
            PageFormat::V1 => None,
            PageFormat::V2 { run } => Some(run),
        }
    }

    /// Checks the settings and resolves them; a trace file is read.
    ///
    /// # Errors
    /// [`SpecError`] names the setting that cannot be.
    pub fn resolve(&self) -> Result<Workload, SpecError> {
        self.resolve_with(Traces::Named)
    }

    /// The same, its trace read from where `traces` says.
    ///
    /// # Errors
    /// [`SpecError`] names the setting that cannot be.
    pub fn resolve_with(&self, traces: Traces<'_>) -> Result<Workload, SpecError> {
        let mut spec = self.clone();
        let record = self.workload.record.0;
        if self.memory.0 == 0 || !self.memory.0.is_multiple_of(PAGE_BYTES) {
            return Err(SpecError::PartialPage(self.memory.0));
        }
        if self.writers == 0 || self.writers > WRITERS_MAX {
            return Err(SpecError::Writers(self.writers));
        }
        self.workload.check().map_err(SpecError::Profile)?;
        let pages = self.memory.0 / PAGE_BYTES;
        let trace = read_trace(&mut spec.workload.pattern, pages, traces)?;
        let layout = match self.workload.pattern {
            PatternSpec::Touch => Layout::LinePerPage,
            _ => Layout::Packed,
        };
        let writers = u64::from(self.writers);
        // Written so that it cannot overflow for any region that fits an address space.
        let boundary = |w: u64| pages / writers * w + (pages % writers) * w / writers;
        let shares = (0..writers)
            .map(|writer| {
                let first_page = boundary(writer);
                let pages = boundary(writer + 1) - first_page;
                let slots = match layout {
                    Layout::Packed => pages * PAGE_BYTES / record,
                    Layout::LinePerPage => pages,
                };
                if slots == 0 {
                    return Err(SpecError::NoSlot {
                        memory: self.memory,
                        writers: self.writers,
                        record: self.workload.record,
                    });
                }
                let seed = self.seed;
                let ground = Ground { seed, writer, first_page, pages, slots, record };
                let pattern = Pattern::new(&self.workload.pattern, &ground, trace.as_ref())?;
                Ok(Share { first_page, pages, slots, pattern })
            })
            .collect::<Result<_, _>>()?;
        Ok(Workload {
            key: StampKey::new(self.format, self.seed),
            content: Content::new(&self.workload.content),
            spec,
            layout,
            shares,
        })
    }
}

/// Reads the trace that a pattern replays, and pins its checksum.
fn read_trace(
    pattern: &mut PatternSpec,
    pages: u64,
    traces: Traces<'_>,
) -> Result<Option<Trace>, SpecError> {
    let PatternSpec::Trace { file, sum } = pattern else { return Ok(None) };
    let trace = match (traces, *sum) {
        (Traces::Named, _) => Trace::read(file)?,
        (_, None) => return Err(SpecError::Unpinned),
        (Traces::Folder(folder), Some(sum)) => Trace::find(folder, sum)?,
        (Traces::None, Some(sum)) => return Err(SpecError::NoTraces { sum }),
    };
    let name = file.display().to_string();
    if trace.pages != pages {
        return Err(SpecError::TraceSize {
            file: name,
            trace: trace.pages,
            region: pages,
            trace_bytes: trace.pages * PAGE_BYTES,
        });
    }
    if *sum.get_or_insert(trace.sum) != trace.sum {
        return Err(SpecError::OtherTrace(name));
    }
    Ok(Some(trace))
}

impl Workload {
    /// The settings this was resolved from, with the checksum of its trace.
    pub fn spec(&self) -> &WorkloadSpec {
        &self.spec
    }

    /// The keys of every stamp.
    pub fn key(&self) -> StampKey {
        self.key
    }

    /// The writers' shares, by writer.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Lines of the whole region.
    pub fn lines(&self) -> u64 {
        self.spec.memory.0 / LINE_BYTES
    }

    /// Checks watermarks that somebody else names, before anything is computed from them.
    ///
    /// # Errors
    /// [`WatermarkError`] says which limit they exceed.
    pub fn check_watermarks(&self, watermarks: &[Operation]) -> Result<(), WatermarkError> {
        self.check_watermarks_within(watermarks, REPLAYED_OPERATIONS_MAX)
    }

    /// The same, with another limit to what is replayed.
    ///
    /// # Errors
    /// No run has them, or it would take too long to know its memory.
    pub fn check_watermarks_within(
        &self,
        watermarks: &[Operation],
        limit: Operation,
    ) -> Result<(), WatermarkError> {
        let writers = self.shares.len();
        if watermarks.len() != writers {
            return Err(WatermarkError::Count { found: watermarks.len(), writers });
        }
        let absurd = watermarks.iter().position(|operations| *operations > OPERATIONS_MAX);
        if let Some(writer) = absurd {
            return Err(WatermarkError::Operations { writer, operations: watermarks[writer] });
        }
        let operations = self.replayed_operations(watermarks);
        match operations > limit {
            true => Err(WatermarkError::Replay { operations, limit }),
            false => Ok(()),
        }
    }

    /// How many operations have to be replayed to know memory at `watermarks`.
    pub fn replayed_operations(&self, watermarks: &[Operation]) -> Operation {
        let shares = self.shares.iter().zip(watermarks);
        let replayed = shares.filter(|(share, _)| !share.pattern.is_closed_form());
        replayed.fold(0, |sum, (_, watermark)| sum.saturating_add(*watermark))
    }

    /// Which writer owns `page`.
    pub fn owner(&self, page: u64) -> usize {
        self.shares.partition_point(|s| s.first_page <= page) - 1
    }

    /// Lines in a record.
    pub fn record_lines(&self) -> u64 {
        self.spec.workload.record.0 / LINE_BYTES
    }

    /// Address of the first line of a writer's slot.
    #[inline]
    pub fn slot_line(&self, writer: usize, slot: Slot) -> LineAddress {
        let first = self.shares[writer].first_page * PAGE_LINES;
        match self.layout {
            Layout::Packed => first + slot * self.record_lines(),
            Layout::LinePerPage => {
                let page = first + slot * PAGE_LINES;
                page + self.touched_line(page)
            }
        }
    }

    /// Which line of a page `touch` writes: anywhere, but always the same one.
    fn touched_line(&self, page_line: LineAddress) -> u64 {
        mix(page_line ^ self.spec.seed) % PAGE_LINES
    }

    /// The pages of the region that a slot's record lies in.
    pub fn slot_pages(&self, writer: usize, slot: Slot) -> Range<u64> {
        let first = self.slot_line(writer, slot);
        let end = first + self.record_lines();
        first / PAGE_LINES..end.div_ceil(PAGE_LINES)
    }

    /// A page owned by `writer`, cut into segments; together they are all of its lines.
    #[inline]
    pub fn segments(&self, writer: usize, page: u64) -> impl Iterator<Item = Segment> {
        let share = &self.shares[writer];
        let first = page * PAGE_LINES;
        let offset = (page - share.first_page) * PAGE_LINES;
        let record_lines = self.record_lines();
        let touched = match self.layout {
            Layout::Packed => None,
            Layout::LinePerPage => Some((first + self.touched_line(first), offset / PAGE_LINES)),
        };
        let mut next = first;
        std::iter::from_fn(move || {
            if next == first + PAGE_LINES {
                return None;
            }
            let start = next;
            let (end, slot, place) = match touched {
                None => {
                    let slot = (offset + start - first) / record_lines;
                    let end = start + record_lines.min(PAGE_LINES);
                    match slot < share.slots {
                        true => (end, Some(slot), start - (offset + start - first) % record_lines),
                        false => (end, None, first),
                    }
                }
                Some((line, slot)) if line == start => (start + 1, Some(slot), line),
                Some((line, _)) => {
                    (if start < line { line } else { first + PAGE_LINES }, None, first)
                }
            };
            next = end;
            Some(Segment { lines: start..end, slot, place })
        })
    }

    /// The content profile at a place.
    #[inline]
    pub fn content(&self, place: SlotAddress) -> &Content {
        self.content.of_slot(self.key, place)
    }

    /// The line that stands at `address` when its slot is at `generation`.
    #[inline]
    pub fn line(&self, place: SlotAddress, address: LineAddress, generation: Generation) -> Line {
        self.content(place).line(self.key, place, address, generation)
    }

    /// Writes the record of a slot at `generation`: every line that the generation rewrites,
    /// ascending. Returns the number of lines written.
    #[inline]
    pub fn store(&self, region: &Region, writer: usize, slot: Slot, generation: Generation) -> u64 {
        let first = self.slot_line(writer, slot);
        let addresses = first..first + self.record_lines();
        let content = self.content(first);
        if content.is_plain() {
            stamp::store(self.key, region.lines(addresses), first, generation);
            return self.record_lines();
        }
        let mut written = 0;
        for address in addresses {
            if content.stamped_at(address, generation) == generation {
                region.store(address, &content.line(self.key, first, address, generation));
                written += 1;
            }
        }
        written
    }

    /// The first line of a slot's record that is not what it must be at `generation`.
    #[inline]
    pub fn first_difference(
        &self,
        region: &Region,
        writer: usize,
        slot: Slot,
        generation: Generation,
    ) -> Option<LineAddress> {
        let first = self.slot_line(writer, slot);
        let content = self.content(first);
        let mut addresses = first..first + self.record_lines();
        if content.is_plain()
            && stamp::stands(self.key, region.lines(addresses.clone()), first, generation)
        {
            return None;
        }
        addresses.find(|address| {
            region.load(*address) != content.line(self.key, first, *address, generation)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(name: &str) -> WorkloadSpec {
        WorkloadSpec {
            format: PageFormat::V2 { run: RunId(1) },
            seed: 7,
            memory: Bytes(1 << 20),
            writers: 2,
            workload: name.parse().unwrap(),
        }
    }

    proptest! {
        #[test]
        fn every_page_has_exactly_one_owner(pages in 1u64..5000, writers in 1u32..40) {
            let spec = WorkloadSpec { memory: Bytes(pages * PAGE_BYTES), writers, ..spec("stream,record=64") };
            let Ok(workload) = spec.resolve() else { prop_assert!(u64::from(writers) > pages); return Ok(()) };
            let mut next = 0;
            for (w, share) in workload.shares().iter().enumerate() {
                prop_assert_eq!(share.first_page, next);
                next += share.pages;
                prop_assert_eq!(workload.owner(share.first_page), w);
                prop_assert_eq!(workload.owner(next - 1), w);
            }
            prop_assert_eq!(next, pages);
        }

        /// Segments are the slots' lines, seen from the pages.
        #[test]
        fn segments_and_slots_agree(name in prop::sample::select(vec!["stream,record=64", "uniform,record=512", "iid", "stream,record=64KiB", "touch"]), pages in 33u64..100, writers in 1u32..3) {
            let spec = WorkloadSpec { memory: Bytes(pages * PAGE_BYTES), writers, ..spec(name) };
            let workload = spec.resolve().unwrap();
            let mut of_slots = std::collections::HashMap::new();
            for (writer, share) in workload.shares().iter().enumerate() {
                for slot in 0..share.slots {
                    let first = workload.slot_line(writer, slot);
                    for address in first..first + workload.record_lines() {
                        prop_assert!(workload.slot_pages(writer, slot).contains(&(address / PAGE_LINES)));
                        prop_assert!(of_slots.insert(address, (writer, slot, first)).is_none());
                    }
                }
            }
            for page in 0..pages {
                let (writer, mut next) = (workload.owner(page), page * PAGE_LINES);
                for segment in workload.segments(writer, page) {
                    prop_assert_eq!(segment.lines.start, next);
                    next = segment.lines.end;
                    for address in segment.lines {
                        let slot = segment.slot.map(|slot| (writer, slot, segment.place));
                        prop_assert_eq!(of_slots.get(&address).copied(), slot);
                    }
                }
                prop_assert_eq!(next, (page + 1) * PAGE_LINES);
            }
        }
    }

    #[test]
    fn a_spec_says_its_format_and_what_is_not_there_is_named() {
        let second = spec("stream");
        let first = WorkloadSpec { format: PageFormat::V1, ..second.clone() };
        let rest = r#""seed":7,"memory":1048576,"writers":2,"workload":"stream,record=4KiB,content=random""#;
        let cases = [
            (&first, format!("{{{rest}}}")),
            (&second, format!(r#"{{"format":2,"run":"0000000000000001",{rest}}}"#)),
        ];
        for (spec, text) in cases {
            assert_eq!(serde_json::to_string(spec).unwrap(), text);
            assert_eq!(serde_json::from_str::<WorkloadSpec>(&text).unwrap(), *spec);
        }
        let refused = |more: &str| {
            let text = format!("{{{more}{rest}}}");
            serde_json::from_str::<WorkloadSpec>(&text).unwrap_err().to_string()
        };
        assert!(refused(r#""format":3,"#).contains("page format 3 is not known"));
        assert!(refused(r#""format":2,"#).contains("needs the run"));
        assert!(refused(r#""run":"0000000000000001","#).contains("format 1 knows no run"));
        assert!(refused(r#""format":2,"run":"1","#).contains("16 hexadecimal digits"));
        let disk = r#""format":2,"run":"0000000000000001","disk":4096,"#;
        assert!(refused(disk).contains("a disk of stamped lines is not read"));
        assert!(refused(r#""format":2,"format":2,"#).contains("duplicate field"));
    }

    #[test]
    fn watermarks_that_no_run_has_are_refused() {
        let check = |name: &str, watermarks: &[u64]| {
            spec(name).resolve().unwrap().check_watermarks(watermarks)
        };
        // An hour of a guest that writes as fast as it can.
        assert_eq!(check("zipf,record=64", &[1 << 35, 200_000_000]), Ok(()));
        assert_eq!(check("stream", &[1 << 47, 5]), Ok(()));
        let operations = 1 << 60;
        let absurd = Err(WatermarkError::Operations { writer: 1, operations });
        assert_eq!(check("iid", &[5, operations]), absurd);
        assert_eq!(check("stream", &[5, operations]), absurd);
        let operations = 1 << 37;
        assert_eq!(
            check("iid", &[1 << 36, 1 << 36]),
            Err(WatermarkError::Replay { operations, limit: REPLAYED_OPERATIONS_MAX })
        );
        let count = WatermarkError::Count { found: 1, writers: 2 };
        assert_eq!(check("stream", &[5]), Err(count));
    }

    #[test]
    fn a_trace_of_somebody_else_is_never_opened_by_its_path() {
        let theirs = |text: &str, traces| {
            let spec = spec(&format!("trace,file=/dev/zero{text}"));
            spec.resolve_with(traces).unwrap_err().to_string()
        };
        let dir = tempfile::tempdir().unwrap();
        assert!(theirs("", Traces::Folder(dir.path())).contains("does not say by a checksum"));
        let pinned = ",sum=0123456789abcdef";
        assert!(theirs(pinned, Traces::None).contains("--traces DIR"));
        let error = theirs(pinned, Traces::Folder(dir.path()));
        assert!(error.contains("no trace in") && error.contains("0123456789abcdef"), "{error}");
        assert!(theirs(pinned, Traces::Named).contains("not a regular file"));
    }

    #[test]
    fn bad_settings_are_named() {
        let bad = |f: fn(&mut WorkloadSpec)| {
            let mut s = spec("stream");
            f(&mut s);
            s.resolve().unwrap_err().to_string()
        };
        assert!(bad(|s| s.memory = Bytes(4097)).contains("4097 bytes is not a multiple"));
        assert!(bad(|s| s.memory = Bytes(0)).contains("not a multiple"));
        assert!(bad(|s| s.writers = 0).contains("0 writers"));
        assert!(bad(|s| s.workload.record = Bytes(96)).contains("power of two"));
        assert!(bad(|s| s.workload.record = Bytes(2 << 20)).contains("no room"));
        assert!(bad(|s| s.workload = "trace,file=/nowhere".parse().unwrap()).contains("/nowhere"));
    }

    #[test]
    fn a_trace_must_be_the_one_that_was_used_and_of_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trace");
        let mut trace = Trace { pages: 256, interval_ns: 1, intervals: vec![vec![0..200]], sum: 0 };
        trace.write(&file).unwrap();
        let spec = spec(&format!("trace,file={}", file.display()));
        let pinned = spec.resolve().unwrap().spec().clone();
        assert_ne!(pinned, spec);
        assert!(pinned.resolve().is_ok());
        trace.intervals[0][0].end = 201;
        trace.write(&file).unwrap();
        assert!(matches!(pinned.resolve(), Err(SpecError::OtherTrace(_))));
        trace.pages = 300;
        trace.write(&file).unwrap();
        assert!(matches!(
            spec.resolve(),
            Err(SpecError::TraceSize { trace: 300, region: 256, .. })
        ));
        trace.pages = 256;
        trace.intervals = vec![vec![0..20]];
        trace.write(&file).unwrap();
        assert!(matches!(spec.resolve(), Err(SpecError::Pattern(PatternError::IdleWriter(1)))));
    }
}
