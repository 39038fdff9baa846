//! The built-in guest on its way to life at the destination: built, inspected, prepared, started.
//!
//! All that can fail stands before the start: the state is held against memory and put into the
//! vCPUs, their threads wait at a closed gate, the journal has its first line. A stun that is called
//! off takes this down again; memory may be written meanwhile, since nobody behind the gate does.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use verifier::expected::Expected;
use verifier::memory::Moment;
use workload::beat::writer::{JournalWriter, Thread};
use workload::heartbeat;
use workload::machine::require_memory;
use workload::spec::{Traces, Workload};
use workload::units::Bytes;

use super::machine::Prepared;
use super::memory::Memory;
use super::proof::Scanned;
use super::{Description, DeviceState, MachineKind, StampedGuest};
use crate::guest::{GuestError, MemoryView, Shadow, ShadowFactory, Work};
use workload::gate::{Gate, PAUSE_TIMEOUT};

/// Builds stamped guests on the destination, whatever runs them.
#[derive(Clone, Debug, Default)]
pub struct StampedFactory {
    /// Goes on with this journal.
    pub journal: Option<PathBuf>,
    /// Where the traces are that guests replay, whatever they are called.
    pub traces: Option<PathBuf>,
    /// Whether their workloads' memory is to lie on huge pages, which must have been reserved.
    pub huge_pages: bool,
}

/// A guest that has not run here yet, and afterwards the one that does.
#[derive(Debug)]
pub struct StampedShadow {
    /// What the source says about it.
    pub description: Description,
    workload: Arc<Workload>,
    memory: Memory,
    /// What will run it, until it has threads.
    machine: Option<Prepared>,
    journal: Option<PathBuf>,
    /// What it says its beats by if its source kept no journal.
    silent: Thread,
    state: Option<DeviceState>,
    /// What memory held when it was looked at, from where its writers go on.
    expected: Option<Expected>,
    /// The look at memory before it ran.
    pub first_scan: Option<Scanned>,
    /// SHA-256 root of memory before it ran, in audit mode.
    pub root: Option<String>,
    /// From the last vCPU standing still there to the last one running here, by the two hosts' wall
    /// clocks: what the guest itself can notice. Known once it was awaited.
    pub felt_gap: Option<Duration>,
    /// Held at its gate once it is prepared, and running once it was started.
    pub guest: Option<StampedGuest>,
}

impl ShadowFactory for StampedFactory {
    type Shadow = StampedShadow;

    fn create(
        &mut self,
        description: &[u8],
        regions: &[u64],
        work: &Work,
    ) -> Result<StampedShadow, GuestError> {
        let fail = |e: &dyn std::fmt::Display| GuestError::new("build the shadow", e);
        let description: Description = serde_json::from_slice(description).map_err(|e| fail(&e))?;
        description.check().map_err(|e| fail(&e))?;
        let spec = &description.spec;
        let wrong_size = "its memory is not of the announced size";
        // Nothing is computed for a memory that cannot be.
        let pages = regions.iter().try_fold(0u64, |sum, pages| sum.checked_add(*pages));
        let bytes = pages.and_then(|pages| pages.checked_mul(workload::PAGE_BYTES));
        let bytes = Bytes(bytes.ok_or_else(|| fail(&wrong_size))?);
        require_memory(bytes).map_err(|e| fail(&e))?;
        if spec.memory > bytes {
            return Err(fail(&wrong_size));
        }
        let traces = self.traces.as_deref().map_or(Traces::None, Traces::Folder);
        let workload = Arc::new(spec.resolve_with(traces).map_err(|e| fail(&e))?);
        if let Some(why) = description.machine.missing() {
            return Err(fail(&why));
        }
        description.machine.check(&workload)?;
        let sizes = Memory::sizes(description.machine, &workload);
        if !sizes.iter().map(|size| size.0 / workload::PAGE_BYTES).eq(regions.iter().copied()) {
            return Err(fail(&wrong_size));
        }
        let memory =
            Memory::new(description.machine, &workload, self.huge_pages).map_err(|e| fail(&e))?;
        memory.view().populate(work).map_err(|e| fail(&e))?;
        let machine = Some(Prepared::new(description.machine, &workload, &memory)?);
        let journal = self.journal.clone();
        if let Some(path) = &journal {
            // What cannot be written later is said now.
            File::options()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|e| fail(&format!("cannot open journal {}: {e}", path.display())))?;
        }
        let silent = Thread::of_silent(heartbeat::interval(description.spec.writers));
        Ok(StampedShadow {
            description,
            workload,
            memory,
            machine,
            journal,
            silent,
            state: None,
            expected: None,
            first_scan: None,
            root: None,
            felt_gap: None,
            guest: None,
        })
    }
}

impl StampedShadow {
    /// Waits until every vCPU of a guest that was started runs.
    ///
    /// # Errors
    /// One of them does not: a finding about the guest, which stays as it is.
    pub fn await_running(&mut self) -> Result<(), GuestError> {
        let (Some(guest), Some(state)) = (&self.guest, &self.state) else {
            return Err(GuestError::new("start the guest", "it was not prepared"));
        };
        guest.machine.await_running(Instant::now() + PAUSE_TIMEOUT)?;
        let gap = guest.machine.passed_at_ns().saturating_sub(state.paused_at_ns);
        self.felt_gap = Some(Duration::from_nanos(gap));
        Ok(())
    }

    fn state(&self, doing: &'static str) -> Result<&DeviceState, GuestError> {
        self.state.as_ref().ok_or_else(|| GuestError::new(doing, "there is no device state"))
    }
}

impl Shadow for StampedShadow {
    fn memory(&self) -> MemoryView {
        self.memory.view()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        let fail = |e: &dyn std::fmt::Display| GuestError::new("load device state", e);
        if self.guest.as_ref().is_some_and(|guest| !guest.paused) {
            return Err(fail(&"the guest runs"));
        }
        // Of a guest that was held and never ran nothing was said.
        self.guest = None;
        (self.state, self.expected, self.first_scan, self.root) = (None, None, None, None);
        let state: DeviceState = serde_json::from_slice(state).map_err(|e| fail(&e))?;
        self.workload.check_watermarks(&state.watermarks).map_err(|e| fail(&e))?;
        state.beats.as_ref().map_or(Ok(()), Thread::check).map_err(|e| fail(&e))?;
        self.state = Some(state);
        Ok(())
    }

    /// Every line, before anything is overwritten; a guest that is not whole must not run.
    fn inspect(&mut self, work: &Work) -> Result<(), GuestError> {
        let doing = "inspect the guest";
        let watermarks = self.state(doing)?.watermarks.clone();
        let moment = match self.description.machine {
            MachineKind::Process => Moment::Exact,
            MachineKind::Kvm => Moment::Stopped,
        };
        let cancelled = |e| GuestError::new(doing, e);
        work.advance(0, 0);
        let (scanned, expected) =
            Scanned::watched(&self.memory.region, &self.workload, moment, watermarks, work)
                .map_err(cancelled)?;
        self.expected = Some(expected);
        if self.description.audit {
            self.root = Some(self.memory.root(work).map_err(cancelled)?);
        }
        let wrong = scanned.first_fault();
        self.first_scan = Some(scanned);
        match wrong {
            Some(fault) => Err(GuestError::new("memory is WRONG before resume", fault)),
            None => Ok(()),
        }
    }

    fn prepare(&mut self) -> Result<(), GuestError> {
        let doing = "prepare the guest";
        if self.guest.is_some() {
            return Ok(());
        }
        let state = self.state(doing)?.clone();
        // Not known if nobody looked.
        let expected = self.expected.take();
        let expected = expected.unwrap_or_else(|| Expected::at(&self.workload, &state.watermarks));
        let machine = match self.machine.take() {
            Some(machine) => machine,
            // What ran at a gate before does not go back to where it came from.
            None => Prepared::new(self.description.machine, &self.workload, &self.memory)?,
        };
        let journal = match (&self.journal, &state.beats) {
            (Some(path), thread) => {
                let thread = thread.as_ref().unwrap_or(&self.silent);
                let journal = JournalWriter::go_on(path, &self.description.spec, thread);
                Some(journal.map_err(|e| GuestError::new(doing, e))?)
            }
            (None, _) => None,
        };
        let guest = StampedGuest::run(
            self.description.clone(),
            self.workload.clone(),
            self.memory.clone(),
            machine,
            expected,
            Some(&state.machine),
            journal,
            Gate::Closed,
        )?;
        guest.machine.await_standing(Instant::now() + PAUSE_TIMEOUT)?;
        self.guest = Some(guest);
        Ok(())
    }

    fn start(&mut self) {
        if let Some(guest) = &mut self.guest {
            guest.open();
        }
    }
}
