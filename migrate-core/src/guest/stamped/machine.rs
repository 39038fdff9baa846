//! Which machine runs a stamped guest's writers: threads or a virtual machine.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use workload::spec::Workload;
use workload::units::Bytes;

use super::memory::Memory;

use crate::guest::GuestError;
#[cfg(target_arch = "x86_64")]
use crate::guest::kvm;
use crate::guest::process::Hired;

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

    /// Memory beside the workload's that such a guest has.
    pub(super) fn system_bytes(self, workload: &Workload) -> Option<Bytes> {
        match self {
            Self::Process => None,
            #[cfg(target_arch = "x86_64")]
            Self::Kvm => Some(Bytes(kvm::system_bytes(workload))),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Kvm => {
                let _ = workload;
                None
            }
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
        memory: &Memory,
    ) -> Result<Self, GuestError> {
        match kind {
            MachineKind::Process => Ok(Self::Process(Hired::new(workload.shares().len())?)),
            #[cfg(target_arch = "x86_64")]
            MachineKind::Kvm => {
                let system = memory.system.as_ref().ok_or_else(|| {
                    GuestError::new("create a virtual machine", "it has no memory of its own")
                })?;
                Ok(Self::Kvm(Box::new(kvm::Vm::create(workload, &memory.region, system)?)))
            }
            #[cfg(not(target_arch = "x86_64"))]
            MachineKind::Kvm => {
                let _ = memory;
                let why = kind.missing().unwrap_or_default();
                Err(GuestError::new("create a virtual machine", why))
            }
        }
    }
}
