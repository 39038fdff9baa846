//! `workload` as a user meets it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output, Stdio};

use workload::beat::said::Kind;
use workload::journal::Journal;

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
    refused(&["--file", path, "--workload", "zipf,theta=7"], "out of range");
    refused(&["--file", path, "--workload", "stream,by=device"], "by=device is not there");
    refused(&["--file", path, "--workload", "stream,by=magic"], "by=magic is unknown");
    refused(&["--file", path, "--run", "7"], "16 hexadecimal digits");
    refused(&["--file", path, "--isa", "mmx"], "there are auto, avx512");
    refused(&["--file", path, "--workload", "trace,file=/nonexistent"], "/nonexistent");
    refused(&["--file", path, "--workload", "/nonexistent.toml"], "cannot read it");
    refused(&["--file", path, "--memory", "1MiB", "--rate", "0pages/s"], "no number");
    refused(&["--memory", "1MiB", "--rate", "99999pages/s"], "at most 256 distinct pages");
    refused(&["--file", path, "--rate", "1MB/s..2MB/s"], "needs a length");
    refused(&["--file", path, "--catch-up", "never"], "none of skip");
    refused(&["--file", path, "--heartbeat-interval", "0ms"], "at least 1ms");
    refused(&["--file", path, "--heartbeat", "udp:nowhere"], "HOST:PORT");
    refused(&["--file", path, "--memory", "0%"], "above 0%");
    refused(&["--memory", "5MiB", "--huge-pages"], "huge page");
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
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema/workload-run.schema.json");
    let stored = std::fs::read(path).unwrap_or_default();
    assert!(workload(&["schema"]).stdout == stored, "{path} is old: write `workload schema` to it");
    let schema = serde_json::from_slice(&stored).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&summary).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let journal = Journal::read(journal.as_ref()).unwrap();
    for writer in 0..2 {
        let last = journal.beats.iter().rfind(|b| b.writer == writer).unwrap();
        assert_eq!(last.kind, Kind::Ended);
        assert_eq!(summary["watermarks"][writer as usize], last.watermark);
        // 100 Hz or more, with room for a busy machine.
        let beats = journal.beats.iter().filter(|b| b.writer == writer).count();
        assert!(beats > 20, "{beats} beats in half a second");
    }
    assert_eq!(std::fs::metadata(region).unwrap().len(), 8 << 20);
}

/// Seed and run make the bytes; the run alone is drawn anew.
#[test]
fn a_run_is_drawn_anew_unless_it_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let fill_of = |name: &str, more: &[&str]| {
        let file = directory.path().join(name);
        let path = file.to_str().unwrap();
        let run = ["run", "--memory", "64KiB", "--rate", "1B/s", "--duration", "1ms"];
        let output = workload(&[&run[..], &["--seed", "3", "--file", path], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        std::fs::read(file).unwrap()
    };
    let named = ["--run", "00000000000000ab"];
    assert_eq!(fill_of("a", &named), fill_of("b", &named));
    assert_ne!(fill_of("c", &[]), fill_of("d", &[]));
    let portable = fill_of("e", &[&named[..], &["--isa", "portable"]].concat());
    assert_eq!(portable, fill_of("f", &named));
}

#[test]
fn people_are_told_what_there_is() {
    let list = workload(&["list"]);
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    for info in &workload::profile::PATTERNS {
        assert!(text.contains(info.name) && text.contains(info.summary), "{text}");
        let show = workload(&["show", info.name, "--memory", "64MiB"]);
        let text = String::from_utf8_lossy(&show.stdout).into_owned();
        assert_eq!(show.status.code(), Some(0), "{}: {text}", info.name);
        // A trace needs its file before it has a curve.
        assert_eq!(text.contains("Distinct pages dirtied"), info.name != "trace", "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 90), "{text}");
    }
    assert_eq!(workload(&["show", "magic"]).status.code(), Some(2));
}

#[test]
fn a_recorded_trace_is_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace").to_str().unwrap().to_owned();
    let record = workload(&[
        "run",
        "--workload",
        "hotset,p=0.9,f=0.1",
        "--memory",
        "8MiB",
        "--rate",
        "20MB/s",
        "--duration",
        "500ms",
        "--record-trace",
        &trace,
        "--trace-interval",
        "50ms",
    ]);
    assert_eq!(record.status.code(), Some(0), "{}", String::from_utf8_lossy(&record.stderr));
    let name = format!("trace,file={trace},content=text");
    let run = |memory: &str| {
        workload(&["run", "--workload", &name, "--memory", memory, "--duration", "200ms"])
    };
    assert_eq!(run("8MiB").status.code(), Some(0));
    let other = run("16MiB");
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("trace"), "it names the trace");
}

#[test]
fn commands_are_obeyed() {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_workload"))
        .args(["run", "--memory", "8MiB", "--rate", "5MB/s", "--control", "stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let commands = "pause\nresume\nrate 10MB/s\nnonsense\nstop\n";
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for answer in
        ["# paused at [", "# resumed", "# rate 10MB/s", "# error: 'nonsense'", "# stopping"]
    {
        assert!(said.contains(answer), "{answer}: {said}");
    }
}

#[test]
fn what_a_writer_finds_wrong_ends_in_exit_code_1() {
    use std::os::unix::fs::FileExt;
    let directory = tempfile::tempdir().unwrap();
    let region = directory.path().join("region");
    let child = Command::new(env!("CARGO_BIN_EXE_workload"))
        .args(["run", "--memory", "1MiB", "--rate", "10MB/s", "--duration", "1s"])
        .args(["--check-before-write", "--file"])
        .arg(&region)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let file = std::fs::File::options().write(true).open(&region).unwrap();
    file.write_all_at(&[0xAA; 8], 77 * 64).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("WRONG: 1 records") && said.contains("0x1340"), "{said}");
}
