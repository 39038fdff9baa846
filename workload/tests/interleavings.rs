//! Every interleaving of a vCPU's thread and its host at the gate, walked by loom: the gate's own
//! source, over loom's locks and atomics in place of the standard library's.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "the gate as a module of a test")]

#[path = "../src/gate.rs"]
mod gate;

mod clock {
    pub(crate) fn realtime_ns() -> u64 {
        1
    }
}

mod stats {
    #[derive(Debug, Default)]
    pub struct Stats;
}

mod sync {
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};
}

use std::time::{Duration, Instant};

use gate::{Control, Gate, Gates, Passage};
use loom::cell::UnsafeCell;
use loom::thread;
use stats::Stats;
use sync::Arc;

const LONG: Duration = Duration::from_secs(3600);

fn gates(gate: Gate) -> (Gates, Passage) {
    let control = Arc::new(Control::new(gate));
    (Gates(vec![control.clone()]), Passage::new(control))
}

/// Memory that only the vCPU writes and only the host of one that stands still reads: loom objects
/// to an access that is not ordered after the others.
struct Memory(UnsafeCell<u64>);

// SAFETY: that its accesses are ordered is what the tests are about, and loom checks each of them.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

impl Memory {
    fn write(&self) {
        // SAFETY: see above.
        self.0.with_mut(|word| unsafe { *word += 1 });
    }

    fn read(&self) -> u64 {
        // SAFETY: see above.
        self.0.with(|word| unsafe { *word })
    }
}

#[test]
fn a_guest_that_stands_still_writes_nothing_and_all_it_wrote_is_seen() {
    loom::model(|| {
        let (gates, mut passage) = gates(Gate::Open);
        let memory = Arc::new(Memory(UnsafeCell::new(0)));
        let guest = thread::spawn({
            let memory = memory.clone();
            move || {
                let mut writes = 0;
                while writes < 2 && passage.pass(|| ()).is_some() {
                    memory.write();
                    writes += 1;
                }
                passage.leave();
                writes
            }
        });
        gates.0[0].close();
        assert!(gates.await_standing(Instant::now() + LONG));
        let stood = memory.read();
        assert_eq!(memory.read(), stood);
        gates.open();
        assert!(gates.await_running(Instant::now() + LONG));
        assert_eq!(guest.join().unwrap(), 2);
        assert_eq!(memory.read(), 2);
    });
}

#[test]
fn a_gate_that_was_closed_from_the_start_lets_nobody_through() {
    loom::model(|| {
        let (gates, mut passage) = gates(Gate::Closed);
        let memory = Arc::new(Memory(UnsafeCell::new(0)));
        let guest = thread::spawn({
            let memory = memory.clone();
            move || {
                let went = passage.pass(|| ()).is_some();
                if went {
                    memory.write();
                }
                passage.leave();
                went
            }
        });
        assert!(gates.await_standing(Instant::now() + LONG));
        assert_eq!(memory.read(), 0);
        gates.open();
        assert!(guest.join().unwrap());
    });
}

/// One that was told to stop never runs again, whatever is said afterwards.
#[test]
fn who_was_told_to_stop_stops() {
    loom::model(|| {
        let (gates, mut passage) = gates(Gate::Closed);
        let guest = thread::spawn(move || {
            let went = passage.pass(|| ()).is_some();
            passage.leave();
            went
        });
        gates.stop();
        gates.open();
        assert!(!guest.join().unwrap());
        assert!(gates.await_standing(Instant::now() + LONG));
    });
}

/// A vCPU that died at its gate is not waited for.
#[test]
fn who_is_gone_is_not_waited_for() {
    loom::model(|| {
        let (gates, passage) = gates(Gate::Closed);
        let guest = thread::spawn(move || passage.leave());
        gates.open();
        assert!(gates.await_running(Instant::now() + LONG));
        guest.join().unwrap();
    });
}

/// Loom's waits have no timeout: a word that a rest slept through would be a deadlock.
#[test]
fn no_word_is_slept_through() {
    let close_and_stop = |control: &Control| {
        control.close();
        assert!(control.await_standing(Instant::now() + LONG));
        control.stop();
    };
    for word in [Control::stop, close_and_stop, Control::ask_for_stats] {
        loom::model(move || {
            let (gates, mut passage) = gates(Gate::Open);
            let guest = thread::spawn(move || {
                let went = passage.pass(|| ()).is_some();
                if went {
                    passage.rest(LONG);
                }
                passage.collect(&mut Stats);
                let _ = went && passage.pass(|| ()).is_some();
                passage.leave();
            });
            word(&gates.0[0]);
            guest.join().unwrap();
        });
    }
}
