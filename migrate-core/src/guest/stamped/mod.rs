//! The built-in guest, whatever runs it: its memory is what the `workload` crate says, and proves
//! itself.
//!
//! What its vCPUs are is a `Machine`'s affair: threads (`guest::process`) or a virtual machine
//! (`guest::kvm`). How it comes to life on the destination is `shadow`'s subject, what was proven
//! about it [`proof`]'s.

pub mod gauge;
mod machine;
mod memory;
pub mod proof;
mod shadow;
mod sys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use verifier::expected::Expected;
use workload::beat::writer::{JournalWriter, Thread};
use workload::clock::realtime_ns;
use workload::fill::fill;
use workload::heartbeat::{self, End, Heart};
use workload::machine::require_memory;
use workload::region::Region;
use workload::run::RunId;
use workload::spec::{Workload, WorkloadSpec};
use workload::stats::Stats;
use workload::units::{Bytes, Rate};
use workload::work::{Unwatched, to_its_end};
use workload::writer::{Pace, Watermarks};

use super::machine::Machine;
use super::process::Threads;
use super::tracker::TrackerKind;
use super::{DirtyTracker, Guest, GuestError, MemoryView, threads};
use gauge::Gauge;
use machine::Prepared;
use memory::Memory;
use proof::Scanned;
use workload::gate::Gate;

pub use machine::MachineKind;
pub use shadow::{StampedFactory, StampedShadow};

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

/// Longest time that a guest runs at the destination before it is proven again: a day.
pub const RUN_ON_MS_MAX: u64 = 24 * 3600 * 1000;

impl Description {
    /// Checks what is not checked elsewhere; whoever sends it may be mistaken, or lie.
    fn check(&self) -> Result<(), String> {
        if self.rate == Some(Rate(0)) {
            return Err("a guest that writes at a rate of 0 is no guest".to_owned());
        }
        if self.run_on_ms > RUN_ON_MS_MAX {
            return Err(format!(
                "it is to run for {} ms before it is proven; at most {RUN_ON_MS_MAX} are allowed",
                self.run_on_ms
            ));
        }
        Ok(())
    }
}

/// How thoroughly a migration of this guest is proven.
#[derive(Clone, Copy, Debug)]
pub struct ProofSettings {
    /// How long it runs at the destination before it is proven again.
    pub run_on: Duration,
    /// Whether the SHA-256 roots of both hosts are to be compared.
    pub audit: bool,
}

impl Default for ProofSettings {
    /// A second of running on, and no roots.
    fn default() -> Self {
        Self { run_on: Duration::from_secs(1), audit: false }
    }
}

/// What a guest is to be.
#[derive(Clone, Debug)]
pub struct GuestSettings {
    /// What runs it.
    pub machine: MachineKind,
    /// What it writes.
    pub spec: WorkloadSpec,
    /// How fast, all writers together; `None` as fast as memory takes it.
    pub rate: Option<Rate>,
    /// How thoroughly its migration is proven.
    pub proof: ProofSettings,
    /// Where its heartbeats are kept.
    pub journal: Option<PathBuf>,
    /// Whether its workload's memory lies on huge pages, which must have been reserved.
    pub huge_pages: bool,
}

impl GuestSettings {
    /// A guest of threads that writes this as fast as memory takes it, and keeps no journal.
    pub fn of(spec: WorkloadSpec) -> Self {
        Self {
            machine: MachineKind::Process,
            spec,
            rate: None,
            proof: ProofSettings::default(),
            journal: None,
            huge_pages: false,
        }
    }
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
    /// What its heartbeats go on from, if it has any.
    #[serde(default)]
    pub beats: Option<Thread>,
}

/// A guest that proves itself, running or paused.
#[derive(Debug)]
pub struct StampedGuest {
    description: Description,
    workload: Arc<Workload>,
    memory: Memory,
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
    pub fn start_new(settings: &GuestSettings) -> Result<Self, GuestError> {
        let GuestSettings { machine: kind, spec, rate, proof, journal, huge_pages } = settings;
        let kind = *kind;
        let fail = |e: &dyn std::fmt::Display| GuestError::new("start the guest", e);
        if let Some(why) = kind.missing() {
            return Err(fail(&why));
        }
        let workload = Arc::new(spec.resolve().map_err(|e| fail(&e))?);
        kind.check(&workload)?;
        let bytes = Memory::sizes(kind, &workload).iter().map(|bytes| bytes.0).sum();
        require_memory(Bytes(bytes)).map_err(|e| fail(&e))?;
        let run = spec.run().unwrap_or_else(RunId::fresh);
        let description = Description {
            machine: kind,
            run: run.0,
            // With the checksum of a trace, which the destination must have as well.
            spec: workload.spec().clone(),
            rate: *rate,
            epoch: 0,
            run_on_ms: u64::try_from(proof.run_on.as_millis()).unwrap_or(u64::MAX),
            audit: proof.audit,
        };
        description.check().map_err(|e| fail(&e))?;
        let memory = Memory::new(kind, &workload, *huge_pages).map_err(|e| fail(&e))?;
        fill(&memory.region, &workload, |_| {});
        let journal = match journal {
            Some(path) => {
                let interval = heartbeat::interval(spec.writers);
                let journal = JournalWriter::create(path, workload.spec(), interval);
                Some(journal.map_err(|e| fail(&e))?)
            }
            None => None,
        };
        let prepared = Prepared::new(kind, &workload, &memory)?;
        let fill = Expected::at(&workload, &vec![0; spec.writers as usize]);
        Self::run(description, workload, memory, prepared, fill, None, journal, Gate::Open)
    }

    #[expect(clippy::too_many_arguments, reason = "all of a guest, in one place")]
    fn run(
        description: Description,
        workload: Arc<Workload>,
        memory: Memory,
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
            Prepared::Process(hired) => {
                if state.is_some_and(|state| !state.is_null()) {
                    return Err(fail(&"threads have no state, but there is one"));
                }
                let pace = match share {
                    Some(share) => Pace::bytes_per_second(share, &workload),
                    None => Pace::Unlimited,
                };
                Box::new(Threads::start(
                    hired,
                    &workload,
                    &memory.region,
                    expected,
                    &watermarks,
                    &pace,
                    gate,
                )?)
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
                let start = match gate {
                    Gate::Open => Heart::start,
                    Gate::Closed => Heart::start_held,
                };
                let heart = start(watermarks.clone(), description.epoch, journal);
                Some(heart.map_err(|e| threads::refused("heartbeats", &e))?)
            }
            None => None,
        };
        let paused = gate == Gate::Closed;
        Ok(Self { description, workload, memory, watermarks, machine, heart, started_from, paused })
    }

    /// Lets it run on; nothing of it can fail. Where its writers stand is said before they move.
    fn open(&mut self) {
        if let Some(heart) = &self.heart {
            heart.resume();
        }
        self.machine.resume();
        self.paused = false;
    }

    /// What it writes.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The memory that its workload writes, for verifiers.
    pub fn region(&self) -> &Region {
        &self.memory.region
    }

    /// The SHA-256 roots of all its memory, which must be at rest.
    pub fn root(&self) -> String {
        to_its_end(self.memory.root(&Unwatched))
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
        let (scanned, _) = Scanned::of(&self.memory.region, &self.workload, moment, watermarks);
        if !was_paused {
            self.open();
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
        Gauge::start(self.watermarks.clone())
    }

    /// Ends the guest. If it goes on elsewhere, its end is not said.
    pub fn stop(mut self, end: End) -> Ended {
        let mut trouble = Vec::new();
        let stats = self.machine.halt().unwrap_or_else(|error| {
            trouble.push(error);
            Stats::default()
        });
        if let Some(Err(incomplete)) = self.heart.take().map(|heart| heart.stop(end).1) {
            trouble.push(GuestError::new("keep the journal", incomplete));
        }
        Ended { stats, trouble }
    }
}

/// What is left of a guest that was ended.
#[derive(Debug)]
pub struct Ended {
    /// What its writers did here, since they were asked last.
    pub stats: Stats,
    /// What its evidence lacks: a writer that died, a journal that is not complete.
    pub trouble: Vec<GuestError>,
}

impl Drop for StampedGuest {
    fn drop(&mut self) {
        let _ = self.machine.halt();
        if let Some(heart) = self.heart.take() {
            let _ = heart.stop(End::Otherwise);
        }
    }
}

impl Guest for StampedGuest {
    fn memory(&self) -> MemoryView {
        self.memory.view()
    }

    fn description(&self) -> Vec<u8> {
        let next = Description {
            epoch: self.description.epoch.saturating_add(1),
            ..self.description.clone()
        };
        to_json(&next)
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        if self.paused {
            return Ok(());
        }
        self.machine.pause()?;
        if let Some(heart) = &self.heart {
            heart.hold();
        }
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.open();
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
        let beats = self.heart.as_ref().map(Heart::run_thread);
        Ok(to_json(&DeviceState { watermarks, paused_at_ns, machine, beats }))
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| unreachable!("plain data becomes JSON"))
}
