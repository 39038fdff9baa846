//! `ci migrations`: short migrations of random guests over random links, each of which must arrive
//! whole.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::report::RunVerdict;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use workload::exit;

use crate::programs::{Ended, announced, beside, report_of};
use crate::samples::{CONTENTS, PATTERNS};

const POLICIES: [&str; 5] = ["adaptive", "vmotion", "precopy", "auto-converge", "stop-and-copy"];

#[derive(ClapArgs)]
#[command(after_help = "Example:\n  cargo run --release -p ci -- migrations --count 500 --seed 1")]
pub(crate) struct Args {
    /// How many
    #[arg(long, default_value_t = 500)]
    count: u64,
    /// Determines all of them
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let program = beside("vmigrate")?;
    let start = Instant::now();
    let (mut proven, mut by_policy) = (0, std::collections::BTreeMap::<&str, u64>::new());
    for number in 0..args.count {
        let seed = args.seed.wrapping_add(number);
        let (policy, arguments) = random_migration(seed);
        match one(&program, &arguments) {
            Ok(()) => {
                proven += 1;
                *by_policy.entry(policy).or_default() += 1;
            }
            Err(e) => {
                workload::say!("ci: seed {seed}: {e:#}\n    vmigrate send {}", arguments.join(" "))
            }
        }
    }
    let by_policy: Vec<_> = by_policy.iter().map(|(p, n)| format!("{n} {p}")).collect();
    writeln!(
        std::io::stdout(),
        "{} random migrations from seed {}: {proven} PROVEN ({}) in {:.0} s",
        args.count,
        args.seed,
        by_policy.join(", "),
        start.elapsed().as_secs_f64()
    )?;
    Ok(if proven == args.count { exit::PROVEN } else { exit::WRONG })
}

/// The sender's arguments for a seed; the same seed gives the same ones.
fn random_migration(seed: u64) -> (&'static str, Vec<String>) {
    let random = &mut SmallRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let policy = *POLICIES.choose(random).unwrap_or(&"adaptive");
    let pattern = *PATTERNS.choose(random).unwrap_or(&"stream");
    let content = *CONTENTS.choose(random).unwrap_or(&"random");
    let bandwidth = random.random_range(100e6..500e6);
    // What cannot converge without a throttle is not asked to.
    let r_max = match policy {
        "adaptive" => 3.0,
        "precopy" => 0.6,
        _ => 0.9,
    };
    let mut rate = bandwidth * random.random_range(0.1..r_max);
    let least = if content.contains("delta") { 12 } else { 6 };
    let workload = match pattern {
        "touch" if content.contains("delta") => "touch".to_owned(),
        "touch" => format!("touch,content={content}"),
        _ => {
            let record: u64 = 1 << random.random_range(least..=15);
            if policy != "adaptive" {
                // Each of many small records may dirty a page of its own.
                rate *= record.min(4096) as f64 / 4096.0;
            }
            format!("{pattern},record={record},content={content}")
        }
    };
    // Lines of 64 bytes dirty pages by the dozen: their rate is in lines.
    let rate = if pattern == "touch" { rate / 64.0 } else { rate };
    let tracker = if random.random_ratio(1, 4) { "mprotect" } else { "auto" };
    let pages = random.random_range(1000..12_000) * 4096u64;
    let mut one_of = |names: &[&str]| (*names.choose(random).unwrap_or(&"")).to_owned();
    let coding = [
        ("--streams", one_of(&["auto", "1", "2", "3", "4"])),
        ("--compress", one_of(&["auto", "auto", "off", "lz4", "zstd"])),
        ("--delta", one_of(&["auto", "on", "on", "off"])),
        ("--delta-cache", one_of(&["64", "100KiB", "1MiB", "1GiB"])),
        ("--checks", one_of(&["on", "on", "on", "off"])),
    ];
    let words = [
        ("--memory", pages.to_string()),
        ("--workload", workload),
        ("--rate", format!("{rate:.0}B/s")),
        ("--writers", random.random_range(1..=3).to_string()),
        ("--seed", seed.to_string()),
        ("--policy", policy.to_owned()),
        ("--tracker", tracker.to_owned()),
        ("--bandwidth", format!("{bandwidth:.0}B/s")),
        ("--downtime", format!("{}ms", random.random_range(20..300))),
        ("--run-on", "200ms".to_owned()),
        ("--time-limit", "60s".to_owned()),
        ("--linger", "0s".to_owned()),
    ];
    let mut coding = coding.to_vec();
    // What takes too long goes back to copying; stopping first would do so until it is given up.
    if policy != "stop-and-copy" && random.random_ratio(1, 3) {
        coding.push(("--abort-over-limit", String::new()));
    }
    (
        policy,
        words
            .into_iter()
            .chain(coding)
            .flat_map(|(name, value)| [name.to_owned(), value])
            .filter(|word| !word.is_empty())
            .collect(),
    )
}

fn one(program: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let (mut receiver, address) = receiver(program)?;
    let output = Command::new(program)
        .args(["send", "--give-up-after", "60s", "--json", "--to", &address])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot run the sender")?;
    let _ = receiver.0.wait();
    let report = report_of(&output)?;
    anyhow::ensure!(
        report.verdict == RunVerdict::Proven
            && output.status.code() == Some(i32::from(exit::PROVEN)),
        "{}, {}: {}",
        report.verdict,
        output.status,
        report.status.text
    );
    Ok(())
}

fn receiver(program: &Path) -> anyhow::Result<(Ended, String)> {
    let child: Child = Command::new(program)
        .args([
            "receive",
            "--listen",
            "127.0.0.1:0",
            "--announce",
            "--json",
            "--once",
            "--wait",
            "60s",
        ])
        .args(["--give-up-after", "60s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the receiver")?;
    announced(child)
}
