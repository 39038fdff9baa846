//! Bits that nobody had before.
//!
//! A guest that was just started, or restored from a snapshot of itself, has a generator whose state
//! may be another one's; so every source of a difference that a machine has goes into one hash: the
//! processor's own generator, its cycle counter, both clocks, and the kernel's generator as far as
//! it is seeded. Nothing of it is kept in memory, where a snapshot would take it along.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};
use xxhash_rust::xxh3::xxh3_64;

/// Sets two calls at the same cycle apart where there is no cycle counter.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// 64 fresh bits. Never waits, also where the kernel has no entropy yet.
pub fn bits() -> u64 {
    let mut material = [0; 56];
    let mut words = material.chunks_exact_mut(8);
    let mut add = |word: u64| {
        if let Some(place) = words.next() {
            place.copy_from_slice(&word.to_le_bytes());
        }
    };
    add(sys::drawn());
    add(sys::cycles());
    for clock in [ClockId::Monotonic, ClockId::Realtime] {
        let now = clock_gettime(clock);
        add((now.tv_sec as u64).rotate_left(32) ^ now.tv_nsec as u64);
    }
    add(CALLS.fetch_add(1, Ordering::Relaxed) ^ (u64::from(std::process::id()) << 32));
    let mut drawn = [0; 16];
    // Before 5.6 the kernel knows no INSECURE; the other sources have to do then.
    let _ = getrandom(&mut drawn, GetRandomFlags::INSECURE | GetRandomFlags::NONBLOCK);
    material[40..].copy_from_slice(&drawn);
    xxh3_64(&material)
}

/// Whether the processor has neither a generator nor a cycle counter that differs between two copies of
/// a guest.
pub fn is_weak() -> bool {
    !sys::HAS_COUNTER
}

/// What the processor gives, where it does.
mod sys {
    pub(super) const HAS_COUNTER: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

    /// Of the processor's generator; zero without one.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn drawn() -> u64 {
        #[target_feature(enable = "rdrand")]
        fn draw() -> u64 {
            let mut word = 0;
            // A generator that is exhausted says so, and has more a moment later.
            for _ in 0..10 {
                if std::arch::x86_64::_rdrand64_step(&mut word) == 1 {
                    break;
                }
            }
            word
        }
        if !std::arch::is_x86_feature_detected!("rdrand") {
            return 0;
        }
        // SAFETY: the processor has the instruction.
        unsafe { draw() }
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn cycles() -> u64 {
        // SAFETY: every x86-64 has the instruction, and Linux lets user code use it unless a
        // process asked to be forbidden.
        unsafe { std::arch::x86_64::_rdtsc() }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn drawn() -> u64 {
        0
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn cycles() -> u64 {
        let count;
        // SAFETY: Linux lets user code read the counter, which changes nothing.
        unsafe {
            std::arch::asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack));
        }
        count
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(super) fn cycles() -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bits_come_twice() {
        let mut seen = std::collections::HashSet::new();
        assert!((0..10_000).all(|_| seen.insert(bits())));
    }
}
