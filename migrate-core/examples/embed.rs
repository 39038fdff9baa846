//! A virtual machine monitor in some sixty lines, its vCPU a thread: what the library wants of one.
//!
//! ```text
//! cargo run --example embed -- receive 127.0.0.1:7500 /tmp/there &
//! cargo run --example embed -- send 127.0.0.1:7500 /tmp/here
//! ```
//!
//! The vCPU counts through memory, a word of each page in turn. Its whole state is where it is; both
//! sides print it, and that every word that it ever wrote is there.

#![allow(clippy::print_stdout, reason = "an example says what it saw")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use migrate_core::destination::{self, DestinationSettings};
use migrate_core::guest::{Guest, GuestError, MemoryView, Shadow, ShadowFactory, Work, tracker};
use migrate_core::link::{LinkSettings, endpoint::Endpoint};
use migrate_core::source::{self, SourceSettings};

const PAGES: u64 = 4096;

#[repr(align(4096))]
struct Page([AtomicU64; 512]);

/// What both sides have: memory, a vCPU, and the key to stop it.
#[derive(Clone)]
struct Machine {
    memory: Arc<Vec<Page>>,
    /// How far the vCPU is: all of its state.
    at: Arc<AtomicU64>,
    /// Read while the vCPU takes a step; whoever writes holds it still.
    step: Arc<RwLock<()>>,
    stopped: Arc<AtomicBool>,
}

impl Machine {
    fn new() -> Self {
        let memory = (0..PAGES).map(|_| Page([const { AtomicU64::new(0) }; 512])).collect();
        let stopped = Arc::new(AtomicBool::new(true));
        Self { memory: Arc::new(memory), at: Arc::default(), step: Arc::default(), stopped }
    }

    /// A thread that is the vCPU; it waits until it may run.
    fn power_on(&self) {
        let machine = self.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_micros(50));
                let _step = machine.step.read();
                if !machine.stopped.load(SeqCst) {
                    let at = machine.at.load(SeqCst);
                    let (page, word) = (at % PAGES, at / PAGES % 512);
                    machine.memory[page as usize].0[word as usize].store(at, SeqCst);
                    machine.at.store(at + 1, SeqCst);
                }
            }
        });
    }

    fn stop(&self, stop: bool) {
        // No step is under way once this is had.
        let _still = self.step.write();
        self.stopped.store(stop, SeqCst);
    }

    fn view(&self) -> MemoryView {
        let base = self.memory.as_ptr().cast_mut().cast();
        // SAFETY: pages of 4096 bytes, aligned, kept by the view; all accesses are atomic.
        unsafe { MemoryView::new(base, PAGES, self.memory.clone()) }
    }

    /// Whether all that was written last is there.
    fn is_whole(&self) -> bool {
        let at = self.at.load(SeqCst);
        let last = at.saturating_sub(PAGES)..at;
        last.into_iter().all(|at| {
            self.memory[(at % PAGES) as usize].0[(at / PAGES % 512) as usize].load(SeqCst) == at
        })
    }
}

impl Guest for Machine {
    fn memory(&self) -> MemoryView {
        self.view()
    }
    fn description(&self) -> Vec<u8> {
        b"a machine that counts".to_vec()
    }
    fn pause(&mut self) -> Result<(), GuestError> {
        self.stop(true);
        Ok(())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        self.stop(false);
        Ok(())
    }
    fn vcpus(&self) -> usize {
        1
    }
    fn throttle(&mut self, _held_shares: &[f64]) {
        // This one writes 20,000 words a second at most, and never has to be held.
    }
    fn save_state(&mut self) -> Result<Vec<u8>, GuestError> {
        Ok(self.at.load(SeqCst).to_le_bytes().to_vec())
    }
}

impl Shadow for Machine {
    fn memory(&self) -> MemoryView {
        self.view()
    }
    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError> {
        let state = state.try_into().map_err(|e| GuestError::new("load the vCPU", e))?;
        self.at.store(u64::from_le_bytes(state), SeqCst);
        Ok(())
    }
    fn prepare(&mut self) -> Result<(), GuestError> {
        self.power_on();
        Ok(())
    }
    fn start(&mut self) {
        self.stop(false);
    }
}

struct Builder;

impl ShadowFactory for Builder {
    type Shadow = Machine;
    fn create(&mut self, _: &[u8], regions: &[u64], work: &Work) -> Result<Machine, GuestError> {
        let machine = Machine::new();
        let failed = |why: String| GuestError::new("build the machine", why);
        if regions != [PAGES] {
            return Err(failed(format!("it has {PAGES} pages, not {regions:?}")));
        }
        machine.view().populate(work).map_err(|e| failed(e.to_string()))?;
        Ok(machine)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, role, address, state_directory] = &arguments[..] else {
        return Err("usage: embed send|receive ADDRESS STATE-DIRECTORY".into());
    };
    if role == "send" {
        let mut machine = Machine::new();
        machine.power_on();
        machine.stop(false);
        std::thread::sleep(Duration::from_millis(500));
        let mut settings = SourceSettings::to(address.parse()?);
        settings.state_directory = state_directory.into();
        let mut tracker = tracker::open(tracker::TrackerKind::Auto, &machine.view())?;
        let done = source::migrate(&mut machine, &mut *tracker, &settings, &mut ());
        let done = done.map_err(|failed| failed.error)?;
        let (ms, at) = (done.report.downtime.total_ms, machine.at.load(SeqCst));
        println!("sent at {at} after a downtime of {ms:.1} ms, whole: {}", machine.is_whole());
    } else {
        let endpoint = Arc::new(Endpoint::bind(address.parse()?, LinkSettings::default())?);
        println!("listening on {}", endpoint.address());
        let settings = DestinationSettings {
            state_directory: state_directory.into(),
            ..DestinationSettings::default()
        };
        let arrived = destination::receive(&endpoint, &mut Builder, &settings, &mut ())?;
        let machine = arrived.guest;
        let at = machine.at.load(SeqCst);
        std::thread::sleep(Duration::from_millis(200));
        machine.stop(true);
        let (now, whole) = (machine.at.load(SeqCst), machine.is_whole());
        println!("runs here since about {at}, now at {now}, whole: {whole}");
    }
    Ok(())
}
