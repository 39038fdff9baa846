//! Guests in want: too few threads, a full disk, a description that lies; as a user meets them.

#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};

const VMIGRATE: &str = env!("CARGO_BIN_EXE_vmigrate");

fn vmigrate(args: &[&str]) -> Output {
    Command::new(VMIGRATE).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A receiver as a child process; ended with this value.
struct Receiver {
    child: Child,
    address: String,
    out: BufReader<ChildStdout>,
    err: ChildStderr,
}

impl Receiver {
    fn start(args: &[&str]) -> Self {
        Self::start_by(Command::new(VMIGRATE), args)
    }

    /// `program` runs vmigrate with the arguments that it is given.
    fn start_by(mut program: Command, args: &[&str]) -> Self {
        let mut child = program
            .args(["receive", "--listen", "127.0.0.1:0", "--announce", "--once", "--wait", "20s"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (mut out, mut address) = (BufReader::new(out), String::new());
        out.read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned(), out, err }
    }

    /// Its exit code, and all that it said.
    fn finish(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.err.read_to_string(&mut text).unwrap();
        self.out.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(to: &str, state: &Path, args: &[&str]) -> Output {
    let state = state.to_str().unwrap();
    let small = ["send", "--to", to, "--memory", "16MiB", "--rate", "20MB/s", "--linger", "300ms"];
    vmigrate(&[&small[..], &["--run-on", "800ms", "--state-dir", state], args].concat())
}

/// Runs vmigrate as a user who may have so many threads; root can.
fn as_user_with_threads(threads: u32) -> Command {
    // A user of its own: the limit counts all that it runs.
    let user = ["--reuid=54321", "--regid=54321", "--clear-groups"];
    // The directories above the program may be closed to others; an open one is not.
    let limited = format!("ulimit -u {threads}; exec /dev/fd/9 \"$@\"");
    let opened =
        format!("exec setpriv {} bash -c '{limited}' - \"$@\" 9<{VMIGRATE}", user.join(" "));
    let mut command = Command::new("bash");
    command.args(["-c", &opened, "-"]);
    command
}

/// A guest needs a thread for each writer; that they are missing is noticed while it can go back.
#[test]
#[cfg_attr(not(is_root), ignore = "SKIPPED: needs root")]
fn a_user_without_threads_is_refused_before_the_guest_is_handed_over() {
    let mut arrived = 0;
    for threads in [12, 18, 26, 80] {
        let command = as_user_with_threads(threads);
        let dir = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(state.path(), Some(54321), None).unwrap();
        let receiver =
            Receiver::start_by(command, &["--state-dir", state.path().to_str().unwrap()]);
        let more = ["--writers", "16", "--record", "4KiB"];
        let sent = send(&receiver.address, dir.path(), &more);
        let (code, heard) = receiver.finish();
        let told = text(&sent.stdout);
        assert!(!heard.contains("panicked"), "{threads}: {heard}");
        match sent.status.code() {
            Some(0) => {
                assert_eq!(code, Some(0), "{threads}: {heard}");
                arrived += 1;
            }
            Some(3) => {
                assert_eq!(code, Some(3), "{threads}: {heard}");
                assert!(told.contains("raise `ulimit -u`"), "{threads}: {told}");
                assert!(told.contains("lines scanned: clean"), "{threads}: {told}");
            }
            _ => panic!("{threads}: {told} {heard}"),
        }
    }
    assert!(arrived > 0, "with 80 threads it arrives");
}

/// A program that runs vmigrate with a directory of 4 KiB at `dir`, and copies its `journal` to
/// `kept` at the end.
fn with_a_full_disk(dir: &Path, kept: &Path) -> Command {
    let mount = format!("mount -t tmpfs -o size=4k tmpfs {}", dir.display());
    let (from, to) = (dir.join("journal"), kept.display());
    let keep = format!("cp {} {to}", from.display());
    let script = format!("{mount} && {VMIGRATE} \"$@\"; code=$?; {keep} && exit $code");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "bash", "-c", &script, "-"]);
    command
}

/// The journal, as far as it goes, is whole lines that prove nothing wrong.
fn assert_readable(journal: &Path) {
    let case = verifier::case::Case::read(journal).unwrap();
    assert!(!case.journal.beats.is_empty());
    assert_eq!(case.evidence().wrong(), [""; 0]);
}

#[test]
#[cfg_attr(not(has_mount_namespaces), ignore = "SKIPPED: needs mount namespaces")]
fn a_journal_on_a_full_disk_costs_the_proof_and_not_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, kept) = (dir.path().join("disk"), dir.path().join("kept"));
    std::fs::create_dir(&disk).unwrap();
    let journal = disk.join("journal");
    let journal = ["--journal", journal.to_str().unwrap()];
    let lacks = |said: &str| {
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        said.contains("the journal lacks") && said.contains("No space left")
    };

    let full = with_a_full_disk(&disk, &kept);
    let receiver = Receiver::start_by(full, &journal);
    let sent = send(&receiver.address, dir.path(), &[]);
    let (code, heard) = receiver.finish();
    assert!(lacks(&heard) && lacks(&text(&sent.stdout)), "{heard} {}", text(&sent.stdout));
    assert_eq!((sent.status.code(), code), (Some(4), Some(4)), "{heard}");
    assert!(heard.contains("INCONCLUSIVE"), "{heard}");
    assert_readable(&kept);

    let mut full = with_a_full_disk(&disk, &kept);
    let receiver = Receiver::start(&[]);
    let small = ["send", "--to", &receiver.address, "--memory", "16MiB", "--rate", "20MB/s"];
    let state = dir.path().to_str().unwrap();
    let more = ["--run-on", "800ms", "--state-dir", state];
    let sent = full.args(small).args(more).args(journal).output().unwrap();
    let said = text(&sent.stdout);
    assert_eq!(sent.status.code(), Some(4), "{said} {}", text(&sent.stderr));
    assert!(lacks(&said) && said.contains("INCONCLUSIVE"), "{said}");
    assert_eq!(receiver.finish().0, Some(0), "it was told nothing of that");
    assert_readable(&kept);
}

#[test]
fn a_trace_is_found_by_its_checksum_in_the_folder_that_the_receiver_names() {
    let dir = tempfile::tempdir().unwrap();
    let (sent_from, traces) = (dir.path().join("here"), dir.path().join("traces"));
    std::fs::create_dir(&traces).unwrap();
    // Pages of both writers of 16 MiB, a few of them again and again.
    let intervals = vec![vec![0..900, 3000..3900], vec![5..10, 4000..4005]];
    let trace = workload::trace::Trace { pages: 4096, interval_ns: 1000, intervals, sum: 0 };
    trace.write(&sent_from).unwrap();
    let workload = format!("trace,file={}", sent_from.display());

    let receiver = Receiver::start(&[]);
    let sent = send(&receiver.address, dir.path(), &["--workload", &workload]);
    let told = text(&sent.stdout);
    assert_eq!((sent.status.code(), receiver.finish().0), (Some(3), Some(3)), "{told}");
    assert!(told.contains("--traces DIR") && told.contains("lines scanned: clean"), "{told}");

    // There under another name; what the description names is not there at all.
    std::fs::copy(&sent_from, traces.join("copied")).unwrap();
    let receiver = Receiver::start(&["--traces", traces.to_str().unwrap()]);
    let sent = send(&receiver.address, dir.path(), &["--workload", &workload]);
    let (code, heard) = receiver.finish();
    let told = text(&sent.stdout);
    assert_eq!((sent.status.code(), code), (Some(0), Some(0)), "{told} {heard}");
}

/// Each of them rests for most of the time, and resting costs nothing.
#[test]
fn a_thousand_writers_leave_the_machine_to_the_migration() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&[]);
    let state = dir.path().to_str().unwrap();
    let many = ["--memory", "4MiB", "--writers", "1024", "--record", "4KiB", "--run-on", "1s"];
    let start = std::time::Instant::now();
    let sent =
        vmigrate(&[&["send", "--to", &receiver.address, "--state-dir", state], &many[..]].concat());
    let (code, heard) = receiver.finish();
    let told = text(&sent.stdout);
    assert_eq!((sent.status.code(), code), (Some(0), Some(0)), "{told} {heard}");
    assert!(start.elapsed() < std::time::Duration::from_secs(30), "took {:?}", start.elapsed());
}

#[test]
#[cfg_attr(not(has_kvm), ignore = "SKIPPED: needs /dev/kvm")]
fn more_vcpus_than_there_can_be_are_refused_before_anything_is_started() {
    let start = std::time::Instant::now();
    let many = ["--guest", "kvm", "--writers", "256", "--record", "4KiB"];
    let output = vmigrate(&[&["send", "--to", "127.0.0.1:9"], &many[..]].concat());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("256 writers need as many vCPUs, and there are at most 128"), "{said}");
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "took {:?}", start.elapsed());
}
