//! What this machine can give: asked before anything is allocated.

use std::path::Path;
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
/// control groups still allow if that is less; `None` where the kernel does not say.
pub fn available_memory() -> Option<Bytes> {
    let machine = machine_memory()?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let allowed = group_memory(Path::new("/sys/fs/cgroup"), &groups);
    Some(Bytes(machine.0.min(allowed.unwrap_or(u64::MAX))))
}

/// How a version of control groups calls what it knows.
struct GroupFiles {
    limits: &'static [&'static str],
    usage: &'static str,
    /// Page cache in `memory.stat`: it makes room when it is asked to.
    cache: [&'static str; 2],
}

const VERSION_1: GroupFiles = GroupFiles {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
};
const VERSION_2: GroupFiles = GroupFiles {
    // Above `high` a group is slowed until it is of no use.
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    cache: ["inactive_file", "active_file"],
};

/// The least that the control groups of a process leave, on the way from its own up to the root, in
/// either version; `hierarchy` is where they are mounted, `groups` what `/proc/self/cgroup` says.
fn group_memory(hierarchy: &Path, groups: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => least(hierarchy, path, &VERSION_2),
            some if some.split(',').any(|name| name == "memory") => {
                least(&hierarchy.join("memory"), path, &VERSION_1)
            }
            _ => None,
        }
    };
    groups.lines().filter_map(of_line).min()
}

fn least(root: &Path, path: &str, files: &GroupFiles) -> Option<u64> {
    let left = |group: &Path| -> Option<u64> {
        let directory = root.join(group.strip_prefix("/").unwrap_or(group));
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
        let number = |name: &str| -> Option<u64> { read(name)?.trim().parse().ok() };
        let limit = files.limits.iter().filter_map(|name| number(name)).min()?;
        let statistics = read("memory.stat").unwrap_or_default();
        let cache = statistics.lines().filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            files.cache.contains(&name).then(|| bytes.parse::<u64>().ok()).flatten()
        });
        let used = number(files.usage)?.saturating_sub(cache.sum());
        Some(limit.saturating_sub(used))
    };
    Path::new(path).ancestors().filter_map(left).min()
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

    /// C31, C32: the least limit on the way up counts, and page cache makes room.
    #[test]
    fn every_group_on_the_way_up_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let put = |group: &str, files: &[(&str, &str)]| {
            let path = dir.path().join(group);
            std::fs::create_dir_all(&path).unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(path.join(name), text).unwrap());
        };
        let left = |groups: &str| group_memory(dir.path(), groups);
        put(
            "a",
            &[("memory.max", "1000\n"), ("memory.high", "max\n"), ("memory.current", "300\n")],
        );
        put("a/b", &[("memory.max", "max\n"), ("memory.current", "200\n")]);
        assert_eq!(left("0::/a/b\n"), Some(700), "the limit of the parent");
        put("a/b", &[("memory.high", "400\n")]);
        assert_eq!(left("0::/a/b\n"), Some(200), "high is a limit, too");
        put("a/b", &[("memory.stat", "anon 20\ninactive_file 100\nactive_file 50\nshmem 9\n")]);
        assert_eq!(left("0::/a/b\n"), Some(350), "page cache makes room");
        let one = [("memory.limit_in_bytes", "500\n"), ("memory.usage_in_bytes", "450\n")];
        put("memory/docker/x", &one);
        let both = "5:cpu,cpuacct:/\n4:memory:/docker/x\n0::/a/b\n";
        assert_eq!(left(both), Some(50), "version 1");
        assert_eq!((left("0::/nowhere\n"), left("")), (None, None));
    }
}
