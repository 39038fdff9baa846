//! The built-in guest, whatever runs it: its memory is what the `workload` crate says, and proves
//! itself.
//!
//! What its vCPUs are is a `Machine`'s affair: threads (`guest::process`) or a virtual machine
//! (`guest::kvm`). Its shadow can be checked line by line before it runs and again later; what was
//! proven is [`proof`]'s subject, what the migration cost the guest [`cost`]'s.

pub mod cost;
pub mod gauge;
mod machine;
pub mod proof;
mod sys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use verifier::expected::Expected;
use verifier::scan::Moment;
use workload::clock::realtime_ns;
use workload::heartbeat::Heart;
use workload::journal::{JournalWriter, RunId};
use workload::machine::require_memory;
use workload::region::Region;
use workload::spec::{Workload, WorkloadSpec};
use workload::stats::Stats;
use workload::units::{Bytes, Rate};
use workload::writer::{Pace, Watermarks};

use super::gate::{Gate, PAUSE_TIMEOUT};
use super::process::Threads;
use super::tracker::TrackerKind;
use super::{DirtyTracker, Guest, GuestError, MemoryView, Shadow, ShadowFactory};
use gauge::Gauge;
use machine::Prepared;
use proof::Scanned;

pub(super) use machine::Machine;
pub use machine::MachineKind;

/// What a destination needs to know to continue this guest; JSON on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// What runs it.
    pub machine: MachineKind,
    /// Which run this is, in journals.
    pub run: u64,
    /// What it writes.
    pub spec: WorkloadSpec,
    /// How fast, all writers together; `None` as fast as memory takes it.
    pub rate: Option<Rate>,
    /// Hosts it will have left once it runs there.
    pub epoch: u64,
    /// How long it runs there before it is proven again.
    pub run_on_ms: u64,
    /// Whether the SHA-256 roots of both hosts are to be compared.
    pub audit: bool,
}

/// How thoroughly a migration of this guest is proven.
#[derive(Clone, Copy, Debug)]
pub struct ProofSettings {
    /// How long it runs at the destination before it is proven again.
    pub run_on: Duration,
    /// Whether the SHA-256 roots of both hosts are to be compared.
    pub audit: bool,
}

/// Device state: everything about the guest that its memory does not say; JSON on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// Operations completed, by writer.
    pub watermarks: Vec<u64>,
    /// When the last vCPU stood still, wall clock: what the guest compares when it runs again.
    pub paused_at_ns: u64,
    /// State of the machine, its own affair.
    pub machine: serde_json::Value,
}

/// A guest that proves itself, running or paused.
#[derive(Debug)]
pub struct StampedGuest {
    description: Description,
    workload: Arc<Workload>,
    region: Arc<Region>,
    watermarks: Watermarks,
    machine: Box<dyn Machine>,
    heart: Option<Heart>,
    /// Watermarks when this guest began to run here.
    started_from: Vec<u64>,
    paused: bool,
}

impl StampedGuest {
    /// A new guest with freshly filled memory, already writing.
    ///
    /// # Errors
    /// The settings contradict each other, or the machine cannot hold the guest.
    pub fn start_new(
        kind: MachineKind,
        spec: &WorkloadSpec,
        rate: Option<Rate>,
        proof: ProofSettings,
        journal: Option<&PathBuf>,
    ) -> Result<Self, GuestError> {
        let fail = |e: &dyn std::fmt::Display| GuestError::new("start the guest", e);
        if let Some(why) = kind.missing() {
            return Err(fail(&why));
        }
        let workload = Arc::new(spec.resolve().map_err(|e| fail(&e))?);
        let memory = Bytes(spec.memory.0 + kind.system_bytes(&workload));
        require_memory(memory).map_err(|e| fail(&e))?;
        let run = RunId::random();
        let description = Description {
            machine: kind,
            run: run.0,
            // With the checksum of a trace, which the destination must have as well.
            spec: workload.spec().clone(),
            rate,
            epoch: 0,
            run_on_ms: proof.run_on.as_millis() as u64,
            audit: proof.audit,
        };
        let region = Arc::new(Region::anonymous(memory).map_err(|e| fail(&e))?);
        region.fill(&workload, |_| {});
        let journal = match journal {
            Some(path) => {
                Some(JournalWriter::create(path, run, workload.spec()).map_err(|e| fail(&e))?)
            }
            None => None,
        };
        let prepared = Prepared::new(kind, &workload, &region)?;
        let fill = Expected::at(&workload, &vec![0; spec.writers as usize]);
        Self::run(description, workload, region, prepared, fill, None, journal, Gate::Open)
    }

    #[expect(clippy::too_many_arguments, reason = "all of a guest, in one place")]
    fn run(
        description: Description,
        workload: Arc<Workload>,
        region: Arc<Region>,
        prepared: Prepared,
        expected: Expected,
        state: Option<&serde_json::Value>,
        journal: Option<JournalWriter>,
        gate: Gate,
    ) -> Result<Self, GuestError> {
        let started_from = expected.watermarks();
        let fail = |e: &dyn std::fmt::Display| GuestError::new("start the guest's threads", e);
        let share = |rate: Rate| rate.0 as f64 / f64::from(description.spec.writers);
        let share = description.rate.map(share);
        let watermarks = Watermarks::new(&started_from);
        let machine: Box<dyn Machine> = match prepared {
            Prepared::Process => {
                let pace = match share {
                    Some(share) => Pace::bytes_per_second(share, &workload),
                    None => Pace::Unlimited,
                };
                let threads =
                    Threads::start(&workload, &region, expected, &watermarks, &pace, gate)?;
                Box::new(threads)
            }
            #[cfg(target_arch = "x86_64")]
            Prepared::Kvm(vm) => {
                let record = description.spec.workload.record.0 as f64;
                let per_s = share.map(|share| share / record);
                Box::new(vm.start(state, &watermarks, per_s, gate)?)
            }
        };
        let heart = match journal {
            Some(journal) => {
                let heart = Heart::start(watermarks.clone(), description.epoch, journal)
                    .map_err(|e| fail(&e))?;
                if gate == Gate::Closed {
                    heart.pause();
                }
                Some(heart)
            }
            None => None,
        };
        let paused = gate == Gate::Closed;
        Ok(Self { description, workload, region, watermarks, machine, heart, started_from, paused })
    }

    /// What it writes.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Its memory, for verifiers.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Operations completed, by writer.
    pub fn watermarks(&self) -> Vec<u64> {
        self.watermarks.read()
    }

    /// Watermarks when it began to run on this host.
    pub fn started_from(&self) -> &[u64] {
        &self.started_from
    }

    /// How it describes itself to a destination.
    pub fn describe(&self) -> &Description {
        &self.description
    }

    /// Checks every line; the guest stands still meanwhile and goes on (or not) as before.
    ///
    /// # Errors
    /// It could not be paused.
    pub fn scan(&mut self) -> Result<Scanned, GuestError> {
        let was_paused = self.paused;
        self.pause()?;
        let watermarks = self.watermarks();
        let moment = self.machine.moment();
        let (scanned, _) = Scanned::of(&self.region, &self.workload, moment, watermarks);
        if !was_paused {
            self.resume()?;
        }
        Ok(scanned)
    }

    /// What its writers did since they began here or were asked last; from here on they count anew.
    ///
    /// # Errors
    /// A writer does not answer: it stands still, or is gone.
    pub fn lap(&self) -> Result<Stats, GuestError> {
        self.machine.lap()
    }

    /// A tracker of what it writes: of the kind asked for, where its machine leaves a choice.
    ///
    /// # Errors
    /// The kernel has no such interface, with what to choose instead.
    pub fn tracker(&self, kind: TrackerKind) -> Result<Box<dyn DirtyTracker>, GuestError> {
        self.machine.tracker(kind, self.memory())
    }

    /// Samples how far its writers are, from now on.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn gauge(&self) -> Result<Gauge, GuestError> {
        Gauge::start(self.watermarks.clone()).map_err(|e| GuestError::new("start a thread", e))
    }

    /// Ends the guest; returns what its writers did here, since they were asked last.
    ///
    /// # Errors
    /// A writer died, or the journal is not complete.
    pub fn stop(mut self) -> Result<Stats, GuestError> {
        let stats = self.machine.halt();
        if let Some(heart) = self.heart.take() {
            heart.stop().map_err(|e| GuestError::new("finish the journal", e))?;
        }
        stats
    }
}

impl Drop for StampedGuest {
    fn drop(&mut self) {
        let _ = self.machine.halt();
        if let Some(heart) = self.heart.take() {
            let _ = heart.stop();
        }
    }
}

impl Guest for StampedGuest {
    fn memory(&self) -> MemoryView {
        sys::view(&self.region)
    }

    fn description(&self) -> Vec<u8> {
        let next = Description { epoch: self.description.epoch + 1, ..self.description.clone() };
        to_json(&next)
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        if self.paused {
            return Ok(());
        }
        self.machine.pause()?;
        if let Some(heart) = &self.heart {
            heart.pause();
        }
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.machine.resume();
        if let Some(heart) = &self.heart {
            heart.resume();
        }
        self.paused = false;
        Ok(())
    }

    fn vcpus(&self) -> usize {
        self.machine.vcpus()
    }

    fn written(&self) -> Vec<u64> {
        self.machine.written()
    }

    fn throttle(&mut self, held_shares: &[f64]) {
        self.machine.throttle(held_shares);
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        if !self.paused {
            return Err(GuestError::new("save device state", "the guest runs"));
        }
        let machine = self.machine.save()?;
        let (watermarks, paused_at_ns) = (self.watermarks(), realtime_ns());
        Ok(to_json(&DeviceState { watermarks, paused_at_ns, machine }))
    }
}

/// Builds stamped guests on the destination, whatever runs them.
#[derive(Clone, Debug, Default)]
pub struct StampedFactory {
    /// Goes on with this journal.
    pub journal: Option<PathBuf>,
}

/// A guest that has not run here yet, and afterwards the one that does.
#[derive(Debug)]
pub struct StampedShadow {
    /// What the source says about it.
    pub description: Description,
    workload: Arc<Workload>,
    region: Arc<Region>,
    /// Until it runs.
    prepared: Option<Prepared>,
    journal: Option<JournalWriter>,
    state: Option<DeviceState>,
    /// What memory held when it was looked at, from where its writers go on.
    expected: Option<Expected>,
    /// The look at memory before it ran.
    pub first_scan: Option<Scanned>,
    /// SHA-256 root of memory before it ran, in audit mode.
    pub root: Option<String>,
    /// From the last vCPU standing still there to the first running here, by the two hosts' wall
    /// clocks: what the guest itself can notice.
    pub felt_gap: Option<Duration>,
    /// Runs here.
    pub guest: Option<StampedGuest>,
}

impl ShadowFactory for StampedFactory {
    type Shadow = StampedShadow;

    fn create(&mut self, description: &[u8], pages: u64) -> Result<StampedShadow, GuestError> {
        let fail = |e: &dyn std::fmt::Display| GuestError::new("build the shadow", e);
        let description: Description = serde_json::from_slice(description).map_err(|e| fail(&e))?;
        let workload = Arc::new(description.spec.resolve().map_err(|e| fail(&e))?);
        if let Some(why) = description.machine.missing() {
            return Err(fail(&why));
        }
        let spec = &description.spec;
        let memory = Bytes(spec.memory.0 + description.machine.system_bytes(&workload));
        if memory.0 / workload::PAGE_BYTES != pages {
            return Err(fail(&"its memory is not of the announced size"));
        }
        require_memory(memory).map_err(|e| fail(&e))?;
        let region = Arc::new(Region::anonymous(memory).map_err(|e| fail(&e))?);
        sys::view(&region).populate().map_err(|e| fail(&e))?;
        let prepared = Some(Prepared::new(description.machine, &workload, &region)?);
        let journal = match &self.journal {
            Some(path) => {
                let run = RunId(description.run);
                Some(JournalWriter::append(path, run).map_err(|e| fail(&e))?)
            }
            None => None,
        };
        Ok(StampedShadow {
            description,
            workload,
            region,
            prepared,
            journal,
            state: None,
            expected: None,
            first_scan: None,
            root: None,
            felt_gap: None,
            guest: None,
        })
    }
}

impl Shadow for StampedShadow {
    fn memory(&self) -> MemoryView {
        sys::view(&self.region)
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        let fail = |e: &dyn std::fmt::Display| GuestError::new("load device state", e);
        let state: DeviceState = serde_json::from_slice(state).map_err(|e| fail(&e))?;
        if state.watermarks.len() != self.workload.shares().len() {
            return Err(fail(&"it has another number of writers"));
        }
        self.state = Some(state);
        Ok(())
    }

    /// Every line, before anything is overwritten; a guest that is not whole must not run.
    fn inspect(&mut self) -> Result<(), GuestError> {
        let Some(state) = &self.state else {
            return Err(GuestError::new("inspect the guest", "there is no device state"));
        };
        let moment = match self.description.machine {
            MachineKind::Process => Moment::Exact,
            MachineKind::Kvm => Moment::Stopped,
        };
        let (scanned, expected) =
            Scanned::of(&self.region, &self.workload, moment, state.watermarks.clone());
        self.expected = Some(expected);
        self.root = self.description.audit.then(|| proof::root(&self.region));
        let wrong = scanned.first_fault();
        self.first_scan = Some(scanned);
        match wrong {
            Some(fault) => Err(GuestError::new("memory is WRONG before resume", fault)),
            None => Ok(()),
        }
    }

    fn start(&mut self) -> Result<Duration, GuestError> {
        let begin = Instant::now();
        let state = self
            .state
            .take()
            .ok_or_else(|| GuestError::new("start the guest", "there is no device state"))?;
        // Not known if nobody looked.
        let expected = self.expected.take();
        let expected = expected.unwrap_or_else(|| Expected::at(&self.workload, &state.watermarks));
        let prepared = self
            .prepared
            .take()
            .ok_or_else(|| GuestError::new("start the guest", "it was started before"))?;
        let mut guest = StampedGuest::run(
            self.description.clone(),
            self.workload.clone(),
            self.region.clone(),
            prepared,
            expected,
            Some(&state.machine),
            self.journal.take(),
            Gate::Closed,
        )?;
        guest.resume()?;
        guest.machine.await_running(begin + PAUSE_TIMEOUT)?;
        self.felt_gap =
            Some(Duration::from_nanos(realtime_ns().saturating_sub(state.paused_at_ns)));
        self.guest = Some(guest);
        Ok(begin.elapsed())
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| unreachable!("plain data becomes JSON"))
}
