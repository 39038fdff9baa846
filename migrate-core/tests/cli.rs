//! The programs as a user meets them: bad input, signals, exit codes, JSON.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use migrate_core::report::{
    BenchReport, Phase, ReceiveReport, RunReport, RunVerdict, Status, StatusKind,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use verifier::verdict::Verdict;

const VMIGRATE: &str = env!("CARGO_BIN_EXE_vmigrate");

fn vmigrate(args: &[&str]) -> Output {
    Command::new(VMIGRATE).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Refused with one clear line, in no time, and the right exit code.
#[track_caller]
fn refused(args: &[&str], code: i32, says: &str) {
    let start = Instant::now();
    let output = vmigrate(args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(says), "{args:?} should say '{says}': {text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(10), "{args:?} took {:?}", start.elapsed());
}

#[test]
fn bad_usage_is_refused_with_a_reason() {
    let to = "127.0.0.1:9";
    refused(&["send", "--to", to, "--frobnicate"], 2, "--frobnicate");
    refused(&["send", "--to", to, "--memory", "12parsec"], 2, "unknown unit 'parsec'");
    refused(&["send", "--to", to, "--memory", "0"], 2, "zero");
    refused(&["send", "--to", to, "--memory", "99999999999TiB"], 2, "too large");
    refused(&["send", "--to", to, "--memory", "4097"], 2, "not a multiple of the 4 KiB page");
    refused(&["send", "--to", to, "--memory", "64TiB"], 2, "this machine has");
    refused(&["send", "--to", to, "--rate", "100MB"], 2, "bits per second");
    refused(&["send", "--to", to, "--rate", "1MB/s..2MB/s/10s"], 2, "for `workload run`");
    refused(&["send", "--to", to, "--rate", "5pages/s"], 2, "for `workload run`");
    refused(&["send", "--to", to, "--beta", "1.5"], 2, "above 0 and below 1");
    refused(&["send", "--to", to, "--policy", "magic"], 2, "no policy is called 'magic'");
    refused(&["send", "--to", to, "--workload", "magic"], 2, "no workload is called 'magic'");
    refused(&["send", "--to", to, "--record", "96"], 2, "power of two");
    refused(&["send", "--to", to, "--downtime", "soon"], 2, "300ms");
    refused(&["send", "--to", to, "--congestion", "two words"], 2, "such as cubic or bbr");
    refused(&["send", "--to", to, "--congestion", "nosuch"], 2, "no congestion control 'nosuch'");
    refused(&["send", "--to", "nowhere"], 2, "HOST:PORT");
    refused(&["send", "--to", "192.0.2.1:7400"], 2, "--insecure");
    refused(&["send", "--to", to, "--tls-dir", "/nonexistent"], 2, "/nonexistent/ca-cert.pem");
    refused(&["receive", "--listen", "0.0.0.0:0"], 2, "--tls-dir");
    refused(&["bench", "--links", "4gbit,1gbit"], 2, "slow link first");
    refused(&["bench", "--memory", "64TiB"], 2, "this machine has");
    refused(&["resolve", "1", "--source-runs"], 2, "32 hexadecimal digits");
    refused(&["resolve", &"0".repeat(32), "--source-runs"], 2, "vmigrate status");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["receive", "--listen", &address], 2, &format!("cannot listen on {address}"));
}

const SMALL: [&str; 8] =
    ["--memory", "16MiB", "--rate", "20MB/s", "--linger", "300ms", "--downtime", "100ms"];

fn send(to: &str, more: &[&str]) -> Output {
    vmigrate(&[&["send", "--to", to], &SMALL[..], more].concat())
}

#[test]
fn a_destination_that_is_not_there_leaves_the_guest_running() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = send(&free.to_string(), &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("cannot connect") && text.contains("vmigrate receive"), "{text}");
    assert!(text.contains("lines scanned: clean"), "{text}");
}

/// An idle VM, and one that writes as fast as it can.
#[test]
fn guests_that_hardly_write_and_that_never_rest_are_proven() {
    for (rate, policy) in [("0", "precopy"), ("unlimited", "stop-and-copy")] {
        let receiver = Receiver::start("127.0.0.1:0");
        // Long enough for an idle guest to be seen to write.
        let more = [
            "--rate",
            rate,
            "--policy",
            policy,
            "--run-on",
            "700ms",
            "--downtime",
            "10s",
            "--bandwidth",
            "16MB/s",
            "--compress",
            "off",
        ];
        let sent = vmigrate(
            &[&["send", "--to", &receiver.address, "--memory", "8MiB"], &more[..]].concat(),
        );
        let text = String::from_utf8_lossy(&sent.stdout);
        assert_eq!(sent.status.code(), Some(0), "{rate}: {text}");
    }
}

#[test]
fn a_peer_of_another_protocol_is_named() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in server.incoming().flatten() {
            use std::io::Write;
            let _ = (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let output = send(&address, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("does not speak the vmigrate protocol"), "{text}");
}

/// A receiver as a child process; ended with this value.
struct Receiver {
    child: Child,
    address: String,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Receiver {
    fn start(listen: &str) -> Self {
        let mut child = Command::new(VMIGRATE)
            .args([
                "receive",
                "--listen",
                listen,
                "--announce",
                "--json",
                "--once",
                "--wait",
                "30s",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut address = String::new();
        stdout.read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned(), stdout: Some(stdout) }
    }

    fn finish(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A document of that schema, which the type that wrote it reads back whole.
#[track_caller]
fn valid<T: Serialize + DeserializeOwned>(document: &str, schema: &str) -> T {
    let value: serde_json::Value = serde_json::from_str(document).unwrap();
    let schema = std::fs::read_to_string(format!("../docs/schema/{schema}.schema.json")).unwrap();
    let schema = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let report: T = serde_json::from_str(document).unwrap();
    assert_eq!(serde_json::to_value(&report).unwrap(), value);
    report
}

#[test]
fn send_and_receive_prove_and_their_json_is_the_documented() {
    let receiver = Receiver::start("127.0.0.1:0");
    let sent = send(&receiver.address, &["--json", "--audit", "--run-on", "300ms"]);
    let sent_text = String::from_utf8_lossy(&sent.stdout);
    assert_eq!(sent.status.code(), Some(0), "{sent_text}");
    let report: RunReport = valid(&sent_text, "send");
    assert_eq!((report.verdict, report.status), (RunVerdict::Proven, Status::done()));
    let proof = report.proof.unwrap();
    assert_eq!(proof.source_root, proof.testimony.unwrap().root);
    let (code, received) = receiver.finish();
    assert_eq!(code, Some(0), "{received}");
    let received: ReceiveReport = valid(&received, "receive");
    assert_eq!((received.migrated, received.verdict), (true, RunVerdict::Proven));
}

/// The answer is the first line, on both sides, and what cannot be kept is a note.
#[test]
fn people_read_the_answer_first() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start("127.0.0.1:0");
    let out = folder.path().join("kept").display().to_string();
    let sent = send(&receiver.address, &["--run-on", "200ms", "--out", &out]);
    let text = String::from_utf8_lossy(&sent.stdout);
    assert!(text.starts_with("MIGRATED 16 MiB to 127.0.0.1:"), "{text}");
    assert!(text.lines().next().unwrap().ends_with("memory PROVEN"), "{text}");
    fits(&text);
    let report: RunReport = valid(&kept(folder.path().join("kept").as_path()), "send");
    let witnesses = report.witnesses.unwrap();
    assert!(witnesses.felt_ms.is_none_or(|felt| felt >= 0.0) && witnesses.seen_ms.is_none());
    assert_eq!(receiver.finish().0, Some(0));

    let nobody = send("127.0.0.1:9", &["--out", "/proc/nowhere"]);
    let text = String::from_utf8_lossy(&nobody.stdout);
    assert_eq!(nobody.status.code(), Some(3), "{text}");
    assert!(text.starts_with("NOT MIGRATED: cannot connect"), "{text}");
    assert!(!text.contains("PROVEN"), "{text}");
    fits(&text);
    let said = String::from_utf8_lossy(&nobody.stderr);
    assert!(said.contains("nothing is kept in /proc/nowhere"), "{said}");
}

/// A receiver to which nobody comes, or whose guest is taken back, has a document as well.
#[test]
fn a_receiver_that_gets_nothing_reports_that() {
    let output =
        vmigrate(&["receive", "--listen", "127.0.0.1:0", "--wait", "100ms", "--json", "--once"]);
    assert_eq!(output.status.code(), Some(3));
    let report: ReceiveReport = valid(&String::from_utf8_lossy(&output.stdout), "receive");
    assert_eq!((report.status.kind, report.exit_code), (StatusKind::Connect, 3));
    let receiver = Receiver::start("127.0.0.1:0");
    let overload = ["--memory", "16MiB", "--rate", "400MB/s", "--bandwidth", "20MB/s"];
    let gives_up = ["--policy", "precopy", "--linger", "100ms"];
    let to = ["send", "--to", &receiver.address];
    let sent = vmigrate(&[&to[..], &overload[..], &gives_up[..]].concat());
    assert_eq!(sent.status.code(), Some(3));
    let (code, text) = receiver.finish();
    let report: ReceiveReport = valid(&text, "receive");
    assert_eq!((code, report.verdict), (Some(3), RunVerdict::NotMigrated));
    assert!(report.peer.is_some() && report.migration.is_some(), "{text}");
}

/// One after the other, one of them broken and one hostile; the journal and the JSON go on.
#[test]
fn a_receiver_stays_until_it_is_told_to_end() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    let mut child = Command::new(VMIGRATE)
        .args(["receive", "--listen", "127.0.0.1:0", "--announce", "--json", "--state-dir", &state])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut address = String::new();
    stdout.read_line(&mut address).unwrap();
    let address = address.trim();
    let mut document = || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        valid::<ReceiveReport>(&line, "receive")
    };
    let quick = ["--run-on", "100ms"];
    for _ in 0..2 {
        assert_eq!(send(address, &quick).status.code(), Some(0));
        assert_eq!(document().verdict, RunVerdict::Proven);
    }
    let mut stranger = std::net::TcpStream::connect(address).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let overload = ["--memory", "16MiB", "--rate", "400MB/s", "--bandwidth", "20MB/s"];
    let gives_up = ["--policy", "precopy", "--linger", "100ms"];
    let gave_up = vmigrate(&[&["send", "--to", address][..], &overload, &gives_up].concat());
    assert_eq!(gave_up.status.code(), Some(3));
    assert_eq!(document().verdict, RunVerdict::NotMigrated);
    assert_eq!(send(address, &quick).status.code(), Some(0));
    assert_eq!(document().verdict, RunVerdict::Proven);
    interrupt(&child);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("3 guests came, memory PROVEN; 1 migrations failed"), "{said}");
}

/// A sender that waits needs nobody to look for `listening` first.
#[test]
fn a_receiver_that_comes_later_is_waited_for() {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let to = free.clone();
    let sender = std::thread::spawn(move || send(&to, &["--wait", "20s", "--run-on", "100ms"]));
    std::thread::sleep(Duration::from_millis(1500));
    let receiver = Receiver::start(&free);
    let sent = sender.join().unwrap();
    let text = String::from_utf8_lossy(&sent.stdout);
    assert_eq!(sent.status.code(), Some(0), "{text}");
    assert_eq!(receiver.finish().0, Some(0));
}

/// What a machine lacks is said with what to do about it.
#[test]
fn a_machine_is_checked() {
    let output = vmigrate(&["check"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    fits(&text);
    assert!(text.contains("dirty tracking") && text.contains("guests can be migrated"), "{text}");
    let output =
        vmigrate(&["check", "--json", "--state-dir", "/proc/nowhere", "--tls-dir", "/nowhere"]);
    assert_eq!(output.status.code(), Some(3));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["able"], false);
    let of = |what: &str| {
        let items = answer["items"].as_array().unwrap();
        items.iter().find(|item| item["what"] == what).unwrap().clone()
    };
    assert_eq!(of("state directory")["state"], "missing");
    assert_eq!(of("tls to send")["state"], "less");
}

/// Certificates that were made are taken by both sides, under the name that was typed.
/// One side with TLS and one without: both are told so.
#[test]
fn tls_against_none_is_said_in_both_directions() {
    let folder = tempfile::tempdir().unwrap();
    let tls = folder.path().join("tls").display().to_string();
    assert_eq!(vmigrate(&["tls-init", &tls, "--host", "localhost"]).status.code(), Some(0));
    for (there, here, says) in [
        (&["--tls-dir", tls.as_str()][..], &[][..], "wants TLS"),
        (&[], &["--tls-dir", tls.as_str()][..], "does not speak it"),
    ] {
        let mut receiver = Command::new(VMIGRATE)
            .args(["receive", "--listen", "127.0.0.1:0", "--announce"])
            .args(there)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        let mut stdout = BufReader::new(receiver.stdout.take().unwrap());
        stdout.read_line(&mut address).unwrap();
        let to = address.trim().replace("127.0.0.1", "localhost");
        let sent = send(&to, here);
        receiver.kill().unwrap();
        receiver.wait().unwrap();
        let text = String::from_utf8_lossy(&sent.stdout);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(sent.status.code(), Some(3), "{text}");
        assert!(text.contains(says) && text.contains("--tls-dir"), "{text}");
    }
}

#[test]
fn certificates_are_made_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let tls = folder.path().join("tls").display().to_string();
    let made = vmigrate(&["tls-init", &tls, "--host", "localhost"]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    refused(&["tls-init", &tls], 2, "is there already");
    refused(
        &["tls-init", &folder.path().join("x").display().to_string(), "--host", "a b"],
        2,
        "--host",
    );
    let mut child = Command::new(VMIGRATE)
        .args([
            "receive",
            "--listen",
            "127.0.0.1:0",
            "--announce",
            "--json",
            "--once",
            "--tls-dir",
            &tls,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut address = String::new();
    stdout.read_line(&mut address).unwrap();
    let to = address.trim().replace("127.0.0.1", "localhost");
    let by_address = send(address.trim(), &["--tls-dir", &tls]);
    assert_eq!(by_address.status.code(), Some(3), "the certificate is of the name alone");
    let sent = send(&to, &["--tls-dir", &tls, "--run-on", "200ms"]);
    let text = String::from_utf8_lossy(&sent.stdout);
    assert_eq!(sent.status.code(), Some(0), "{text} {}", String::from_utf8_lossy(&sent.stderr));
    assert!(text.contains("mutual TLS"), "{text}");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
}

#[test]
fn schemas_in_docs_are_those_of_the_program() {
    for document in ["bench", "send", "receive", "sweep", "compare", "check"] {
        let printed = vmigrate(&["schema", document]).stdout;
        let path = format!("../docs/schema/{document}.schema.json");
        let stored = std::fs::read(&path).unwrap_or_default();
        assert!(printed == stored, "{path} is old: write `vmigrate schema {document}` to it");
    }
}

/// Garbage, half a hello, a huge length: the receiver says so and still takes the next guest.
#[test]
fn hostile_callers_do_not_harm_a_receiver() {
    use std::io::Write;
    let receiver = Receiver::start("127.0.0.1:0");
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: nobody\r\nAccept: everything, please\r\n\r\n"[..], b"VMIGRATE"]
    {
        let mut stream = std::net::TcpStream::connect(&receiver.address).unwrap();
        stream.write_all(garbage).unwrap();
    }
    let sent = send(&receiver.address, &["--run-on", "200ms"]);
    assert_eq!(sent.status.code(), Some(0), "{}", String::from_utf8_lossy(&sent.stdout));
    assert_eq!(receiver.finish().0, Some(0));
}

#[test]
fn an_oversized_length_turns_its_caller_away_with_a_reason() {
    use migrate_core::proto::Epoch;
    use migrate_core::proto::hello::{Features, Hello, MigrationId, Role, WELCOME_BYTES};
    use std::io::Write;
    let mut receiver = Receiver::start("127.0.0.1:0");
    let mut stream = std::net::TcpStream::connect(&receiver.address).unwrap();
    let hello = Hello {
        migration: MigrationId(0),
        role: Role::Control,
        epoch: Epoch(1),
        link_timeout: std::time::Duration::from_secs(4),
        features: Features::OURS,
    };
    stream.write_all(&hello.encode()).unwrap();
    stream.read_exact(&mut [0; WELCOME_BYTES]).unwrap();
    let mut frame = vec![1, 0, 0, 0, 255, 255, 255, 255];
    frame.resize(32, 0);
    frame.extend(xxhash_rust::xxh3::xxh3_64(&frame).to_le_bytes());
    stream.write_all(&frame).unwrap();
    // It is hung up on, and the next one is served.
    let _ = stream.read_to_end(&mut vec![]);
    let sent = send(&receiver.address, &["--run-on", "200ms"]);
    assert_eq!(sent.status.code(), Some(0), "{}", String::from_utf8_lossy(&sent.stdout));
    let mut stderr = receiver.child.stderr.take().unwrap();
    assert_eq!(receiver.child.wait().unwrap().code(), Some(0));
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    assert!(text.contains("4294967295 bytes; at most"), "{text}");
}

/// Starts a sender slow enough to be interrupted in the middle of a round.
fn slow_sender(to: &str, more: &[&str]) -> Child {
    let args =
        ["send", "--to", to, "--memory", "64MiB", "--rate", "20MB/s", "--bandwidth", "40MB/s"];
    Command::new(VMIGRATE)
        .args([&args[..], &["--run-on", "300ms"], more].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_receiver_is_noticed_and_the_guest_runs_on() {
    let mut receiver = Receiver::start("127.0.0.1:0");
    let sender = slow_sender(&receiver.address, &[]);
    std::thread::sleep(Duration::from_millis(1200));
    receiver.child.kill().unwrap();
    let killed = Instant::now();
    let output = sender.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(killed.elapsed() < Duration::from_secs(6), "took {:?}", killed.elapsed());
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("lines scanned: clean"), "{text}");
}

#[test]
fn a_retry_moves_the_same_guest_to_a_new_receiver() {
    let mut first = Receiver::start("127.0.0.1:0");
    let address = first.address.clone();
    let sender = slow_sender(&address, &["--retry", "1", "--json"]);
    std::thread::sleep(Duration::from_millis(1200));
    first.child.kill().unwrap();
    drop(first);
    std::thread::sleep(Duration::from_millis(500));
    let second = Receiver::start(&address);
    let output = sender.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let report: RunReport = valid(&text, "send");
    assert_eq!(report.verdict, RunVerdict::Proven);
    assert_eq!(report.attempts.len(), 2);
    let first = &report.attempts[0].status;
    assert!(first.kind == StatusKind::LinkLost && first.retryable, "{first:?}");
    assert_eq!(second.finish().0, Some(0));
}

fn interrupt(child: &Child) {
    // SIGINT, as Ctrl-C sends it.
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn one_ctrl_c_cancels_and_the_guest_runs_on() {
    let receiver = Receiver::start("127.0.0.1:0");
    let sender = slow_sender(&receiver.address, &["--json"]);
    std::thread::sleep(Duration::from_millis(1200));
    interrupt(&sender);
    let output = sender.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{text}");
    let report: RunReport = valid(&text, "send");
    assert_eq!((report.migrated, report.memory), (false, Verdict::Proven));
    assert_eq!(report.verdict, RunVerdict::NotMigrated);
    let (kind, phase) = (report.status.kind, report.status.phase);
    assert_eq!((kind, phase), (StatusKind::Cancelled, Phase::Copying));
    assert_eq!(report.source_scan.unwrap().first_fault(), None);
    assert_eq!(receiver.finish().0, Some(3), "the receiver was told");
}

#[test]
fn a_second_ctrl_c_ends_the_guest() {
    let receiver = Receiver::start("127.0.0.1:0");
    let sender = slow_sender(&receiver.address, &["--linger", "60s"]);
    std::thread::sleep(Duration::from_millis(1200));
    interrupt(&sender);
    std::thread::sleep(Duration::from_millis(700));
    interrupt(&sender);
    let begin = Instant::now();
    let output = sender.wait_with_output().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
    assert_eq!(output.status.code(), Some(3));
}

/// Twice the link's rate: no policy but one that throttles can move it.
#[test]
fn precopy_gives_up_where_vmotion_finishes() {
    let overload =
        ["--rate", "80MB/s", "--bandwidth", "40MB/s", "--memory", "32MiB", "--run-on", "300ms"];
    let run = |policy: &str| {
        let receiver = Receiver::start("127.0.0.1:0");
        let args = [&["send", "--to", &receiver.address, "--policy", policy], &overload[..]];
        let output = vmigrate(&[&args.concat()[..], &["--linger", "300ms"]].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = run("precopy");
    assert_eq!(code, Some(3), "{text}");
    let said = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        said.starts_with("NOT MIGRATED: gave up") && said.contains("use --policy adaptive"),
        "{text}"
    );
    assert!(text.contains("lines scanned: clean"), "{text}");
    let (code, text) = run("vmotion");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("MIGRATED 32 MiB to") && text.contains("of 300 ms allowed"), "{text}");
}

/// No line is wider than a terminal.
#[track_caller]
fn fits(text: &str) {
    let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:#?} in {text}");
}

/// The only document in a folder.
fn kept(folder: &std::path::Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let documents: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    let [document] = &documents[..] else { panic!("{documents:?}") };
    std::fs::read_to_string(document).unwrap()
}

#[test]
fn a_short_bench_says_its_answer_and_keeps_the_documented_json() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new");
    let args = ["bench", "--memory", "32MiB", "--run-on", "300ms", "-v", "--out"];
    let output = vmigrate(&[&args[..], &[out.to_str().unwrap()]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    fits(&text);
    for said in [
        "4 migrations of 32 MiB",
        "\nRESULT: a link 4x as fast",
        "WHAT IT COST THE GUEST",
        "4 of 4 migrations arrived whole: 8 scans of 524288 lines",
        "\nexit 0: done and proven",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let report: BenchReport = valid(&kept(&out), "bench");
    let ends = |end: &str| {
        let names = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(end)).count()
    };
    assert_eq!((ends(".journal"), ends(".json"), ends(".html")), (4, 1, 1));
    assert_eq!(report.verdict, RunVerdict::Proven);
    assert_eq!((report.runs.len(), report.ratios.len()), (4, 2));
}
