//! Real virtual machines: QEMU with our programs as the whole of its userland.

mod boot;
mod certificates;
mod initramfs;
mod kernel;
mod lab;
mod lives;
pub(crate) mod machine;
pub(crate) mod migration;
mod qmp;
mod vm;

use std::path::PathBuf;
use std::process::{Command, Stdio};

pub(crate) use boot::{Args, run};
pub(crate) use lab::row::{LabReport, SCHEMA};
pub(crate) use lab::{Args as LabArgs, libvirt, run as run_lab};
pub(crate) use lives::run as run_lives;

/// Why no VM can be run on this machine.
pub(crate) fn missing() -> Option<String> {
    missing_program()
        .or_else(|| kernel::fetch(&cache()).err().map(|e| format!("no kernel for a VM: {e:#}")))
}

/// Why QEMU cannot be run on this machine.
pub(crate) fn missing_program() -> Option<String> {
    let quiet = Command::new("qemu-system-x86_64")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if quiet.is_err() {
        return Some(
            "'qemu-system-x86_64' is not installed (Debian package qemu-system-x86)".to_owned(),
        );
    }
    None
}

/// Which QEMU, and what runs its guests.
fn version() -> String {
    let output = Command::new("qemu-system-x86_64").arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    let number = said.split_whitespace().nth(3).unwrap_or("of unknown version");
    format!("QEMU {number} under TCG")
}

/// Where the kernel is kept between runs.
fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/lab")
}

/// Where ci/static puts the static programs.
pub(crate) fn static_programs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/static")
}
