//! What surrounds `workload`: outputs that nobody takes, ignored signals, limits, names with
//! several addresses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::process::{Command, Output, Stdio};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SMALL: [&str; 7] = ["run", "--memory", "1MiB", "--rate", "1MB/s", "--duration", "300ms"];

/// A pipe whose reader is gone.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn run(stdout: Stdio, stderr: Stdio, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(WORKLOAD);
    command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), text(&output))
}

fn text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn outputs_that_nobody_takes_change_no_exit_code() {
    for stderr in [full, broken_pipe] {
        let (code, told) = run(Stdio::piped(), stderr(), &SMALL);
        assert!(code == Some(0) && told.contains("operations in"), "{code:?} {told}");
        assert_eq!(run(Stdio::piped(), stderr(), &["show", "magic"]).0, Some(2));
    }
    let json = [&SMALL[..], &["--json"]].concat();
    for arguments in [&SMALL[..], &json] {
        let (code, told) = run(full(), Stdio::piped(), arguments);
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("cannot print the report: No space left on device"), "{told}");
        let (code, told) = run(broken_pipe(), Stdio::piped(), arguments);
        assert!(code == Some(0) && !told.contains("cannot print"), "{code:?} {told}");
    }
    for arguments in [&["list"][..], &["show", "zipf", "--memory", "8MiB"]] {
        let (code, told) = run(full(), Stdio::piped(), arguments);
        assert!(code == Some(2) && told.contains("No space left on device"), "{code:?} {told}");
        assert_eq!(run(broken_pipe(), Stdio::piped(), arguments), (Some(0), String::new()));
    }
}
