//! Guest memory as the engine sees it: pages that may change while they are read.

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
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
#[derive(Clone)]
pub struct MemoryView {
    base: *mut u8,
    pages: u64,
    file: Option<Arc<dyn AsFd + Send + Sync>>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the constructor demands memory that is valid from any thread for as long as the owner
// lives, and the view keeps the owner alive.
unsafe impl Send for MemoryView {}
// SAFETY: as above; racing reads go through atomics or the kernel.
unsafe impl Sync for MemoryView {}

impl std::fmt::Debug for MemoryView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryView").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl MemoryView {
    /// A view of `pages` pages at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned and valid for reads and writes of all pages, from any thread, until
    /// `owner` is dropped.
    pub unsafe fn new(base: *mut u8, pages: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, pages, file: None, _owner: owner }
    }

    /// Says that the memory is a shared mapping of `file` from its first byte on, as of a memfd:
    /// the kernel can then say which pages were never touched.
    #[must_use]
    pub fn backed_by(self, file: Arc<dyn AsFd + Send + Sync>) -> Self {
        Self { file: Some(file), ..self }
    }

    /// The file that the memory is a shared mapping of, if there is one.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The pages that were ever touched, as far as that is known: the others read as zero, and
    /// looking at them would make the system find memory for them.
    ///
    /// # Errors
    /// The file that the memory is a mapping of cannot be searched.
    pub fn present(&self) -> io::Result<Bitmap> {
        let Some(file) = self.file() else { return Ok(Bitmap::full(self.pages)) };
        let mut present = Bitmap::empty(self.pages);
        let mut offset = 0;
        while offset < self.pages * PAGE_BYTES {
            let start = match seek(file, SeekFrom::Data(offset)) {
                Ok(start) => start,
                // Nothing from here on.
                Err(Errno::NXIO) => break,
                // A file system that cannot tell.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Bitmap::full(self.pages)),
                Err(e) => return Err(e.into()),
            };
            let end = seek(file, SeekFrom::Hole(start))?;
            let page = |offset: u64| PageNumber((offset / PAGE_BYTES).min(self.pages));
            present.insert(page(start)..page(end.next_multiple_of(PAGE_BYTES)));
            offset = end;
        }
        Ok(present)
    }

    /// First byte of `range` and its length in bytes, for system calls.
    ///
    /// # Panics
    /// The range is not inside.
    pub fn raw(&self, range: &PageRange) -> (*mut u8, usize) {
        assert!(
            range.start <= range.end && range.end.0 <= self.pages,
            "{range:?} of {}",
            self.pages
        );
        // SAFETY: inside the view, as just checked.
        let start = unsafe { self.base.add(range.start.offset() as usize) };
        (start, ((range.end - range.start) * PAGE_BYTES) as usize)
    }

    /// The bytes of `range`, for whoever moves bytes and knows no pages.
    ///
    /// # Panics
    /// The range is not inside.
    pub fn stretch(&self, range: &PageRange) -> Stretch<'_> {
        let (start, bytes) = self.raw(range);
        Stretch { start, bytes, _memory: PhantomData }
    }

    fn words(&self, range: &PageRange) -> &[AtomicU64] {
        self.stretch(range).words()
    }

    /// Whether a page reads as all zero. If the guest writes meanwhile its page is dirty again.
    pub fn is_zero(&self, page: PageNumber) -> bool {
        let lines = self.words(&page.alone()).chunks_exact(8);
        // A line at a time: a branch for each word would be slower than memory.
        let any =
            |line: &[AtomicU64]| line.iter().fold(0, |any, w| any | w.load(Ordering::Relaxed));
        lines.map(any).all(|any| any == 0)
    }

    /// Copies pages out, as they are word by word.
    pub fn copy_out(&self, range: &PageRange, into: &mut [u8]) {
        copy_words(self.words(range), into);
    }

    /// Lets `fill` write whole pages, for a memory that nobody else writes: a shadow's.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn fill<E>(
        &self,
        range: &PageRange,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.stretch(range).fill(fill)
    }

    /// Zeroes pages of a shadow.
    pub fn zero(&self, range: &PageRange) {
        for word in self.words(range) {
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
        let (start, bytes) = self.raw(&range);
        // SAFETY: advice on our own mapping changes no contents. Where the system has no huge
        // pages to give for such memory, small ones do.
        let _ = unsafe { madvise(start.cast(), bytes, Advice::LinuxHugepage) };
        // SAFETY: making pages of our own mapping changes no contents.
        match unsafe { madvise(start.cast(), bytes, Advice::LinuxPopulateWrite) } {
            // Before Linux 5.14: touch page by page.
            Err(Errno::INVAL) => {}
            other => return Ok(other?),
        }
        for page in each(range) {
            self.words(&page.alone())[0].fetch_or(0, Ordering::Relaxed);
        }
        Ok(())
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
        // SAFETY: valid, page-aligned memory (see `MemoryView::raw`); atomics may race with any other
        // atomic, and the guest's own writes come from other programs' or VMs' instructions.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes / 8) }
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
        // SAFETY: valid memory (see `MemoryView::raw`). The engine writes a shadow's page from the one
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
        let present = view.backed_by(file).present().unwrap();
        assert_eq!(present.iter().collect::<Vec<_>>(), [0, 7, 8, 299].map(PageNumber));
    }
}
