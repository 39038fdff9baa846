//! What this machine can give: asked before anything is allocated.

use std::str::FromStr;

use crate::units::Bytes;

/// A request for memory that this machine cannot meet.
#[derive(Debug, thiserror::Error)]
#[error(
    "{wanted} of memory wanted, but this machine has {available} available; ask for less with --memory"
)]
pub struct NotEnoughMemory {
    /// What was asked for.
    pub wanted: Bytes,
    /// What [`available_memory`] says.
    pub available: Bytes,
}

/// A size of memory as people type it: bytes, or a share of what is available.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemorySize {
    /// So many bytes.
    Bytes(Bytes),
    /// So many percent of [`available_memory`].
    Percent(f64),
}

impl FromStr for MemorySize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return text.parse().map(Self::Bytes).map_err(|e| format!("{e}, or 50%"));
        };
        let percent = percent.trim().parse().ok().filter(|p| *p > 0.0 && *p < 100.0);
        percent.map(Self::Percent).ok_or_else(|| format!("'{text}' is not above 0% and below 100%"))
    }
}

impl MemorySize {
    /// The size in bytes; a share is rounded down to whole pages.
    ///
    /// # Errors
    /// A share of what the kernel does not tell.
    pub fn resolve(self) -> Result<Bytes, String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Percent(percent) => {
                let available = available_memory()
                    .ok_or("this kernel does not say how much memory is available; give bytes")?;
                let bytes = (available.0 as f64 * percent / 100.0) as u64;
                Ok(Bytes(bytes / crate::PAGE_BYTES * crate::PAGE_BYTES))
            }
        }
    }
}

/// Memory that can be allocated without swapping: `MemAvailable` of `/proc/meminfo`, or what the
/// control group still allows if that is less; `None` where the kernel does not say.
pub fn available_memory() -> Option<Bytes> {
    let machine = machine_memory()?;
    Some(Bytes(machine.0.min(group_memory().unwrap_or(u64::MAX))))
}

/// What `memory.max` leaves this process's control group (version 2).
fn group_memory() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let read = |name: &str| -> Option<u64> {
        let file = format!("/sys/fs/cgroup{path}/{name}");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

fn machine_memory() -> Option<Bytes> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_shares() {
        assert_eq!("1MiB".parse(), Ok(MemorySize::Bytes(Bytes(1 << 20))));
        assert_eq!("50%".parse(), Ok(MemorySize::Percent(50.0)));
        for bad in ["0%", "100%", "x%", "-1%", "nan%", ""] {
            assert!(bad.parse::<MemorySize>().is_err(), "{bad}");
        }
        let half = MemorySize::Percent(50.0).resolve().unwrap();
        assert!(half.0 > 0 && half.0.is_multiple_of(crate::PAGE_BYTES));
        assert!(require_memory(Bytes(1 << 50)).is_err());
    }
}
