//! Faults planted into the RAM of a destination that has everything and does not run yet, and what
//! they must be called from inside and outside.
//!
//! Where the pages of the workload's region lie is read from their stamps. Victims are pages that the
//! writers will not come to for a while: what is rewritten is not wrong any more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use workload::journal::Journal;
use workload::line::Line;
use workload::spec::Workload;
use workload::{LINE_BYTES, LINE_WORDS, PAGE_BYTES, PAGE_LINES};

use super::bed::Life;
use super::evidence;
use crate::qemu::vm::Vm;

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// One bit of one line.
    FlipBit,
    /// Two pages in each other's place.
    SwapPages,
    /// A page as it was before.
    OlderCopy,
    /// A page that holds nothing.
    ZeroPage,
}

impl Sabotage {
    pub(super) const ALL: [Self; 4] =
        [Self::FlipBit, Self::SwapPages, Self::OlderCopy, Self::ZeroPage];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FlipBit => "a bit flipped",
            Self::SwapPages => "two pages swapped",
            Self::OlderCopy => "a page's older copy",
            Self::ZeroPage => "a page zeroed",
        }
    }

    /// What the guest itself, which knows where its pages are, must call it.
    pub(super) fn class_inside(self) -> &'static str {
        match self {
            Self::FlipBit => "BITFLIP",
            Self::SwapPages => "MISPLACED",
            Self::OlderCopy => "STALE",
            Self::ZeroPage => "ZEROED",
        }
    }

    /// What an image, held against a map of an earlier one, must call it. Which page is which an
    /// image tells by the pages themselves, so there a page that holds nothing is missing.
    pub(super) fn class_image(self) -> &'static str {
        match self {
            Self::ZeroPage => "MISSING",
            _ => self.class_inside(),
        }
    }
}

/// A fault that was planted.
#[derive(Clone, Debug)]
pub(super) struct Planted {
    /// Pages of the region that are wrong now.
    pub(super) pages: Vec<u64>,
    /// The line that is wrong, where it is one.
    pub(super) line: Option<u64>,
}

impl Planted {
    /// Whether a line of findings names one of the pages, by page number or by address.
    pub(super) fn is_named(&self, finding: &str) -> bool {
        let address = |page: u64| page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
        let found = finding
            .split_whitespace()
            .next()
            .and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
        self.pages.iter().any(|page| {
            let by_line = self.line.is_none_or(|line| found == Some(line * LINE_BYTES));
            found.is_some_and(|found| address(*page).contains(&found)) && by_line
                || finding.starts_with(&format!("page {page} "))
        })
    }
}

/// What a VM's memory looked like at an earlier moment, and where its pages lay.
pub(super) struct Earlier {
    memory: Vec<u8>,
    pub(super) map: PathBuf,
}

impl Earlier {
    /// Of a VM that stands still for it.
    pub(super) fn of(vm: &mut Vm, life: &Life) -> anyhow::Result<Self> {
        vm.machine.qmp.run("stop", json!({}))?;
        let ram = &vm.machine.ram;
        let memory =
            std::fs::read(ram).with_context(|| format!("cannot read {}", ram.display()))?;
        let map = ram.with_extension("map");
        let look = evidence::image(ram, life, &["--write-map".as_ref(), map.as_os_str()])?;
        anyhow::ensure!(look.verdict == "PROVEN", "before anything was done: {:?}", look.faults);
        vm.machine.qmp.run("cont", json!({}))?;
        Ok(Self { memory, map })
    }
}

/// Plants a fault into the RAM of a VM that stands still.
pub(super) fn plant(
    sabotage: Sabotage,
    ram: &Path,
    earlier: &Earlier,
    journal: &Journal,
) -> anyhow::Result<Planted> {
    let workload = journal.spec.resolve()?;
    let file = File::options().read(true).write(true).open(ram)?;
    let now = std::fs::read(ram)?;
    let pages = pages_of_the_region(&now, &workload);
    let watermark =
        journal.beats.iter().rfind(|beat| beat.writer == 0).map_or(0, |beat| beat.watermark);
    let share = &workload.shares()[0];
    // Half a turn of the ring away from where the first writer is.
    let near = watermark % share.slots;
    let slot = (near + share.slots / 2) % share.slots;
    let wanted = workload.slot_pages(0, slot).start;
    let at = |page: u64| pages.iter().find(|(known, _)| *known == page).map(|(_, offset)| *offset);
    let offset = at(wanted).context("a page of the region is not in the image")?;
    let page_at =
        |bytes: &[u8], offset: u64| bytes[offset as usize..(offset + PAGE_BYTES) as usize].to_vec();
    match sabotage {
        Sabotage::FlipBit => {
            let byte = offset + 17 * LINE_BYTES + 29;
            let flipped = now[byte as usize] ^ 0x08;
            file.write_all_at(&[flipped], byte)?;
            Ok(Planted { pages: vec![wanted], line: Some(wanted * PAGE_LINES + 17) })
        }
        Sabotage::SwapPages => {
            let other = wanted + 9;
            let other_offset = at(other).context("a page of the region is not in the image")?;
            file.write_all_at(&page_at(&now, other_offset), offset)?;
            file.write_all_at(&page_at(&now, offset), other_offset)?;
            Ok(Planted { pages: vec![wanted, other], line: None })
        }
        Sabotage::OlderCopy => {
            // A page that was written since, and not a moment ago.
            let changed = pages.iter().filter(|(page, offset)| {
                let distance = (near + share.slots - slot_of(&workload, *page)) % share.slots;
                *page < share.pages
                    && distance > share.slots / 64
                    && page_at(&now, *offset) != page_at(&earlier.memory, *offset)
                    && is_whole(&page_at(&earlier.memory, *offset), *page, &workload)
            });
            let (page, offset) =
                changed.min().context("no page was written since the earlier moment")?;
            file.write_all_at(&page_at(&earlier.memory, *offset), *offset)?;
            Ok(Planted { pages: vec![*page], line: None })
        }
        Sabotage::ZeroPage => {
            file.write_all_at(&[0; PAGE_BYTES as usize], offset)?;
            Ok(Planted { pages: vec![wanted], line: None })
        }
    }
}

/// The first writer's slot that lies at a page of its share.
fn slot_of(workload: &Workload, page: u64) -> u64 {
    page * PAGE_LINES / workload.record_lines()
}

/// Pages of the region with the offsets at which they lie in an image.
fn pages_of_the_region(image: &[u8], workload: &Workload) -> Vec<(u64, u64)> {
    let pages = image.chunks_exact(PAGE_BYTES as usize).zip((0..).step_by(PAGE_BYTES as usize));
    let lines = workload.lines();
    pages
        .filter_map(|(page, offset)| {
            let (address, _) = workload.key().identify(&line(page, 0))?;
            let number = address / PAGE_LINES;
            let whole = address % PAGE_LINES == 0 && address < lines;
            (whole && is_whole(page, number, workload)).then_some((number, offset))
        })
        .collect()
}

/// Whether every line of a page says that it belongs there.
fn is_whole(page: &[u8], number: u64, workload: &Workload) -> bool {
    (0..PAGE_LINES).all(|index| {
        let found = workload.key().identify(&line(page, index as usize));
        found.is_some_and(|(address, _)| address == number * PAGE_LINES + index)
    })
}

fn line(page: &[u8], index: usize) -> Line {
    let start = index * LINE_BYTES as usize;
    let words: [u64; LINE_WORDS] = std::array::from_fn(|i| {
        let bytes = page[start + 8 * i..].first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(bytes)
    });
    words
}
