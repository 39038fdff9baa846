//! One QEMU process: RAM in a shared file, QMP, and whatever devices it is given.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::qmp::Qmp;
use crate::programs::Ended;

/// How a machine begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    /// It runs at once.
    Running,
    /// It stands still until it is told to run.
    Paused,
    /// It waits for a migration, and stands still after it.
    Incoming,
    /// It waits for a migration, and runs as soon as it may.
    IncomingAndRuns,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(crate) struct MachineRecipe<'a> {
    /// Of its files and for messages.
    pub(crate) name: &'a str,
    pub(crate) directory: &'a Path,
    /// The file that becomes its RAM: guest-physical memory from address 0 up to 2 GiB.
    pub(crate) ram: PathBuf,
    pub(crate) memory_kib: u64,
    /// All of RAM is touched before the machine is there.
    pub(crate) preallocated: bool,
    pub(crate) cpus: u32,
    /// What kind of processor: `max` has all that can be emulated.
    pub(crate) cpu: &'a str,
    pub(crate) begins: Begins,
}

/// A running QEMU, ended with this value; its RAM file goes with it.
pub(crate) struct Machine {
    child: Ended,
    pub(crate) qmp: Qmp,
    pub(crate) ram: PathBuf,
    errors: PathBuf,
}

impl Machine {
    /// Starts a machine by `qemu`, a command that runs qemu-system-x86_64 on the right host and may
    /// have arguments of its own; returns when it answers.
    pub(crate) fn start(mut qemu: Command, recipe: &MachineRecipe<'_>) -> anyhow::Result<Self> {
        let file = |kind: &str| recipe.directory.join(format!("{}.{kind}", recipe.name));
        let (socket, errors, memory) = (file("qmp"), file("errors"), recipe.memory_kib);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", "q35,accel=tcg,memory-backend=ram", "-cpu", recipe.cpu])
            .args(["-m", &format!("{memory}K"), "-smp", &recipe.cpus.to_string()])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=ram,size={memory}K,share=on,prealloc={},mem-path={}",
                if recipe.preallocated { "on,prealloc-threads=2" } else { "off" },
                recipe.ram.display()
            ))
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        match recipe.begins {
            Begins::Running => {}
            Begins::Paused => drop(qemu.arg("-S")),
            Begins::Incoming => drop(qemu.args(["-S", "-incoming", "defer"])),
            Begins::IncomingAndRuns => drop(qemu.args(["-incoming", "defer"])),
        }
        let child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(&errors)?))
            .spawn()
            .context("cannot run qemu-system-x86_64 (Debian package qemu-system-x86)")?;
        let child = Ended(child);
        let said = || std::fs::read_to_string(&errors).unwrap_or_default().trim().to_owned();
        let qmp = Qmp::connect(&socket).with_context(said)?;
        Ok(Self { child, qmp, ram: recipe.ram.clone(), errors })
    }

    /// What it complained of.
    pub(crate) fn complaints(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default().trim().to_owned()
    }

    /// CPU time that it has taken.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        cpu_time(self.child.0.id())
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + timeout;
        while self.child.0.try_wait()?.is_none() {
            crate::interrupted()?;
            anyhow::ensure!(Instant::now() < deadline, "the VM did not power off");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The memory is wanted by the next machine.
        let _ = std::fs::remove_file(&self.ram);
    }
}

/// CPU time, in user and kernel mode, of a process and its threads.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    // proc(5): utime and stime are fields 14 and 15, in hundredths of a second on Linux; the name,
    // which may hold anything, ends at the last parenthesis.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("no process name")?.1;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
