//! Faults planted at the seams: each must be caught, before the guest runs on, with the right class.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use migrate_core::codec::{Checks, Compress, Delta, Encoding};
use migrate_core::guest::Guest;
use migrate_core::guest::stamped::StampedFactory;
use migrate_core::guest::stamped::proof::{Scanned, Testimony, judge};
use migrate_core::guest::tracker::{self, TrackerKind};
use migrate_core::memory::Bitmap;
use migrate_core::policy::PolicyKind;
use migrate_core::source;
use support::{
    MemoryWords, Quiet, Tamper, TamperedFactory, TamperedTracker, WatchedGuest, assert_healthy,
    guest, listener, receiver, send, settings, spec,
};
use verifier::verdict::Verdict;
use workload::spec::Workload;

/// Slow enough that the ring does not come round: rewriting would hide the loss.
const RATE: u64 = 16_000_000;

/// Migrates with a tampered tracker; returns what the source was told.
fn with_tracker(tamper: impl FnMut(u64, bool, &mut Bitmap) + Send) -> String {
    with_policy(PolicyKind::Vmotion, tamper)
}

fn with_policy(
    policy: PolicyKind,
    mut tamper: impl FnMut(u64, bool, &mut Bitmap) + Send,
) -> String {
    let mut guest = guest(&spec(64), RATE);
    let (listener, address) = listener();
    let there = receiver(listener, StampedFactory::default());
    let paused = Arc::new(AtomicBool::new(false));
    let (watched, seen) = (paused.clone(), paused);
    let error = {
        let mut tracker = TamperedTracker {
            inner: tracker::open(TrackerKind::Auto, &guest.memory()).unwrap(),
            harvests: 0,
            tamper: |n, new: &mut Bitmap| tamper(n, seen.load(Ordering::Acquire), new),
        };
        let mut watched = WatchedGuest { inner: &mut guest, paused: watched, pauses: vec![] };
        let mut settings = settings(address);
        // A round or two, then a stun with enough left for its harvest to matter.
        settings.limits.goal = Duration::from_millis(30);
        settings.policy = policy;
        source::migrate(&mut watched, &mut tracker, &settings, &mut Quiet::default())
            .unwrap_err()
            .error
            .to_string()
    };
    assert!(there.join().unwrap().is_err(), "the guest must not run there");
    assert_healthy(&mut guest);
    error
}

/// Migrates into a tampered shadow; returns what the source was told.
fn with_shadow(tamper: Tamper) -> String {
    let mut guest = guest(&spec(64), RATE);
    let (listener, address) = listener();
    let factory = TamperedFactory { inner: StampedFactory::default(), tamper };
    let there = receiver(listener, factory);
    let error = send(&mut guest, &settings(address)).unwrap_err().error.to_string();
    assert!(there.join().unwrap().is_err(), "the guest must not run there");
    assert_healthy(&mut guest);
    error
}

fn through(rule: proxy::Rule) -> String {
    through_with(rule, "stream,record=16KiB", Checks::On)
}

fn through_with(rule: proxy::Rule, workload: &str, checks: Checks) -> String {
    let mut spec = spec(64);
    spec.workload = workload.parse().unwrap();
    let mut guest = guest(&spec, RATE);
    let (listener, address) = listener();
    let there = receiver(listener, StampedFactory::default());
    let mut settings = settings(proxy::start(address, rule));
    let delta = Delta::On;
    settings.encoding = Encoding { delta, checks, compress: Compress::Off, ..Encoding::default() };
    let error = send(&mut guest, &settings).unwrap_err().error.to_string();
    assert!(there.join().unwrap().is_err(), "the guest must not run there");
    assert_healthy(&mut guest);
    error
}

fn forget_first(new: &mut Bitmap) {
    let first = new.iter().next();
    first.map(|page| new.remove(page));
}

#[track_caller]
fn assert_class(error: &str, class: &str) {
    assert!(error.contains("WRONG before resume") && error.contains(class), "{class}: {error}");
}

#[test]
fn a_dirty_bit_dropped_in_a_middle_round_is_stale() {
    assert_class(
        &with_tracker(|n, _, new| {
            if n == 3 {
                forget_first(new)
            }
        }),
        "STALE",
    );
}

#[test]
fn a_dirty_bit_dropped_in_the_last_round_is_stale() {
    // The final harvest may find little; what matters is that its first page is forgotten.
    let mut first = true;
    let error = with_tracker(move |_, paused, new| {
        // Another follows the saving of device state, and finds nothing.
        if paused && std::mem::take(&mut first) {
            assert!(!new.is_empty(), "nothing was dirty at the stun");
            forget_first(new);
        }
    });
    assert_class(&error, "STALE");
}

#[test]
fn a_skipped_final_round_is_stale() {
    let error = with_tracker(|_, paused, new| {
        if paused {
            *new = Bitmap::empty(new.pages());
        }
    });
    assert_class(&error, "STALE");
}

#[test]
fn two_swapped_pages_are_misplaced() {
    fn swap(memory: &MemoryWords, _: &Workload, _: &[u64]) {
        let (a, b) = (memory.page(3), memory.page(9000));
        memory.put(3, &b);
        memory.put(9000, &a);
    }
    let error = with_shadow(Tamper::Memory(swap));
    assert_class(&error, "MISPLACED (belongs +36851712 bytes from here)");
    assert!(error.contains("128 MISPLACED"), "{error}");
}

#[test]
fn an_old_copy_delivered_after_a_new_one_is_stale() {
    assert_class(&through(proxy::Rule::OldCopyLast), "STALE");
}

#[test]
fn a_frame_that_is_lost_is_stale() {
    assert_class(&through(proxy::Rule::DropLast), "STALE");
}

#[test]
fn a_shard_delivered_late_is_stale() {
    assert_class(&through(proxy::Rule::LateShard), "STALE");
}

#[test]
fn a_bit_flipped_on_the_way_is_noticed_by_the_check_and_without_it_by_the_verifier() {
    let stream = "stream,record=16KiB";
    let error = through_with(proxy::Rule::FlipBit, stream, Checks::On);
    assert!(error.contains("1 pages were damaged on the way"), "{error}");
    let error = through_with(proxy::Rule::FlipBit, stream, Checks::Off);
    assert_class(&error, "BITFLIP (1 bits)");
}

/// A few pages that are written again and again, a few lines at a time.
const HOT: &str = "hotset,p=0.99,f=0.01,content=delta:3";

#[test]
fn a_delta_on_the_wrong_base_is_noticed_by_the_check_and_without_it_by_the_verifier() {
    let error = through_with(proxy::Rule::DropDelta, HOT, Checks::On);
    assert!(error.contains("damaged on the way") || error.contains("STALE"), "{error}");
    let error = through_with(proxy::Rule::DropDelta, HOT, Checks::Off);
    assert!(error.contains("WRONG before resume"), "{error}");
    assert!(error.contains("TORN") || error.contains("STALE"), "{error}");
}

#[test]
fn a_zero_page_that_is_not_zeroed_again_is_unzeroed() {
    let zero_flip = "hotset,p=0.99,f=0.01,content=zero-flip";
    let error = through_with(proxy::Rule::DropZero, zero_flip, Checks::On);
    assert_class(&error, "UNZEROED");
}

#[test]
fn a_deferred_page_that_is_forgotten_is_stale() {
    // What is written behind a sweep waits for the next one, or for the stun. In the middle of the first
    // sweep all that was found is forgotten once; what lies ahead of the sweep heals.
    let error = with_policy(PolicyKind::Adaptive, |n, paused, new| {
        if n == 6 {
            assert!(!paused && !new.is_empty(), "the first sweep goes on, and the guest writes");
            *new = Bitmap::empty(new.pages());
        }
    });
    assert_class(&error, "STALE");
}

/// A page that has been written at least once, with its line addresses and generation.
fn written_page(workload: &Workload, watermarks: &[u64]) -> (u64, u64) {
    let generation = workload.shares()[0].pattern.generation(0, watermarks[0]);
    assert!(generation > 0, "slot 0 is written first");
    (0, generation)
}

#[test]
fn a_torn_record_is_torn() {
    fn tear(memory: &MemoryWords, workload: &Workload, watermarks: &[u64]) {
        let (page, generation) = written_page(workload, watermarks);
        let mut bytes = memory.page(page);
        for line in 32..64 {
            let old = workload.key().line(page * 64 + line, generation - 1);
            for (i, word) in old.iter().enumerate() {
                let at = line as usize * 64 + i * 8;
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        memory.put(page, &bytes);
    }
    let error = with_shadow(Tamper::Memory(tear));
    assert_class(&error, "TORN at 0x800");
    assert!(error.contains("32 TORN"), "{error}");
}

#[test]
fn one_flipped_bit_is_a_bitflip() {
    fn flip(memory: &MemoryWords, _: &Workload, _: &[u64]) {
        let mut bytes = memory.page(77);
        bytes[100] ^= 4;
        memory.put(77, &bytes);
    }
    let error = with_shadow(Tamper::Memory(flip));
    assert_class(&error, "BITFLIP (1 bits) at 0x4d040 (page 77");
}

#[test]
fn a_zeroed_page_is_zeroed() {
    fn zero(memory: &MemoryWords, _: &Workload, _: &[u64]) {
        memory.put(500, &[0; 4096]);
    }
    let error = with_shadow(Tamper::Memory(zero));
    assert_class(&error, "ZEROED at 0x1f4000 (page 500");
    assert!(error.contains("64 ZEROED"), "{error}");
}

#[test]
fn an_older_watermark_makes_memory_the_future() {
    fn age(state: &mut serde_json::Value) {
        let w = state["watermarks"][0].as_u64().unwrap();
        state["watermarks"][0] = (w - 3).into();
    }
    assert_class(&with_shadow(Tamper::State(age)), "FUTURE");
}

fn testimony(before: &[u64], after: &[u64]) -> Testimony {
    let scanned = |watermarks: &[u64]| Scanned {
        watermarks: watermarks.to_vec(),
        lines: 1,
        elapsed_ms: 1.0,
        faults: Default::default(),
    };
    Testimony {
        before_resume: scanned(before),
        after_run: Some(scanned(after)),
        trouble: vec![],
        root: None,
        felt_gap_ms: Some(1.0),
    }
}

#[test]
fn a_start_from_an_older_watermark_is_a_rollback_even_with_matching_memory() {
    let proof = judge(1, vec![0], vec![9], None, Some(testimony(&[7], &[12])));
    assert_eq!(proof.verdict, Verdict::Wrong);
    assert!(proof.reasons[0].starts_with("ROLLBACK"), "{:?}", proof.reasons);
}

#[test]
fn a_writer_that_never_ran_proves_nothing() {
    // One record in a hundred seconds: alive, but it will not write in time.
    let mut guest = guest(&spec(16), 320);
    let (listener, address) = listener();
    let there = receiver(listener, StampedFactory::default());
    let began = guest.watermarks();
    send(&mut guest, &settings(address)).unwrap();
    let testimony = support::testify(there.join().unwrap().unwrap().guest);
    let proof = judge(16 << 14, began, guest.watermarks(), None, Some(testimony));
    assert_eq!(proof.verdict, Verdict::Inconclusive);
    assert!(proof.reasons[0].contains("wrote nothing before the stun"), "{:?}", proof.reasons);
}

#[test]
fn a_root_that_differs_is_wrong_and_silence_proves_nothing() {
    let mut there = testimony(&[9], &[12]);
    there.root = Some("b".to_owned());
    let proof = judge(1, vec![0], vec![9], Some("a".to_owned()), Some(there));
    assert_eq!(proof.verdict, Verdict::Wrong);
    assert_eq!(judge(1, vec![0], vec![9], None, None).verdict, Verdict::Inconclusive);
}

#[test]
fn a_look_at_less_than_all_of_memory_proves_nothing() {
    let judged = |change: fn(&mut Testimony)| {
        let mut there = testimony(&[9], &[12]);
        change(&mut there);
        let proof = judge(1, vec![0], vec![9], None, Some(there));
        (proof.verdict, proof.reasons.join("; "))
    };
    assert_eq!(judged(|_| {}), (Verdict::Proven, String::new()));
    let inconclusive = |what: &str| (Verdict::Inconclusive, what.to_owned());
    assert_eq!(
        judged(|there| there.before_resume.lines = 0),
        inconclusive("before resume: 0 of 1 lines were looked at")
    );
    assert_eq!(
        judged(|there| there.after_run.as_mut().unwrap().lines = 0),
        inconclusive("after running on: 0 of 1 lines were looked at")
    );
    let (verdict, reasons) = judged(|there| there.after_run = None);
    assert_eq!(verdict, Verdict::Inconclusive);
    assert!(reasons.contains("writer 0 wrote nothing at the destination"), "{reasons}");
    assert_eq!(
        judged(|there| there.trouble.push("it fell silent".to_owned())),
        inconclusive("at the destination: it fell silent")
    );
}
