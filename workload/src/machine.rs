//! What this machine can give: asked before anything is allocated.

use crate::units::Bytes;

/// A request for memory that this machine cannot meet.
#[derive(Debug, thiserror::Error)]
#[error(
    "{wanted} of memory wanted, but this machine has {available} available; ask for less with --memory"
)]
pub struct NotEnoughMemory {
    /// What was asked for.
    pub wanted: Bytes,
    /// What `MemAvailable` of /proc/meminfo says.
    pub available: Bytes,
}

/// Memory that can be allocated without swapping (`MemAvailable` of `/proc/meminfo`);
/// `None` where the kernel does not say.
pub fn available_memory() -> Option<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

/// Refuses what would meet the OOM killer: `wanted` must leave a sixteenth of the available
/// memory, or 64 MiB, whichever is less, for everybody else.
///
/// # Errors
/// [`NotEnoughMemory`] when it does not fit.
pub fn require_memory(wanted: Bytes) -> Result<(), NotEnoughMemory> {
    let Some(available) = available_memory() else {
        return Ok(());
    };
    let reserve = (available.0 / 16).min(64 << 20);
    if wanted.0 > available.0.saturating_sub(reserve) {
        return Err(NotEnoughMemory { wanted, available });
    }
    Ok(())
}
