//! What every migration of the lab stands on: two hosts and their link, a kernel, an initramfs with
//! our programs, certificates, and a journal outside of all VMs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use workload::beat::collector::Collector;
use workload::beat::ledger::here;
use workload::units::Rate;

use crate::hosts::{ADDRESSES, Hosts, LinkShape};
use crate::qemu::machine::Begins;
use crate::qemu::migration::{self, Claim, Limits, Mode};
use crate::qemu::vm::{Gathered, Recipe, Vm, command_line};
use crate::qemu::{cache, certificates, initramfs, kernel, static_programs};

/// Under TCG, QEMU 7.2 forgets writes while it looks for dirty pages 64 at a time, which it does
/// where memory is a multiple of 64 pages (256 KiB). Two pages more, and it looks page by page.
/// (`--memory-kib` of such a size shows it; KVM is not affected.)
const TWO_PAGES_KIB: u64 = 8;
/// The name of QEMU's program.
pub(super) const QEMU: &str = "qemu-system-x86_64";
const PORT: u16 = 4444;

/// The VMs of a lab, and what their workload does.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) memory_kib: u64,
    pub(super) region_mib: u64,
    pub(super) workload: String,
    pub(super) rate: Rate,
    pub(super) limits: Limits,
}

impl Plan {
    /// A VM of so many megabytes, and the two pages more that QEMU needs.
    pub(super) fn kib_of(mebibytes: u64) -> u64 {
        (mebibytes << 10) + TWO_PAGES_KIB
    }

    fn settings(&self) -> String {
        format!(
            "workload.workload={} workload.memory={}MiB workload.rate={}B/s workload.writers=2 \
             workload.seed=7 workload.check-before-write",
            self.workload, self.region_mib, self.rate.0
        )
    }
}

/// The bed. Everything on it is gone with it.
pub(super) struct Bed {
    pub(super) hosts: Hosts,
    pub(super) directory: tempfile::TempDir,
    kernel: PathBuf,
    initramfs: PathBuf,
    tls: PathBuf,
    pub(super) plan: Plan,
}

impl Life {
    /// A VM that has not begun.
    pub(super) fn new(journal: PathBuf, gathered: Gathered, name: &str) -> Self {
        Self { journal, gathered, name: name.to_owned(), hops: 0 }
    }

    /// The VM that came last is given up: the next one takes its place.
    pub(super) fn take_back(&mut self) {
        self.hops += 1;
    }
}

/// One VM's life: its journal, and how many VMs it has been.
pub(super) struct Life {
    pub(super) journal: PathBuf,
    pub(super) gathered: Gathered,
    name: String,
    hops: u64,
}

impl Bed {
    pub(super) fn new(plan: Plan, link: Rate) -> anyhow::Result<Self> {
        let directory =
            tempfile::tempdir_in("/dev/shm").context("cannot make a directory in /dev/shm")?;
        let kernel = kernel::fetch(&cache())?;
        let initramfs = directory.path().join("initramfs");
        initramfs::write(&initramfs, &static_programs())?;
        let tls = directory.path().join("tls");
        certificates::write(&tls, &ADDRESSES)?;
        let hosts = Hosts::new(LinkShape::ethernet(link))?;
        Ok(Self { hosts, directory, kernel, initramfs, tls, plan })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Kernel and initramfs.
    pub(super) fn boot_files(&self) -> (&Path, &Path) {
        (&self.kernel, &self.initramfs)
    }

    /// The kernel's command line.
    pub(super) fn command_line(&self) -> String {
        command_line(&self.plan.settings())
    }

    /// Boots a VM on the first host, and waits until its workload has been heard for a while.
    pub(super) fn boot(&self, name: &str) -> anyhow::Result<(Life, Vm)> {
        let journal = self.path().join(format!("{name}.journal"));
        let gathered = Arc::new(Mutex::new(Collector::open(&journal, &here(), Duration::ZERO)?));
        let mut life = Life::new(journal, gathered, name);
        let vm = self.vm(&mut life, Begins::Running)?;
        vm.port.await_beats(&life.gathered, 100)?;
        // Until the writers have come some way.
        std::thread::sleep(Duration::from_secs(1));
        Ok((life, vm))
    }

    fn vm(&self, life: &mut Life, begins: Begins) -> anyhow::Result<Vm> {
        let settings = self.plan.settings();
        let host = (life.hops % 2) as usize;
        let name = format!("{}-{}", life.name, life.hops);
        life.hops += 1;
        let recipe = Recipe {
            name: &name,
            directory: self.path(),
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            memory_kib: self.plan.memory_kib,
            cpus: 2,
            cpu: "max",
            settings: &settings,
            begins,
        };
        Vm::start(self.hosts.on(host, Path::new(QEMU)), &recipe, &life.gathered)
    }

    /// A VM on the other host that waits for this one.
    pub(super) fn shadow(&self, life: &mut Life, mode: &Mode) -> anyhow::Result<Vm> {
        // After a switch to post-copy a VM that stands still would ask for no page.
        let begins = if mode.postcopy { Begins::IncomingAndRuns } else { Begins::Incoming };
        self.vm(life, begins)
    }

    /// Where the VM that came last listens.
    fn address(life: &Life) -> String {
        let host = ((life.hops - 1) % 2) as usize;
        format!("{}:{PORT}", ADDRESSES[host])
    }

    /// Prepares both sides for a migration in this mode, and starts it.
    pub(super) fn begin(
        &self,
        life: &Life,
        mode: &Mode,
        limits: &Limits,
        source: &mut Vm,
        shadow: &mut Vm,
    ) -> anyhow::Result<()> {
        let (from, to) = (&mut source.machine.qmp, &mut shadow.machine.qmp);
        let address = Self::address(life);
        let tls = mode.encrypted.then_some(self.tls.as_path());
        migration::prepare(from, to, mode, limits, &address, tls)?;
        migration::begin(from, &address)
    }

    /// Migrates to a new VM on the other host; the VM there stands still, unless it switched to
    /// post-copy.
    pub(super) fn migrate(
        &self,
        life: &mut Life,
        mode: &Mode,
        source: &mut Vm,
    ) -> anyhow::Result<(Vm, Claim)> {
        let mut shadow = self.shadow(life, mode)?;
        self.begin(life, mode, &self.plan.limits, source, &mut shadow)?;
        let claim = migration::finish(&mut source.machine.qmp, mode, &self.plan.limits)?;
        anyhow::ensure!(
            claim.status == "completed",
            "QEMU says {}: {} {}",
            claim.status,
            claim.error,
            shadow.machine.complaints()
        );
        // The source is done when all is sent; on a slow link the last pages are still on their way.
        migration::await_arrival(&mut shadow.machine.qmp)?;
        Ok((shadow, claim))
    }
}
