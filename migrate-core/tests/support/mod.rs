//! Two hosts in one process: a real guest, real sockets on loopback, and seams to tamper with.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use migrate_core::Error;
use migrate_core::codec::Encoding;
use migrate_core::destination::{self, Arrived, DestinationSettings};
use migrate_core::guest::stamped::proof::Testimony;
use migrate_core::guest::stamped::{
    GuestSettings, ProofSettings, StampedFactory, StampedGuest, StampedShadow,
};
use migrate_core::guest::tracker::{self, TrackerKind};
use migrate_core::guest::{
    DirtyTracker, Guest, GuestError, MemoryView, Shadow, ShadowFactory, Work,
};
use migrate_core::link::LinkSettings;
use migrate_core::link::endpoint::Endpoint;
use migrate_core::memory::{PageNumber, PageRange};
use migrate_core::policy::{PolicyKind, Settings};
use migrate_core::proto::Epoch;
use migrate_core::source::{self, Migrated, NotMigrated, SourceSettings};
use workload::line::PageFormat;
use workload::spec::{Workload, WorkloadSpec};
use workload::units::{Bytes, Rate};

pub fn spec(mebibytes: u64) -> WorkloadSpec {
    WorkloadSpec {
        format: PageFormat::fresh(),
        seed: 7,
        memory: Bytes(mebibytes << 20),
        writers: 2,
        workload: "stream,record=16KiB".parse().unwrap(),
    }
}

pub fn guest(spec: &WorkloadSpec, rate: u64) -> StampedGuest {
    let proof = ProofSettings { run_on: Duration::from_millis(100), audit: true };
    let guest = StampedGuest::start_new(&GuestSettings {
        rate: Some(Rate(rate)),
        proof,
        ..GuestSettings::of(spec.clone())
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    guest
}

pub fn settings(peer: SocketAddr) -> SourceSettings {
    SourceSettings {
        peer: peer.into(),
        link: LinkSettings { timeout: Duration::from_secs(2), ..LinkSettings::default() },
        streams: source::Streams::Fixed(1),
        encoding: Encoding::default(),
        bandwidth: Some(120e6),
        policy: PolicyKind::Vmotion,
        limits: Settings { goal: Duration::from_millis(40), ..Settings::default() },
        over_limit: source::OverLimit::Accept,
        epoch: Epoch(1),
        earlier: vec![],
        state_directory: state_directory(),
        resolve_timeout: Duration::from_secs(5),
        give_up_after: None,
        operator: None,
    }
}

/// Watches nothing; cancels when told to.
#[derive(Clone, Default)]
pub struct Quiet(pub Arc<AtomicBool>);

impl source::Observer for Quiet {
    fn progress(&mut self, _: source::Progress) {}
    fn interrupts(&self) -> usize {
        self.0.load(Ordering::Relaxed).into()
    }
}

impl destination::Observer for Quiet {
    fn progress(&mut self, _: destination::Progress) {}
    fn interrupts(&self) -> usize {
        self.0.load(Ordering::Relaxed).into()
    }
}

/// A state directory of this test process.
pub fn state_directory() -> std::path::PathBuf {
    let name = format!("state-{}", std::process::id());
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

pub fn listener() -> (Arc<Endpoint>, SocketAddr) {
    let link = settings(([127, 0, 0, 1], 1).into()).link;
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), link).unwrap();
    let address = endpoint.address();
    (Arc::new(endpoint), address)
}

pub fn receive_settings() -> DestinationSettings {
    DestinationSettings {
        arrival_timeout: Some(Duration::from_secs(20)),
        resolve_timeout: Duration::from_secs(3),
        give_up_after: None,
        state_directory: state_directory(),
        operator: None,
    }
}

/// Receives in a thread of its own.
pub fn receiver<F>(
    listener: Arc<Endpoint>,
    mut factory: F,
) -> std::thread::JoinHandle<Result<Arrived<F::Shadow>, Error>>
where
    F: ShadowFactory + Send + 'static,
    F::Shadow: Send + 'static,
{
    std::thread::spawn(move || {
        destination::receive(&listener, &mut factory, &receive_settings(), &mut Quiet::default())
    })
}

/// Migrates with the built-in tracker.
pub fn send(
    guest: &mut dyn Guest,
    settings: &SourceSettings,
) -> Result<Migrated, Box<NotMigrated>> {
    let mut tracker = tracker::open(TrackerKind::Auto, &guest.memory()).unwrap();
    source::migrate(guest, &mut *tracker, settings, &mut Quiet::default())
}

/// What the destination would testify, after running on for a moment.
pub fn testify(mut shadow: StampedShadow) -> Testimony {
    shadow.await_running().unwrap();
    let mut guest = shadow.guest.take().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    Testimony {
        before_resume: shadow.first_scan.take().unwrap(),
        after_run: Some(guest.scan().unwrap()),
        trouble: vec![],
        root: shadow.root.take(),
        felt_gap_ms: None,
    }
}

/// A tracker whose harvests pass through a function: (harvest number, new pages) -> pages told.
pub struct TamperedTracker<T> {
    pub inner: Box<dyn DirtyTracker>,
    pub harvests: u64,
    pub tamper: T,
}

impl<T: FnMut(u64, &mut migrate_core::memory::Bitmap) + Send> DirtyTracker for TamperedTracker<T> {
    fn name(&self) -> &'static str {
        "tampered"
    }
    fn start(&mut self) -> Result<(), GuestError> {
        self.inner.start()
    }
    fn harvest(
        &mut self,
        range: PageRange,
        into: &mut migrate_core::memory::Bitmap,
    ) -> Result<u64, GuestError> {
        let mut new = migrate_core::memory::Bitmap::empty(into.pages());
        self.inner.harvest(range, &mut new)?;
        self.harvests += 1;
        (self.tamper)(self.harvests, &mut new);
        into.add(&new);
        Ok(new.count())
    }
}

/// A guest that tells whether it is paused, and takes its time over that.
pub struct WatchedGuest<'a> {
    pub inner: &'a mut StampedGuest,
    pub paused: Arc<AtomicBool>,
    /// How long each pause takes, the first one first; 20 ms from then on, long enough for a write
    /// after the last round, so that the final harvest has work.
    pub pauses: Vec<Duration>,
}

impl Guest for WatchedGuest<'_> {
    fn memory(&self) -> MemoryView {
        self.inner.memory()
    }
    fn description(&self) -> Vec<u8> {
        self.inner.description()
    }
    fn pause(&mut self) -> Result<(), GuestError> {
        let pause = match self.pauses.is_empty() {
            true => Duration::from_millis(20),
            false => self.pauses.remove(0),
        };
        std::thread::sleep(pause);
        self.inner.pause()?;
        self.paused.store(true, Ordering::Release);
        Ok(())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        self.paused.store(false, Ordering::Release);
        self.inner.resume()
    }
    fn vcpus(&self) -> usize {
        self.inner.vcpus()
    }
    fn written(&self) -> Vec<u64> {
        self.inner.written()
    }
    fn throttle(&mut self, held_shares: &[f64]) {
        self.inner.throttle(held_shares);
    }
    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        self.inner.save_state()
    }
}

/// What a tampered shadow does to the guest that arrived.
#[derive(Clone)]
pub enum Tamper {
    /// Changes memory before it is inspected.
    Memory(fn(&MemoryWords, &Workload, &[u64])),
    /// Changes the device state before it is loaded.
    State(fn(&mut serde_json::Value)),
    /// Says that it cannot be prepared.
    Prepare,
    /// Takes its time over the first device state.
    SlowState(Duration),
}

/// A shadow's memory as lines, for tampering.
pub struct MemoryWords(pub MemoryView);

impl MemoryWords {
    pub fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        self.0.copy_out(&PageNumber(page).alone(), &mut bytes);
        bytes
    }
    pub fn put(&self, page: u64, bytes: &[u8]) {
        let put = |memory: &mut [u8]| {
            memory.copy_from_slice(bytes);
            Ok::<_, ()>(())
        };
        self.0.fill(PageNumber(page), put).unwrap();
    }
}

pub struct TamperedFactory {
    pub inner: StampedFactory,
    pub tamper: Tamper,
}

pub struct TamperedShadow {
    pub inner: StampedShadow,
    tamper: Tamper,
    watermarks: Vec<u64>,
}

impl ShadowFactory for TamperedFactory {
    type Shadow = TamperedShadow;
    fn create(
        &mut self,
        description: &[u8],
        regions: &[u64],
        work: &Work,
    ) -> Result<TamperedShadow, GuestError> {
        let inner = self.inner.create(description, regions, work)?;
        Ok(TamperedShadow { inner, tamper: self.tamper.clone(), watermarks: vec![] })
    }
}

impl Shadow for TamperedShadow {
    fn memory(&self) -> MemoryView {
        self.inner.memory()
    }
    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        let mut state: serde_json::Value = serde_json::from_slice(state).unwrap();
        match self.tamper {
            Tamper::State(change) => change(&mut state),
            Tamper::SlowState(time) if self.watermarks.is_empty() => std::thread::sleep(time),
            _ => {}
        }
        let watermarks = state["watermarks"].as_array().unwrap();
        self.watermarks = watermarks.iter().map(|w| w.as_u64().unwrap()).collect();
        self.inner.load_state(&serde_json::to_vec(&state).unwrap())
    }
    fn inspect(&mut self, work: &Work) -> Result<(), GuestError> {
        if let Tamper::Memory(change) = &self.tamper {
            let workload = self.inner.description.spec.resolve().unwrap();
            change(&MemoryWords(self.inner.memory()), &workload, &self.watermarks);
        }
        self.inner.inspect(work)
    }
    fn prepare(&mut self) -> Result<(), GuestError> {
        if matches!(self.tamper, Tamper::Prepare) {
            return Err(GuestError::new("prepare the guest", "told not to"));
        }
        self.inner.prepare()
    }
    fn start(&mut self) {
        self.inner.start();
    }
}

/// The guest writes on, and every line of it is right.
pub fn assert_healthy(guest: &mut StampedGuest) {
    let before = guest.watermarks();
    std::thread::sleep(Duration::from_millis(150));
    let scanned = guest.scan().unwrap();
    assert_eq!(scanned.first_fault(), None);
    assert!(scanned.watermarks.iter().zip(&before).all(|(now, then)| now > then), "it writes");
}
