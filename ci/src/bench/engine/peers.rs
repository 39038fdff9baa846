//! What the engine is measured beside: iperf3 for the wire, QEMU's migration for the whole; all of
//! them, and our own programs, between the same two hosts.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use migrate_core::report::{RunReport, RunVerdict};
use serde_json::Value;

use crate::hosts::{ADDRESS_B, Hosts};
use crate::programs::{Ended, PORT, beside, receiver_with_report, report_of};
use crate::qemu::machine::{Begins, Machine, MachineRecipe};
use crate::qemu::migration::{self, Claim, Limits, Mode};

const GIB: f64 = (1u64 << 30) as f64;

/// One transfer of a guest's memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Transfer {
    /// Seconds from the first page to the guest running at the destination (QEMU: its total time).
    pub(super) seconds: f64,
    /// Seconds of setup: the destination's memory populated.
    pub(super) setup_s: f64,
    /// Of both ends, per GiB of memory.
    pub(super) cpu_s_per_gib: f64,
    pub(super) downtime_ms: f64,
    /// The sender's report, if it is ours.
    pub(super) report: Option<Box<RunReport>>,
}

impl Transfer {
    /// The report of one of ours.
    pub(super) fn ours(&self) -> anyhow::Result<&RunReport> {
        self.report.as_deref().context("a migration of another program has no report of ours")
    }
}

/// `bytes` at the speed of two iperf3 processes together (3.12 has one thread each), which send for
/// so many seconds.
pub(super) fn iperf(hosts: &Hosts, seconds: u32, bytes: u64) -> anyhow::Result<Transfer> {
    let iperf = Path::new("iperf3");
    let ports = ["5201", "5202"];
    let servers: Vec<Ended> = ports
        .iter()
        .map(|port| {
            let mut server = hosts.on(1, iperf);
            server.args(["-s", "-1", "-p", port]).stdout(Stdio::null()).stderr(Stdio::null());
            server.spawn().map(Ended).context("cannot run iperf3 (Debian package iperf3)")
        })
        .collect::<anyhow::Result<_>>()?;
    std::thread::sleep(Duration::from_millis(300));
    let clients: Vec<Child> = ports
        .iter()
        .map(|port| {
            let mut client = hosts.on(0, iperf);
            client.args(["-c", ADDRESS_B, "-p", port, "-J", "-t", &seconds.to_string()]);
            client.stdout(Stdio::piped()).spawn().context("cannot run iperf3")
        })
        .collect::<anyhow::Result<_>>()?;
    let mut total = 0.0;
    for client in clients {
        let output = client.wait_with_output()?;
        let report: Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        total += bits.with_context(|| format!("iperf3: {}", report["error"]))? / 8.0;
    }
    drop(servers);
    Ok(Transfer { seconds: bytes as f64 / total, ..Transfer::default() })
}

/// One migration by our engine; anything but PROVEN is an error.
pub(super) fn ours(hosts: &Hosts, arguments: &[&str]) -> anyhow::Result<Transfer> {
    let (mut receiver, address, received) = receiver_with_report(hosts, &[])?;
    let output = hosts
        .on(0, &beside("vmigrate")?)
        .args([
            "send",
            "--give-up-after",
            "60s",
            "--insecure",
            "--json",
            "--run-on",
            "100ms",
            "--to",
            &address,
        ])
        .args(arguments)
        .output()
        .context("cannot run the sender")?;
    receiver.0.wait()?;
    let report = report_of(&output)?;
    anyhow::ensure!(
        report.verdict == RunVerdict::Proven,
        "{}: {}",
        report.verdict,
        report.status.text
    );
    let received = received.read()?;
    let attempt = report.last().context("the sender tried nothing")?;
    let gib = attempt.memory_pages as f64 * 4096.0 / GIB;
    Ok(Transfer {
        seconds: attempt.migration_ms / 1e3,
        setup_s: attempt.setup_ms / 1e3,
        cpu_s_per_gib: (attempt.cpu_ms + received.cpu_ms) / 1e3 / gib,
        downtime_ms: attempt.downtime.total_ms,
        report: Some(Box::new(report)),
    })
}

/// One migration by QEMU of a VM that stands still, its memory the file `ram` (which is used up).
pub(super) fn qemu(
    hosts: &Hosts,
    directory: &Path,
    ram: &Path,
    memory_kib: u64,
    mode: &Mode,
) -> anyhow::Result<Transfer> {
    let program = Path::new("qemu-system-x86_64");
    let recipe = |name, ram: &Path, begins| MachineRecipe {
        name,
        directory,
        ram: ram.to_owned(),
        memory_kib,
        preallocated: begins == Begins::Incoming,
        cpus: 1,
        cpu: "max",
        begins,
    };
    let mut source = Machine::start(hosts.on(0, program), &recipe("source", ram, Begins::Paused))?;
    let start = Instant::now();
    let there = recipe("destination", &directory.join("destination.ram"), Begins::Incoming);
    let mut destination = Machine::start(hosts.on(1, program), &there)?;
    let setup_s = start.elapsed().as_secs_f64();
    let limits = Limits {
        // As fast as it goes.
        bytes_per_s: 1 << 40,
        downtime: Duration::from_millis(300),
        time: Duration::from_secs(120),
    };
    let address = format!("{ADDRESS_B}:{PORT}");
    migration::prepare(&mut source.qmp, &mut destination.qmp, mode, &limits, &address, None)?;
    let cpu = |a: &Machine, b: &Machine| -> anyhow::Result<Duration> {
        Ok(a.cpu_time()? + b.cpu_time()?)
    };
    let cpu_before = cpu(&source, &destination)?;
    migration::begin(&mut source.qmp, &address)?;
    let claim: Claim = migration::finish(&mut source.qmp, mode, &limits)?;
    anyhow::ensure!(claim.status == "completed", "QEMU {}: {}", claim.status, claim.error);
    let cpu = cpu(&source, &destination)? - cpu_before;
    Ok(Transfer {
        seconds: claim.total_ms / 1e3,
        setup_s,
        cpu_s_per_gib: cpu.as_secs_f64() / (memory_kib as f64 * 1024.0 / GIB),
        downtime_ms: claim.downtime_ms,
        report: None,
    })
}

/// Fills `ram` with records that do not compress, as our own guests do.
pub(super) fn fill(ram: &Path, memory_kib: u64) -> anyhow::Result<()> {
    let output = Command::new(beside("workload")?)
        .args(["run", "--rate", "1MB/s", "--duration", "10ms", "--seed", "1", "--json", "--file"])
        .arg(ram)
        .args(["--memory", &format!("{memory_kib}KiB")])
        .stdin(Stdio::null())
        .output()
        .context("cannot run the workload")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "cannot fill {}: {}", ram.display(), said.trim());
    Ok(())
}
