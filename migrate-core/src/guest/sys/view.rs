//! Guest memory as the engine sees it: pages that may change while they are read.

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

use crate::guest::{Work, threads};
use crate::memory::{Bitmap, PAGE_BYTES, PageNumber, PageRange, all, each};

/// Pages (64 MiB) that are made at a time: between two pieces it is seen whether they are wanted.
const POPULATED_PAGES: u64 = 1 << 14;

/// A view of all of a guest's memory, kept alive by whoever owns it.
///
/// A guest's memory is a list of regions, as a VMM's are: a page's number counts from the first page
/// of the first one across all of them, whatever lies between them in the guest's address space or
/// in this process's.
#[derive(Clone)]
pub struct MemoryView {
    regions: Arc<[Region]>,
    pages: u64,
}

/// Pages that follow one another in this process.
#[derive(Clone)]
struct Region {
    first: PageNumber,
    pages: u64,
    base: *mut u8,
    file: Option<Arc<dyn AsFd + Send + Sync>>,
    /// Keeps the memory.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the constructor demands memory that is valid from any thread for as long as the owner
// lives, and the region keeps the owner alive.
unsafe impl Send for Region {}
// SAFETY: as above; racing reads go through atomics or the kernel.
unsafe impl Sync for Region {}

impl std::fmt::Debug for MemoryView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryView").field("regions", &self.regions()).finish_non_exhaustive()
    }
}

impl Region {
    fn end(&self) -> PageNumber {
        self.first + self.pages
    }

    /// Adds the pages that were ever touched.
    fn present(&self, present: &mut Bitmap) -> io::Result<()> {
        let all = self.first..self.end();
        let Some(file) = self.file.as_ref().map(|file| file.as_fd()) else {
            present.insert(all);
            return Ok(());
        };
        let mut offset = 0;
        while offset < self.pages * PAGE_BYTES {
            let start = match seek(file, SeekFrom::Data(offset)) {
                Ok(start) => start,
                // Nothing from here on.
                Err(Errno::NXIO) => break,
                // A file system that cannot tell.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    present.insert(all);
                    break;
                }
                Err(e) => return Err(e.into()),
            };
            let end = seek(file, SeekFrom::Hole(start))?;
            let page = |offset: u64| self.first + (offset / PAGE_BYTES).min(self.pages);
            present.insert(page(start)..page(end.next_multiple_of(PAGE_BYTES)));
            offset = end;
        }
        Ok(())
    }
}

impl MemoryView {
    /// A view of memory that is one region: `pages` pages at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned and valid for reads and writes of all pages, from any thread, until
    /// `owner` is dropped.
    pub unsafe fn new(base: *mut u8, pages: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        let region = Region { first: PageNumber(0), pages, base, file: None, _owner: owner };
        Self { regions: [region].into(), pages }
    }

    /// Says that the memory, which is one region, is a shared mapping of `file` from its first byte
    /// on, as of a memfd: the kernel can then say which pages were never touched.
    ///
    /// # Panics
    /// It is more than one region.
    #[must_use]
    pub fn backed_by(self, file: Arc<dyn AsFd + Send + Sync>) -> Self {
        let [region] = &*self.regions else { panic!("a file backs one region") };
        let region = Region { file: Some(file), ..region.clone() };
        Self { regions: [region].into(), pages: self.pages }
    }

    /// Memory that is all regions of `views`, in their order.
    pub fn joined(views: impl IntoIterator<Item = Self>) -> Self {
        let mut pages = 0;
        let mut regions = Vec::new();
        for region in views.into_iter().flat_map(|view| view.regions.to_vec()) {
            regions.push(Region { first: PageNumber(pages), ..region });
            pages += regions.last().map_or(0, |region| region.pages);
        }
        Self { regions: regions.into(), pages }
    }

    /// Number of pages, all regions together.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages of each region, in order.
    pub fn regions(&self) -> Vec<u64> {
        self.regions.iter().map(|region| region.pages).collect()
    }

    /// A view of each region alone, and the number of its first page in all of memory.
    pub(crate) fn alone(&self) -> impl Iterator<Item = (PageNumber, Self)> + '_ {
        self.regions.iter().map(|region| {
            let alone = Region { first: PageNumber(0), ..region.clone() };
            (region.first, Self { regions: [alone].into(), pages: region.pages })
        })
    }

    /// The pages that were ever touched, as far as that is known: the others read as zero, and
    /// looking at them would make the system find memory for them.
    ///
    /// # Errors
    /// The file that the memory is a mapping of cannot be searched.
    pub fn present(&self) -> io::Result<Bitmap> {
        let mut present = Bitmap::empty(self.pages);
        self.regions.iter().try_for_each(|region| region.present(&mut present))?;
        Ok(present)
    }

    /// The bytes of `range`, for whoever moves bytes and knows no pages: a stretch for each region
    /// that it touches.
    ///
    /// # Panics
    /// The range is not inside.
    pub fn stretches(&self, range: &PageRange) -> impl Iterator<Item = Stretch<'_>> + use<'_> {
        let PageRange { start, end } = *range;
        assert!(start <= end && end.0 <= self.pages, "{range:?} of {}", self.pages);
        let first = self.regions.partition_point(|region| region.end() <= start);
        let touched = self.regions[first..].iter().take_while(move |region| region.first < end);
        touched.map(move |region| {
            let (start, end) = (start.max(region.first), end.min(region.end()));
            // SAFETY: inside the region.
            let base = unsafe {
                region.base.add((start - region.first).saturating_mul(PAGE_BYTES) as usize)
            };
            let bytes = ((end - start) * PAGE_BYTES) as usize;
            Stretch { start: base, bytes, _memory: PhantomData }
        })
    }

    /// First byte of `range`, which lies in one region, and its length in bytes, for system calls.
    ///
    /// # Panics
    /// The range is not inside one region.
    pub(crate) fn raw(&self, range: &PageRange) -> (*mut u8, usize) {
        let mut stretches = self.stretches(range);
        let stretch = stretches.next().filter(|_| stretches.next().is_none());
        stretch.unwrap_or_else(|| panic!("{range:?} is not in one region")).raw()
    }

    fn page(&self, page: PageNumber) -> Stretch<'_> {
        let mut stretches = self.stretches(&page.alone());
        stretches.next().unwrap_or_else(|| unreachable!("a page lies in a region"))
    }

    /// Whether a page reads as all zero. If the guest writes meanwhile its page is dirty again.
    pub fn is_zero(&self, page: PageNumber) -> bool {
        let lines = self.page(page).words().chunks_exact(8);
        // A line at a time: a branch for each word would be slower than memory.
        let any =
            |line: &[AtomicU64]| line.iter().fold(0, |any, w| any | w.load(Ordering::Relaxed));
        lines.map(any).all(|any| any == 0)
    }

    /// Copies pages out, as they are word by word.
    pub fn copy_out(&self, range: &PageRange, mut into: &mut [u8]) {
        for stretch in self.stretches(range) {
            let (these, rest) = into.split_at_mut(stretch.bytes);
            copy_words(stretch.words(), these);
            into = rest;
        }
    }

    /// Lets `fill` write a whole page, for a memory that nobody else writes: a shadow's.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn fill<E>(
        &self,
        page: PageNumber,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.page(page).fill(fill)
    }

    /// Zeroes a page of a shadow.
    pub fn zero(&self, page: PageNumber) {
        for word in self.page(page).words() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Touches every page for writing, with as many threads as the machine has cores, so that no
    /// page of a shadow is missing when data arrives. Says through `work` how far it is.
    ///
    /// # Errors
    /// The machine has not that much memory, or it was called off.
    pub fn populate(&self, work: &Work) -> io::Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let step = self.pages.div_ceil(threads).max(1);
        let populated = AtomicU64::new(0);
        let end = PageNumber(self.pages);
        let starts = each(all(self.pages)).step_by(step as usize);
        let parts = starts.map(|start| start..(start + step).min(end)).collect();
        let part = |range: PageRange| {
            for start in each(range.clone()).step_by(POPULATED_PAGES as usize) {
                if work.cancelled() {
                    return Err(io::Error::other("called off"));
                }
                let end = (start + POPULATED_PAGES).min(range.end);
                self.populate_part(start..end)?;
                let done = populated.fetch_add(end - start, Ordering::Relaxed) + (end - start);
                work.advance(done, self.pages);
            }
            Ok(())
        };
        threads::map(parts, part).into_iter().collect()
    }

    fn populate_part(&self, range: PageRange) -> io::Result<()> {
        self.stretches(&range).try_for_each(Stretch::populate)
    }
}

#[cfg(test)]
impl MemoryView {
    /// Anonymous memory of `pages` pages, for ever.
    pub(crate) fn for_ever(pages: u64) -> Self {
        let bytes = (pages * PAGE_BYTES) as usize;
        let layout = std::alloc::Layout::from_size_align(bytes, PAGE_BYTES as usize).unwrap();
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        // SAFETY: as long and aligned as it says, and never freed.
        unsafe { Self::new(base, pages, Arc::new(())) }
    }
}

/// Bytes of guest memory that follow one another, whole pages of them.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    start: *mut u8,
    bytes: usize,
    _memory: PhantomData<&'a MemoryView>,
}

impl<'a> Stretch<'a> {
    /// Its first byte and its length, for system calls.
    pub fn raw(self) -> (*mut u8, usize) {
        (self.start, self.bytes)
    }

    fn words(self) -> &'a [AtomicU64] {
        // SAFETY: valid, page-aligned memory (see `MemoryView::new`); atomics may race with any other
        // atomic, and the guest's own writes come from other programs' or VMs' instructions.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes / 8) }
    }

    /// Touches all of it for writing.
    fn populate(self) -> io::Result<()> {
        let (start, bytes) = self.raw();
        // SAFETY: advice on our own mapping changes no contents. Where the system has no huge
        // pages to give for such memory, small ones do.
        let _ = unsafe { madvise(start.cast(), bytes, Advice::LinuxHugepage) };
        // SAFETY: making pages of our own mapping changes no contents.
        match unsafe { madvise(start.cast(), bytes, Advice::LinuxPopulateWrite) } {
            // Before Linux 5.14: touch page by page.
            Err(Errno::INVAL) => {}
            other => return Ok(other?),
        }
        for page in self.words().chunks_exact(PAGE_BYTES as usize / 8) {
            page[0].fetch_or(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives its contents a page at a time, as they are word by word.
    ///
    /// # Errors
    /// What `take` returns.
    pub fn each_page<E>(self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut copy = [0; PAGE_BYTES as usize];
        self.words().chunks_exact(copy.len() / 8).try_for_each(|words| {
            copy_words(words, &mut copy);
            take(&copy)
        })
    }

    /// Lets `fill` write all of it, for a memory that nobody else writes: a shadow's.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn fill<E>(self, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        // SAFETY: valid memory (see `MemoryView::new`). The engine writes a shadow's page from the one
        // stream that carries it, and nothing runs in a shadow yet, so no other reference is in use.
        fill(unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) })
    }
}

/// Copies words that may be written meanwhile, each of them whole or not yet.
#[cfg(target_arch = "x86_64")]
fn copy_words(from: &[AtomicU64], into: &mut [u8]) {
    assert_eq!(from.len() * 8, into.len(), "as many bytes as words");
    // SAFETY: both slices are valid for as many words and do not overlap, one being borrowed
    // exclusively. The instruction is not a Rust memory access, so a race with a writer of atomics
    // is the machine's business: aligned words are copied whole.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            inout("rcx") from.len() => _,
            inout("rsi") from.as_ptr() => _,
            inout("rdi") into.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies words that may be written meanwhile, each of them whole or not yet.
#[cfg(not(target_arch = "x86_64"))]
fn copy_words(from: &[AtomicU64], into: &mut [u8]) {
    for (bytes, word) in into.chunks_exact_mut(8).zip(from) {
        bytes.copy_from_slice(&u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_never_touched_is_not_present() {
        let pages = 300;
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(pages * PAGE_BYTES).unwrap();
        for page in [0, 7, 8, 299] {
            file.write_all_at(&[1], page * PAGE_BYTES + 5).unwrap();
        }
        let file: Arc<File> = Arc::new(file);
        // SAFETY: the view is asked about its file only; its memory is never looked at.
        let view = unsafe { MemoryView::new(std::ptr::null_mut(), pages, file.clone()) };
        assert_eq!(view.present().unwrap(), Bitmap::full(pages), "nothing is known without a file");
        let backed = view.clone().backed_by(file);
        let present = backed.present().unwrap();
        assert_eq!(present.iter().collect::<Vec<_>>(), [0, 7, 8, 299].map(PageNumber));
        let joined = MemoryView::joined([MemoryView::for_ever(5), backed]);
        let present = joined.present().unwrap();
        let wanted: Vec<_> = (0..5).chain([5, 12, 13, 304]).map(PageNumber).collect();
        assert_eq!(present.iter().collect::<Vec<_>>(), wanted);
    }

    /// Pages are numbered across regions whose sizes are no multiples of anything.
    #[test]
    fn regions_are_one_memory() {
        let views = [3, 1, 70].map(MemoryView::for_ever);
        let memory = MemoryView::joined(views.clone());
        assert_eq!((memory.pages(), memory.regions()), (74, vec![3, 1, 70]));
        for page in each(all(74)) {
            let put = |bytes: &mut [u8]| {
                bytes.fill(page.0 as u8 + 1);
                Ok::<_, ()>(())
            };
            memory.fill(page, put).unwrap();
        }
        let first = |view: &MemoryView, page: u64| {
            let mut bytes = [0; PAGE_BYTES as usize];
            view.copy_out(&PageNumber(page).alone(), &mut bytes);
            bytes[0]
        };
        assert_eq!((first(&views[0], 2), first(&views[1], 0), first(&views[2], 69)), (3, 4, 74));
        let mut across = vec![0; 5 * PAGE_BYTES as usize];
        memory.copy_out(&(PageNumber(1)..PageNumber(6)), &mut across);
        let bytes: Vec<u8> = across.chunks(PAGE_BYTES as usize).map(|page| page[4095]).collect();
        assert_eq!(bytes, [2, 3, 4, 5, 6]);
        let lengths = |range| -> Vec<usize> {
            memory.stretches(&range).map(|stretch| stretch.bytes / PAGE_BYTES as usize).collect()
        };
        assert_eq!(lengths(PageNumber(1)..PageNumber(6)), [2, 1, 2]);
        assert!(lengths(PageNumber(3)..PageNumber(3)).is_empty());
        memory.zero(PageNumber(3));
        assert!(memory.is_zero(PageNumber(3)) && views[1].is_zero(PageNumber(0)));
        assert!(!memory.is_zero(PageNumber(2)) && !memory.is_zero(PageNumber(4)));
        memory.populate(&Work::default()).unwrap();
        let alone: Vec<_> = memory.alone().map(|(first, view)| (first.0, view.pages())).collect();
        assert_eq!(alone, [(0, 3), (3, 1), (4, 70)]);
    }
}
