//! What made a document: which program on which machine, told to do what, when.

use std::sync::OnceLock;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stands in every JSON document of the programs, so that two of them can be compared later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    /// The program.
    pub tool: String,
    /// Its version.
    pub version: String,
    /// The commit it was built from; null where its build was not told (`VMIGRATE_COMMIT`).
    pub commit: Option<String>,
    /// The host's name.
    pub host: String,
    /// Its kernel, as `uname -sr` says.
    pub kernel: String,
    /// Its processor, as the kernel calls it; the architecture where it has no name.
    pub cpu: String,
    /// Processors that the program may use.
    pub cpus: usize,
    /// The command line.
    pub command: Vec<String>,
    /// When the command began, in UTC (RFC 3339).
    pub started: String,
}

/// The commit that a program was built from, if its build was told.
pub const COMMIT: Option<&str> = option_env!("VMIGRATE_COMMIT");

/// Version and, where it is known, commit: what `--version` says.
pub fn version() -> &'static str {
    static SAID: OnceLock<String> = OnceLock::new();
    SAID.get_or_init(|| match COMMIT {
        Some(commit) => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").to_owned(),
    })
}

impl Provenance {
    /// Of this process, which is `tool`, from now on.
    pub fn here(tool: &str) -> Self {
        let system = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        Self {
            tool: tool.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: COMMIT.map(str::to_owned),
            host: text(system.nodename()),
            kernel: format!("{} {}", text(system.sysname()), text(system.release())),
            cpu: processor().unwrap_or_else(|| text(system.machine())),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            started: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        }
    }
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    let name = name.trim_start_matches([' ', '\t', ':']).trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_says_where_it_comes_from() {
        let here = Provenance::here("vmigrate");
        assert_eq!(here.tool, "vmigrate");
        assert!(here.kernel.starts_with("Linux "), "{here:?}");
        assert!(!here.cpu.is_empty() && here.cpus > 0, "{here:?}");
        assert!(humantime::parse_rfc3339(&here.started).is_ok(), "{here:?}");
        let text = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Provenance>(&text).unwrap(), here);
    }
}
