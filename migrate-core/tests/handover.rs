//! Handovers as their users meet them: two programs, their state directories, signals, words of
//! operators, callers that want nothing, and links that die at the worst moment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

#[path = "support/proxy.rs"]
mod proxy;

const VMIGRATE: &str = env!("CARGO_BIN_EXE_vmigrate");

/// A program whose standard error is read as it comes.
struct Program {
    child: Child,
    lines: mpsc::Receiver<String>,
    heard: Vec<String>,
    state: PathBuf,
}

impl Program {
    fn start(args: &[&str], state: &Path) -> Self {
        let mut child = Command::new(VMIGRATE)
            .args(args)
            .arg("--state-dir")
            .arg(state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (line, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for text in stderr.lines().map_while(Result::ok) {
                let _ = line.send(text);
            }
        });
        Self { child, lines, heard: vec![], state: state.to_owned() }
    }

    /// Waits for a line that contains `wanted`, and gives it.
    #[track_caller]
    fn await_line(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(rest) {
                Ok(line) => {
                    self.heard.push(line.clone());
                    if line.contains(wanted) {
                        return line;
                    }
                }
                Err(_) => panic!("never said '{wanted}': {:#?}", self.heard),
            }
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// What `vmigrate` answers with these arguments and this program's state directory.
    fn ask(&self, args: &[&str]) -> (Option<i32>, String) {
        let output =
            Command::new(VMIGRATE).args(args).arg("--state-dir").arg(&self.state).output().unwrap();
        (output.status.code(), text(&output))
    }

    /// Its exit code, and all that it said.
    fn finish(mut self) -> (Option<i32>, String) {
        let mut out = String::new();
        let stdout = self.child.stdout.take();
        stdout.unwrap().read_to_string(&mut out).unwrap();
        let code = self.child.wait().unwrap().code();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            self.heard.push(line);
        }
        (code, format!("{out}\n{}", self.heard.join("\n")))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

/// Two hosts: each has a state directory of its own.
struct Hosts(tempfile::TempDir);

impl Hosts {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn receiver(&self, args: &[&str]) -> (Program, SocketAddr) {
        self.receiver_at("127.0.0.1:0", args)
    }

    fn receiver_at(&self, listen: &str, args: &[&str]) -> (Program, SocketAddr) {
        let args =
            with_defaults(&["receive", "--once", "--listen", listen], &[("--wait", "30s")], args);
        let mut receiver = Program::start(&args, &self.0.path().join("there"));
        let line = receiver.await_line("listening on");
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        (receiver, address)
    }

    fn sender(&self, to: SocketAddr, args: &[&str]) -> Program {
        let to = to.to_string();
        let small = [
            ("--memory", "16MiB"),
            ("--rate", "20MB/s"),
            ("--run-on", "200ms"),
            ("--linger", "200ms"),
        ];
        let args = with_defaults(&["send", "--to", &to], &small, args);
        Program::start(&args, &self.0.path().join("here"))
    }
}

/// A command line with those defaults that `args` does not set.
fn with_defaults<'a>(
    command: &[&'a str],
    defaults: &[(&'a str, &'a str)],
    args: &[&'a str],
) -> Vec<&'a str> {
    let unset = defaults.iter().filter(|(name, _)| !args.contains(name));
    let defaults = unset.flat_map(|(name, value)| [*name, *value]);
    command.iter().copied().chain(defaults).chain(args.iter().copied()).collect()
}

#[track_caller]
fn proven((code, said): (Option<i32>, String)) {
    assert!(code == Some(0) && said.contains("PROVEN"), "{code:?}: {said}");
}

/// The migration that a line of standard error names.
fn id_in(line: &str) -> String {
    let is_id = |word: &&str| word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit());
    line.split(|c: char| !c.is_ascii_alphanumeric()).find(is_id).unwrap().to_owned()
}

/// Signs of life follow the link timeout, and go out while nothing else is to be said.
#[test]
fn a_quiet_guest_over_a_slow_link_arrives_with_a_short_timeout() {
    let hosts = Hosts::new();
    let (receiver, address) = hosts.receiver(&["--link-timeout", "1s"]);
    let quiet = ["--memory", "128MiB", "--rate", "1KB/s", "--bandwidth", "40MB/s"];
    let sender = hosts.sender(
        address,
        &[
            &["--link-timeout", "1s", "--record", "64", "--run-on", "2s", "--writers", "1"],
            &quiet[..],
        ]
        .concat(),
    );
    proven(sender.finish());
    proven(receiver.finish());
}

/// Each side says its own link timeout; both keep to the shorter.
#[test]
fn both_ends_keep_to_the_shorter_link_timeout() {
    for (here, there) in [("500ms", "4s"), ("4s", "500ms")] {
        let hosts = Hosts::new();
        let (receiver, address) = hosts.receiver(&["--link-timeout", there]);
        let sender = hosts.sender(address, &["--link-timeout", here]);
        proven(sender.finish());
        proven(receiver.finish());
    }
}

/// A hundred that are silent, drip, or talk of something else, each; the migration comes at once.
#[test]
fn callers_that_want_nothing_do_not_hold_a_receiver() {
    let hosts = Hosts::new();
    let (receiver, address) = hosts.receiver(&[]);
    let strays: Vec<_> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
    let (stop, stopped) = mpsc::channel::<()>();
    let dripping: Vec<_> = strays[100..200].iter().map(|s| s.try_clone().unwrap()).collect();
    let drip = std::thread::spawn(move || {
        for byte in b"VMIGRATE".iter().cycle() {
            for mut stream in &dripping {
                let _ = stream.write_all(&[*byte]);
            }
            if stopped.recv_timeout(Duration::from_millis(200))
                != Err(mpsc::RecvTimeoutError::Timeout)
            {
                return;
            }
        }
    });
    for mut stream in &strays[200..] {
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: there\r\n\r\n");
    }
    let start = Instant::now();
    let sent = hosts.sender(address, &[]).finish();
    let took = start.elapsed();
    proven(sent);
    assert!(took < Duration::from_secs(8), "{took:?}");
    drop(stop);
    drip.join().unwrap();
    proven(receiver.finish());
}

/// Of five senders at once one is taken, and the others hear that the receiver is busy, and with what.
#[test]
fn who_comes_second_hears_with_what_the_receiver_is_busy() {
    let hosts = Hosts::new();
    let (mut receiver, address) = hosts.receiver(&[]);
    let first = hosts.sender(address, &["--bandwidth", "8MB/s"]);
    receiver.await_line("preparing");
    for _ in 0..4 {
        let (code, said) = hosts.sender(address, &[]).finish();
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("the peer is busy: migration "), "{said}");
    }
    proven(first.finish());
    proven(receiver.finish());
}

#[test]
fn an_operator_asks_and_tells_a_migration_that_goes_on() {
    let hosts = Hosts::new();
    let (mut receiver, address) = hosts.receiver(&[]);
    let sender = hosts.sender(address, &["--memory", "64MiB", "--bandwidth", "3MB/s"]);
    receiver.await_line("receiving");
    let (code, said) = sender.ask(&["status"]);
    assert!(
        code == Some(0) && said.contains("source of 64 MiB") && said.contains("Copying"),
        "{said}"
    );
    let (code, json) = sender.ask(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    let one = &status["migrations"][0];
    assert!(
        code == Some(0) && one["doing"] == "sending pages" && one["connected"] == true,
        "{json}"
    );
    let there = receiver.ask(&["status"]).1;
    assert!(there.contains("destination of 64 MiB") && there.contains("Receiving"), "{there}");

    // A word that comes too early changes nothing, and is not remembered.
    let id = one["migration"].as_str().unwrap();
    for word in ["--source-runs", "--destination-runs", "--give-up"] {
        let (code, said) = sender.ask(&["resolve", id, word]);
        assert!(code == Some(3) && said.contains("nothing is to be decided"), "{word}: {said}");
    }
    let (code, said) = sender.ask(&["switch"]);
    assert!(code == Some(3) && said.contains("nothing to switch"), "{said}");
    let (code, said) = sender.ask(&["set", "downtime", "77ms"]);
    assert!(code == Some(0) && said.contains("77ms"), "{said}");
    let start = Instant::now();
    let (code, said) = sender.ask(&["set", "bandwidth", "none"]);
    assert!(code == Some(0) && said.contains("as fast as the link"), "{said}");
    let sent = sender.finish();
    assert!(start.elapsed() < Duration::from_secs(10), "it would take 20 s at 3 MB/s");
    assert!(sent.1.contains("of 77 ms allowed"), "{}", sent.1);
    proven(sent);
    proven(receiver.finish());
}

#[test]
fn a_cancel_from_beside_ends_a_migration_cleanly() {
    let hosts = Hosts::new();
    let (mut receiver, address) = hosts.receiver(&[]);
    let sender = hosts.sender(address, &["--memory", "64MiB", "--bandwidth", "5MB/s"]);
    receiver.await_line("receiving");
    let (code, said) = sender.ask(&["cancel"]);
    assert!(code == Some(0) && said.contains("the guest runs on here"), "{said}");
    let (code, said) = sender.finish();
    assert!(code == Some(3) && said.contains("clean"), "{code:?}: {said}");
    let (code, said) = receiver.finish();
    assert!(code == Some(3) && said.contains("the source called it off: cancelled"), "{said}");
}

#[test]
fn a_state_directory_that_others_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let keep = tempfile::tempdir().unwrap();
    let open = keep.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    for args in
        [&["receive", "--listen", "127.0.0.1:0"][..], &["send", "--to", "127.0.0.1:1"], &["bench"]]
    {
        let (code, said) = Program::start(args, &open).finish();
        assert!(code == Some(2) && said.contains("others can write in it"), "{code:?}: {said}");
    }
}

/// What was decided must be found by whoever comes later; else nothing is decided.
#[test]
fn a_state_directory_that_vanishes_keeps_the_guest_at_its_source() {
    let hosts = Hosts::new();
    let (mut receiver, address) = hosts.receiver(&[]);
    let sender = hosts.sender(address, &["--bandwidth", "8MB/s"]);
    receiver.await_line("receiving");
    std::fs::remove_dir_all(&sender.state).unwrap();
    let (code, said) = sender.finish();
    assert!(code == Some(3) && said.contains("record cannot be written"), "{code:?}: {said}");
    assert!(said.contains("clean"), "{said}");
    let (code, said) = receiver.finish();
    assert_eq!(code, Some(3), "{said}");
}

/// Once a guest runs here, neither the end of its source nor an impatient user ends it.
#[test]
fn signals_do_not_end_a_guest_that_runs() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        let hosts = Hosts::new();
        let (mut receiver, address) = hosts.receiver(&["--json"]);
        let sender = hosts.sender(address, &["--run-on", "1500ms"]);
        receiver.await_line("the guest runs here");
        sender.signal("-KILL");
        receiver.signal(signal);
        let start = Instant::now();
        receiver.await_line("the source will not hear");
        assert!(start.elapsed() > Duration::from_millis(1000), "it ran on");
        let (code, said) = receiver.finish();
        assert!(code == Some(0) && said.contains("\"verdict\": \"PROVEN\""), "{code:?}: {said}");
    }
}

/// The source is stopped for longer than the link's timeout around the commit, and goes on.
#[test]
fn a_source_that_sleeps_around_the_commit_finds_its_guest() {
    for wait in [0, 2, 5, 10] {
        let hosts = Hosts::new();
        let (mut receiver, address) = hosts.receiver(&["--link-timeout", "500ms"]);
        let sender = hosts.sender(address, &["--link-timeout", "500ms"]);
        receiver.await_line("complete and checked");
        std::thread::sleep(Duration::from_millis(wait));
        sender.signal("-STOP");
        std::thread::sleep(Duration::from_millis(2500));
        sender.signal("-CONT");
        let start = Instant::now();
        proven(sender.finish());
        assert!(start.elapsed() < Duration::from_secs(10), "seconds, and not minutes");
        proven(receiver.finish());
    }
}

/// The same at the destination: a Run that it only handles after its sleep is answered late.
#[test]
fn a_destination_that_sleeps_around_the_commit_runs_its_guest() {
    for wait in [0, 2, 5, 10] {
        let hosts = Hosts::new();
        let (mut receiver, address) = hosts.receiver(&["--link-timeout", "500ms"]);
        let sender = hosts.sender(address, &["--link-timeout", "500ms"]);
        receiver.await_line("receiving");
        std::thread::sleep(Duration::from_millis(wait * 10));
        receiver.signal("-STOP");
        std::thread::sleep(Duration::from_millis(2500));
        receiver.signal("-CONT");
        let (code, said) = sender.finish();
        match code {
            // Stopped while pages came: the source has given up, and runs on.
            Some(3) => assert!(said.contains("clean"), "{said}"),
            _ => proven((code, said)),
        }
        let (there, said) = receiver.finish();
        assert_eq!(code, there, "both say the same: {said}");
    }
}

/// The source is killed between the last page and Run: whoever is at the destination can let the
/// guest run, with an oath.
#[test]
fn an_operator_lets_a_prepared_guest_run_whose_source_is_gone() {
    let hosts = Hosts::new();
    let (mut receiver, address) = hosts.receiver(&["--json"]);
    let sender = hosts.sender(proxy::start(address, proxy::Rule::DeadAtRun), &[]);
    let id = id_in(&receiver.await_line("was lost"));
    sender.signal("-KILL");
    let (code, said) = receiver.ask(&["status"]);
    assert!(code == Some(0) && said.contains("Prepared, source lost"), "{said}");
    // A first interrupt is told what would be lost.
    receiver.signal("-INT");
    receiver.await_line("may be the only whole copy");
    let (code, said) = receiver.ask(&["cancel"]);
    assert!(code == Some(3) && said.contains("may be the only whole copy"), "{said}");
    let (code, said) = receiver.ask(&["resolve", &id, "--destination-runs"]);
    assert!(code == Some(3) && said.contains("--source-is-gone"), "{said}");
    let (code, said) = receiver.ask(&["resolve", &id, "--destination-runs", "--source-is-gone"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = receiver.finish();
    assert!(code == Some(0) && said.contains("\"verdict\": \"PROVEN\""), "{code:?}: {said}");
}

/// The source's program dies between its commit and Run. Whoever comes takes its record up, and the
/// guest runs without an oath; of one that is lost that is said.
#[test]
fn a_decision_outlives_the_program_that_made_it() {
    let hosts = Hosts::new();
    let (mut receiver, address) = hosts.receiver(&["--json"]);
    let mut sender = hosts.sender(proxy::start(address, proxy::Rule::DeadAtRun), &[]);
    let id = id_in(&receiver.await_line("was lost"));
    sender.child.kill().unwrap();
    sender.child.wait().unwrap();
    let (code, said) = sender.ask(&["status"]);
    assert!(code == Some(0) && said.contains("tells it to run the guest"), "{said}");
    let (code, said) = sender.ask(&["resolve", &id, "--source-runs"]);
    assert!(code == Some(3) && said.contains("its program is gone"), "{said}");
    let to = address.to_string();
    let (code, said) = sender.ask(&["resolve", &id, "--destination-runs", "--to", &to]);
    assert!(code == Some(0) && said.contains("runs at the destination"), "{said}");
    let (code, said) = sender.ask(&["status"]);
    assert!(code == Some(0) && said.contains("no migration under way"), "{said}");
    // Nobody comes for its proof; it would wait for a while.
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..2 {
        receiver.signal("-INT");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (code, said) = receiver.finish();
    assert!(code == Some(0) && said.contains("\"verdict\": \"PROVEN\""), "{code:?}: {said}");
}

/// A prepared guest dies with its receiver; the next receiver says so, and the source goes on.
#[test]
fn a_receiver_that_died_prepared_is_answered_for_by_the_next() {
    let hosts = Hosts::new();
    let (mut receiver, address) = hosts.receiver(&[]);
    let mut sender =
        hosts.sender(proxy::start(address, proxy::Rule::CutAtEveryRun), &["--link-timeout", "1s"]);
    receiver.await_line("was lost");
    receiver.signal("-KILL");
    sender.await_line("unresolved");
    drop(receiver);
    let (next, _) = hosts.receiver_at(&address.to_string(), &["--wait", "10s"]);
    let (code, said) = sender.finish();
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(code == Some(3) && words.contains("lost with the program that held it"), "{said}");
    assert!(said.contains("clean"), "the guest runs on: {said}");
    let (code, _) = next.finish();
    assert_eq!(code, Some(3), "nobody came to it");
}

/// Where the word that the guest runs is lost, the source asks, and hears it.
#[test]
fn a_lost_answer_costs_seconds() {
    for rule in [proxy::Rule::CutAtRun, proxy::Rule::CutAtRunning] {
        let hosts = Hosts::new();
        let (receiver, address) = hosts.receiver(&[]);
        let start = Instant::now();
        proven(hosts.sender(proxy::start(address, rule), &[]).finish());
        assert!(start.elapsed() < Duration::from_secs(10), "{rule:?}");
        proven(receiver.finish());
        // Nothing is left behind on either side.
        for state in ["here", "there"] {
            let left = std::fs::read_dir(hosts.0.path().join(state)).unwrap();
            let left: Vec<_> = left.map(|e| std::fs::read_to_string(e.unwrap().path())).collect();
            assert!(left.is_empty(), "{rule:?}: {state}: {left:?}");
        }
    }
}
