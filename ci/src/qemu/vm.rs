//! A VM whose init is the workload: a machine, a console that is logged, and a serial port over
//! which heartbeats come out and commands go in.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use workload::beat::collector::Collector;

use super::machine::{Begins, Machine, MachineRecipe};

/// How long an answer of the workload inside may take under emulation.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What a VM is made of.
#[derive(Clone, Copy)]
pub(crate) struct Recipe<'a> {
    pub(crate) name: &'a str,
    pub(crate) directory: &'a Path,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// Kilobytes of memory; below 2 GiB one stretch from address 0.
    pub(crate) memory_kib: u64,
    pub(crate) cpus: u32,
    /// What kind of processor.
    pub(crate) cpu: &'a str,
    /// Settings of the workload, on the kernel command line.
    pub(crate) settings: &'a str,
    pub(crate) begins: Begins,
}

/// A VM, ended with this value.
pub(crate) struct Vm {
    pub(crate) machine: Machine,
    pub(crate) port: Port,
}

/// Where a VM's heartbeats are gathered.
pub(crate) type Gathered = Arc<Mutex<Collector>>;

/// The kernel command line of a VM whose init is the workload.
pub(crate) fn command_line(settings: &str) -> String {
    format!(
        "console=ttyS0 quiet panic=-1 workload.heartbeat=serial:/dev/ttyS1 \
         workload.control=serial:/dev/ttyS1 {settings}"
    )
}

impl Vm {
    /// Starts a VM by `qemu`, a command that runs qemu-system-x86_64 on the right host; heartbeats
    /// go to the collector.
    pub(crate) fn start(
        mut qemu: Command,
        recipe: &Recipe<'_>,
        collector: &Gathered,
    ) -> anyhow::Result<Self> {
        let file = |kind: &str| recipe.directory.join(format!("{}.{kind}", recipe.name));
        let (console, serial) = (file("console"), file("serial"));
        qemu.args(["-serial", &format!("file:{}", console.display())])
            .args(["-serial", &format!("unix:{},server=on,wait=off", serial.display())])
            .arg("-kernel")
            .arg(recipe.kernel)
            .arg("-initrd")
            .arg(recipe.initramfs)
            .arg("-append")
            .arg(command_line(recipe.settings));
        let machine = MachineRecipe {
            name: recipe.name,
            directory: recipe.directory,
            ram: file("ram"),
            memory_kib: recipe.memory_kib,
            preallocated: false,
            cpus: recipe.cpus,
            cpu: recipe.cpu,
            begins: recipe.begins,
        };
        let machine = Machine::start(qemu, &machine)?;
        let port = Port::connect(&serial, console, recipe.name, collector)?;
        Ok(Self { machine, port })
    }

    /// Waits until the VM has powered itself off.
    pub(crate) fn wait(&mut self, timeout: Duration) -> anyhow::Result<()> {
        self.machine
            .wait(timeout)
            .with_context(|| format!("its console: {}", self.port.last_words()))
    }
}

/// The serial port over which the workload inside talks, and the VM's console.
pub(crate) struct Port {
    serial: UnixStream,
    answers: Receiver<String>,
    console: PathBuf,
}

impl Port {
    /// Connects to a port whose machine is there.
    pub(crate) fn connect(
        serial: &Path,
        console: PathBuf,
        name: &str,
        collector: &Gathered,
    ) -> anyhow::Result<Self> {
        let serial = UnixStream::connect(serial).context("cannot connect to the serial port")?;
        let answers = listen(serial.try_clone()?, name, collector)?;
        Ok(Self { serial, answers, console })
    }

    /// Sends a command to the workload inside.
    pub(crate) fn tell(&mut self, command: &str) -> anyhow::Result<()> {
        // The first byte to a machine that stood still may be lost: an empty line is no command.
        self.serial
            .write_all(format!("\n{command}\n").as_bytes())
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
            crate::interrupted()?;
            let line = match self.answers.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => continue,
                Err(e) => anyhow::bail!(
                    "no '{what}' within {ANSWER_TIMEOUT:?} ({e}); the console: {}",
                    self.last_words()
                ),
            };
            anyhow::ensure!(!line.starts_with("error:"), "{line}");
            if line.contains(what) {
                return Ok(line);
            }
        }
    }

    /// All that the console said.
    pub(crate) fn console_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The end of what the console said.
    pub(crate) fn last_words(&self) -> String {
        let text = self.console_text();
        let start = text.len().saturating_sub(600);
        text.get(start..).unwrap_or(&text).trim().to_owned()
    }

    /// Waits until the workload inside has sent `beats` more heartbeats.
    pub(crate) fn await_beats(&self, collector: &Gathered, beats: u64) -> anyhow::Result<()> {
        let count = || collector.lock().map_or(0, |c| c.beats);
        let (wanted, deadline) = (count() + beats, Instant::now() + BOOT_TIMEOUT);
        while count() < wanted {
            crate::interrupted()?;
            anyhow::ensure!(
                Instant::now() < deadline,
                "no heartbeat from the VM; its console: {}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// How long a VM may take to boot under emulation.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// Reads what comes over a serial port: heartbeats go to the collector, answers are handed on.
fn listen(port: UnixStream, name: &str, collector: &Gathered) -> anyhow::Result<Receiver<String>> {
    let (sender, answers) = channel();
    let (lines, collector) = (BufReader::new(port), collector.clone());
    std::thread::Builder::new().name(format!("serial-{name}")).spawn(move || {
        for line in lines.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            match line.strip_prefix("# ") {
                Some(answer) => {
                    if sender.send(answer.trim_end().to_owned()).is_err() {
                        break;
                    }
                }
                None => {
                    let mut collector = collector.lock().unwrap_or_else(PoisonError::into_inner);
                    if collector.line(line.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        }
    })?;
    Ok(answers)
}
