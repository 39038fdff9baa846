//! `workload` as a user meets it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output, Stdio};

use workload::journal::{Journal, Motion};

fn workload(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_workload")).args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn refused(args: &[&str], says: &str) {
    let output = workload(&[&["run", "--duration", "100ms"], args].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(text.contains(says) && !text.contains("panicked"), "{args:?}: {text}");
}

#[test]
fn bad_usage_is_refused_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("region");
    let path = file.to_str().unwrap();
    refused(&["--file", path, "--memory", "64TiB"], "this machine has");
    refused(&["--file", path, "--record", "4MiB"], "power of two");
    refused(&["--file", path, "--memory", "1MiB", "--record", "2MiB"], "leaves no room");
    refused(&["--file", path, "--writers", "0"], "choose 1 to");
    refused(&["--file", path, "--rate", "fast"], "does not start with a number");
    refused(&["--file", path, "--pattern", "magic"], "there are: stream, stream-index");
    refused(&["--file", "/nonexistent/region"], "cannot create /nonexistent/region");
    refused(&["--memory", "1MiB", "--journal", "/nonexistent/j"], "/nonexistent/j");
    assert!(!file.exists());
}

#[test]
fn a_run_reports_what_it_did_and_journals_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (region, journal) = (path("region"), path("journal"));
    let output = workload(&[
        "run",
        "--memory",
        "8MiB",
        "--rate",
        "20MB/s",
        "--writers",
        "2",
        "--pattern",
        "uniform",
        "--duration",
        "500ms",
        "--file",
        &region,
        "--journal",
        &journal,
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let journal = Journal::read(journal.as_ref()).unwrap();
    for writer in 0..2 {
        let last = journal.beats.iter().rfind(|b| b.writer == writer).unwrap();
        assert_eq!(last.motion, Motion::AtRest);
        assert_eq!(summary["watermarks"][writer as usize], last.watermark);
        // 100 Hz or more, with room for a busy machine.
        let beats = journal.beats.iter().filter(|b| b.writer == writer).count();
        assert!(beats > 20, "{beats} beats in half a second");
    }
    assert_eq!(std::fs::metadata(region).unwrap().len(), 8 << 20);
}
