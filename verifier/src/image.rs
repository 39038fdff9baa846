//! A guest's region inside a raw image of its physical memory, without page tables or addresses.
//!
//! Every stamped line says where it belongs, so each page of the image is asked which page of the
//! region it is. Images are raw (QEMU `pmemsave`, snapshot memory files, .vmem: offset = guest-
//! physical address) or ELF cores (QEMU `dump-guest-memory`: addresses from the program headers).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use workload::line::{Line, LineAddress};
use workload::regular;
use workload::spec::Workload;
use workload::{LINE_BYTES, PAGE_BYTES, PAGE_LINES, cores};

use crate::case::KnownRun;
use crate::expected::Expected;
use crate::held::{self, Held, Missing};
use crate::map::Map;
use crate::memory::Memory;

/// Pages that one task looks at.
const CHUNK_PAGES: u64 = 512;
/// No place in the image.
const NOWHERE: u64 = u64::MAX;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error("cannot {doing} image {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not an image that can be read as it is.
    #[error("image {}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// More than one region of this seed.
    #[error(
        "image {}: {twice} of {found} pages are there more than once; the image holds two runs of the same seed, or two copies of one: give each run its own --seed, and dump one guest",
        path.display()
    )]
    Twice {
        /// The file.
        path: PathBuf,
        /// Pages found more than once.
        twice: u64,
        /// Pages found.
        found: u64,
    },
}

/// A stretch of guest-physical memory in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    physical: u64,
    file: Range<u64>,
}

/// A memory image, mapped.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    map: memmap2::Mmap,
    /// Ascending in guest-physical address; holes of the file, which are zero, are left out, because to
    /// look at one would make the system find memory for it.
    stretches: Vec<Stretch>,
    /// All of it, holes among it, by guest-physical address.
    whole: Vec<Range<u64>>,
    /// Pages, holes among them.
    pages: u64,
}

/// A region that is so many times as large as its image is not looked for: of nearly all its pages
/// nothing could be there.
const REGION_MAX: u64 = 16;
/// Bytes by which a file's format is known.
const HEAD_BYTES: usize = 16;
/// What other programs' files begin with, and what to do instead.
const FOREIGN: [(&[u8], &str); 9] = [
    (b"KDUMP", "is compressed (kdump); use dump-guest-memory without -z, -l and -s"),
    (b"QEVM", "is QEMU's migration stream, not memory; dump with dump-guest-memory"),
    (b"LibvirtQemudSave", "is what `virsh save` wrote; use `virsh dump --memory-only`"),
    (b"LibvirtQemudPart", "is what `virsh save` did not finish; use `virsh dump --memory-only`"),
    (b"EMiL", "is a LiME dump; take it again with format=raw"),
    (b"\x1f\x8b", "is compressed; decompress it with gunzip first"),
    (b"\x28\xb5\x2f\xfd", "is compressed; decompress it with unzstd first"),
    (b"\xfd7zXZ", "is compressed; decompress it with unxz first"),
    (b"\x7fELF\x01", "is a 32-bit ELF file; only 64-bit cores are read"),
];

impl Stretch {
    /// Its parts that lie in these ranges of the file, in whole pages of the guest.
    fn within(&self, data: &[Range<u64>]) -> Vec<Self> {
        let Self { physical, file } = self;
        let end = file.start + (file.end - file.start) / PAGE_BYTES * PAGE_BYTES;
        let part = |data: &Range<u64>| {
            let (start, stop) = (data.start.max(file.start), data.end.min(end));
            let down = (start.saturating_sub(file.start)) / PAGE_BYTES * PAGE_BYTES;
            let up = stop.saturating_sub(file.start).next_multiple_of(PAGE_BYTES);
            (start < stop).then(|| Self {
                physical: physical + down,
                file: file.start + down..(file.start + up).min(end),
            })
        };
        let mut parts: Vec<Self> = data.iter().filter_map(part).collect();
        // Pages that two ranges share a part of.
        for index in 1..parts.len() {
            let before = parts[index - 1].file.end;
            let overlap = before.saturating_sub(parts[index].file.start);
            parts[index].file.start += overlap;
            parts[index].physical += overlap;
        }
        parts.retain(|part| part.file.start < part.file.end);
        parts
    }
}

/// The ranges of a file that hold data.
fn data(file: &File, bytes: u64) -> std::io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut offset = 0;
    while offset < bytes {
        let start = match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // Nothing from here on.
            Err(Errno::NXIO) => break,
            // A file system that cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(std::iter::once(0..bytes).collect()),
            Err(e) => return Err(e.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(bytes);
        ranges.push(start..end);
        offset = end.max(start + 1);
    }
    Ok(ranges)
}

impl Image {
    /// Maps an image file.
    ///
    /// # Errors
    /// It cannot be read, or is of a kind that cannot be looked into.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let io = |doing| move |source| ImageError::Io { path: path.to_owned(), doing, source };
        let (file, bytes) = regular::open(path).map_err(io("open"))?;
        let data = data(&file, bytes).map_err(io("search"))?;
        let map = sys::map(&file).map_err(io("map"))?;
        let format =
            |what: &str| ImageError::Format { path: path.to_owned(), what: what.to_owned() };
        // Read, and not through the map: the first page may be a hole, too.
        let mut head = [0; HEAD_BYTES];
        let read = file.read_at(&mut head, 0).map_err(io("read"))?;
        let head = &head[..read];
        if let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(format(what));
        }
        let whole = if head.starts_with(b"\x7fELF") {
            elf_stretches(&map).map_err(|what| format(&what))?
        } else if bytes.is_multiple_of(PAGE_BYTES) && bytes > 0 {
            vec![Stretch { physical: 0, file: 0..bytes }]
        } else {
            return Err(format("is no ELF core, and not of whole pages of 4 KiB; was it cut?"));
        };
        let pages = whole.iter().map(|s| (s.file.end - s.file.start) / PAGE_BYTES).sum();
        let mut stretches: Vec<Stretch> =
            whole.iter().flat_map(|stretch| stretch.within(&data)).collect();
        stretches.sort_by_key(|stretch| stretch.physical);
        let whole = whole.iter().map(|stretch| {
            let bytes = stretch.file.end - stretch.file.start;
            stretch.physical..stretch.physical.saturating_add(bytes)
        });
        Ok(Self { path: path.to_owned(), map, stretches, whole: whole.collect(), pages })
    }

    /// Pages in the image.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Finds the pages of a region. Of several copies of a page the one with the newest line
    /// counts: the others are what a guest left in memory that it freed. `progress` hears of pages
    /// of the image done.
    ///
    /// # Errors
    /// The image holds more than one such region, or could hold next to nothing of one.
    pub fn find(
        &self,
        workload: &Workload,
        progress: impl Fn(u64) + Sync,
    ) -> Result<Found<'_>, ImageError> {
        let region = workload.spec().memory.0 / PAGE_BYTES;
        if region / REGION_MAX > self.pages {
            let what = format!("has {} pages, and the run's region {region}", self.pages);
            return Err(ImageError::Format { path: self.path.clone(), what });
        }
        let chunks = self.chunks();
        let claims: Vec<Vec<Claim>> = cores::map(chunks.len() as u64, |chunk| {
            let chunk = &chunks[chunk as usize];
            let pages = (chunk.file.end - chunk.file.start) / PAGE_BYTES;
            let claims = (0..pages)
                .filter_map(|i| {
                    let offset = chunk.file.start + i * PAGE_BYTES;
                    let (page, newest) = claim(self.page(offset), workload)?;
                    let physical = chunk.physical + i * PAGE_BYTES;
                    Some(Claim { page, newest, place: Place { physical, offset } })
                })
                .collect();
            progress(pages);
            claims
        });
        let pages = region;
        let nowhere = Place { physical: NOWHERE, offset: NOWHERE };
        let mut found =
            Found { image: self, places: vec![nowhere; pages as usize], copies: vec![] };
        let mut newest = vec![0; pages as usize];
        for claim in claims.into_iter().flatten() {
            let page = claim.page as usize;
            let place = &mut found.places[page];
            if *place == nowhere {
                (*place, newest[page]) = (claim.place, claim.newest);
            } else if claim.newest == newest[page]
                && self.page(place.offset) == self.page(claim.place.offset)
            {
                // The same page twice, as in a dump of virtual memory: judged once.
            } else if claim.newest > newest[page] {
                found.copies.push((claim.page, place.physical));
                (*place, newest[page]) = (claim.place, claim.newest);
            } else {
                found.copies.push((claim.page, claim.place.physical));
            }
        }
        found.copies.sort_unstable();
        let (twice, there) = (found.copied_pages(), found.pages());
        // A few leftovers are a guest's life; most of a region is another region.
        if twice * 2 > there {
            return Err(ImageError::Twice { path: self.path.clone(), twice, found: there });
        }
        Ok(found)
    }

    /// What stands at a guest-physical address in place of a page of the region.
    fn holds(&self, page: u64, physical: u64, workload: &Workload, known: &[KnownRun]) -> Held {
        let Some(end) = physical.checked_add(PAGE_BYTES) else { return Held::Outside };
        if !self.whole.iter().any(|part| part.start <= physical && end <= part.end) {
            return Held::Outside;
        }
        let bytes = |stretch: &Stretch| stretch.file.end - stretch.file.start;
        let data = self.stretches.iter().find(|stretch| {
            stretch.physical <= physical && physical - stretch.physical < bytes(stretch)
        });
        // What is no data is a hole.
        let Some(stretch) = data else { return Held::Zeros };
        let offset = stretch.file.start + (physical - stretch.physical);
        let Some(bytes) = self.map.get(offset as usize..(offset + PAGE_BYTES) as usize) else {
            return Held::Outside;
        };
        let lines: Vec<Line> = (0..PAGE_LINES).map(|index| line_of(bytes, index)).collect();
        Held::of(page, &lines, claim(bytes, workload).map(|(page, _)| page), known)
    }

    /// The stretches cut into tasks.
    fn chunks(&self) -> Vec<Stretch> {
        let bytes = CHUNK_PAGES * PAGE_BYTES;
        let cut = |stretch: &Stretch| {
            let Stretch { physical, file } = stretch.clone();
            let length = (file.end - file.start) / PAGE_BYTES * PAGE_BYTES;
            let starts = (0..length).step_by(bytes as usize);
            starts.map(move |start| Stretch {
                physical: physical + start,
                file: file.start + start..file.start + (start + bytes).min(length),
            })
        };
        self.stretches.iter().flat_map(cut).collect()
    }

    fn page(&self, offset: u64) -> &[u8] {
        &self.map[offset as usize..(offset + PAGE_BYTES) as usize]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    physical: u64,
    offset: u64,
}

struct Claim {
    page: u64,
    newest: u64,
    place: Place,
}

fn line_of(bytes: &[u8], index: u64) -> Line {
    let start = (index * LINE_BYTES) as usize;
    std::array::from_fn(|word| {
        let mut le = [0; 8];
        le.copy_from_slice(&bytes[start + word * 8..start + word * 8 + 8]);
        u64::from_le_bytes(le)
    })
}

/// Which page of the region most lines of a page belong to, at their own places in it, and the
/// newest generation among those lines.
fn claim(bytes: &[u8], workload: &Workload) -> Option<(u64, u64)> {
    let (key, lines) = (workload.key(), workload.lines());
    // Page, lines that say so, newest of them: nearly always one.
    let mut votes: Vec<(u64, u32, u64)> = Vec::new();
    for index in 0..PAGE_LINES {
        let Some((at, generation)) = key.identify(&line_of(bytes, index)) else { continue };
        if at >= lines || at % PAGE_LINES != index {
            continue;
        }
        match votes.iter_mut().find(|(page, ..)| *page == at / PAGE_LINES) {
            Some((_, count, newest)) => (*count, *newest) = (*count + 1, generation.max(*newest)),
            None => votes.push((at / PAGE_LINES, 1, generation)),
        }
    }
    votes.into_iter().max_by_key(|(_, count, _)| *count).map(|(page, _, newest)| (page, newest))
}

fn elf_stretches(data: &[u8]) -> Result<Vec<Stretch>, String> {
    let wrong = |e: object::Error| format!("is a damaged ELF core: {e}");
    let header = FileHeader64::<Endianness>::parse(data).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    if endian != Endianness::Little {
        return Err("is an ELF core of a big-endian guest; only little-endian ones are read".into());
    }
    let headers = header.program_headers(endian, data).map_err(wrong)?;
    let mut stretches = Vec::new();
    for header in headers.iter().filter(|h| h.p_type(endian) == PT_LOAD) {
        let (start, bytes) = (header.p_offset(endian), header.p_filesz(endian));
        let end = start.checked_add(bytes).filter(|end| *end <= data.len() as u64);
        let end = end.ok_or("is cut: a segment ends beyond the end of the file")?;
        stretches.push(Stretch { physical: header.p_paddr(endian), file: start..end });
    }
    match stretches.is_empty() {
        true => Err("is an ELF file without memory in it".into()),
        false => Ok(stretches),
    }
}

/// A region's pages in an image.
#[derive(Debug)]
pub struct Found<'a> {
    image: &'a Image,
    /// By page of the region.
    places: Vec<Place>,
    /// Further copies: page and guest-physical address, ascending.
    pub copies: Vec<(u64, u64)>,
}

impl Memory for Found<'_> {
    #[inline]
    fn load(&self, address: LineAddress) -> Line {
        match self.places[(address / PAGE_LINES) as usize].offset {
            NOWHERE => workload::line::ZERO_LINE,
            offset => line_of(self.image.page(offset), address % PAGE_LINES),
        }
    }

    fn has(&self, page: u64) -> bool {
        self.places[page as usize].offset != NOWHERE
    }
}

impl Found<'_> {
    /// Guest-physical address of a page of the region, where it was found.
    pub fn physical(&self, page: u64) -> Option<u64> {
        Some(self.places.get(page as usize)?.physical).filter(|physical| *physical != NOWHERE)
    }

    /// Pages found.
    pub fn pages(&self) -> u64 {
        self.places.iter().filter(|place| place.offset != NOWHERE).count() as u64
    }

    /// Pages found more than once.
    pub fn copied_pages(&self) -> u64 {
        let mut pages: Vec<u64> = self.copies.iter().map(|(page, _)| *page).collect();
        pages.dedup();
        pages.len() as u64
    }

    /// Pages that are nowhere in the image: those that must hold something, and the number of
    /// those that must be all zero, which no page of an image can be told to be.
    pub fn missing(&self, workload: &Workload, expected: &Expected) -> (Vec<u64>, u64) {
        let absent = (0..self.places.len() as u64).filter(|page| !self.has(*page));
        let (zero, missing): (Vec<u64>, Vec<u64>) =
            absent.partition(|page| expected.is_zero(workload, *page));
        (missing, zero.len() as u64)
    }

    /// Missing pages, with what stands where they should be by a map or by their neighbours.
    pub fn instead(
        &self,
        workload: &Workload,
        missing: &[u64],
        map: Option<&Map>,
        known: &[KnownRun],
    ) -> Vec<Missing> {
        let place = |page| map.and_then(|map| map.place(page)).or_else(|| self.physical(page));
        held::gather(workload, missing, place, |page, physical| {
            self.image.holds(page, physical, workload, known)
        })
    }

    /// Pages that lie elsewhere than their neighbours say: the page, where it is, where it would
    /// be. Only a page between two neighbours that agree is judged.
    pub fn out_of_order(&self) -> Vec<(u64, u64, u64)> {
        let place = |page: u64| self.physical(page);
        let judge = |page: u64| {
            let (before, here, after) = (place(page - 1)?, place(page)?, place(page + 1)?);
            let wanted = before + PAGE_BYTES;
            (after == wanted + PAGE_BYTES && here != wanted).then_some((page, here, wanted))
        };
        (1..self.places.len().saturating_sub(1) as u64).filter_map(judge).collect()
    }
}

/// Maps a file for reading.
mod sys {
    use std::fs::File;

    pub(super) fn map(file: &File) -> std::io::Result<memmap2::Mmap> {
        // SAFETY: read-only and private to us; a file that shrinks meanwhile kills us with SIGBUS
        // rather than giving wrong answers, and plain bytes are valid whatever they are.
        unsafe { memmap2::Mmap::map(file) }
    }
}
