//! `ci hops`: one guest to and fro between two hosts, dirtied all the time, the link cut now and then;
//! each hop is proven, and the journals of all its hosts together.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use migrate_core::report::{ReceiveReport, RunVerdict};
use verifier::verdict::Verdict;
use workload::exit;
use workload::units::{Bytes, Rate};

use crate::hosts::{ADDRESSES, Hosts, LinkShape};
use crate::programs::{Ended, PORT, beside, report_of};

#[derive(ClapArgs)]
#[command(after_help = "Example:\n  cargo run --release -p ci -- hops --count 200 --cut-every 20")]
pub(crate) struct Args {
    /// How often the guest is moved
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// The link is cut once in so many hops
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    cut_every: u64,
    /// The guest's memory
    #[arg(long, default_value = "32MiB")]
    memory: Bytes,
    /// Bytes of records that it writes per second
    #[arg(long, default_value = "30MB/s")]
    rate: Rate,
    /// What the link is shaped to
    #[arg(long, default_value = "1gbit")]
    link: Rate,
}

/// How long the link is away: longer than the ends wait for it.
const AWAY: Duration = Duration::from_millis(2500);
/// How long the ends wait.
const LINK_TIMEOUT: &str = "1s";
/// No hop takes longer, cut or not.
const HOP_TIME_MAX: Duration = Duration::from_secs(90);

/// What came of all hops.
#[derive(Default)]
struct Sum {
    hops: u64,
    proven: u64,
    cuts: u64,
    attempts_failed: usize,
    downtimes_ms: Vec<f64>,
    troubles: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let hosts = Hosts::new(LinkShape::ethernet(args.link))?;
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let (told, documents) = mpsc::channel();
    let mut receivers = Vec::new();
    for host in 0..2 {
        receivers.push(receiver(&hosts, host, args, directory.path(), told.clone())?);
    }
    drop(told);
    let begin = Instant::now();
    let first = directory.path().join("first");
    let sent = hosts
        .on(0, &beside("vmigrate")?)
        .args(["send", "--insecure", "--json", "--give-up-after", "60s", "--wait", "10s"])
        .args(["--to", &format!("{}:{PORT}", ADDRESSES[1]), "--run-on", "200ms"])
        .args(["--memory", &args.memory.0.to_string(), "--rate", &format!("{}B/s", args.rate.0)])
        .arg("--journal")
        .arg(&first)
        .output()
        .context("cannot run the sender")?;
    let sent = report_of(&sent)?;
    anyhow::ensure!(sent.verdict == RunVerdict::Proven, "the first hop: {}", sent.status.text);
    let mut sum = Sum::default();
    let followed = follow(&hosts, args, &documents, &mut sum);
    let seconds = begin.elapsed().as_secs_f64();
    if followed.is_ok() {
        for receiver in &mut receivers {
            let status = receiver.0.wait()?;
            if !status.success() {
                sum.troubles.push(format!("a receiver ended with {status}"));
            }
        }
    }
    drop(receivers);
    sum.troubles.extend(followed.err().map(|error| format!("{error:#}")));
    let journals = ["first", "journal-0", "journal-1"].map(|name| directory.path().join(name));
    let judged = Command::new(beside("verifier")?)
        .arg("journal")
        .args(&journals)
        .output()
        .context("cannot run the verifier")?;
    let said = String::from_utf8_lossy(&judged.stdout).into_owned();
    let joined = said.lines().rfind(|line| !line.is_empty()).unwrap_or("nothing").to_owned();
    let whole = judged.status.code() == Some(i32::from(exit::PROVEN));
    print(args, &mut sum, seconds, &joined)?;
    Ok(match whole && sum.troubles.is_empty() && sum.hops == args.count && sum.proven == sum.hops {
        true => exit::PROVEN,
        false => exit::WRONG,
    })
}

fn print(args: &Args, sum: &mut Sum, seconds: f64, joined: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} of {} hops of {} that writes {} over {}, in {seconds:.0} s: {} proven",
        sum.hops,
        args.count,
        args.memory,
        args.rate,
        args.link.as_bits(),
        sum.proven
    )?;
    writeln!(
        out,
        "  the link was cut {} times for {} ms; {} attempts failed and were made again",
        sum.cuts,
        AWAY.as_millis(),
        sum.attempts_failed
    )?;
    sum.downtimes_ms.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = sum.downtimes_ms.len().saturating_sub(1);
        sum.downtimes_ms.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    };
    writeln!(
        out,
        "  downtime: median {:.1} ms, 90 % within {:.1} ms, longest {:.1} ms",
        at(0.5),
        at(0.9),
        at(1.0)
    )?;
    writeln!(out, "  journals of all hosts together: {joined}")?;
    for trouble in &sum.troubles {
        writeln!(out, "  NOT AS IT SHOULD BE: {trouble}")?;
    }
    Ok(())
}

/// A receiver that passes its guests on to the other host, and a thread that reads its documents.
fn receiver(
    hosts: &Hosts,
    host: usize,
    args: &Args,
    directory: &Path,
    told: mpsc::Sender<anyhow::Result<ReceiveReport>>,
) -> anyhow::Result<Ended> {
    let child = hosts
        .on(host, &beside("vmigrate")?)
        .args(["receive", "--insecure", "--json", "--announce", "--give-up-after", "60s"])
        .args(["--link-timeout", LINK_TIMEOUT, "--hops", &args.count.to_string()])
        .args(["--listen", &format!("{}:{PORT}", ADDRESSES[host])])
        .args(["--on-to", &format!("{}:{PORT}", ADDRESSES[1 - host])])
        .arg("--journal")
        .arg(directory.join(format!("journal-{host}")))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a receiver")?;
    let mut child = Ended(child);
    let stdout = child.0.stdout.take().context("a receiver has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    lines.next().context("a receiver does not listen")??;
    std::thread::spawn(move || {
        for line in lines {
            let document = line
                .map_err(anyhow::Error::from)
                .and_then(|line| Ok(serde_json::from_str::<ReceiveReport>(&line)?));
            if told.send(document).is_err() {
                return;
            }
        }
    });
    Ok(child)
}

/// Hears of each hop until the last, and cuts the link meanwhile.
fn follow(
    hosts: &Hosts,
    args: &Args,
    documents: &Receiver<anyhow::Result<ReceiveReport>>,
    sum: &mut Sum,
) -> anyhow::Result<()> {
    let mut back_at: Option<Instant> = None;
    let mut heard = Instant::now();
    while sum.hops < args.count {
        crate::interrupted()?;
        if back_at.is_some_and(|at| Instant::now() >= at) {
            hosts.carrier("up")?;
            back_at = None;
        }
        let report = match documents.recv_timeout(Duration::from_millis(20)) {
            Ok(report) => report?,
            Err(RecvTimeoutError::Timeout) => {
                anyhow::ensure!(
                    heard.elapsed() < HOP_TIME_MAX,
                    "nothing was heard of the guest for {} s",
                    HOP_TIME_MAX.as_secs()
                );
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("both receivers are gone"),
        };
        heard = Instant::now();
        if !report.migrated {
            // The other side of an attempt that failed.
            continue;
        }
        sum.hops += 1;
        let on = report.passed_on.as_deref();
        let whole = report.memory == Verdict::Proven
            && on.is_none_or(|on| on.verdict == RunVerdict::Proven);
        match whole {
            true => sum.proven += 1,
            false => {
                let why = on.map_or(&report.status.text, |on| &on.status.text);
                sum.troubles.push(format!("hop {}: {why}", sum.hops));
            }
        }
        if let Some(on) = on {
            sum.attempts_failed += on.attempts.iter().filter(|m| !m.is_done()).count();
            sum.downtimes_ms.extend(on.last().map(|m| m.downtime.total_ms));
        }
        if sum.hops.is_multiple_of(args.cut_every) && sum.hops < args.count && back_at.is_none() {
            // Each cut comes at another moment of a hop.
            std::thread::sleep(Duration::from_millis(sum.cuts * 53 % 600));
            hosts.carrier("down")?;
            sum.cuts += 1;
            back_at = Some(Instant::now() + AWAY);
        }
    }
    Ok(())
}
