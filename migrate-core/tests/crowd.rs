//! A receiver that stays, and many who come to it: side by side, broken, hostile, too many.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use migrate_core::report::{ReceiveReport, RunReport, RunVerdict, StatusKind};

const VMIGRATE: &str = env!("CARGO_BIN_EXE_vmigrate");

/// A receiver of three guests at once, and its documents as they come.
struct Receiver {
    child: Child,
    address: String,
    documents: mpsc::Receiver<ReceiveReport>,
}

impl Receiver {
    fn start(state: &std::path::Path) -> Self {
        let mut child = Command::new(VMIGRATE)
            .args(["receive", "--listen", "127.0.0.1:0", "--announce", "--json", "--guests", "3"])
            .args(["--link-timeout", "2s", "--state-dir"])
            .arg(state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.next().unwrap().unwrap();
        let (told, documents) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = told.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, address, documents }
    }

    fn document(&self) -> ReceiveReport {
        self.documents.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sender(to: &str, more: &[&str]) -> Child {
    Command::new(VMIGRATE)
        .args(["send", "--to", to, "--memory", "16MiB", "--rate", "10MB/s", "--writers", "1"])
        .args(["--run-on", "100ms", "--linger", "100ms", "--json"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn report(sender: Child) -> RunReport {
    let output = sender.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn twenty_migrations_three_at_once_two_broken_and_a_hostile_caller() {
    let state = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(state.path());
    let to = receiver.address.as_str();
    // Says that it speaks the protocol, and then nothing.
    let mut hostile = TcpStream::connect(to).unwrap();
    hostile.write_all(b"VMIGRATE").unwrap();

    // Slow enough that all three are on their way at once: a fourth hears who is there.
    let slow: Vec<Child> = (0..3).map(|_| sender(to, &["--bandwidth", "20MB/s"])).collect();
    std::thread::sleep(Duration::from_millis(600));
    let fourth = report(sender(to, &[]));
    assert_eq!(fourth.status.kind, StatusKind::Busy, "{}", fourth.status.text);
    let text = &fourth.status.text;
    assert!(text.contains("of 16 MiB from 127.0.0.1") && text.contains("and 2 more"), "{text}");
    for sender in slow {
        assert_eq!(report(sender).verdict, RunVerdict::Proven);
    }
    // Two that break in the middle.
    for _ in 0..2 {
        let mut broken = sender(to, &["--bandwidth", "8MB/s"]);
        std::thread::sleep(Duration::from_millis(700));
        broken.kill().unwrap();
        broken.wait().unwrap();
    }
    for _ in 0..5 {
        let three: Vec<Child> = (0..3).map(|_| sender(to, &["--retry", "5"])).collect();
        for sender in three {
            let run = report(sender);
            assert_eq!(run.verdict, RunVerdict::Proven, "{}", run.status.text);
        }
    }
    let documents: Vec<ReceiveReport> = (0..20).map(|_| receiver.document()).collect();
    let proven = documents.iter().filter(|d| d.verdict == RunVerdict::Proven).count();
    let broken: Vec<_> = documents.iter().filter(|d| !d.migrated).collect();
    assert_eq!((proven, broken.len()), (18, 2), "{documents:#?}");
    assert!(broken.iter().all(|d| d.status.kind == StatusKind::LinkLost), "{broken:#?}");
    drop(hostile);
    let pid = rustix::process::Pid::from_child(&receiver.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut receiver = receiver;
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = receiver.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0), "what came was proven");
}

/// Two receivers pass one guest to and fro until it has been moved often enough; then both end.
#[test]
fn passed_to_and_fro_and_proven_each_time() {
    let state = tempfile::tempdir().unwrap();
    let journals = tempfile::tempdir().unwrap();
    // The second receiver's port is not known before it listens: both are chosen here.
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let addresses = [free(), free()];
    let receivers: Vec<Child> = (0..2)
        .map(|host| {
            Command::new(VMIGRATE)
                .args(["receive", "--listen", &addresses[host], "--on-to", &addresses[1 - host]])
                .args(["--hops", "5", "--json", "--journal"])
                .arg(journals.path().join(format!("{host}")))
                .arg("--state-dir")
                .arg(state.path().join(format!("{host}")))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let journal = journals.path().join("first");
    let sent = sender(&addresses[0], &["--wait", "10s", "--journal", journal.to_str().unwrap()]);
    assert_eq!(report(sent).verdict, RunVerdict::Proven);
    let mut epochs = Vec::new();
    for receiver in receivers {
        let output = receiver.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let document: ReceiveReport = serde_json::from_str(line).unwrap();
            assert_eq!(document.verdict, RunVerdict::Proven);
            let on = document.passed_on.as_ref().map(|on| on.verdict);
            let last = document.epoch == Some(5);
            assert_eq!(on, if last { None } else { Some(RunVerdict::Proven) });
            epochs.push(document.epoch.unwrap());
        }
    }
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2, 3, 4, 5]);
}
