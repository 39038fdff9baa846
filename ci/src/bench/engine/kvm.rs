//! What a guest under KVM costs the engine itself: its dirty log, and the state of a vCPU.

use std::time::{Duration, Instant};

use anyhow::Context;
use migrate_core::guest::stamped::{
    GuestSettings, MachineKind, ProofSettings, StampedFactory, StampedGuest,
};
use migrate_core::guest::tracker::TrackerKind;
use migrate_core::guest::{DirtyTracker, Guest, Shadow, ShadowFactory, Work};
use migrate_core::memory::{Bitmap, all, each};
use workload::spec::WorkloadSpec;
use workload::units::Bytes;

use super::{Limit, Row, milliseconds, row, skipped};
use crate::bench::median;
use workload::line::PageFormat;

const MEMORY: Bytes = Bytes(1 << 30);
/// How long an emulated vCPU may take to dirty a hundredth of that.
const DIRTY_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn measure() -> anyhow::Result<Vec<Row>> {
    if let Some(why) = MachineKind::Kvm.missing() {
        workload::say!("SKIPPED: a guest under KVM: {why}");
        return Ok(vec![skipped("a guest under KVM", &why)]);
    }
    super::say("a guest under KVM");
    Ok(vec![harvest()?, state()?])
}

fn guest(memory: Bytes) -> anyhow::Result<StampedGuest> {
    let spec = WorkloadSpec {
        format: PageFormat::fresh(),
        seed: 1,
        memory,
        writers: 1,
        workload: "uniform,record=4KiB".parse()?,
    };
    let proof = ProofSettings { run_on: Duration::from_millis(100), audit: false };
    Ok(StampedGuest::start_new(&GuestSettings {
        machine: MachineKind::Kvm,
        proof,
        ..GuestSettings::of(spec)
    })?)
}

/// The log of 1 GiB, of which a hundredth was written at random.
fn harvest() -> anyhow::Result<Row> {
    let mut guest = guest(MEMORY)?;
    let mut tracker: Box<dyn DirtyTracker> = guest.tracker(TrackerKind::Auto)?;
    let pages = guest.memory().pages();
    tracker.start()?;
    let (before, deadline) = (guest.watermarks()[0], Instant::now() + DIRTY_TIMEOUT);
    while guest.watermarks()[0] - before < pages / 100 {
        crate::interrupted()?;
        anyhow::ensure!(Instant::now() < deadline, "the vCPU is too slow to dirty 1 % of 1 GiB");
        std::thread::sleep(Duration::from_millis(10));
    }
    guest.pause()?;
    let mut dirty = Bitmap::empty(pages);
    let start = Instant::now();
    let found = tracker.harvest(all(pages), &mut dirty)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    anyhow::ensure!(found >= pages / 100, "only {found} pages were found");
    Ok(row(
        "KVM log, 1 GiB, 1 % dirty, ms",
        milliseconds(ms),
        format!("{found} pages"),
        ms,
        Limit::AtMost(2.0),
    ))
}

/// A vCPU's state taken, and put into a machine that is there and runs on with it.
fn state() -> anyhow::Result<Row> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut guest = guest(Bytes(8 << 20))?;
        std::thread::sleep(Duration::from_millis(50));
        let mut shadow = StampedFactory::default().create(
            &guest.description(),
            &guest.memory().regions(),
            &Work::default(),
        )?;
        guest.pause()?;
        // Memory is the network's affair.
        let (from, to) = (guest.memory(), shadow.memory());
        for page in each(all(from.pages())) {
            to.fill(page, |bytes| {
                from.copy_out(&page.alone(), bytes);
                Ok::<_, std::convert::Infallible>(())
            })?;
        }
        let start = Instant::now();
        let state = guest.save_state()?;
        shadow.load_state(&state)?;
        shadow.prepare()?;
        shadow.start();
        shadow.await_running()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let mut there = shadow.guest.context("the guest does not run there")?;
        let wrong = there.scan()?.first_fault();
        anyhow::ensure!(wrong.is_none(), "after moving by hand: {wrong:?}");
    }
    let ms = median(times);
    Ok(row(
        "KVM vCPU saved, restored and running, ms",
        milliseconds(ms),
        "1 vCPU".to_owned(),
        ms,
        Limit::AtMost(2.0),
    ))
}
