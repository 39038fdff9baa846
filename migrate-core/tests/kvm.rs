//! Guests under KVM: stamps written by guest code, dirty pages from KVM's log, vCPUs that go on in the
//! middle of a record on another host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_arch = "x86_64")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use migrate_core::guest::Guest;
use migrate_core::guest::stamped::proof::judge;
use migrate_core::guest::stamped::{
    GuestSettings, MachineKind, ProofSettings, StampedFactory, StampedGuest,
};
use migrate_core::guest::tracker::TrackerKind;
use migrate_core::memory::{Bitmap, all, each};
use migrate_core::policy::PolicyKind;
use migrate_core::source::{self, Migrated, SourceSettings};
use support::{
    Quiet, TamperedTracker, WatchedGuest, assert_healthy, listener, receiver, settings, testify,
};
use verifier::verdict::Verdict;
use workload::heartbeat::End;
use workload::line::PageFormat;
use workload::spec::WorkloadSpec;
use workload::units::{Bytes, Rate};

fn spec(mebibytes: u64, writers: u32, workload: &str) -> WorkloadSpec {
    let memory = Bytes(mebibytes << 20);
    WorkloadSpec {
        format: PageFormat::fresh(),
        seed: 11,
        memory,
        writers,
        workload: workload.parse().unwrap(),
    }
}

fn guest(spec: &WorkloadSpec, rate: Option<u64>) -> StampedGuest {
    let proof = ProofSettings { run_on: Duration::from_millis(100), audit: true };
    let rate = rate.map(Rate);
    let guest = StampedGuest::start_new(&GuestSettings {
        machine: MachineKind::Kvm,
        rate,
        proof,
        ..GuestSettings::of(spec.clone())
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    guest
}

/// The link is slow, because emulated guest code is.
fn plan(address: std::net::SocketAddr, policy: PolicyKind) -> SourceSettings {
    let mut settings = settings(address);
    (settings.policy, settings.bandwidth) = (policy, Some(30e6));
    settings.limits.goal = Duration::from_millis(100);
    settings
}

fn migrate(guest: &mut StampedGuest, settings: &SourceSettings) -> Migrated {
    let mut tracker = guest.tracker(TrackerKind::Auto).unwrap();
    assert_eq!(tracker.name(), "kvm");
    source::migrate(guest, &mut *tracker, settings, &mut Quiet::default())
        .unwrap_or_else(|e| panic!("{}", e.error))
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn guest_code_writes_what_the_verifier_expects() {
    for (writers, workload, rate) in [
        (1, "stream,record=4KiB", None),
        (2, "uniform,record=64", None),
        (3, "uniform,record=2KiB", Some(300_000)),
        (2, "stream,record=64KiB", None),
    ] {
        // Small enough to be written more than once.
        let mut guest = guest(&spec(1, writers, workload), rate);
        let before = guest.watermarks();
        std::thread::sleep(Duration::from_millis(1500));
        // Many looks, each at another instruction.
        for _ in 0..20 {
            let scanned = guest.scan().unwrap();
            assert_eq!(scanned.first_fault(), None, "{workload}");
        }
        let after = guest.watermarks();
        assert!(after.iter().zip(&before).all(|(a, b)| a > b), "{workload}: {before:?} {after:?}");
        guest.stop(End::ByOwner);
    }
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn every_policy_moves_a_running_vcpu() {
    for (policy, workload, rate) in [
        (PolicyKind::Adaptive, "stream,record=4KiB", Some(400_000)),
        (PolicyKind::Adaptive, "stream,record=64KiB", None),
        (PolicyKind::Vmotion, "uniform,record=4KiB", None),
        (PolicyKind::Precopy, "stream,record=4KiB", Some(300_000)),
        (PolicyKind::AutoConverge, "uniform,record=1KiB", Some(200_000)),
        (PolicyKind::StopAndCopy, "stream,record=16KiB", None),
    ] {
        let mut guest = guest(&spec(8, 2, workload), rate);
        let (listener, address) = listener();
        let there = receiver(listener, StampedFactory::default());
        let began = guest.watermarks();
        let done = migrate(&mut guest, &plan(address, policy));
        let testimony = testify(there.join().unwrap().unwrap().guest);
        // Half-written records stop at one host and are finished at the other.
        let root = guest.root();
        let lines = guest.workload().lines();
        let proof = judge(lines, began, guest.watermarks(), Some(root), Some(testimony));
        assert_eq!(proof.verdict, Verdict::Proven, "{policy:?} {workload}: {:?}", proof.reasons);
        assert!(done.report.downtime.state_ms < 100.0, "{:?}", done.report.downtime);
    }
}

/// A -> B -> C -> A, and on: each host's machine is new, and the vCPUs never start over.
#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn twenty_hops_in_a_row() {
    let mut guest = guest(&spec(4, 2, "stream,record=16KiB"), None);
    for hop in 1..=20 {
        let (listener, address) = listener();
        let there = receiver(listener, StampedFactory::default());
        let mut settings = plan(address, PolicyKind::Adaptive);
        settings.epoch = migrate_core::proto::Epoch(hop);
        settings.bandwidth = Some(100e6);
        migrate(&mut guest, &settings);
        let stunned = guest.watermarks();
        let shadow = there.join().unwrap().unwrap().guest;
        assert_eq!(shadow.first_scan.as_ref().unwrap().first_fault(), None, "hop {hop}");
        let next = shadow.guest.unwrap();
        assert_eq!(next.started_from(), stunned, "hop {hop}");
        guest.stop(End::ByOwner);
        guest = next;
        let deadline = Instant::now() + Duration::from_secs(20);
        while guest.watermarks().iter().zip(&stunned).any(|(now, then)| now <= then) {
            assert!(Instant::now() < deadline, "hop {hop}: {stunned:?} {:?}", guest.watermarks());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(guest.scan().unwrap().first_fault(), None);
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn a_throttled_vcpu_writes_less_and_is_whole() {
    let mut guest = guest(&spec(8, 2, "stream,record=4KiB"), None);
    let count = |guest: &StampedGuest| {
        let before = guest.watermarks();
        std::thread::sleep(Duration::from_secs(1));
        let after = guest.watermarks();
        [0, 1].map(|i| (after[i] - before[i]) as f64)
    };
    let free = count(&guest);
    guest.throttle(&[0.8, 0.0]);
    let held = count(&guest);
    let shares = [held[0] / free[0], held[1] / free[1]];
    assert!(shares[0] < 0.45, "held to a fifth, it wrote {shares:?} of {free:?}");
    assert!(shares[1] > 0.6, "not held, it wrote {shares:?} of {free:?}");
    guest.throttle(&[0.0, 0.0]);
    assert_eq!(guest.scan().unwrap().first_fault(), None);
}

/// Migrates with a tampered log; what the source was told.
fn with_log(mut tamper: impl FnMut(u64, bool, &mut Bitmap) + Send) -> String {
    let mut guest = guest(&spec(16, 2, "stream,record=16KiB"), None);
    let (listener, address) = listener();
    let there = receiver(listener, StampedFactory::default());
    let paused = Arc::new(AtomicBool::new(false));
    let (watched, seen) = (paused.clone(), paused);
    let error = {
        let mut tracker = TamperedTracker {
            inner: guest.tracker(TrackerKind::Auto).unwrap(),
            harvests: 0,
            tamper: |n, new: &mut Bitmap| tamper(n, seen.load(Ordering::Acquire), new),
        };
        let mut watched = WatchedGuest { inner: &mut guest, paused: watched, pauses: vec![] };
        let settings = plan(address, PolicyKind::Vmotion);
        let done = source::migrate(&mut watched, &mut tracker, &settings, &mut Quiet::default());
        done.unwrap_err().error.to_string()
    };
    assert!(there.join().unwrap().is_err(), "the guest must not run there");
    assert_healthy(&mut guest);
    error
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn a_bit_that_the_log_drops_is_stale() {
    // Pages behind the region are the machine's own: of them the verifier knows nothing.
    // The last page of a writer's run: earlier harvests did not name it.
    let region = all(16 << 8);
    let fresh_page =
        |new: &Bitmap| new.runs(region.clone()).next().and_then(|run| each(run).last());
    // One page, whenever the log names it; the first copy of it is older.
    let mut victim = None;
    let error = with_log(|n, _, new| {
        if n >= 3 {
            victim = victim.or(fresh_page(new));
            victim.map(|page| new.remove(page));
        }
    });
    assert!(error.contains("WRONG before resume"), "{error}");
    assert!(error.contains("STALE") || error.contains("TORN"), "{error}");
    let error = with_log(|_, paused, new| {
        if paused {
            *new = Bitmap::empty(new.pages());
        }
    });
    assert!(error.contains("WRONG before resume"), "{error}");
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn what_guest_code_cannot_do_is_refused() {
    let refused = |workload: &str| {
        let proof = ProofSettings { run_on: Duration::from_millis(100), audit: false };
        let spec = spec(4, 1, workload);
        let guest = StampedGuest::start_new(&GuestSettings {
            machine: MachineKind::Kvm,
            proof,
            ..GuestSettings::of(spec)
        });
        guest.unwrap_err().to_string()
    };
    assert!(refused("zipf").contains("'stream' and 'uniform' only"));
    assert!(refused("stream,content=text").contains("content 'random' only"));
    assert!(refused("touch").contains("not 'touch'"));
    let guest = guest(&spec(4, 1, "stream"), None);
    let error = guest.tracker(TrackerKind::Mprotect).err().unwrap().to_string();
    assert!(error.contains("only KVM knows"), "{error}");
}
