//! What surrounds the programs: outputs that nobody takes, ignored signals, limits, names with
//! several addresses, system calls that are denied, keys that do not fit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const VMIGRATE: &str = env!("CARGO_BIN_EXE_vmigrate");
/// A migration of a second.
const SMALL: [&str; 6] =
    ["--memory", "16MiB", "--rate", "20MB/s", "--linger=200ms", "--run-on=200ms"];

/// A pipe whose reader is gone.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn receive(listen: &str, more: &[&str]) -> Command {
    let mut command = Command::new(VMIGRATE);
    command.args(["receive", "--listen", listen, "--announce", "--once"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn send(to: &str, more: &[&str]) -> Command {
    let mut command = Command::new(VMIGRATE);
    command.args(["send", "--to", to]).args(SMALL).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A receiver, ended with this value.
struct Receiver {
    child: Child,
    address: String,
}

impl Receiver {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut address = String::new();
        stdout.read_line(&mut address).unwrap();
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        Self { child, address: address.trim().to_owned() }
    }

    fn port(&self) -> &str {
        self.address.rsplit_once(':').unwrap().1
    }

    fn finish(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[track_caller]
fn done(output: &Output) -> String {
    let text = text(output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

#[test]
fn log_lines_that_cannot_be_written_cost_nothing() {
    for stderr in [full, broken_pipe] {
        let mut there = receive("127.0.0.1:0", &[]);
        there.stderr(stderr());
        let there = Receiver::start(there);
        let mut here = send(&there.address, &[]);
        let output = here.stderr(stderr()).output().unwrap();
        done(&output);
        assert_eq!(there.finish().code(), Some(0));
    }
    // Errors and refusals have their own codes whether or not somebody reads why.
    let code =
        |args: &[&str]| Command::new(VMIGRATE).args(args).stderr(full()).status().unwrap().code();
    assert_eq!(code(&["receive", "--listen", "0.0.0.0:0"]), Some(2));
    assert_eq!(code(&["receive", "--listen", "127.0.0.1:0", "--wait", "100ms"]), Some(3));
}

#[test]
fn a_terminal_that_goes_away_takes_no_migration_with_it() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let terminal = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();

    let there = Receiver::start(receive("127.0.0.1:0", &[]));
    let mut here = send(&there.address, &["--bandwidth", "20MB/s", "--policy", "vmotion"]);
    let here = here.stderr(Stdio::from(terminal)).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    drop(master);
    done(&here.wait_with_output().unwrap());
}

#[test]
fn a_report_that_cannot_be_written_changes_no_exit_code() {
    let run = |stdout: Stdio, more: &[&str]| {
        let there = Receiver::start(receive("127.0.0.1:0", &[]));
        let output = send(&there.address, more).stdout(stdout).output().unwrap();
        assert_eq!(there.finish().code(), Some(0));
        done(&output)
    };
    let said = "cannot print the report: No space left on device";
    let told = run(full(), &["--json"]);
    assert!(told.contains(said), "{told}");
    let told = run(full(), &[]);
    assert!(told.contains(said), "{told}");
    // Who closes a pipe has what they wanted.
    let told = run(broken_pipe(), &["--json"]);
    assert!(!told.contains("cannot print"), "{told}");

    // The receiver's report, and what it announces.
    let mut there = receive("127.0.0.1:0", &["--json", "--wait", "100ms"]);
    assert_eq!(there.stdout(full()).status().unwrap().code(), Some(3));

    // Where the output is all that was wanted, its loss is an error; not that of a closed pipe.
    let schema = |stdout: Stdio| {
        let mut command = Command::new(VMIGRATE);
        let output = command.args(["schema", "send"]).stdout(stdout).output().unwrap();
        (output.status.code(), text(&output))
    };
    let (code, told) = schema(full());
    assert!(code == Some(2) && told.contains("No space left on device"), "{code:?} {told}");
    assert_eq!(schema(broken_pipe()), (Some(0), String::new()));
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let script = format!(
        "trap '' HUP INT; exec {VMIGRATE} receive --once --listen 127.0.0.1:0 --announce --wait 30s"
    );
    let mut there = Command::new("sh");
    there.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut there = Receiver::start(there);
    let signal = |name: &str| {
        let pid = there.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-HUP");
    signal("-INT");
    std::thread::sleep(Duration::from_millis(500));
    let status = there.child.try_wait().unwrap();
    assert!(status.is_none(), "it ended with {status:?}");
    let signal = |name: &str| {
        let pid = there.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-TERM");
    assert_eq!(there.finish().code(), Some(3));
}

#[test]
fn a_limit_on_file_size_is_an_error_and_no_death() {
    // 16 MiB of memory are a file of that size, if one without a name.
    let script = format!("ulimit -f 100; exec {VMIGRATE} send --to 127.0.0.1:9 --memory 16MiB");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(2), "{:?} {told}", output.status);
    assert!(told.contains("File too large"), "{told}");
}

#[test]
fn link_timeouts_work_or_are_refused_with_their_range() {
    for timeout in ["99ms", "3601s", "32768s", "99years", "0s"] {
        let output = send("127.0.0.1:9", &["--link-timeout", timeout]).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(2), "{timeout}: {told}");
        assert!(told.contains("from 100ms to 1h"), "{timeout}: {told}");
    }
    for timeout in ["999ms", "1h"] {
        let there = Receiver::start(receive("127.0.0.1:0", &["--link-timeout", timeout]));
        let output = send(&there.address, &["--link-timeout", timeout]).output().unwrap();
        done(&output);
        assert_eq!(there.finish().code(), Some(0), "{timeout}");
    }
    // The shortest may not bear a busy machine, but the system takes it.
    let there = Receiver::start(receive("127.0.0.1:0", &["--link-timeout", "100ms"]));
    let told = text(&send(&there.address, &["--link-timeout", "100ms"]).output().unwrap());
    assert!(!told.contains("Invalid argument"), "{told}");
}

#[test]
fn times_without_end_are_refused() {
    let ages = "500000000000years";
    for option in ["--time-limit", "--resolve-timeout", "--downtime"] {
        let output = send("127.0.0.1:9", &[option, ages]).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(2), "{option}: {told}");
        assert!(told.contains("at most 100years"), "{option}: {told}");
    }
    let output = receive("127.0.0.1:0", &["--wait", ages]).stderr(Stdio::piped()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// Runs programs where `two.test` is `[::1]` and then 127.0.0.1.
fn where_a_name_has_two_addresses(script: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "::1 two.test\n127.0.0.1 two.test localhost\n").unwrap();
    let script = format!("mount --bind {} /etc/hosts && {{ {script}\n}}", hosts.display());
    Command::new("unshare").args(["-rm", "sh", "-c", &script]).output().unwrap()
}

#[test]
#[cfg_attr(not(has_mount_namespaces), ignore = "SKIPPED: needs mount namespaces")]
fn every_address_of_a_name_is_tried() {
    let there = Receiver::start(receive("127.0.0.1:0", &[]));
    let (port, small) = (there.port(), SMALL.join(" "));
    let script = format!("{VMIGRATE} send --to two.test:{port} {small}");
    done(&where_a_name_has_two_addresses(&script));
    assert_eq!(there.finish().code(), Some(0));

    // Nobody at any of them: all are named.
    let script = format!("{VMIGRATE} send --to two.test:9 {small}");
    let told = text(&where_a_name_has_two_addresses(&script));
    for part in ["cannot connect to two.test:9", "[::1]:9", "127.0.0.1:9"] {
        assert!(told.contains(part), "{part}: {told}");
    }

    // An address of the name that is taken leaves the other.
    let taken = std::net::TcpListener::bind("[::1]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let script = format!("{VMIGRATE} receive --listen two.test:{port} --wait 300ms");
    let output = where_a_name_has_two_addresses(&script);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains(&format!("listening on 127.0.0.1:{port}")), "{told}");
    assert!(told.contains(&format!("cannot listen on [::1]:{port}")), "{told}");
}

#[test]
fn addresses_of_every_spelling_are_taken() {
    let there = Receiver::start(receive("127.0.0.1:0", &[]));
    done(&send(&format!("[::ffff:127.0.0.1]:{}", there.port()), &[]).output().unwrap());
    assert_eq!(there.finish().code(), Some(0));
    for link_local in ["[fe80::1%lo]:9", "[fe80::1%1]:9", "fe80::1%lo:9"] {
        let output = send(link_local, &[]).output().unwrap();
        let told = text(&output);
        // Understood, and not loopback.
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("is not loopback"), "{told}");
    }
    let told = text(&send("[fe80::1%nosuch]:9", &[]).output().unwrap());
    assert!(told.contains("use HOST:PORT"), "{told}");
}

/// Denies one system call, as a container's filter does.
fn deny(command: &mut Command, call: libc::c_long) {
    const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let filter = move || {
        let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut code = [
            // The number of the call.
            statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
            statement((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, call as u32),
            statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, DENY),
            statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
        // SAFETY: plain calls; the program outlives them.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(filter) };
}

#[test]
#[cfg_attr(not(has_seccomp), ignore = "SKIPPED: needs seccomp")]
fn a_denied_system_call_costs_a_copy_and_no_migration() {
    for call in [libc::SYS_splice, libc::SYS_vmsplice, libc::SYS_pipe2] {
        let there = Receiver::start(receive("127.0.0.1:0", &[]));
        let mut here = send(&there.address, &["--compress", "off", "--delta", "off"]);
        deny(&mut here, call);
        done(&here.output().unwrap());
        assert_eq!(there.finish().code(), Some(0));
    }
}

/// What may be wrong with a set of certificates.
#[derive(Clone, Copy)]
enum Valid {
    /// To the far future.
    Long,
    /// For so many days yet, or for so many days no more.
    Days(i64),
}

fn limit(parameters: &mut rcgen::CertificateParams, valid: Valid) {
    if let Valid::Days(days) = valid {
        let now = std::time::SystemTime::now();
        let day = Duration::from_secs(86_400);
        let distance = day * days.unsigned_abs() as u32 + Duration::from_secs(3600);
        let end = if days < 0 { now - distance } else { now + distance };
        (parameters.not_before, parameters.not_after) = ((now - day * 1000).into(), end.into());
    }
}

/// A certification authority, and a pair for each side.
fn certificates(directory: &Path, ca_valid: Valid, server_valid: Valid) {
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    limit(&mut ca, ca_valid);
    write("ca-cert.pem", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = rcgen::Issuer::new(ca, ca_key);
    for (side, valid) in [("client", Valid::Long), ("server", server_valid)] {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        limit(&mut parameters, valid);
        write(&format!("{side}-cert.pem"), parameters.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{side}-key.pem"), key.serialize_pem());
    }
}

fn with_tls(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let start = Instant::now();
    let mut command = Command::new(VMIGRATE);
    let output = command.args(arguments).arg("--tls-dir").arg(directory).output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
    (output.status.code(), text(&output))
}

#[test]
fn certificates_that_cannot_work_are_named_at_the_start() {
    let receiver = ["receive", "--listen", "127.0.0.1:0", "--wait", "200ms"];
    let sender = ["send", "--to", "127.0.0.1:9", "--memory", "4MiB", "--linger", "100ms"];
    #[track_caller]
    fn refused((code, told): (Option<i32>, String), says: &[&str]) {
        assert_eq!(code, Some(2), "{told}");
        for part in says {
            assert!(told.contains(part), "'{part}' in: {told}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();

    certificates(path, Valid::Long, Valid::Long);
    let swap = |from: &str, to: &str| std::fs::copy(path.join(from), path.join(to)).unwrap();
    swap("client-key.pem", "kept");
    swap("server-key.pem", "client-key.pem");
    refused(with_tls(path, &sender), &["client-key.pem", "does not belong to", "client-cert.pem"]);
    swap("kept", "server-key.pem");
    refused(
        with_tls(path, &receiver),
        &["server-key.pem", "does not belong to", "server-cert.pem"],
    );

    for encrypted in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
         -----END EC PRIVATE KEY-----\n",
    ] {
        certificates(path, Valid::Long, Valid::Long);
        std::fs::write(path.join("server-key.pem"), encrypted).unwrap();
        refused(with_tls(path, &receiver), &["server-key.pem", "is encrypted"]);
    }

    certificates(path, Valid::Days(-2), Valid::Long);
    refused(with_tls(path, &receiver), &["ca-cert.pem", "expired"]);
    refused(with_tls(path, &sender), &["ca-cert.pem", "expired"]);
    certificates(path, Valid::Long, Valid::Days(-2));
    refused(with_tls(path, &receiver), &["server-cert.pem", "expired"]);

    // What expires soon still works, and is said.
    certificates(path, Valid::Days(9), Valid::Days(0));
    let (code, told) = with_tls(path, &receiver);
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("ca-cert.pem expires in 9 days"), "{told}");
    assert!(told.contains("server-cert.pem expires in less than a day"), "{told}");
    certificates(path, Valid::Long, Valid::Days(20));
    let (code, told) = with_tls(path, &receiver);
    assert!(code == Some(3) && !told.contains("expires"), "{told}");
}

#[test]
fn nothing_divided_by_nothing_is_a_dash() {
    let output = send("127.0.0.1:9", &[]).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(!told.contains("NaN") && !told.contains("inf"), "{told}");
}

#[test]
fn the_program_says_its_name() {
    let output = Command::new(VMIGRATE).arg("-V").output().unwrap();
    assert_eq!(done(&output), concat!("vmigrate ", env!("CARGO_PKG_VERSION"), "\n"));
}
