//! One QEMU process: RAM in a shared file, QMP, a console that is logged, and a serial port over
//! which the workload inside talks.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use workload::journal::Collector;

use super::qmp::Qmp;
use crate::programs::Ended;

/// How long an answer of the workload inside may take under emulation.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What a VM is made of.
pub(crate) struct Recipe<'a> {
    pub(crate) name: &'static str,
    pub(crate) directory: &'a Path,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// Megabytes of memory; below 2048 one stretch from address 0.
    pub(crate) memory_mib: u64,
    pub(crate) cpus: u32,
    /// Settings of the workload, on the kernel command line.
    pub(crate) settings: &'a str,
    /// Waits for a migration instead of booting.
    pub(crate) incoming: bool,
}

/// A running QEMU, ended with this value.
pub(crate) struct Vm {
    child: Ended,
    pub(crate) qmp: Qmp,
    serial: UnixStream,
    answers: Receiver<String>,
    /// The file that is the VM's RAM: guest-physical memory from address 0.
    pub(crate) ram: PathBuf,
    pub(crate) console: PathBuf,
}

impl Vm {
    /// Starts a VM by `qemu`, a command that runs qemu-system-x86_64 on the right host; heartbeats
    /// go to the collector.
    pub(crate) fn start(
        mut qemu: Command,
        recipe: &Recipe<'_>,
        collector: &Arc<Mutex<Collector>>,
    ) -> anyhow::Result<Self> {
        let file = |kind: &str| recipe.directory.join(format!("{}.{kind}", recipe.name));
        let (ram, console, serial, qmp) =
            (file("ram"), file("console"), file("serial"), file("qmp"));
        let memory = recipe.memory_mib;
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", "q35,accel=tcg,memory-backend=ram", "-cpu", "max"])
            .args(["-m", &format!("{memory}M"), "-smp", &recipe.cpus.to_string()])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=ram,size={memory}M,share=on,mem-path={}",
                ram.display()
            ))
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-serial", &format!("unix:{},server=on,wait=off", serial.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .arg("-kernel")
            .arg(recipe.kernel)
            .arg("-initrd")
            .arg(recipe.initramfs)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 quiet panic=-1 workload.heartbeat=serial:/dev/ttyS1 \
                 workload.control=serial:/dev/ttyS1 {}",
                recipe.settings
            ));
        if recipe.incoming {
            qemu.args(["-incoming", "defer"]);
        }
        let child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(file("errors"))?))
            .spawn()
            .context("cannot run qemu-system-x86_64 (Debian package qemu-system-x86)")?;
        let child = Ended(child);
        let connected = Qmp::connect(&qmp).with_context(|| {
            std::fs::read_to_string(file("errors")).unwrap_or_default().trim().to_owned()
        })?;
        let port = UnixStream::connect(&serial).context("cannot connect to the serial port")?;
        let (sender, answers) = channel();
        let (lines, collector) = (BufReader::new(port.try_clone()?), collector.clone());
        std::thread::Builder::new().name(format!("serial-{}", recipe.name)).spawn(move || {
            for line in lines.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                match line.strip_prefix("# ") {
                    Some(answer) => {
                        if sender.send(answer.trim_end().to_owned()).is_err() {
                            break;
                        }
                    }
                    None => {
                        let mut collector =
                            collector.lock().unwrap_or_else(PoisonError::into_inner);
                        if collector.line(&line).is_err() {
                            break;
                        }
                    }
                }
            }
        })?;
        Ok(Self { child, qmp: connected, serial: port, answers, ram, console })
    }

    /// Sends a command to the workload inside.
    pub(crate) fn tell(&mut self, command: &str) -> anyhow::Result<()> {
        self.serial
            .write_all(format!("{command}\n").as_bytes())
            .with_context(|| format!("cannot send '{command}' into the VM"))
    }

    /// Sends a command, and waits for the answer that contains `answer`.
    pub(crate) fn ask(&mut self, command: &str, answer: &str) -> anyhow::Result<String> {
        self.tell(command)?;
        self.hear(answer).with_context(|| format!("'{command}' in the VM"))
    }

    /// Waits for a line of the workload's that contains `what`.
    pub(crate) fn hear(&mut self, what: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let line = self.answers.recv_timeout(rest).with_context(|| {
                format!("no '{what}' within {ANSWER_TIMEOUT:?}; the console: {}", self.last_words())
            })?;
            anyhow::ensure!(!line.starts_with("error:"), "{line}");
            if line.contains(what) {
                return Ok(line);
            }
        }
    }

    /// The end of what the console said.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let start = text.len().saturating_sub(600);
        text.get(start..).unwrap_or(&text).trim().to_owned()
    }

    /// Waits until the VM has powered itself off.
    pub(crate) fn wait(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + timeout;
        while self.child.0.try_wait()?.is_none() {
            anyhow::ensure!(
                Instant::now() < deadline,
                "the VM did not power off; its console: {}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
