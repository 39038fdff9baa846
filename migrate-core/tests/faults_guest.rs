//! What is wrong with a guest that arrives is found while it can still run on at its source.

#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use migrate_core::guest::stamped::{
    GuestSettings, MachineKind, ProofSettings, StampedFactory, StampedGuest, StampedShadow,
};
use migrate_core::guest::{Guest, Shadow, ShadowFactory, Work};
use support::{Tamper, TamperedFactory, assert_healthy, listener, receiver, send, settings, spec};
use workload::heartbeat::End;
use workload::spec::WorkloadSpec;
use workload::units::Rate;

fn guest(kind: MachineKind, spec: &WorkloadSpec, rate: Option<u64>) -> StampedGuest {
    let proof = ProofSettings { run_on: Duration::from_millis(100), audit: false };
    let guest = StampedGuest::start_new(&GuestSettings {
        machine: kind,
        rate: rate.map(Rate),
        proof,
        ..GuestSettings::of(spec.clone())
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    guest
}

/// A shadow with all of the guest's memory; the guest stands still and gives its state.
fn moved(guest: &mut StampedGuest, factory: &mut StampedFactory) -> (StampedShadow, Vec<u8>) {
    let shadow =
        factory.create(&guest.description(), &guest.memory().regions(), &Work::default()).unwrap();
    guest.pause().unwrap();
    copy(guest, &shadow);
    (shadow, guest.save_state().unwrap())
}

fn copy(guest: &StampedGuest, shadow: &StampedShadow) {
    let (from, to) = (guest.memory(), shadow.memory());
    for page in migrate_core::memory::each(migrate_core::memory::all(from.pages())) {
        to.fill(page, |bytes| {
            from.copy_out(&page.alone(), bytes);
            Ok::<_, ()>(())
        })
        .unwrap();
    }
}

/// Everything up to the moment from which nothing may fail.
fn up_to_ready(shadow: &mut StampedShadow, state: &[u8]) -> Result<(), String> {
    shadow.load_state(state).map_err(|e| e.to_string())?;
    shadow.inspect(&Work::default()).map_err(|e| e.to_string())?;
    shadow.prepare().map_err(|e| e.to_string())
}

fn assert_runs(shadow: &mut StampedShadow) {
    shadow.start();
    shadow.await_running().unwrap();
    assert_healthy(shadow.guest.as_mut().unwrap());
}

/// What a test does to a device state.
type Edit = fn(&mut serde_json::Value);

/// The guest's source is told `says`, and the guest runs on there.
#[track_caller]
fn refused_before_ready(mut guest: StampedGuest, edit: Edit, says: &str) {
    let (listener, address) = listener();
    let factory = TamperedFactory { inner: StampedFactory::default(), tamper: Tamper::State(edit) };
    let there = receiver(listener, factory);
    let mut tracker = guest.tracker(Default::default()).unwrap();
    let error = migrate_core::source::migrate(
        &mut guest,
        &mut *tracker,
        &settings(address),
        &mut support::Quiet::default(),
    )
    .unwrap_err()
    .error;
    assert!(matches!(error, migrate_core::Error::Peer(_)), "{says}: {error}");
    assert!(error.to_string().contains(says), "{says}: {error}");
    assert!(there.join().unwrap().is_err(), "the guest must not run there");
    drop(tracker);
    assert_healthy(&mut guest);
}

#[test]
fn a_state_that_does_not_fit_its_machine_is_refused_before_ready() {
    let process = || guest(MachineKind::Process, &spec(8), Some(16_000_000));
    refused_before_ready(process(), |s| s["machine"] = 7.into(), "threads have no state");
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn a_state_that_does_not_fit_its_virtual_machine_is_refused_before_ready() {
    let mut spec = spec(8);
    spec.workload = "stream,record=4KiB".parse().unwrap();
    let edits: [(Edit, &str); 10] = [
        (|s| s["machine"] = serde_json::Value::Null, "restore the vCPUs"),
        (|s| s["machine"]["vcpus"][0] = serde_json::Value::Null, "restore the vCPUs"),
        (|s| s["machine"]["vcpus"][1]["xsave"] = "00".into(), "another size"),
        (|s| s["machine"]["vcpus"] = serde_json::json!([]), "another number of them"),
        (|s| s["machine"]["vcpus"][0]["msrs"][0]["index"] = 0x1B.into(), "register 0x1b"),
        (|s| s["machine"]["vcpus"][0]["run"] = "03000000".into(), "waits for an event"),
        // rip is the seventeenth register: outside of the code, and no canonical address.
        (|s| set_register(s, 16, 0x1000), "it stands at 0x1000"),
        (|s| set_register(s, 16, 1 << 63), "it stands at 0x8000000000000000"),
        (|s| set_register(s, 1, 0x1000), "its parameters are not at"),
        (|s| set_register(s, 15, 0), "it counts 0 operations"),
    ];
    for (edit, says) in edits {
        refused_before_ready(guest(MachineKind::Kvm, &spec, Some(400_000)), edit, says);
    }
}

/// Changes a register of vCPU 0, given as its place in `struct kvm_regs`.
fn set_register(state: &mut serde_json::Value, index: usize, value: u64) {
    let registers = &mut state["machine"]["vcpus"][0]["registers"];
    let mut text = registers.as_str().unwrap().to_owned();
    let bytes: String = value.to_le_bytes().iter().map(|b| format!("{b:02x}")).collect();
    text.replace_range(16 * index..16 * (index + 1), &bytes);
    *registers = text.into();
}

/// A stun that is called off: what stood ready is taken down, memory changes, and it comes again.
#[test]
fn a_prepared_guest_can_be_prepared_again() {
    is_prepared_again_and_again(MachineKind::Process);
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn a_prepared_virtual_machine_can_be_prepared_again() {
    is_prepared_again_and_again(MachineKind::Kvm);
}

fn is_prepared_again_and_again(kind: MachineKind) {
    let mut spec = spec(8);
    spec.workload = "stream,record=4KiB".parse().unwrap();
    let mut guest = guest(kind, &spec, Some(2_000_000));
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let mut factory =
        StampedFactory { journal: Some(journal.clone()), ..StampedFactory::default() };
    let (mut shadow, mut state) = moved(&mut guest, &mut factory);
    for _ in 0..3 {
        up_to_ready(&mut shadow, &state).unwrap();
        let held = shadow.guest.as_ref().unwrap();
        assert_eq!(held.watermarks(), guest.watermarks());
        guest.resume().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let held = shadow.guest.as_ref().unwrap();
        assert_ne!(held.watermarks(), guest.watermarks(), "only the source wrote");
        guest.pause().unwrap();
        copy(&guest, &shadow);
        state = guest.save_state().unwrap();
    }
    up_to_ready(&mut shadow, &state).unwrap();
    let read = workload::journal::Journal::read(&journal).unwrap();
    assert_eq!(read.beats, [], "a guest that does not run has no heartbeat");
    assert_runs(&mut shadow);
    assert!(shadow.felt_gap.unwrap() > Duration::ZERO);
    shadow.load_state(&state).unwrap_err();
    drop(shadow);
    let read = workload::journal::Journal::read(&journal).unwrap();
    assert!(!read.beats.is_empty(), "{kind:?}: it runs");
}

#[test]
fn what_cannot_be_prepared_runs_on_at_the_source() {
    let mut guest = guest(MachineKind::Process, &spec(8), Some(16_000_000));
    let (listener, address) = listener();
    let factory = TamperedFactory { inner: StampedFactory::default(), tamper: Tamper::Prepare };
    let there = receiver(listener, factory);
    let error = send(&mut guest, &settings(address)).unwrap_err().error.to_string();
    assert!(error.contains("told not to"), "{error}");
    assert!(there.join().unwrap().is_err(), "the guest must not run there");
    assert_healthy(&mut guest);
}

/// A long replay is shown, and given up when it is told so.
#[test]
fn a_look_can_be_called_off() {
    let mut spec = spec(8);
    spec.workload = "zipf,record=64".parse().unwrap();
    let mut guest = guest(MachineKind::Process, &spec, Some(1_000_000));
    let (mut shadow, state) = moved(&mut guest, &mut StampedFactory::default());
    let mut state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    state["watermarks"][0] = (1u64 << 33).into();
    shadow.load_state(&serde_json::to_vec(&state).unwrap()).unwrap();
    let (work, watch) = (Work::default(), std::time::Instant::now);
    let seen = work.clone();
    let look = std::thread::spawn(move || shadow.inspect(&work));
    std::thread::sleep(Duration::from_millis(200));
    let (done, total) = seen.progress();
    assert!(done > 1 << 16 && total > 1 << 33, "{done} of {total}");
    let told = watch();
    seen.cancel();
    let error = look.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "inspect the guest: cancelled");
    assert!(told.elapsed() < Duration::from_millis(100), "took {:?}", told.elapsed());
}

#[test]
fn watermarks_that_no_guest_has_are_refused_before_anything_is_computed() {
    let mut spec = spec(8);
    for workload in ["iid", "stream"] {
        spec.workload = workload.parse().unwrap();
        let guest = guest(MachineKind::Process, &spec, Some(16_000_000));
        let absurd: Edit = |s| s["watermarks"][1] = (1u64 << 60).into();
        refused_before_ready(guest, absurd, "writer 1 is said to have done 1152921504606846976");
    }
}

/// As far as a guest that draws at random gets in a few seconds of full speed.
#[test]
fn a_guest_of_many_random_operations_arrives() {
    let mut spec = spec(8);
    spec.workload = "zipf,record=64".parse().unwrap();
    let mut guest = guest(MachineKind::Process, &spec, None);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while guest.watermarks().iter().sum::<u64>() < 200_000_000 {
        assert!(std::time::Instant::now() < deadline, "{:?}", guest.watermarks());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (mut shadow, state) = moved(&mut guest, &mut StampedFactory::default());
    up_to_ready(&mut shadow, &state).unwrap();
    assert_runs(&mut shadow);
}

#[test]
fn descriptions_that_cannot_be_are_refused() {
    let guest = guest(MachineKind::Process, &spec(8), Some(16_000_000));
    let pages = guest.memory().pages();
    let refused_of = |edit: Edit, regions: &[u64], says: &str| {
        let mut description = serde_json::from_slice(&guest.description()).unwrap();
        edit(&mut description);
        let description = serde_json::to_vec(&description).unwrap();
        let error = StampedFactory::default()
            .create(&description, regions, &Work::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{says}: {error}");
    };
    let refused = |edit: Edit, pages: u64, says: &str| refused_of(edit, &[pages], says);
    refused_of(|_| {}, &[pages - 1, 1], "not of the announced size");
    refused_of(|_| {}, &[u64::MAX, u64::MAX], "not of the announced size");
    refused(|d| d["rate"] = 0.into(), pages, "a rate of 0");
    refused(|d| d["run_on_ms"] = u64::MAX.into(), pages, "before it is proven");
    refused(|d| d["spec"]["memory"] = (u64::MAX - 4095).into(), pages, "not of the announced size");
    refused(|d| d["machine"] = "kvm".into(), pages, "not of the announced size");
    refused(|_| {}, u64::MAX, "not of the announced size");
    refused(|_| {}, 1 << 40, "this machine has");
    refused(|d| d["spec"]["workload"] = "stream,on=1ns,off=50years".into(), pages, "at most a day");
    let trace: Edit =
        |d| d["spec"]["workload"] = "trace,file=/dev/zero,sum=0123456789abcdef".into();
    refused(trace, pages, "name a folder that holds it");
}

/// What cannot be seen before it runs is a finding about the guest, and no failed handover.
#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn a_vcpu_that_dies_after_the_start_is_told() {
    let mut spec = spec(8);
    spec.workload = "stream,record=64KiB".parse().unwrap();
    for _ in 0..20 {
        let mut guest = guest(MachineKind::Kvm, &spec, None);
        let (mut shadow, state) = moved(&mut guest, &mut StampedFactory::default());
        let mut state = serde_json::from_slice(&state).unwrap();
        // rdi: where the next line goes, unless the vCPU stands between two records.
        set_register(&mut state, 5, 1 << 63);
        up_to_ready(&mut shadow, &serde_json::to_vec(&state).unwrap()).unwrap();
        shadow.start();
        let _ = shadow.await_running();
        std::thread::sleep(Duration::from_millis(50));
        let mut there = shadow.guest.take().unwrap();
        let Err(error) = there.scan() else { continue };
        assert!(error.to_string().contains("a vCPU left guest mode: Shutdown"), "{error}");
        let trouble = there.stop(End::ByOwner).trouble;
        assert!(trouble[0].to_string().contains("Shutdown"), "{trouble:?}");
        return;
    }
    panic!("the vCPU never stood inside a record");
}
