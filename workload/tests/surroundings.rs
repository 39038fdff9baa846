//! What surrounds `workload`: outputs that nobody takes, ignored signals, limits, names with
//! several addresses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

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

#[test]
fn an_ignored_signal_stays_ignored() {
    let script = format!("trap '' HUP; exec {WORKLOAD} run --memory 1MiB --duration 1s");
    let child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let told = text(&child.wait_with_output().unwrap());
    let seconds = told.split("operations in ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(seconds.parse::<f64>().unwrap() >= 0.9, "{told}");
}

#[test]
fn a_limit_on_file_size_is_an_error_and_no_death() {
    let directory = tempfile::tempdir().unwrap();
    let region = directory.path().join("region");
    let script =
        format!("ulimit -f 100; exec {WORKLOAD} run --memory 1MiB --file {}", region.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(2), "{:?} {told}", output.status);
    assert!(told.contains("File too large"), "{told}");
}

#[test]
fn a_duration_without_end_is_refused() {
    let arguments = ["run", "--memory", "1MiB", "--duration", "500000000000years"];
    let (code, told) = run(Stdio::piped(), Stdio::piped(), &arguments);
    assert!(code == Some(2) && told.contains("at most 100years"), "{code:?} {told}");
}

/// Heartbeats to a name that is `[::1]`, where nobody listens, and then 127.0.0.1.
#[test]
#[cfg_attr(not(has_mount_namespaces), ignore = "SKIPPED: needs mount namespaces")]
fn heartbeats_find_the_address_that_listens() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "::1 two.test\n127.0.0.1 two.test localhost\n").unwrap();
    let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let port = listener.local_addr().unwrap().port();
    let heartbeat = format!("--heartbeat udp:two.test:{port} --json");
    let script = format!(
        "mount --bind {} /etc/hosts && exec {WORKLOAD} {} {heartbeat}",
        hosts.display(),
        SMALL.join(" ")
    );
    let output = Command::new("unshare").args(["-rm", "sh", "-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let (mut lines, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length) = listener.recv(&mut buffer) {
        lines.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert!(lines.len() > 20, "{} lines: {}", lines.len(), text(&output));
    // Nothing was lost on the way, not even the first line.
    assert!(text(&output).contains("\"heartbeats_refused\":0"), "{}", text(&output));
    assert!(lines[0].starts_with('S'), "{}", lines[0]);
}

#[test]
fn what_was_not_measured_is_a_dash() {
    let nothing = ["run", "--memory", "1MiB", "--rate", "1KiB/s", "--duration", "1ms"];
    let (code, told) = run(Stdio::piped(), Stdio::piped(), &nothing);
    assert_eq!(code, Some(0), "{told}");
    let line = |name: &str| told.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    match told.starts_with("0 operations in") {
        true => assert!(line("service").ends_with(" -"), "{told}"),
        // A busy machine wakes late, and an operation was due.
        false => assert!(!line("service").contains('-'), "{told}"),
    }
}

/// C23: a pipe that nobody reads: the run lasts as long as it was to, and says what was not taken.
#[test]
fn heartbeats_that_nobody_reads_hold_no_run() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let lines = ["--heartbeat-interval", "1ms", "--json", "--heartbeat"];
    let run = ["run", "--memory", "1MiB", "--rate", "1MB/s", "--duration", "2s"];
    let arguments = [&run[..], &lines].concat();
    // Killed after ten seconds, which is another exit code than the one that is looked for.
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "10", WORKLOAD]).args(arguments).arg(&pipe);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("heartbeats") && told.contains("nobody reads it"), "{told}");
    assert!(!told.contains("\"heartbeats_refused\":0"), "{told}");
}
