//! The built-in guest as a virtual machine under KVM: its memory is written by guest code.
//!
//! No firmware, no devices, no interrupts: each vCPU starts in 64-bit mode in a payload of our own
//! ([`payload`]) that performs a writer's operations for ever. Memory is two slots: the workload's
//! region from guest-physical address 0, and behind a hole what the machine itself needs ([`layout`]).
//! The one device is a port that tells a vCPU how many operations are due, so that rates hold.
//!
//! The destination's machine is created at setup. What is moved at the stun is each vCPU's state
//! ([`state`]), wherever its instruction pointer stands: a record that was half written is finished
//! on the other host. Dirty pages come from KVM's own log ([`log`]).

mod layout;
mod log;
mod payload;
mod state;
mod sys;
mod vcpu;

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::Deserialize;
use verifier::memory::Moment;
use workload::region::Region;
use workload::spec::Workload;
use workload::stats::Stats;
use workload::writer::Watermarks;

use super::machine::{Machine, not_paused};
use super::tracker::TrackerKind;
use super::{DirtyTracker, GuestError, MemoryView, threads};
use layout::Layout;
use log::DirtyLog;
use state::{MachineState, VcpuState};
use sys::{Logging, MemorySlot};
use vcpu::{Died, Due, Slot};
use workload::gate::{Control, Gate, Gates, Passage};

/// Time between looks at the operation counters in guest memory.
const MIRROR_INTERVAL: Duration = Duration::from_millis(1);

/// Why no such machine can be run here.
pub(super) fn missing() -> Option<String> {
    match Kvm::new() {
        Err(e) => Some(format!(
            "/dev/kvm cannot be opened ({}); run as a user who may, on a machine that has it, or use --guest process",
            std::io::Error::from(e)
        )),
        Ok(kvm) if !kvm.check_extension(Cap::UserMemory) => {
            Some("this KVM cannot map memory of ours; use --guest process".to_owned())
        }
        Ok(kvm) if log::missing(&kvm) => Some(
            "this KVM has no dirty log that is cleared by range (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, \
             Linux 5.0); use --guest process"
                .to_owned(),
        ),
        Ok(_) => None,
    }
}

/// Most vCPUs: two machines with more of them, on one host, take longer to make and to schedule than
/// a source waits for its shadow.
const VCPUS_MAX: usize = 128;

/// Whether the machine and its guest code can do what the workload asks.
pub(super) fn check(workload: &Workload) -> Result<(), GuestError> {
    payload::check(workload)?;
    let fail = |why: &dyn std::fmt::Display| GuestError::new("create a virtual machine", why);
    let kvm = Kvm::new().map_err(|e| fail(&e))?;
    let (vcpus, most) = (workload.shares().len(), kvm.get_max_vcpus().min(VCPUS_MAX));
    match vcpus > most {
        true => Err(fail(&format!(
            "{vcpus} writers need as many vCPUs, and there are at most {most}; use fewer --writers, or --guest process"
        ))),
        false => Ok(()),
    }
}

/// Memory that the machine has beside its workload's.
pub(super) fn system_bytes(workload: &Workload) -> u64 {
    Layout::of(workload).system_bytes()
}

fn failed<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> GuestError {
    move |e| GuestError::new(doing, e)
}

/// A virtual machine that has not run yet.
#[derive(Debug)]
pub(super) struct Vm {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    /// The workload's region, and the machine's own.
    slots: [MemorySlot; 2],
    workload: Arc<Workload>,
    layout: Layout,
}

impl Vm {
    /// Creates the machine around its memory, with a vCPU for each writer of a workload that passed
    /// [`check`]; `system` has [`system_bytes`].
    pub(super) fn create(
        workload: &Arc<Workload>,
        region: &Arc<Region>,
        system: &Arc<Region>,
    ) -> Result<Self, GuestError> {
        let doing = "create a virtual machine";
        let kvm = Kvm::new().map_err(failed(doing))?;
        let vm = kvm.create_vm().map_err(failed(doing))?;
        log::enable(&vm).map_err(failed(doing))?;
        let layout = Layout::of(workload);
        let slot = |number, address, region: &Arc<Region>| {
            let region = region.clone();
            MemorySlot { number, address, region }
        };
        let slots = [slot(0, 0, region), slot(1, layout.system_base(), system)];
        let mapped = slots.iter().try_for_each(|slot| sys::map_memory(&vm, slot, Logging::Off));
        mapped.map_err(failed(doing))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed(doing))?;
        let vcpus = (0..workload.shares().len() as u64)
            .map(|index| {
                let vcpu = vm.create_vcpu(index)?;
                vcpu.set_cpuid2(&cpuid)?;
                Ok(vcpu)
            })
            .collect::<Result<Vec<_>, kvm_ioctls::Error>>()
            .map_err(failed("create a vCPU"))?;
        Ok(Self { vm: Arc::new(vm), vcpus, slots, workload: workload.clone(), layout })
    }

    /// Starts the vCPUs: at the beginning, or where `state` says.
    pub(super) fn start(
        self,
        state: Option<&serde_json::Value>,
        watermarks: &Watermarks,
        operations_per_s: Option<f64>,
        gate: Gate,
    ) -> Result<KvmMachine, GuestError> {
        let doing = "restore the vCPUs";
        match state {
            None => {
                self.layout.write(self.system(), &self.words());
                for (index, vcpu) in self.vcpus.iter().enumerate() {
                    state::begin(vcpu, &self.layout, index).map_err(failed("set up a vCPU"))?;
                }
            }
            Some(state) => {
                let state = MachineState::deserialize(state).map_err(failed(doing))?;
                let vcpus = self.checked(&state, &watermarks.read())?;
                for (vcpu, one) in self.vcpus.iter().zip(&vcpus) {
                    one.restore(vcpu).map_err(failed(doing))?;
                }
                state.restore_clock(&self.vm).map_err(failed(doing))?;
            }
        }
        sys::install_kick().map_err(failed("install a signal handler"))?;
        let mut machine = KvmMachine {
            counters: Counters {
                system: self.system().clone(),
                layout: self.layout,
                record_lines: self.workload.record_lines(),
                started_from: watermarks.read(),
                watermarks: watermarks.clone(),
            },
            vm: self.vm,
            memory: self.slots,
            gates: Gates::default(),
            threads: Vec::new(),
            slots: Vec::new(),
            helper: None,
            stop: Arc::default(),
        };
        for (index, vcpu) in self.vcpus.into_iter().enumerate() {
            let control = Arc::new(Control::new(gate));
            let slot: Arc<Mutex<Slot>> = Arc::default();
            let (passage, place) = (Passage::new(control.clone()), slot.clone());
            let due = Due::new(operations_per_s);
            let run = move || vcpu::run(vcpu, passage, due, &place);
            let thread = threads::start(format!("vcpu-{index}"), run)?;
            machine.gates.0.push(control);
            machine.threads.push(thread);
            machine.slots.push(slot);
        }
        machine.start_helper()?;
        Ok(machine)
    }
}

impl Vm {
    /// The machine's own region.
    fn system(&self) -> &Arc<Region> {
        &self.slots[1].region
    }

    /// What stands there when the machine begins.
    fn words(&self) -> Vec<(u64, u64)> {
        let mut words = self.layout.tables();
        words.extend(payload::words(&self.layout, &self.workload));
        words
    }

    /// The vCPUs' states, if all that can be seen of them before they run is as it must be.
    fn checked(
        &self,
        state: &MachineState,
        watermarks: &[u64],
    ) -> Result<Vec<VcpuState>, GuestError> {
        let fail = |why: &dyn std::fmt::Display| GuestError::new("restore the vCPUs", why);
        if state.vcpus.len() != self.vcpus.len() {
            return Err(fail(&"there is another number of them"));
        }
        if let Some(address) = self.layout.first_difference(self.system(), &self.words()) {
            let why = format!("the machine's own memory at {address:#x} is not what it began with");
            return Err(fail(&why));
        }
        let vcpus = state.vcpus.iter().zip(watermarks).enumerate();
        vcpus
            .map(|(index, (one, watermark))| {
                let one = VcpuState::deserialize(one).map_err(|e| fail(&e))?;
                let counted = self.layout.counter(self.system(), index).load(Ordering::Acquire);
                if counted != *watermark {
                    let why = format!(
                        "vCPU {index}: its counter in memory is {counted}, its watermark {watermark}"
                    );
                    return Err(fail(&why));
                }
                match one.objection(&self.layout, index, counted) {
                    None => Ok(one),
                    Some(why) => Err(fail(&why)),
                }
            })
            .collect()
    }
}

/// The operation counters, where guest code keeps them and where the host looks.
#[derive(Clone, Debug)]
struct Counters {
    system: Arc<Region>,
    layout: Layout,
    record_lines: u64,
    started_from: Vec<u64>,
    watermarks: Watermarks,
}

impl Counters {
    fn mirror(&self) {
        for (index, from) in self.started_from.iter().enumerate() {
            let operations = self.layout.counter(&self.system, index).load(Ordering::Acquire);
            let stored = operations.saturating_sub(*from) * self.record_lines;
            self.watermarks.publish(index, operations, stored);
        }
    }
}

/// A virtual machine whose vCPUs have threads.
#[derive(Debug)]
pub(super) struct KvmMachine {
    counters: Counters,
    vm: Arc<VmFd>,
    memory: [MemorySlot; 2],
    gates: Gates,
    threads: Vec<JoinHandle<()>>,
    slots: Vec<Arc<Mutex<Slot>>>,
    /// Mirrors the counters, and kicks throttled vCPUs out of guest mode to be held.
    helper: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl KvmMachine {
    fn start_helper(&mut self) -> Result<(), GuestError> {
        let (counters, stop, gates) =
            (self.counters.clone(), self.stop.clone(), self.gates.clone());
        // The threads outlive the helper: `halt` joins it first.
        let threads: Vec<_> = self.threads.iter().map(JoinHandleExt::as_pthread_t).collect();
        let help = move || {
            while !stop.load(Ordering::Relaxed) {
                counters.mirror();
                for (control, thread) in gates.0.iter().zip(&threads) {
                    if control.is_throttled() {
                        sys::kick(*thread);
                    }
                }
                std::thread::sleep(MIRROR_INTERVAL);
            }
        };
        self.helper = Some(threads::start("the vCPUs' counters".to_owned(), help)?);
        Ok(())
    }

    fn kick_all(&self) {
        for thread in &self.threads {
            sys::kick(thread.as_pthread_t());
        }
    }

    /// Why a vCPU is gone, if one is.
    fn died(&self) -> Option<String> {
        let slot = |slot: &Arc<Mutex<Slot>>| -> Option<String> {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.died.as_ref().map(|Died(why)| why.clone())
        };
        self.slots.iter().find_map(slot)
    }
}

impl Machine for KvmMachine {
    fn vcpus(&self) -> usize {
        self.threads.len()
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.gates.close(|| self.kick_all()).map_err(not_paused)?;
        self.counters.mirror();
        match self.died() {
            Some(why) => {
                // Those that live go on: what was not paused is not held.
                self.gates.open();
                Err(GuestError::new("pause the guest", why))
            }
            None => Ok(()),
        }
    }

    fn resume(&mut self) {
        self.gates.open();
    }

    fn await_standing(&self, deadline: Instant) -> Result<(), GuestError> {
        let doing = "prepare the guest";
        match (self.gates.await_standing(deadline), self.died()) {
            (_, Some(why)) => Err(GuestError::new(doing, why)),
            (true, None) => Ok(()),
            (false, None) => Err(GuestError::new(doing, "a vCPU does not come to its gate")),
        }
    }

    fn passed_at_ns(&self) -> u64 {
        self.gates.passed_at_ns()
    }

    fn await_running(&self, deadline: Instant) -> Result<(), GuestError> {
        match (self.gates.await_running(deadline), self.died()) {
            (_, Some(why)) => Err(GuestError::new("start the guest", why)),
            (true, None) => Ok(()),
            (false, None) => Err(GuestError::new("start the guest", "a vCPU does not run")),
        }
    }

    fn throttle(&mut self, held_shares: &[f64]) {
        self.gates.throttle(held_shares);
    }

    fn written(&self) -> Vec<u64> {
        self.counters.watermarks.stored_lines()
    }

    /// A vCPU is stopped between any two instructions.
    fn moment(&self) -> Moment {
        Moment::Stopped
    }

    fn tracker(
        &self,
        kind: TrackerKind,
        _memory: MemoryView,
    ) -> Result<Box<dyn DirtyTracker>, GuestError> {
        if kind != TrackerKind::Auto {
            let why = "what a virtual machine writes only KVM knows; leave --tracker at auto";
            return Err(GuestError::new("track writes", why));
        }
        Ok(Box::new(DirtyLog::new(self.vm.clone(), self.memory.to_vec())))
    }

    fn save(&mut self) -> Result<serde_json::Value, GuestError> {
        let doing = "save the vCPUs";
        let vcpus = self
            .slots
            .iter()
            .map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).state.clone());
        let vcpus: Option<Vec<_>> = vcpus.collect();
        let Some(vcpus) = vcpus else {
            let why = self.died().unwrap_or_else(|| "one of them does not stand still".to_owned());
            return Err(GuestError::new(doing, why));
        };
        let state = MachineState::of(vcpus, &self.vm).map_err(failed(doing))?;
        serde_json::to_value(state).map_err(failed(doing))
    }

    /// Guest code counts operations, and has no clock to take times with.
    fn lap(&self) -> Result<Stats, GuestError> {
        match self.died() {
            Some(why) => Err(GuestError::new("ask the vCPUs", why)),
            None => Ok(Stats::default()),
        }
    }

    fn halt(&mut self) -> Result<Stats, GuestError> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(helper) = self.helper.take() {
            let _ = helper.join();
        }
        self.gates.stop();
        let mut panicked = false;
        while let Some(thread) = self.threads.pop() {
            while !thread.is_finished() {
                sys::kick(thread.as_pthread_t());
                std::thread::sleep(Duration::from_micros(200));
            }
            panicked |= thread.join().is_err();
        }
        self.counters.mirror();
        match self.died() {
            Some(why) => Err(GuestError::new("stop the guest", why)),
            None if panicked => Err(GuestError::new("stop the guest", "a vCPU's thread died")),
            None => Ok(Stats::default()),
        }
    }
}

impl Drop for KvmMachine {
    fn drop(&mut self) {
        let _ = self.halt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::fill::fill;
    use workload::line::PageFormat;
    use workload::spec::WorkloadSpec;
    use workload::units::Bytes;

    #[test]
    #[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
    fn a_vcpu_that_runs_has_no_state_to_save() {
        let memory = Bytes(1 << 20);
        let workload = "stream".parse().unwrap();
        let spec =
            WorkloadSpec { format: PageFormat::fresh(), seed: 1, memory, writers: 2, workload };
        let workload = Arc::new(spec.resolve().unwrap());
        let region = Arc::new(Region::anonymous(memory).unwrap());
        let system = Arc::new(Region::anonymous(Bytes(system_bytes(&workload))).unwrap());
        fill(&region, &workload, |_| {});
        let vm = Vm::create(&workload, &region, &system).unwrap();
        let watermarks = Watermarks::new(&[0, 0]);
        let mut machine = vm.start(None, &watermarks, None, Gate::Open).unwrap();
        machine.pause().unwrap();
        machine.save().unwrap();
        machine.resume();
        machine.await_running(Instant::now() + Duration::from_secs(10)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let error = machine.save().unwrap_err().to_string();
        assert_eq!(error, "save the vCPUs: one of them does not stand still");
        machine.pause().unwrap();
        machine.save().unwrap();
    }
}
