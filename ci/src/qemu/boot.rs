//! `ci vm`: one VM whose init is the workload, judged from inside by its own scan, from outside by
//! its heartbeats over the serial port and by its RAM as an image.

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use workload::beat::collector::Collector;
use workload::beat::ledger::here;
use workload::exit;

use super::machine::Begins;
use super::vm::{Recipe, Vm};
use super::{cache, initramfs, kernel, static_programs};
use crate::programs::beside;

#[derive(ClapArgs)]
#[command(after_help = "Example:\n  ci/static && cargo run --release -p ci -- vm")]
pub(crate) struct Args {
    /// Megabytes of memory of the VM, up to 2047
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(128..2048))]
    memory_mib: u64,
    /// Workload inside
    #[arg(long, default_value = "stream")]
    workload: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let start = Instant::now();
    let directory = tempfile::tempdir_in("/dev/shm").context("cannot make a directory")?;
    let kernel = kernel::fetch(&cache())?;
    let archive = directory.path().join("initramfs");
    initramfs::write(&archive, &static_programs())?;
    let journal = directory.path().join("journal");
    let collector = Arc::new(Mutex::new(Collector::open(&journal, &here(), Duration::ZERO)?));
    let settings = format!(
        "workload.workload={} workload.memory=50% workload.rate=10MB/s workload.writers=2 \
         workload.check-before-write",
        args.workload
    );
    let recipe = Recipe {
        name: "vm",
        directory: directory.path(),
        kernel: &kernel,
        initramfs: &archive,
        memory_kib: args.memory_mib << 10,
        cpus: 2,
        cpu: "max",
        settings: &settings,
        begins: Begins::Running,
    };
    let mut out = std::io::stdout().lock();
    let mut vm = Vm::start(Command::new("qemu-system-x86_64"), &recipe, &collector)?;
    vm.port.await_beats(&collector, 100)?;
    writeln!(out, "heartbeats after {:.1} s", start.elapsed().as_secs_f64())?;
    writeln!(out, "in the VM: {}", vm.port.ask("rate 20MB/s", "rate 20MB/s")?)?;
    std::thread::sleep(Duration::from_secs(2));
    writeln!(out, "in the VM: {}", vm.port.ask("pause", "paused at")?)?;
    let scanned = vm.port.ask("scan", "PROVEN")?;
    writeln!(out, "in the VM: {scanned}")?;
    vm.machine.qmp.run("stop", serde_json::json!({}))?;
    let image = Command::new(beside("verifier")?)
        .arg("image")
        .arg(&vm.machine.ram)
        .arg("--journal")
        .arg(&journal)
        .output()
        .context("cannot run the verifier")?;
    let said = String::from_utf8_lossy(&image.stdout).into_owned();
    write!(out, "from outside, by its memory:\n{said}")?;
    vm.machine.qmp.run("cont", serde_json::json!({}))?;
    vm.port.ask("resume", "resumed")?;
    vm.port.tell("stop")?;
    vm.wait(Duration::from_secs(60))?;
    let judged = Command::new(beside("verifier")?)
        .arg("journal")
        .arg(&journal)
        .output()
        .context("cannot run the verifier")?;
    let text = String::from_utf8_lossy(&judged.stdout);
    writeln!(out, "by its heartbeats: {}", text.lines().last().unwrap_or("nothing"))?;
    writeln!(
        out,
        "{:.1} s in all; console:\n{}",
        start.elapsed().as_secs_f64(),
        vm.port.last_words()
    )?;
    let good = scanned.contains("PROVEN") && image.status.success() && judged.status.success();
    Ok(if good { exit::PROVEN } else { exit::WRONG })
}
