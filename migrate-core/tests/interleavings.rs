//! Every interleaving of a harvest and of streams at the set of pages that they share, walked by
//! loom: the set's own source, over loom's atomics in place of the standard library's.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    reason = "memory as a module of a test"
)]

#[path = "../src/memory/mod.rs"]
mod memory;

mod sync {
    pub(crate) use loom::sync::atomic;
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use memory::{Bitmap, PageNumber, SharedBitmap};

const PAGE: PageNumber = PageNumber(3);

fn set_of(page: Option<PageNumber>) -> Bitmap {
    let mut set = Bitmap::empty(64);
    page.map(|page| set.insert(page.alone()));
    set
}

/// What a stream does with a page that it takes: it reads it, and so sends what it read.
fn take_and_read(owed: &SharedBitmap, none: &SharedBitmap, contents: &AtomicU64) -> Option<u64> {
    let group = owed.take_group(PageNumber(0), none)?;
    assert_eq!(group.mask(), group.bit(PAGE));
    Some(contents.load(Ordering::Relaxed))
}

/// Harvest before read: what was written before a page was added is in the set, or in what the
/// stream that took it out has read.
#[test]
fn a_page_is_owed_or_was_read_after_its_last_write() {
    loom::model(|| {
        let owed = Arc::new(SharedBitmap::of(&set_of(Some(PAGE))));
        let none = Arc::new(SharedBitmap::of(&set_of(None)));
        let contents = Arc::new(AtomicU64::new(0));
        let stream = thread::spawn({
            let (owed, none, contents) = (owed.clone(), none.clone(), contents.clone());
            move || take_and_read(&owed, &none, &contents)
        });
        // The guest writes, the harvest finds it.
        contents.store(1, Ordering::Relaxed);
        owed.add(&set_of(Some(PAGE)));
        let sent = stream.join().unwrap();
        let last = take_and_read(&owed, &none, &contents).or(sent);
        assert_eq!(last, Some(1));
    });
}

/// Two takers of one page: one gets it.
#[test]
fn a_page_is_taken_once() {
    loom::model(|| {
        let owed = Arc::new(SharedBitmap::of(&set_of(Some(PAGE))));
        let none = Arc::new(SharedBitmap::of(&set_of(None)));
        let taker = || {
            let (owed, none) = (owed.clone(), none.clone());
            thread::spawn(move || owed.take_group(PageNumber(0), &none).is_some())
        };
        let takers = [taker(), taker()];
        let taken = takers.map(|taker| taker.join().unwrap());
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
        assert_eq!(owed.count(), 0);
    });
}

/// Added and taken at the same time: how many were new agrees with what there is.
#[test]
fn what_is_new_is_counted_once() {
    loom::model(|| {
        let owed = Arc::new(SharedBitmap::of(&set_of(None)));
        let none = Arc::new(SharedBitmap::of(&set_of(None)));
        let adder = thread::spawn({
            let owed = owed.clone();
            move || owed.add(&set_of(Some(PAGE))) + owed.add(&set_of(Some(PAGE)))
        });
        let taken = u64::from(owed.take_group(PageNumber(0), &none).is_some());
        let new = adder.join().unwrap();
        assert_eq!(new, taken + owed.count());
    });
}
