//! What this machine has for tests, as cfgs: a test that needs what is not here is ignored with the
//! reason, and so is counted as skipped by whatever runs the tests. Nothing but tests looks at them.

#![allow(clippy::print_stdout, reason = "how cargo is told")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

const KVM: &str = "/dev/kvm";

fn main() {
    for (name, here) in [
        ("has_kvm", has_kvm()),
        ("is_root", is_root()),
        ("has_mount_namespaces", has_mount_namespaces()),
        ("has_seccomp", Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()),
        ("has_huge_pages", has_huge_pages()),
        ("has_chromium", has_chromium()),
    ] {
        println!("cargo:rustc-check-cfg=cfg({name})");
        if here {
            println!("cargo:rustc-cfg={name}");
        }
    }
    println!("cargo:rerun-if-env-changed=USER");
    if Path::new(KVM).exists() {
        println!("cargo:rerun-if-changed={KVM}");
    }
}

fn has_kvm() -> bool {
    std::fs::File::options().read(true).write(true).open(KVM).is_ok()
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A browser without a screen.
fn has_chromium() -> bool {
    let tried = Command::new("chromium-headless-shell").arg("--version").output();
    tried.is_ok_and(|tried| tried.status.success())
}

fn has_mount_namespaces() -> bool {
    let arguments = ["--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", "/mnt"];
    Command::new("unshare").args(arguments).output().is_ok_and(|tried| tried.status.success())
}

/// Whether this user can reserve some, or they are.
fn has_huge_pages() -> bool {
    let reserved = "/proc/sys/vm/nr_hugepages";
    let writable = std::fs::File::options().write(true).open(reserved).is_ok();
    let text = std::fs::read_to_string(reserved).unwrap_or_default();
    writable || text.trim().parse().is_ok_and(|pages: u64| pages >= 64)
}
