//! A vCPU's thread: in guest mode, at the gate, or answering the port.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::payload::PORT;
use super::state::VcpuState;
use workload::gate::Passage;

/// Operations that are granted at once at most: a rate is to be even.
const GRANT_MAX: u64 = 4096;
/// Longest wait for the next operation to be due.
const WAIT_MAX: Duration = Duration::from_millis(1);

/// Why a vCPU is gone.
#[derive(Debug)]
pub(super) struct Died(pub(super) String);

/// What a vCPU's thread leaves for the host.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Its state, while it stands still.
    pub(super) state: Option<serde_json::Value>,
    pub(super) died: Option<Died>,
}

/// How many operations are due: an open-loop schedule that stands still while the vCPU is held.
#[derive(Debug)]
pub(super) struct Due {
    per_s: Option<f64>,
    since: Instant,
    /// Operations earned and not granted.
    earned: f64,
}

impl Due {
    /// So many per second; without a rate, always as many as are asked for.
    pub(super) fn new(per_s: Option<f64>) -> Self {
        Self { per_s, since: Instant::now(), earned: 0.0 }
    }

    /// Time in which nothing was earned.
    fn skip(&mut self, held: Duration) {
        self.since += held;
    }

    /// Grants what is due, or says how long until something is.
    fn grant(&mut self, now: Instant) -> Result<u64, Duration> {
        let Some(per_s) = self.per_s else { return Ok(GRANT_MAX) };
        self.earned += now.saturating_duration_since(self.since).as_secs_f64() * per_s;
        self.since = now;
        // A guest slower than its rate is not made to catch up for ever.
        self.earned = self.earned.min(per_s.max(1.0));
        let grant = (self.earned as u64).min(GRANT_MAX);
        self.earned -= grant as f64;
        match grant {
            0 => Err(Duration::from_secs_f64((1.0 - self.earned) / per_s).min(WAIT_MAX)),
            grant => Ok(grant),
        }
    }
}

/// Runs a vCPU until it is told to stop, or dies; either way nobody waits for it afterwards.
pub(super) fn run(mut vcpu: VcpuFd, mut passage: Passage, mut due: Due, slot: &Arc<Mutex<Slot>>) {
    if let Err(died) = live(&mut vcpu, &mut passage, &mut due, slot) {
        slot.lock().unwrap_or_else(PoisonError::into_inner).died = Some(died);
    }
    passage.leave();
}

fn live(
    vcpu: &mut VcpuFd,
    passage: &mut Passage,
    due: &mut Due,
    slot: &Arc<Mutex<Slot>>,
) -> Result<(), Died> {
    loop {
        let mut standing = Ok(());
        let mut stood = false;
        let held = passage.pass(|| (standing, stood) = (bring_to_rest(vcpu, slot), true));
        standing?;
        let Some(held) = held else { return Ok(()) };
        if stood {
            // From here on it is no longer where it was.
            slot.lock().unwrap_or_else(PoisonError::into_inner).state = None;
        }
        due.skip(held);
        match vcpu.run() {
            Ok(VcpuExit::IoIn(PORT, data)) => {
                let granted = match due.grant(Instant::now()) {
                    Ok(granted) => granted,
                    Err(wait) => {
                        std::thread::sleep(wait);
                        0
                    }
                };
                let bytes = (granted as u32).to_le_bytes();
                data.copy_from_slice(&bytes[..data.len()]);
            }
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => return Err(Died(format!("a vCPU left guest mode: {exit:?}"))),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return Err(Died(format!("a vCPU cannot run: {e}"))),
        }
    }
}

/// Before it stands still: ends what is half done between KVM and us, and takes its state.
fn bring_to_rest(vcpu: &mut VcpuFd, slot: &Arc<Mutex<Slot>>) -> Result<(), Died> {
    // A port that was answered is read into its register on the next entry, which this one ends
    // before the first instruction.
    vcpu.set_kvm_immediate_exit(1);
    let ended = match vcpu.run() {
        Err(e) if e.errno() == libc::EINTR => Ok(()),
        Err(e) => Err(Died(format!("a vCPU cannot be brought to rest: {e}"))),
        Ok(exit) => Err(Died(format!("a vCPU left guest mode: {exit:?}"))),
    };
    vcpu.set_kvm_immediate_exit(0);
    ended?;
    let unread = |e: &dyn std::fmt::Display| Died(format!("a vCPU's state cannot be read: {e}"));
    let state = VcpuState::capture(vcpu).map_err(|e| unread(&e))?;
    let state = serde_json::to_value(state).map_err(|e| unread(&e))?;
    slot.lock().unwrap_or_else(PoisonError::into_inner).state = Some(state);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_met_and_time_held_earns_nothing() {
        let mut due = Due::new(Some(1000.0));
        let start = due.since;
        let mut granted = 0;
        for ms in 1..=1000 {
            granted += due.grant(start + Duration::from_millis(ms)).unwrap_or(0);
        }
        assert!((999..=1000).contains(&granted), "{granted}");
        due.skip(Duration::from_secs(5));
        let later = start + Duration::from_millis(6100);
        assert_eq!(due.grant(later).unwrap_or(0), 100);
        assert!(due.grant(later).is_err());
    }
}
