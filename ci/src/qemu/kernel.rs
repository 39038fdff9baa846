//! The kernel of a test VM: Debian's cloud kernel, unpacked from its package without installing it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The kernel image, fetched into `cache` when it is not there yet.
pub(crate) fn fetch(cache: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(cache)?;
    if let Some(kernel) = unpacked(cache) {
        return Ok(kernel);
    }
    let depends = output(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let package = depends
        .split_whitespace()
        .find(|word| word.starts_with("linux-image-") && *word != META_PACKAGE)
        .with_context(|| format!("apt does not know the Debian package {META_PACKAGE}"))?;
    output(Command::new("apt-get").args(["download", "-qq", package]).current_dir(cache))?;
    let archive = find(cache, |name| name.starts_with(package) && name.ends_with(".deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(cache))?;
    std::fs::remove_file(archive)?;
    unpacked(cache).with_context(|| format!("{package} has no kernel in it"))
}

fn unpacked(cache: &Path) -> Option<PathBuf> {
    find(&cache.join("boot"), |name| name.starts_with("vmlinuz"))
}

fn find(directory: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut paths = entries.filter_map(Result::ok);
    paths.find(|entry| entry.file_name().to_str().is_some_and(&wanted)).map(|entry| entry.path())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
