//! The exit codes that every program of this project shares.

/// Done and, where memory was checked, proven.
pub const PROVEN: u8 = 0;
/// Memory is wrong.
pub const WRONG: u8 = 1;
/// Bad usage or input; nothing was started.
pub const USAGE: u8 = 2;
/// The migration failed or was cancelled; the source still runs. At a receiver: nothing runs here.
pub const FAILED: u8 = 3;
/// Nothing was proven.
pub const INCONCLUSIVE: u8 = 4;
/// The handover is unresolved; the VM is stopped.
pub const UNRESOLVED: u8 = 5;

/// The table for `--help`.
pub const HELP: &str = "Exit codes:\n  \
    0  done and, where memory was checked, proven\n  \
    1  memory is wrong\n  \
    2  bad usage or input\n  \
    3  migration failed or was cancelled, the source still runs (at a receiver: nothing runs here)\n  \
    4  inconclusive: nothing was proven\n  \
    5  handover unresolved, the VM is stopped";

/// An error and its causes in one line; a cause that a message tells already is not repeated.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}
