//! A vCPU's state: how it begins, and how it is taken out of one machine and put into another.

use kvm_bindings::{
    Msrs, kvm_clock_data, kvm_debugregs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Error, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::sys;

/// Protected mode, paging, alignment checks, write protection, numeric errors.
const CR0: u64 = 0x8005_0033;
/// Physical address extension, SSE state and exceptions.
const CR4: u64 = 0x620;
/// System calls, long mode enabled and active, no-execute.
const EFER: u64 = 0xD01;
/// The bit of RFLAGS that is always set; interrupts stay off.
const RFLAGS: u64 = 2;
/// The trap flag and the interrupt flag: our code knows no handler for what they bring.
const RFLAGS_NEVER: u64 = 0x300;
/// The breakpoints that DR7 enables.
const DR7_ENABLED: u64 = 0xFF;

/// A vCPU that neither sleeps nor waits to be started (`KVM_MP_STATE_RUNNABLE`).
const RUNNABLE: u32 = 0;

/// Model-specific registers that 64-bit code can have changed (Intel SDM volume 4): time stamp
/// counter, system call entries, segment bases, page attributes, miscellaneous features.
const MSRS: [u32; 12] = [
    0x10, // IA32_TIME_STAMP_COUNTER
    0x174,
    0x175,
    0x176, // IA32_SYSENTER_CS, ESP, EIP
    0x1A0, // IA32_MISC_ENABLE
    0x277, // IA32_PAT
    0xC000_0081,
    0xC000_0082,
    0xC000_0083,
    0xC000_0084, // STAR, LSTAR, CSTAR, SFMASK
    0xC000_0102, // KERNEL_GS_BASE
    0xC000_0103, // TSC_AUX
];

/// State of a vCPU that stands still.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VcpuState {
    #[serde(with = "as_text")]
    registers: kvm_regs,
    #[serde(with = "as_text")]
    special: kvm_sregs,
    #[serde(with = "as_text")]
    xsave: kvm_xsave,
    #[serde(with = "as_text")]
    xcrs: kvm_xcrs,
    #[serde(with = "as_text")]
    debug: kvm_debugregs,
    #[serde(with = "as_text")]
    events: kvm_vcpu_events,
    #[serde(with = "as_text")]
    run: kvm_mp_state,
    msrs: Vec<Msr>,
}

/// A model-specific register.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Msr {
    index: u32,
    data: u64,
}

/// The kernel's structures as text: lists of numbers would take a millisecond of the stun to read.
mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use zerocopy::{FromBytes, Immutable, IntoBytes};

    pub(super) fn serialize<T: IntoBytes + Immutable, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        hex::serialize(value.as_bytes(), serializer)
    }

    pub(super) fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let bytes = hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        T::read_from_bytes(&bytes).map_err(|_| D::Error::custom("a structure of another size"))
    }
}

/// State of a machine beside its memory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineState {
    /// [`VcpuState`] of each.
    pub(super) vcpus: Vec<serde_json::Value>,
    /// The guest's time in nanoseconds. What else KVM's clock says is about the host that it was
    /// taken on.
    clock_ns: u64,
}

impl MachineState {
    pub(super) fn of(vcpus: Vec<serde_json::Value>, vm: &VmFd) -> Result<Self, Error> {
        Ok(Self { vcpus, clock_ns: vm.get_clock()?.clock })
    }

    pub(super) fn restore_clock(&self, vm: &VmFd) -> Result<(), Error> {
        vm.set_clock(&kvm_clock_data { clock: self.clock_ns, ..Default::default() })
    }
}

impl VcpuState {
    pub(super) fn capture(vcpu: &VcpuFd) -> Result<Self, Error> {
        let mut msrs = Vec::new();
        // One by one: a register that a processor lacks must not take the others with it.
        for index in MSRS {
            let entry = kvm_msr_entry { index, ..Default::default() };
            let mut one = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::ENOMEM))?;
            if matches!(vcpu.get_msrs(&mut one), Ok(1)) {
                let read = one.as_slice().iter();
                msrs.extend(read.map(|msr| Msr { index: msr.index, data: msr.data }));
            }
        }
        Ok(Self {
            registers: vcpu.get_regs()?,
            special: vcpu.get_sregs()?,
            xsave: vcpu.get_xsave()?,
            xcrs: vcpu.get_xcrs()?,
            debug: vcpu.get_debug_regs()?,
            events: vcpu.get_vcpu_events()?,
            run: vcpu.get_mp_state()?,
            msrs,
        })
    }

    /// Why a vCPU in this state would not go on with the payload, as far as that can be seen before
    /// it runs; `operations` is its counter in memory.
    pub(super) fn objection(
        &self,
        layout: &Layout,
        index: usize,
        operations: u64,
    ) -> Option<String> {
        let Self { registers, special, debug, events, run, .. } = self;
        let code = layout.code()..layout.code() + sys::payload().len() as u64;
        let control = (special.cr0, special.cr3, special.cr4, special.efer);
        let pending = [
            events.exception.injected,
            events.exception.pending,
            events.interrupt.injected,
            events.nmi.injected,
            events.nmi.pending,
            events.smi.pending,
        ];
        let why = if !code.contains(&registers.rip) {
            format!("it stands at {:#x}, where no code of this guest is", registers.rip)
        } else if control != (CR0, layout.page_map(), CR4, EFER) || special.cs.l != 1 {
            "it is not in the mode that this guest's code runs in".to_owned()
        } else if registers.rflags & RFLAGS_NEVER != 0 || debug.dr7 & DR7_ENABLED != 0 {
            "it would be interrupted, which this guest's code cannot handle".to_owned()
        } else if pending.iter().any(|pending| *pending != 0) || run.mp_state != RUNNABLE {
            "it waits for an event that this guest does not have".to_owned()
        } else if registers.rbx != layout.parameters(index) {
            format!("its parameters are not at {:#x}", registers.rbx)
        } else if registers.r15.wrapping_sub(operations) > 1 {
            // The counter in memory follows the one in the register.
            format!("it counts {} operations, memory {operations}", registers.r15)
        } else if let Some(msr) = self.msrs.iter().find(|msr| !MSRS.contains(&msr.index)) {
            format!("it brings the model-specific register {:#x}, which never moves", msr.index)
        } else {
            return None;
        };
        Some(format!("vCPU {index}: {why}"))
    }

    pub(super) fn restore(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        vcpu.set_sregs(&self.special)?;
        vcpu.set_regs(&self.registers)?;
        vcpu.set_xcrs(&self.xcrs)?;
        sys::set_xsave(vcpu, &self.xsave)?;
        vcpu.set_debug_regs(&self.debug)?;
        for msr in &self.msrs {
            let entry = kvm_msr_entry { index: msr.index, data: msr.data, ..Default::default() };
            let one = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::ENOMEM))?;
            if vcpu.set_msrs(&one)? != 1 {
                return Err(Error::new(libc::EINVAL));
            }
        }
        vcpu.set_vcpu_events(&self.events)?;
        vcpu.set_mp_state(self.run)
    }
}

/// Sets a new vCPU to the payload's first instruction, in 64-bit mode.
pub(super) fn begin(vcpu: &VcpuFd, layout: &Layout, index: usize) -> Result<(), Error> {
    let mut special = vcpu.get_sregs()?;
    let segment = |selector, type_, l, db| kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        s: 1,
        l,
        db,
        g: 1,
        ..Default::default()
    };
    // Execute, read, accessed; read, write, accessed.
    special.cs = segment(8, 11, 1, 0);
    let data = segment(16, 3, 0, 1);
    (special.ds, special.es, special.ss) = (data, data, data);
    (special.fs, special.gs) = (data, data);
    (special.cr0, special.cr3, special.cr4) = (CR0, layout.page_map(), CR4);
    special.efer = EFER;
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&kvm_regs {
        rip: layout.code(),
        rbx: layout.parameters(index),
        rflags: RFLAGS,
        ..Default::default()
    })
}
