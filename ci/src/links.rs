//! `ci links`: links and guests that behave badly. A migration either ends PROVEN, or is given up
//! for a reason that is said, in bounded time, and the guest runs on whole where it was.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::guest::stamped::proof::Scanned;
use migrate_core::report::RunReport;
use workload::exit;
use workload::units::Rate;

use crate::hosts::{Hosts, LinkShape};
use crate::programs::{Ended, beside, receiver};

#[derive(ClapArgs)]
#[command(after_help = "Example:\n  cargo run --release -p ci -- links")]
pub(crate) struct Args {}

/// The link's rate while all is well.
const RATE: Rate = Rate(62_500_000);

/// What is done to the link, and after how long.
#[derive(Clone, Copy)]
enum Event {
    Slower,
    AsBefore,
    Down,
    Up,
}

struct Case {
    name: &'static str,
    events: &'static [(u64, Event)],
    arguments: &'static [&'static str],
    /// Exit codes that are right.
    codes: &'static [u8],
    /// Words of its status when it is given up.
    says: &'static str,
}

const CASES: [Case; 7] = [
    Case {
        name: "drops to a tenth and recovers",
        events: &[(1000, Event::Slower), (4000, Event::AsBefore)],
        arguments: &["--rate", "20MB/s"],
        codes: &[exit::PROVEN],
        says: "",
    },
    Case {
        name: "drops to a tenth for good",
        events: &[(1200, Event::Slower)],
        arguments: &["--rate", "3MB/s", "--time-limit", "60s"],
        codes: &[exit::PROVEN],
        says: "",
    },
    Case {
        name: "stalls for two seconds",
        events: &[(1500, Event::Down), (3500, Event::Up)],
        arguments: &["--rate", "20MB/s"],
        codes: &[exit::PROVEN],
        says: "",
    },
    Case {
        name: "stalls for good",
        events: &[(1500, Event::Down)],
        arguments: &["--rate", "20MB/s"],
        codes: &[exit::FAILED],
        says: "link lost",
    },
    Case {
        name: "stalls, and a receiver is there for a second attempt",
        events: &[(1500, Event::Down), (8000, Event::Up)],
        arguments: &["--rate", "20MB/s", "--retry", "1"],
        codes: &[exit::PROVEN],
        says: "",
    },
    Case {
        name: "a guest that writes as fast as it can",
        events: &[],
        arguments: &["--rate", "100GB/s", "--time-limit", "40s"],
        codes: &[exit::PROVEN, exit::FAILED],
        says: "gave up",
    },
    Case {
        name: "a budget that cannot be met",
        events: &[],
        arguments: &["--rate", "20MB/s", "--time-limit", "2s"],
        codes: &[exit::FAILED],
        says: "2 s were not enough",
    },
];

pub(crate) fn run(_: &Args) -> anyhow::Result<u8> {
    let mut out = std::io::stdout();
    let mut code = exit::PROVEN;
    for case in &CASES {
        crate::interrupted()?;
        let start = Instant::now();
        match one(case) {
            Ok(said) => writeln!(
                out,
                "{:<54} {:>5.1} s  as it should be: {said}",
                case.name,
                start.elapsed().as_secs_f64()
            )?,
            Err(e) => {
                code = exit::WRONG;
                writeln!(out, "{:<54} NOT AS IT SHOULD BE: {e:#}", case.name)?;
            }
        }
    }
    Ok(code)
}

fn one(case: &Case) -> anyhow::Result<String> {
    let hosts = Hosts::new(LinkShape::ethernet(RATE))?;
    let program = beside("vmigrate")?;
    let (mut there, address) = receiver(&hosts, &[])?;
    let mut command: Command = hosts.on(0, &program);
    let child = command
        .args([
            "send",
            "--give-up-after",
            "60s",
            "--insecure",
            "--json",
            "--to",
            &address,
            "--memory",
            "128MiB",
        ])
        .args(["--run-on", "300ms", "--linger", "300ms", "--compress", "off", "--delta", "off"])
        .args(case.arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the sender")?;
    let mut sender = Ended(child);
    let start = Instant::now();
    for (at_ms, event) in case.events {
        let at = start + Duration::from_millis(*at_ms);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        crate::interrupted()?;
        match event {
            Event::Slower => hosts.reshape(Rate(RATE.0 / 10))?,
            Event::AsBefore => hosts.reshape(RATE)?,
            Event::Down => hosts.carrier("down")?,
            Event::Up => hosts.carrier("up")?,
        }
    }
    if case.arguments.contains(&"--retry") {
        // The first receiver lost its source; the next attempt finds a new one.
        there.0.wait()?;
        there = receiver(&hosts, &[])?.0;
    }
    let stdout = sender.0.stdout.take().context("the sender has no output")?;
    let report = std::io::read_to_string(stdout)?;
    let status = sender.0.wait()?;
    drop(there);
    let report: RunReport = serde_json::from_str(&report).context("the sender's report")?;
    let said = &report.status.text;
    let code = status.code().map_or(exit::WRONG, |code| code as u8);
    anyhow::ensure!(case.codes.contains(&code), "exit code {code}: {said}");
    if code == exit::FAILED {
        anyhow::ensure!(said.contains(case.says), "it says: {said}");
        let fault = report.source_scan.as_ref().map(Scanned::first_fault);
        anyhow::ensure!(fault == Some(None), "the source: {fault:?}");
    }
    Ok(format!("{}, {said}", report.verdict))
}
