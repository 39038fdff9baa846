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
/// Done and proven, but something that was asked for beside does not hold.
pub const WISH: u8 = 6;

/// The table for `--help`.
pub const HELP: &str = "Exit codes:\n  \
    0  done and, where memory was checked, proven\n  \
    1  memory is wrong\n  \
    2  bad usage or input\n  \
    3  migration failed or was cancelled, the source still runs (at a receiver: nothing runs here)\n  \
    4  inconclusive: nothing was proven\n  \
    5  handover unresolved, the VM is stopped: it runs nowhere\n  \
    6  done and proven, but a wish was not met (--strict, --require, compare)";

/// What a code says, in a few words.
pub fn meaning(code: u8) -> &'static str {
    match code {
        PROVEN => "done and proven",
        WRONG => "memory is wrong",
        USAGE => "bad usage or input",
        FAILED => "a migration failed or was cancelled",
        INCONCLUSIVE => "inconclusive",
        UNRESOLVED => "a handover is unresolved",
        WISH => "done and proven, but not as was wished",
        _ => "unknown",
    }
}

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
