//! What runs the writers of a guest: threads or a virtual machine, behind one trait.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use verifier::scan::Moment;
use workload::region::Region;
use workload::spec::Workload;
use workload::stats::Stats;

#[cfg(target_arch = "x86_64")]
use crate::guest::kvm;
use crate::guest::process::Hired;
use crate::guest::tracker::TrackerKind;
use crate::guest::{DirtyTracker, GuestError, MemoryView};

/// What runs the writers of a guest.
pub(in crate::guest) trait Machine: Send + std::fmt::Debug {
    /// How many there are, one on each vCPU.
    fn vcpus(&self) -> usize;
    /// Has all vCPUs stand still.
    fn pause(&mut self) -> Result<(), GuestError>;
    /// Lets them go on.
    fn resume(&mut self);
    /// Waits until all stand at the closed gate they were started with, ready to run.
    fn await_standing(&self, deadline: Instant) -> Result<(), GuestError>;
    /// When the last of them began to run behind a gate that had been closed, by the wall clock.
    fn passed_at_ns(&self) -> u64;
    /// Waits until all run.
    fn await_running(&self, deadline: Instant) -> Result<(), GuestError>;
    /// Holds each for its share of time.
    fn throttle(&mut self, held_shares: &[f64]);
    /// Lines that each has stored.
    fn written(&self) -> Vec<u64>;
    /// How they stand when paused: between operations, or anywhere.
    fn moment(&self) -> Moment;
    /// A tracker of what they write.
    fn tracker(
        &self,
        kind: TrackerKind,
        memory: MemoryView,
    ) -> Result<Box<dyn DirtyTracker>, GuestError>;
    /// State beyond memory and watermarks; they stand still.
    fn save(&mut self) -> Result<serde_json::Value, GuestError> {
        Ok(serde_json::Value::Null)
    }
    /// What they did since they began or were asked last.
    fn lap(&self) -> Result<Stats, GuestError>;
    /// Ends them; what they did since they were asked last.
    fn halt(&mut self) -> Result<Stats, GuestError>;
}

/// What runs the writers of a guest, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineKind {
    /// Threads of this process: everywhere, no privileges.
    #[default]
    Process,
    /// A virtual machine under KVM, its memory written by guest code: x86-64 with /dev/kvm.
    Kvm,
}

impl std::str::FromStr for MachineKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "process" => Ok(Self::Process),
            "kvm" => Ok(Self::Kvm),
            _ => Err(format!("no guest is called '{text}'; there are: process, kvm")),
        }
    }
}

impl MachineKind {
    /// Why such a guest cannot run on this machine.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Process => None,
            #[cfg(target_arch = "x86_64")]
            Self::Kvm => kvm::missing(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Kvm => Some("guests under KVM are written for x86-64".to_owned()),
        }
    }

    /// Whether such a guest can do what the workload asks; before any memory is taken for it.
    pub(super) fn check(self, workload: &Workload) -> Result<(), GuestError> {
        match self {
            Self::Process => Ok(()),
            #[cfg(target_arch = "x86_64")]
            Self::Kvm => kvm::check(workload),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Kvm => {
                let _ = workload;
                Ok(())
            }
        }
    }

    /// Memory beside the workload's that such a guest has, behind it.
    pub(super) fn system_bytes(self, workload: &Workload) -> u64 {
        match self {
            Self::Process => 0,
            #[cfg(target_arch = "x86_64")]
            Self::Kvm => kvm::system_bytes(workload),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Kvm => 0,
        }
    }
}

/// A machine that exists and has not run: the shadow's, at setup.
#[derive(Debug)]
pub(super) enum Prepared {
    Process(Hired),
    #[cfg(target_arch = "x86_64")]
    Kvm(Box<kvm::Vm>),
}

impl Prepared {
    pub(super) fn new(
        kind: MachineKind,
        workload: &Arc<Workload>,
        region: &Arc<Region>,
    ) -> Result<Self, GuestError> {
        match kind {
            MachineKind::Process => Ok(Self::Process(Hired::new(workload.shares().len())?)),
            #[cfg(target_arch = "x86_64")]
            MachineKind::Kvm => Ok(Self::Kvm(Box::new(kvm::Vm::create(workload, region)?))),
            #[cfg(not(target_arch = "x86_64"))]
            MachineKind::Kvm => {
                let why = kind.missing().unwrap_or_default();
                Err(GuestError::new("create a virtual machine", why))
            }
        }
    }
}
