//! Guests on huge pages: tracked in the unit that the kernel protects, moved in pages of 4 KiB.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use migrate_core::guest::Guest;
use migrate_core::guest::stamped::proof::judge;
use migrate_core::guest::stamped::{GuestSettings, ProofSettings, StampedFactory, StampedGuest};
use migrate_core::guest::tracker::{self, TrackerKind};
use migrate_core::policy::PolicyKind;
use migrate_core::source;
use support::{Quiet, assert_healthy, listener, receiver, settings, spec, testify};
use verifier::verdict::Verdict;
use workload::units::{Bytes, Rate};

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
/// Of the guest and of its shadow, 32 MiB each, and some to spare.
const WANTED: u64 = 64;

/// Huge pages for as long as this lives.
struct Reserved(u64);

impl Reserved {
    fn enough() -> Self {
        let before = std::fs::read_to_string(RESERVED).unwrap().trim().parse().unwrap();
        if before < WANTED {
            std::fs::write(RESERVED, WANTED.to_string()).unwrap();
        }
        Self(before)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.0 < WANTED {
            let _ = std::fs::write(RESERVED, self.0.to_string());
        }
    }
}

fn guest() -> StampedGuest {
    let mut spec = spec(5);
    (spec.memory, spec.workload) = (Bytes(32 << 20), "uniform,record=4KiB".parse().unwrap());
    let proof = ProofSettings { run_on: Duration::from_millis(100), audit: true };
    let (rate, huge_pages) = (Some(Rate(8_000_000)), true);
    let settings = GuestSettings { rate, proof, huge_pages, ..GuestSettings::of(spec) };
    let guest = StampedGuest::start_new(&settings).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    guest
}

/// One test: what is reserved is the whole machine's.
#[test]
#[cfg_attr(not(has_huge_pages), ignore = "SKIPPED: needs 64 huge pages, or root to reserve them")]
fn a_guest_on_huge_pages_is_tracked_and_arrives_or_is_refused_with_the_reason() {
    let _reserved = Reserved::enough();
    for policy in [PolicyKind::Adaptive, PolicyKind::Precopy] {
        let mut guest = guest();
        let (listener, address) = listener();
        let factory = StampedFactory { huge_pages: true, ..StampedFactory::default() };
        let there = receiver(listener, factory);
        let began = guest.watermarks();
        let mut tracker = tracker::open(TrackerKind::Userfaultfd, &guest.memory()).unwrap();
        let mut settings = settings(address);
        (settings.policy, settings.bandwidth) = (policy, Some(100e6));
        source::migrate(&mut guest, &mut *tracker, &settings, &mut Quiet::default()).unwrap();
        let testimony = testify(there.join().unwrap().unwrap().guest);
        let (lines, stunned) = (guest.workload().lines(), guest.watermarks());
        let proof = judge(lines, began, stunned, Some(guest.root()), Some(testimony));
        assert_eq!(proof.verdict, Verdict::Proven, "{policy:?}: {:?}", proof.reasons);
    }
    let mut guest = guest();
    let refused = tracker::open(TrackerKind::Mprotect, &guest.memory()).err().unwrap().to_string();
    assert!(refused.contains("part of a huge page"), "{refused}");
    assert_healthy(&mut guest);
}
