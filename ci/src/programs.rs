//! The programs under test, which are built beside this one.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::thread::JoinHandle;

use anyhow::Context;
use migrate_core::report::{ReceiveReport, RunReport};
use serde::de::DeserializeOwned;

use crate::hosts::{ADDRESS_B, Hosts};

/// Where receivers listen.
pub(crate) const PORT: u16 = 7400;

/// A child that is ended with this value.
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program of that name.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(
        program.exists(),
        "{} is not built; run `cargo build --release --workspace` first",
        program.display()
    );
    Ok(program)
}

/// A receiver on the second host, and the address it listens at.
pub(crate) fn receiver(hosts: &Hosts, more: &[&OsStr]) -> anyhow::Result<(Ended, String)> {
    let (child, address, _) = receiver_with_report(hosts, more)?;
    Ok((child, address))
}

/// The same, and a thread that ends with what it reported.
pub(crate) fn receiver_with_report(
    hosts: &Hosts,
    more: &[&OsStr],
) -> anyhow::Result<(Ended, String, Reported)> {
    let child = hosts
        .on(1, &beside("vmigrate")?)
        .args([
            "receive",
            "--once",
            "--insecure",
            "--announce",
            "--json",
            "--wait",
            "60s",
            "--give-up-after",
            "60s",
        ])
        .arg("--listen")
        .arg(format!("{ADDRESS_B}:{PORT}"))
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the receiver")?;
    announced_with_report(child)
}

/// The report that a program printed as JSON; what it complained of instead, if there is none.
pub(crate) fn report<T: DeserializeOwned>(output: &Output) -> anyhow::Result<T> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no report: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// The report that a sender printed as JSON.
pub(crate) fn report_of(sender: &Output) -> anyhow::Result<RunReport> {
    report(sender)
}

/// A receiver that was started with `--announce`, its output piped, and the address it listens at.
pub(crate) fn announced(child: Child) -> anyhow::Result<(Ended, String)> {
    let (child, address, _) = announced_with_report(child)?;
    Ok((child, address))
}

/// The same, and a thread that ends with what the receiver wrote afterwards.
fn announced_with_report(child: Child) -> anyhow::Result<(Ended, String, Reported)> {
    let mut child = Ended(child);
    let stdout = child.0.stdout.take().context("the receiver has no output")?;
    let mut reader = BufReader::new(stdout);
    let mut address = String::new();
    reader.read_line(&mut address).context("the receiver does not answer")?;
    anyhow::ensure!(!address.trim().is_empty(), "the receiver did not start listening");
    // Drained, so that the receiver never waits for us to read its report.
    let report = std::thread::spawn(move || {
        let mut report = Vec::new();
        // What is missing shows when it is read.
        let _ = reader.read_to_end(&mut report);
        report
    });
    Ok((child, address.trim().to_owned(), Reported(report)))
}

/// What a receiver reports, once it does.
pub(crate) struct Reported(JoinHandle<Vec<u8>>);

impl Reported {
    /// Waits for it.
    pub(crate) fn read(self) -> anyhow::Result<ReceiveReport> {
        serde_json::from_slice(&self.0.join().unwrap_or_default())
            .context("the receiver's report cannot be read")
    }
}
