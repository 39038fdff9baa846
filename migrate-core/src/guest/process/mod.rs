//! The built-in guest: memory in a memfd, one writer thread per vCPU, device state = watermarks.
//!
//! Needs no privileges and no hypervisor, and proves itself: its memory is what the `workload`
//! crate says, so its shadow can be checked line by line before it runs and again later.
//! What its vCPUs are is `vcpu`'s subject; what was proven is [`proof`]'s.

pub mod cost;
pub mod gauge;
pub mod proof;
mod sys;
mod vcpu;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use verifier::expected::Expected;
use workload::clock::realtime_ns;
use workload::heartbeat::Heart;
use workload::journal::{JournalWriter, RunId};
use workload::machine;
use workload::region::Region;
use workload::spec::{Workload, WorkloadSpec};
use workload::stats::Stats;
use workload::units::Rate;
use workload::writer::{Pace, Watermarks, Writer};

use super::{Guest, GuestError, MemoryView, Shadow, ShadowFactory};
use gauge::Gauge;
use proof::Scanned;
use vcpu::{Control, Gate};

/// What a destination needs to know to continue this guest; JSON on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
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
}

/// A guest made of threads.
#[derive(Debug)]
pub struct ProcessGuest {
    description: Description,
    workload: Arc<Workload>,
    region: Arc<Region>,
    watermarks: Watermarks,
    controls: Vec<Arc<Control>>,
    threads: Vec<JoinHandle<Stats>>,
    heart: Option<Heart>,
    /// Watermarks when this guest began to run here.
    started_from: Vec<u64>,
    paused: bool,
}

impl ProcessGuest {
    /// A new guest with freshly filled memory, already writing.
    ///
    /// # Errors
    /// The settings contradict each other, or the machine cannot hold the guest.
    pub fn start_new(
        spec: &WorkloadSpec,
        rate: Option<Rate>,
        proof: ProofSettings,
        journal: Option<&PathBuf>,
    ) -> Result<Self, GuestError> {
        let fail = |e: &dyn std::fmt::Display| GuestError::new("start the guest", e);
        let workload = Arc::new(spec.resolve().map_err(|e| fail(&e))?);
        machine::require_memory(spec.memory).map_err(|e| fail(&e))?;
        let run = RunId::random();
        let description = Description {
            run: run.0,
            // With the checksum of a trace, which the destination must have as well.
            spec: workload.spec().clone(),
            rate,
            epoch: 0,
            run_on_ms: proof.run_on.as_millis() as u64,
            audit: proof.audit,
        };
        let region = Arc::new(Region::anonymous(spec.memory).map_err(|e| fail(&e))?);
        region.fill(&workload, |_| {});
        let journal = match journal {
            Some(path) => {
                Some(JournalWriter::create(path, run, workload.spec()).map_err(|e| fail(&e))?)
            }
            None => None,
        };
        let fill = Expected::at(&workload, &vec![0; spec.writers as usize]);
        Self::run(description, workload, region, fill, journal, Gate::Open)
    }

    fn run(
        description: Description,
        workload: Arc<Workload>,
        region: Arc<Region>,
        expected: Expected,
        journal: Option<JournalWriter>,
        gate: Gate,
    ) -> Result<Self, GuestError> {
        let watermarks = expected.watermarks();
        let fail = |e: &dyn std::fmt::Display| GuestError::new("start the guest's threads", e);
        let pace = match description.rate {
            Some(rate) => {
                let share = rate.0 as f64 / f64::from(description.spec.writers);
                Pace::bytes_per_second(share, &workload)
            }
            None => Pace::Unlimited,
        };
        let counters = Watermarks::new(&watermarks);
        let mut guest = Self {
            workload: workload.clone(),
            region: region.clone(),
            watermarks: counters.clone(),
            controls: Vec::new(),
            threads: Vec::new(),
            heart: None,
            started_from: watermarks,
            paused: gate == Gate::Closed,
            description,
        };
        for (index, generations) in expected.into_generations().into_iter().enumerate() {
            let control = Arc::new(Control::new(gate));
            let (workload, region) = (workload.clone(), region.clone());
            let mut writer =
                Writer::with_generations(workload, region, counters.clone(), index, generations);
            let pace = pace.clone();
            let mut vcpu = vcpu::ProcessVcpu::new(control.clone());
            let thread = std::thread::Builder::new()
                .name(format!("vcpu-{index}"))
                .spawn(move || writer.run(pace, &mut vcpu, u64::MAX))
                .map_err(|e| fail(&e))?;
            guest.controls.push(control);
            guest.threads.push(thread);
        }
        if let Some(journal) = journal {
            let heart =
                Heart::start(counters, guest.description.epoch, journal).map_err(|e| fail(&e))?;
            if gate == Gate::Closed {
                heart.pause();
            }
            guest.heart = Some(heart);
        }
        Ok(guest)
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
        let (scanned, _) = Scanned::of(&self.region, &self.workload, watermarks);
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
        self.controls.iter().for_each(|c| c.ask_for_stats());
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        let mut stats = Stats::default();
        for control in &self.controls {
            loop {
                if let Some(one) = control.take_stats() {
                    stats.merge(&one);
                    break;
                }
                if Instant::now() > deadline {
                    return Err(GuestError::new("ask the writers", "one of them stands still"));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(stats)
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
        let stats = self.halt();
        if let Some(heart) = self.heart.take() {
            heart.stop().map_err(|e| GuestError::new("finish the journal", e))?;
        }
        stats
    }

    fn halt(&mut self) -> Result<Stats, GuestError> {
        self.controls.iter().for_each(|c| c.stop());
        let mut stats = Stats::default();
        let mut died = false;
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(one) => stats.merge(&one),
                Err(_) => died = true,
            }
        }
        match died {
            true => Err(GuestError::new("stop the guest", "a writer died")),
            false => Ok(stats),
        }
    }
}

impl Drop for ProcessGuest {
    fn drop(&mut self) {
        let _ = self.halt();
        if let Some(heart) = self.heart.take() {
            let _ = heart.stop();
        }
    }
}

/// How long a vCPU may take to stand still: it passes a checkpoint every millisecond, unless the
/// machine is starved.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

impl Guest for ProcessGuest {
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
        // All are asked before any is waited for.
        self.controls.iter().for_each(|c| c.close());
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        if !self.controls.iter().all(|c| c.await_standing(deadline)) {
            self.controls.iter().for_each(|c| c.open());
            return Err(GuestError::new("pause the guest", "a writer does not stop"));
        }
        if let Some(heart) = &self.heart {
            heart.pause();
        }
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.controls.iter().for_each(|c| c.open());
        if let Some(heart) = &self.heart {
            heart.resume();
        }
        self.paused = false;
        Ok(())
    }

    fn vcpus(&self) -> usize {
        self.controls.len()
    }

    fn written(&self) -> Vec<u64> {
        self.watermarks.stored_lines()
    }

    fn throttle(&mut self, held_shares: &[f64]) {
        self.controls.iter().zip(held_shares).for_each(|(c, share)| c.throttle(*share));
    }

    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        if !self.paused {
            return Err(GuestError::new("save device state", "the guest runs"));
        }
        Ok(to_json(&DeviceState { watermarks: self.watermarks(), paused_at_ns: realtime_ns() }))
    }
}

/// Builds process guests on the destination.
#[derive(Clone, Debug, Default)]
pub struct ProcessFactory {
    /// Goes on with this journal.
    pub journal: Option<PathBuf>,
}

/// A process guest that has not run here yet, and afterwards the one that does.
#[derive(Debug)]
pub struct ProcessShadow {
    /// What the source says about it.
    pub description: Description,
    workload: Arc<Workload>,
    region: Arc<Region>,
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
    pub guest: Option<ProcessGuest>,
}

impl ShadowFactory for ProcessFactory {
    type Shadow = ProcessShadow;

    fn create(&mut self, description: &[u8], pages: u64) -> Result<ProcessShadow, GuestError> {
        let fail = |e: &dyn std::fmt::Display| GuestError::new("build the shadow", e);
        let description: Description = serde_json::from_slice(description).map_err(|e| fail(&e))?;
        let workload = Arc::new(description.spec.resolve().map_err(|e| fail(&e))?);
        let spec = &description.spec;
        if spec.memory.0 / workload::PAGE_BYTES != pages {
            return Err(fail(&"its memory is not of the announced size"));
        }
        machine::require_memory(spec.memory).map_err(|e| fail(&e))?;
        let region = Arc::new(Region::anonymous(spec.memory).map_err(|e| fail(&e))?);
        sys::view(&region).populate().map_err(|e| fail(&e))?;
        let journal = match &self.journal {
            Some(path) => {
                let run = RunId(description.run);
                Some(JournalWriter::append(path, run).map_err(|e| fail(&e))?)
            }
            None => None,
        };
        Ok(ProcessShadow {
            description,
            workload,
            region,
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

impl Shadow for ProcessShadow {
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
        let (scanned, expected) =
            Scanned::of(&self.region, &self.workload, state.watermarks.clone());
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
        let mut guest = ProcessGuest::run(
            self.description.clone(),
            self.workload.clone(),
            self.region.clone(),
            expected,
            self.journal.take(),
            Gate::Closed,
        )?;
        guest.resume()?;
        let running = guest.controls.iter().all(|c| c.await_running(begin + PAUSE_TIMEOUT));
        if !running {
            return Err(GuestError::new("start the guest", "a writer does not run"));
        }
        self.felt_gap =
            Some(Duration::from_nanos(realtime_ns().saturating_sub(state.paused_at_ns)));
        self.guest = Some(guest);
        Ok(begin.elapsed())
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| unreachable!("plain data becomes JSON"))
}
