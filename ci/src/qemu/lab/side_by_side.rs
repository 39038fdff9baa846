//! The same workload at the same rate in as much memory over the same link: our engine with both of
//! its guests, and QEMU in three ways.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use verifier::case::Case;
use workload::exit;
use workload::units::{Bytes, Rate};

use super::bed::{Bed, Plan};
use super::evidence;
use crate::hosts::{Hosts, LinkShape};
use crate::programs::{beside, receiver, report_of};
use crate::qemu::migration::Mode;

/// What an emulated vCPU of ours can write, and a link on which that is a tenth.
const RATE: Rate = Rate(700_000);
const LINK: Rate = Rate(8_000_000);
const MEMORY_MIB: u64 = 192;
const REGION_MIB: u64 = 96;

#[derive(Default)]
struct Line {
    total_s: f64,
    claimed_ms: f64,
    felt_ms: Option<f64>,
    seen_ms: f64,
    rounds: u64,
    megabytes: f64,
    slowed_percent: f64,
    verdict: String,
}

pub(super) fn run(plan: Plan) -> anyhow::Result<u8> {
    let plan =
        Plan { memory_kib: Plan::kib_of(MEMORY_MIB), region_mib: REGION_MIB, rate: RATE, ..plan };
    let mut out = std::io::stdout();
    writeln!(
        out,
        "stream at {RATE} over {}, {MEMORY_MIB} MiB (of QEMU's, {REGION_MIB} MiB are written and the \
         rest is its kernel's)\n{:<22} {:>8} {:>8} {:>8} {:>8} {:>7} {:>9} {:>7}  verdict",
        LINK.as_bits(),
        "",
        "total",
        "claimed",
        "felt",
        "seen",
        "rounds",
        "bytes",
        "slowed"
    )?;
    let mut code = exit::PROVEN;
    let mut show = |name: &str, line: anyhow::Result<Line>| -> anyhow::Result<()> {
        crate::interrupted()?;
        match line {
            Ok(l) => {
                let felt = l.felt_ms.map_or("none".to_owned(), |felt| format!("{felt:.0} ms"));
                writeln!(
                    out,
                    "{name:<22} {:>8} {:>8} {felt:>8} {:>8} {:>7} {:>9} {:>7}  {}",
                    format!("{:.1} s", l.total_s),
                    format!("{:.0} ms", l.claimed_ms),
                    format!("{:.0} ms", l.seen_ms),
                    l.rounds,
                    format!("{:.1} MB", l.megabytes),
                    format!("{:.1} %", l.slowed_percent),
                    l.verdict
                )?;
                if l.verdict != "PROVEN" {
                    code = exit::WRONG;
                }
            }
            Err(e) => {
                writeln!(out, "{name:<22} FAILED: {}", exit::one_line(e.as_ref()))?;
                code = exit::FAILED;
            }
        }
        Ok(())
    };
    let hosts = Hosts::new(LinkShape::ethernet(LINK))?;
    for guest in ["process", "kvm"] {
        let line = match guest {
            "kvm" if !std::path::Path::new("/dev/kvm").exists() => {
                Err(anyhow::anyhow!("SKIPPED: there is no /dev/kvm"))
            }
            _ => ours(&hosts, guest),
        };
        show(&format!("ours, {guest} guest"), line)?;
    }
    drop(hosts);
    let bed = Bed::new(plan, LINK)?;
    for mode in ["plain", "auto-converge", "postcopy"] {
        show(&format!("QEMU {mode}"), qemu(&bed, mode))?;
    }
    Ok(code)
}

fn ours(hosts: &Hosts, guest: &str) -> anyhow::Result<Line> {
    let directory = tempfile::tempdir()?;
    let journal = directory.path().join("journal");
    let (mut receiver, address) = receiver(hosts, &["--journal".as_ref(), journal.as_os_str()])?;
    let memory = Bytes(MEMORY_MIB << 20);
    let output = hosts
        .on(0, &beside("vmigrate")?)
        .args([
            "send",
            "--give-up-after",
            "60s",
            "--insecure",
            "--json",
            "--to",
            &address,
            "--guest",
            guest,
        ])
        .args(["--memory", &memory.0.to_string(), "--rate", &format!("{}B/s", RATE.0)])
        .args(["--workload", "stream,record=16KiB", "--seed", "7", "--compress", "off"])
        .args(["--delta", "off", "--journal"])
        .arg(&journal)
        .output()
        .context("cannot run the sender")?;
    receiver.0.wait()?;
    let report = report_of(&output)?;
    let attempt = report.last().context("the sender tried nothing")?;
    let witnesses = report.witnesses.context("the guest did not migrate")?;
    Ok(Line {
        total_s: attempt.migration_ms / 1e3,
        claimed_ms: attempt.downtime.total_ms,
        felt_ms: witnesses.felt_ms,
        seen_ms: witnesses.seen_ms.context("the journal did not hear both hosts")?,
        rounds: attempt.rounds.len() as u64,
        megabytes: attempt.wire_bytes as f64 / 1e6,
        slowed_percent: slowed(report.rate_achieved),
        verdict: report.verdict.to_string(),
    })
}

fn slowed(bytes_per_s: f64) -> f64 {
    (100.0 * (1.0 - bytes_per_s / RATE.0 as f64)).max(0.0)
}

fn qemu(bed: &Bed, name: &str) -> anyhow::Result<Line> {
    let mode = Mode::named(name)?;
    let (mut life, mut source) = bed.boot(&format!("side-{name}"))?;
    let began_ns = evidence::now_ns();
    let written = |life: &super::bed::Life| -> anyhow::Result<u64> {
        Ok(Case::read(&life.journal)?.evidence().watermarks().iter().sum())
    };
    let before = written(&life)?;
    let (vm, claim) = bed.migrate(&mut life, &mode, &mut source)?;
    let elapsed = Duration::from_nanos(evidence::now_ns() - began_ns).as_secs_f64();
    let records = written(&life)? - before;
    drop(source);
    let evidence = evidence::gather(vm, &life, !mode.postcopy, began_ns, None)?;
    Ok(Line {
        total_s: claim.total_ms / 1e3,
        claimed_ms: claim.downtime_ms,
        felt_ms: evidence.felt_ms,
        seen_ms: evidence.seen_ms,
        rounds: claim.rounds,
        megabytes: claim.bytes as f64 / 1e6,
        slowed_percent: slowed((records * (16 << 10)) as f64 / elapsed),
        verdict: evidence.verdict().to_owned(),
    })
}
