//! `ci libvirt`: the same between two libvirt daemons, each on a host of its own: in its own
//! network, mount and UTS namespace, with its own directories, users and identity.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use workload::beat::collector::Collector;
use workload::beat::ledger::here;

use super::Common;
use super::bed::{Bed, Life, Plan};
use super::evidence::{self, Evidence, Subject};
use super::row::{Table, Told};
use crate::hosts::ADDRESSES;
use crate::programs::Ended;
use crate::qemu::migration::Claim;
use crate::qemu::vm::Port;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    cargo run --release -p ci -- libvirt\n  \
    cargo run --release -p ci -- libvirt --options '--auto-converge;--parallel;--postcopy --postcopy-after-precopy'")]
pub(crate) struct Args {
    /// Options of `virsh migrate`, a migration for each, between semicolons
    #[arg(
        long,
        value_delimiter = ';',
        default_value = "--live;--live --parallel --parallel-connections 2"
    )]
    options: Vec<String>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    told: Told,
}

const DOMAIN: &str = "vm";
/// Where libvirt's own directories stand for each daemon.
const DIRECTORIES: [(&str, &str); 5] = [
    ("run", "/run/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("log", "/var/log/libvirt"),
    ("etc", "/etc/libvirt"),
];
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Why no libvirt can be run on this machine.
pub(crate) fn missing() -> Option<String> {
    for (program, package) in
        [("libvirtd", "libvirt-daemon, libvirt-daemon-driver-qemu"), ("virsh", "libvirt-clients")]
    {
        let quiet = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if quiet.is_err() {
            return Some(format!("'{program}' is not installed (Debian packages {package})"));
        }
    }
    let setgroups = std::fs::read_to_string("/proc/self/setgroups").unwrap_or_default();
    if setgroups.trim() == "deny" {
        let why =
            "libvirtd gives its VMs other groups, which this user namespace may not; run as root";
        return Some(why.to_owned());
    }
    None
}

/// Which libvirt, and over which QEMU.
fn version() -> String {
    let output = Command::new("libvirtd").arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    let number = said.split_whitespace().last().unwrap_or("of unknown version");
    format!("libvirt {number} over {}", crate::qemu::version())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let bed = Bed::new(args.common.plan()?, args.common.link)?;
    let title = format!("{} KiB", bed.plan.memory_kib);
    let mut table = Table::begin(&args.told, "libvirt", version(), &title)?;
    let mut daemons = Vec::new();
    for host in 0..2 {
        daemons.push(Daemon::start(&bed, host)?);
    }
    for (number, options) in args.options.iter().enumerate() {
        crate::interrupted()?;
        let name = options.replace("--live", "").trim().to_owned();
        let name = if name.is_empty() { "live".to_owned() } else { name };
        let short: String = name.chars().take(17).collect();
        let row = one(&bed, &daemons, number, options);
        table.add(&short, row)?;
    }
    Ok(table.end())
}

fn one(
    bed: &Bed,
    daemons: &[Daemon],
    number: usize,
    options: &str,
) -> anyhow::Result<(Claim, Evidence)> {
    let journal = bed.path().join(format!("libvirt{number}.journal"));
    let gathered = Arc::new(Mutex::new(Collector::open(&journal, &here(), Duration::ZERO)?));
    let life = Life::new(journal, gathered, "libvirt");
    let [here, there] = [&daemons[0], &daemons[1]];
    here.clear()?;
    there.clear()?;
    let xml = here.directory.join("vm.xml");
    std::fs::write(&xml, domain_xml(bed))?;
    here.virsh(&["create", &xml.display().to_string()])?;
    let domain = Domain::new(here, &life)?;
    domain.port.await_beats(&life.gathered, 100)?;
    std::thread::sleep(Duration::from_secs(1));
    let began_ns = evidence::now_ns();
    let uri = format!("qemu+tcp://{}/system", ADDRESSES[1]);
    let mut words = vec!["migrate", "--p2p"];
    words.extend(options.split_whitespace());
    words.extend([DOMAIN, uri.as_str()]);
    // The destination's port is there as soon as its QEMU is; what it says first is not to be lost.
    let migrating = here.begin(&words)?;
    let arrived = Domain::new(there, &life)?;
    finish(migrating)?;
    drop(domain);
    let claim = there.claim()?;
    // Migrated by somebody else's hand it runs at once.
    let evidence = evidence::gather(arrived, &life, false, began_ns, None)?;
    Ok((claim, evidence))
}

fn finish(mut child: Ended) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        crate::interrupted()?;
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        anyhow::ensure!(Instant::now() < deadline, "virsh migrate does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    if let Some(mut stderr) = child.0.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut said)?;
    }
    anyhow::ensure!(status.success(), "virsh migrate: {}", said.trim());
    Ok(())
}

/// A libvirt daemon on a host of its own.
struct Daemon {
    child: Ended,
    directory: PathBuf,
}

impl Daemon {
    fn start(bed: &Bed, host: usize) -> anyhow::Result<Self> {
        let directory = bed.path().join(format!("libvirt-{host}"));
        let (address, dir) = (ADDRESSES[host], directory.display());
        for (name, _) in DIRECTORIES {
            std::fs::create_dir_all(directory.join(name))?;
        }
        std::fs::create_dir_all(directory.join("lib/lab"))?;
        let put = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        // Hosts are told apart by their UUIDs: to "itself" libvirt migrates nothing.
        put(
            "etc/libvirtd.conf",
            format!(
                "host_uuid = \"8a0f0b5e-0000-4000-8000-00000000000{host}\"\nlisten_tls = 0\n\
                 listen_tcp = 1\nlisten_addr = \"{address}\"\nauth_tcp = \"none\"\n\
                 auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nunix_sock_group = \"root\"\n"
            ),
        )?;
        put(
            "etc/qemu.conf",
            format!(
                "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\n\
                 security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n\
                 seccomp_sandbox = 0\nstdio_handler = \"file\"\n\
                 migration_host = \"{address}\"\nmigration_address = \"{address}\"\n"
            ),
        )?;
        // libvirt wants its default user to exist, whoever runs QEMU.
        let with = |file: &str, line: &str| -> anyhow::Result<String> {
            let mut text = std::fs::read_to_string(file)?;
            if !text.contains("libvirt-qemu:") {
                text.push_str(line);
            }
            Ok(text)
        };
        put(
            "passwd",
            with("/etc/passwd", "libvirt-qemu:x:64055:64055::/nonexistent:/bin/false\n")?,
        )?;
        put("group", with("/etc/group", "libvirt-qemu:x:64055:\n")?)?;
        let [a, b] = ADDRESSES;
        put("hosts", format!("127.0.0.1 localhost\n{a} host-0\n{b} host-1\n"))?;
        let mut script = format!("hostname host-{host}\n");
        for (name, place) in DIRECTORIES {
            script += &format!("mkdir -p {place}\nmount --bind {dir}/{name} {place}\n");
        }
        for file in ["passwd", "group", "hosts"] {
            script += &format!("mount --bind {dir}/{file} /etc/{file}\n");
        }
        // In place of the shell, so that what we started is what we end.
        script += "exec libvirtd --listen --pid-file /run/libvirt/libvirtd.pid\n";
        let log = std::fs::File::create(directory.join("libvirtd.log"))?;
        let child = bed
            .hosts
            .on(host, Path::new("unshare"))
            .args(["-m", "-u", "--propagation", "private", "sh", "-ec", &script])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start libvirtd (Debian package libvirt-daemon)")?;
        let daemon = Self { child: Ended(child), directory };
        daemon.await_answer()?;
        Ok(daemon)
    }

    /// Waits until it answers, and has looked at QEMU once: the first look takes seconds.
    fn await_answer(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(e) = self.virsh(&["domcapabilities", "--virttype", "qemu"]) {
            crate::interrupted()?;
            let log = self.directory.join("libvirtd.log");
            anyhow::ensure!(
                Instant::now() < deadline,
                "libvirtd (process {}) does not answer: {e:#}; {}",
                self.child.0.id(),
                std::fs::read_to_string(log).unwrap_or_default().trim()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Command {
        let socket = self.directory.join("run/libvirt-sock");
        let mut command = Command::new("virsh");
        command.arg("-q").arg("-c").arg(format!("qemu:///system?socket={}", socket.display()));
        command.args(words).stdin(Stdio::null());
        command
    }

    fn virsh(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.command(words).output().context("cannot run virsh")?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::ensure!(output.status.success(), "virsh {}: {said}", words[0]);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn begin(&self, words: &[&str]) -> anyhow::Result<Ended> {
        let child = self.command(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        child.map(Ended).context("cannot run virsh")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join("lib/lab").join(name)
    }

    /// Makes room for a domain; QEMU does not remove its files.
    fn clear(&self) -> anyhow::Result<()> {
        let _ = self.virsh(&["destroy", DOMAIN]);
        for name in ["vm.ram", "vm.serial", "vm.console"] {
            match std::fs::remove_file(self.file(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// What libvirt says of the migration that ended here.
    fn claim(&self) -> anyhow::Result<Claim> {
        let text = self.virsh(&["domjobinfo", DOMAIN, "--completed", "--rawstats"])?;
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            let number =
                line.and_then(|rest| rest.trim_start_matches([':', '=', ' ']).parse().ok());
            number.unwrap_or(0.0)
        };
        Ok(Claim {
            status: "completed".to_owned(),
            error: String::new(),
            total_ms: value("time_elapsed"),
            downtime_ms: value("downtime"),
            bytes: value("data_processed") as u64,
            rounds: value("memory_iteration") as u64,
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // QEMU runs on without its libvirtd.
        let _ = self.virsh(&["destroy", DOMAIN]);
    }
}

/// A domain under one of the daemons.
struct Domain<'a> {
    daemon: &'a Daemon,
    port: Port,
    ram: PathBuf,
}

impl<'a> Domain<'a> {
    fn new(daemon: &'a Daemon, life: &Life) -> anyhow::Result<Self> {
        let serial = daemon.file("vm.serial");
        let deadline = Instant::now() + START_TIMEOUT;
        let port = loop {
            crate::interrupted()?;
            match Port::connect(&serial, daemon.file("vm.console"), DOMAIN, &life.gathered) {
                Ok(port) => break port,
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Ok(Self { daemon, port, ram: daemon.file("vm.ram") })
    }
}

impl Subject for Domain<'_> {
    fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    fn ram(&self) -> &Path {
        &self.ram
    }

    fn stand_still(&mut self) -> anyhow::Result<()> {
        self.daemon.virsh(&["suspend", DOMAIN]).map(drop)
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        self.daemon.virsh(&["resume", DOMAIN]).map(drop)
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.daemon.virsh(&["domstate", DOMAIN]).is_ok_and(|state| state.trim() != "shut off")
        {
            crate::interrupted()?;
            anyhow::ensure!(Instant::now() < deadline, "the VM did not power off");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// A transient domain: kernel, initramfs, a console in a file, a serial port for the workload.
///
/// Memory is said to QEMU behind libvirt's back: libvirt rounds it up to whole megabytes, and of such
/// memory QEMU 7.2 forgets writes when it is emulated (`bed::Plan`).
fn domain_xml(bed: &Bed) -> String {
    let Plan { memory_kib, .. } = bed.plan;
    let (kernel, initramfs) = bed.boot_files();
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
         <name>{DOMAIN}</name><memory unit='KiB'>{memory_kib}</memory><vcpu>2</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
         <cmdline>{}</cmdline></os><features><acpi/><apic/></features><cpu mode='maximum'/>\
         <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
         <devices>\
         <serial type='file'><source path='/var/lib/libvirt/lab/vm.console'/><target port='0'/></serial>\
         <serial type='unix'><source mode='bind' path='/var/lib/libvirt/lab/vm.serial'/>\
         <target port='1'/></serial>\
         <controller type='usb' model='none'/><memballoon model='none'/></devices>\
         <qemu:commandline>\
         <qemu:arg value='-object'/><qemu:arg value='memory-backend-file,id=labram,size={memory_kib}K,\
         share=on,mem-path=/var/lib/libvirt/lab/vm.ram'/>\
         <qemu:arg value='-machine'/><qemu:arg value='memory-backend=labram'/>\
         <qemu:arg value='-m'/><qemu:arg value='size={memory_kib}K'/>\
         </qemu:commandline></domain>",
        kernel.display(),
        initramfs.display(),
        bed.command_line()
    )
}
