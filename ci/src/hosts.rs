//! Two test hosts: network namespaces joined by a veth pair whose both ends are shaped.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;
use workload::units::Rate;

/// Set in the world of our own that [`enter_own_world`] made.
const OWN_WORLD: &str = "VMIGRATE_LAB_OWN_WORLD";

/// A user who may not make network namespaces gets a world of their own in which they may: a user
/// namespace in which they are root, with mounts and a network that nobody else sees. Returns where
/// nothing of the kind is needed or to be had; [`missing`] then says what is lacking.
pub(crate) fn enter_own_world() {
    /// What `ip netns` and programs of root write to is this world's alone.
    const SCRIPT: &str = "mount -t tmpfs tmpfs /run; mount -t tmpfs -o mode=755 tmpfs /var/lib; \
        ip link set lo up; exec \"$0\" \"$@\"";
    const WORLD: [&str; 4] = ["--user", "--map-root-user", "--mount", "--net"];
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if is_root || std::env::var_os(OWN_WORLD).is_some() {
        return;
    }
    let quiet = |arguments: &[&str]| {
        let mut probe = Command::new("unshare");
        probe.args(WORLD).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    let Ok(program) = std::env::current_exe() else { return };
    if !quiet(&["mount", "-t", "tmpfs", "tmpfs", "/run"]) {
        return;
    }
    workload::say!("ci: not root: the hosts are made in a user namespace");
    let error = Command::new("unshare")
        .args(WORLD)
        .args(["sh", "-ec", SCRIPT])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(OWN_WORLD, "1")
        .exec();
    workload::say!("ci: no user namespace after all: {error}");
}

/// Two namespaces; removed, with their link, when this value goes.
pub(crate) struct Hosts {
    names: [String; 2],
}

/// Address of the second host on their link.
pub(crate) const ADDRESS_B: &str = "10.213.7.2";
const SUBNET: &str = "10.213.7.0/24";
const ADDRESS_A: &str = "10.213.7.1";
/// Addresses of both.
pub(crate) const ADDRESSES: [&str; 2] = [ADDRESS_A, ADDRESS_B];

/// Why hosts cannot be made on this machine.
pub(crate) fn missing() -> Option<String> {
    for program in ["ip", "tc"] {
        let quiet =
            Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if quiet.is_err() {
            return Some(format!("'{program}' is not installed (Debian package iproute2)"));
        }
    }
    let probe = format!("vmigrate-probe-{}", std::process::id());
    match run(&["ip", "netns", "add", &probe]) {
        Ok(()) => {
            let _ = run(&["ip", "netns", "del", &probe]);
            None
        }
        Err(e) => Some(format!("network namespaces cannot be made here ({e:#})")),
    }
}

/// The link between two hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkShape {
    /// What `tc tbf` shapes it to; `None` is as fast as the machine.
    pub(crate) rate: Option<Rate>,
    /// Bytes of an IP packet.
    pub(crate) mtu: u32,
}

impl LinkShape {
    /// Shaped, with the packets of ordinary Ethernet.
    pub(crate) fn ethernet(rate: Rate) -> Self {
        Self { rate: Some(rate), mtu: 1500 }
    }

    /// Shaped or not, with the large packets that networks for migration are set up with.
    pub(crate) fn jumbo(rate: Option<Rate>) -> Self {
        Self { rate, mtu: 9000 }
    }
}

impl Hosts {
    /// Two hosts with a link.
    pub(crate) fn new(link: LinkShape) -> anyhow::Result<Self> {
        let id = std::process::id();
        let hosts = Self { names: [format!("vmigrate-a-{id}"), format!("vmigrate-b-{id}")] };
        let [a, b] = &hosts.names;
        for name in &hosts.names {
            run(&["ip", "netns", "add", name])?;
            run(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        }
        run(&[
            "ip", "-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns",
            b,
        ])?;
        for (name, address) in [(a, ADDRESS_A), (b, ADDRESS_B)] {
            run(&["ip", "-n", name, "addr", "add", &format!("{address}/24"), "dev", "wire"])?;
            let mtu = link.mtu.to_string();
            run(&["ip", "-n", name, "link", "set", "wire", "mtu", &mtu, "up"])?;
            if let Some(rate) = link.rate {
                hosts.shape(name, rate)?;
            }
        }
        Ok(hosts)
    }

    /// Shapes both ends of the link anew.
    pub(crate) fn reshape(&self, rate: Rate) -> anyhow::Result<()> {
        self.names.iter().try_for_each(|name| self.shape(name, rate))
    }

    /// Lets connections that are opened from here on share the link in this way, unless they ask
    /// for another; `None` is the system's.
    pub(crate) fn congestion(&self, control: Option<&str>) -> anyhow::Result<()> {
        for (name, address) in self.names.iter().zip(ADDRESSES) {
            let mut command = vec![
                "ip", "-n", name, "route", "replace", SUBNET, "dev", "wire", "proto", "kernel",
                "scope", "link", "src", address,
            ];
            command.extend(control.iter().flat_map(|control| ["congctl", control]));
            run(&command)?;
        }
        Ok(())
    }

    /// Takes the link `down`, or `up` again.
    pub(crate) fn carrier(&self, state: &str) -> anyhow::Result<()> {
        run(&["ip", "-n", &self.names[0], "link", "set", "wire", state])
    }

    fn shape(&self, name: &str, rate: Rate) -> anyhow::Result<()> {
        let bits = format!("{}bit", rate.0 * 8);
        run(&[
            "tc", "-n", name, "qdisc", "replace", "dev", "wire", "root", "tbf", "rate", &bits,
            "burst", "1mb", "latency", "50ms",
        ])
    }

    /// A command that runs `program` on host 0 or 1.
    pub(crate) fn on(&self, host: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host]]).arg(program).stdin(Stdio::null());
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // The veth pair goes with its namespaces.
            let _ = run(&["ip", "netns", "del", name]);
        }
    }
}

fn run(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run '{}'", words.join(" ")))?;
    anyhow::ensure!(
        output.status.success(),
        "'{}' failed: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
