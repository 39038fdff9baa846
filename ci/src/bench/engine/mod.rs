//! `ci/bench engine`: our engine beside iperf3 and QEMU, on the same hosts in the same run.
//!
//! Peers take turns, so that a machine whose speed drifts drifts for all of them; medians are
//! judged. Links are two network namespaces and a veth pair with packets of 9000 bytes, as networks
//! for migration are set up: with 1500, headers alone take 4.4 % of the wire.

mod kvm;
mod peers;

use anyhow::Context;
use workload::units::Rate;

use super::{Limit, Row, median};
use crate::hosts::{self, Hosts, LinkShape};
use crate::qemu;
use crate::qemu::migration::Mode;
use peers::Transfer;

/// How much is done.
struct Effort {
    memory_mib: u64,
    turns: usize,
    stuns: usize,
    iperf_s: u32,
}

const FULL: Effort = Effort { memory_mib: 4096, turns: 5, stuns: 50, iperf_s: 3 };
const QUICK: Effort = Effort { memory_mib: 1024, turns: 3, stuns: 10, iperf_s: 2 };

/// The congestion control that our engine asks for; peers take the system's, and then this one too.
const UNPACED: &str = "cubic";

/// Who takes turns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Iperf(Pacing),
    Ours,
    /// Ours, with a guest most of whose pages are zero.
    Zero,
    Qemu(&'static str, Pacing),
}

/// How a peer's connections share the link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pacing {
    /// As the system's do.
    System,
    /// As ours do.
    Unpaced,
}

const PEERS: [Peer; 9] = [
    Peer::Iperf(Pacing::System),
    Peer::Ours,
    Peer::Qemu("plain", Pacing::System),
    Peer::Qemu("multifd2", Pacing::System),
    Peer::Qemu("multifd4", Pacing::System),
    Peer::Zero,
    Peer::Iperf(Pacing::Unpaced),
    Peer::Qemu("multifd2", Pacing::Unpaced),
    Peer::Qemu("multifd4", Pacing::Unpaced),
];

/// Content that neither packs nor repeats, sent as it is: what the transport alone can do.
const WHOLE: [&str; 4] = ["--compress", "off", "--delta", "off"];

pub(super) fn measure(quick: bool) -> anyhow::Result<Vec<Row>> {
    let effort = if quick { QUICK } else { FULL };
    if let Some(why) = hosts::missing().or_else(qemu::missing_program) {
        workload::say!("SKIPPED: all of it: {why}");
        return Ok(vec![skipped("the engine between two hosts", &why)]);
    }
    let (transport, qemu_downtime_ms) = transport(&effort)?;
    let mut rows = transport;
    rows.extend(shaped()?);
    rows.extend(contents()?);
    rows.extend(downtime(&effort, qemu_downtime_ms)?);
    rows.extend(guest()?);
    rows.extend(kvm::measure()?);
    rows.extend(policies(quick)?);
    Ok(rows)
}

fn skipped(name: &str, why: &str) -> Row {
    Row {
        name: name.to_owned(),
        figure: "SKIPPED".to_owned(),
        peer: why.chars().take(13).collect(),
        value: None,
        limit: Limit::AtLeast(0.0),
    }
}

fn row(name: &str, figure: String, peer: String, value: f64, limit: Limit) -> Row {
    Row { name: name.to_owned(), figure, peer, value: Some(value), limit }
}

fn median_of<'a>(
    transfers: impl IntoIterator<Item = &'a Transfer>,
    figure: impl Fn(&Transfer) -> f64,
) -> f64 {
    median(transfers.into_iter().map(figure).collect())
}

fn gbit(bytes_per_s: f64) -> String {
    format!("{:.2} Gbit/s", bytes_per_s * 8.0 / 1e9)
}

fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

fn milliseconds(value: f64) -> String {
    format!("{value:.1} ms")
}

/// Says what is being measured; long tables are waited for.
fn say(what: &str) {
    workload::say!("ci: {what}");
}

/// The unshaped link, an idle guest: iperf3, QEMU and we in turn; also QEMU's downtime.
fn transport(effort: &Effort) -> anyhow::Result<(Vec<Row>, f64)> {
    let hosts = Hosts::new(LinkShape::jumbo(None))?;
    let directory = tempfile::tempdir_in("/dev/shm")?;
    let kib = effort.memory_mib << 10;
    let memory = format!("{}MiB", effort.memory_mib);
    let idle = ["--memory", &memory, "--workload", "stream,record=4KiB", "--rate", "1MB/s"];
    let mostly_zero = ["--workload", "stream,content=zero*3+random*1,record=4KiB"];
    let mostly_zero = [&idle[..2], &mostly_zero, &idle[4..], &WHOLE].concat();
    let idle = [&idle[..], &WHOLE].concat();
    let ram = directory.path().join("source.ram");
    let mut done = PEERS.map(|_| Vec::new());
    for turn in 1..=effort.turns {
        say(&format!("unshaped link, {memory}, turn {turn} of {}", effort.turns));
        // Each is first now and then.
        for place in 0..PEERS.len() {
            let index = (place + turn) % PEERS.len();
            done[index].push(match PEERS[index] {
                Peer::Iperf(pacing) => {
                    pace(&hosts, pacing)?;
                    let transfer = peers::iperf(&hosts, effort.iperf_s, kib << 10)?;
                    // All others free as much as the next one needs, and memory that was just
                    // freed is had sooner: where this machine is a virtual one its host has it.
                    peers::fill(&ram, 2 * kib)?;
                    std::fs::remove_file(&ram)?;
                    transfer
                }
                Peer::Ours => peers::ours(&hosts, &idle)?,
                Peer::Zero => peers::ours(&hosts, &mostly_zero)?,
                Peer::Qemu(mode, pacing) => {
                    pace(&hosts, pacing)?;
                    peers::fill(&ram, kib)?;
                    peers::qemu(&hosts, directory.path(), &ram, kib, &Mode::named(mode)?)?
                }
            });
            pace(&hosts, Pacing::System)?;
        }
    }
    let of = |wanted: Peer| {
        let all = PEERS.iter().zip(&done);
        all.filter(|(peer, _)| **peer == wanted).flat_map(|(_, done)| done).collect::<Vec<_>>()
    };
    Ok((transport_rows(kib << 10, of), qemu_downtime_ms(&done)))
}

/// The least of QEMU's median downtimes.
fn qemu_downtime_ms(done: &[Vec<Transfer>]) -> f64 {
    let qemus = PEERS.iter().zip(done).filter(|(peer, _)| matches!(peer, Peer::Qemu(..)));
    qemus.map(|(_, done)| median_of(done, |t| t.downtime_ms)).fold(f64::INFINITY, f64::min)
}

/// Lets the peers' connections share the link in this way.
fn pace(hosts: &Hosts, pacing: Pacing) -> anyhow::Result<()> {
    hosts.congestion(match pacing {
        Pacing::System => None,
        Pacing::Unpaced => Some(UNPACED),
    })
}

fn transport_rows<'a>(bytes: u64, of: impl Fn(Peer) -> Vec<&'a Transfer>) -> Vec<Row> {
    let speed = |peer| bytes as f64 / median_of(of(peer), |t| t.seconds);
    let cpu = |peer| median_of(of(peer), |t| t.cpu_s_per_gib);
    let total = |peer| median_of(of(peer), |t| t.seconds + t.setup_s);
    let ours = speed(Peer::Ours);
    let mut rows = Vec::new();
    for (pacing, how) in [(Pacing::System, ""), (Pacing::Unpaced, ", not paced")] {
        let wire = speed(Peer::Iperf(pacing));
        rows.push(row(
            &format!("idle guest / two iperf3{how}"),
            gbit(ours),
            gbit(wire),
            ours / wire,
            Limit::AtLeast(0.85),
        ));
        let multifd = ["multifd2", "multifd4"].map(|mode| speed(Peer::Qemu(mode, pacing)));
        let best = multifd.into_iter().fold(0.0, f64::max);
        rows.push(row(
            &format!("idle guest / QEMU's multifd{how}"),
            gbit(ours),
            gbit(best),
            ours / best,
            Limit::AtLeast(1.4),
        ));
    }
    for peer in PEERS {
        let Peer::Qemu(mode, pacing) = peer else { continue };
        let how = if pacing == Pacing::Unpaced { ", not paced" } else { "" };
        rows.push(row(
            &format!("CPU per GiB / QEMU {mode}{how}"),
            seconds(cpu(Peer::Ours)),
            seconds(cpu(peer)),
            cpu(Peer::Ours) / cpu(peer),
            Limit::AtMost(1.0),
        ));
    }
    for peer in PEERS {
        let Peer::Qemu(mode, Pacing::System) = peer else { continue };
        rows.push(row(
            &format!("time with setup / QEMU {mode}"),
            seconds(total(Peer::Ours)),
            seconds(total(peer)),
            total(Peer::Ours) / total(peer),
            Limit::AtMost(1.0),
        ));
    }
    let (all, some) = (Peer::Ours, Peer::Zero);
    let [all, some] = [all, some].map(|peer| median_of(of(peer), |t| t.seconds));
    rows.push(row(
        "time of no / of 75 % zero pages",
        seconds(all),
        seconds(some),
        all / some,
        Limit::AtLeast(3.0),
    ));
    rows
}

/// Shaped links: how much of the wire carries page data.
fn shaped() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (link, memory) in [("1gbit", "512MiB"), ("4gbit", "1GiB")] {
        say(&format!("link shaped to {link}"));
        let rate: Rate = link.parse().map_err(anyhow::Error::msg)?;
        let hosts = Hosts::new(LinkShape::jumbo(Some(rate)))?;
        let arguments =
            [&["--memory", memory, "--record", "4KiB", "--rate", "1MB/s"][..], &WHOLE].concat();
        let mut carried = Vec::new();
        for _ in 0..3 {
            let transfer = peers::ours(&hosts, &arguments)?;
            let attempt = transfer.ours()?.last().context("nothing was tried")?;
            carried.push(attempt.page_bytes as f64 / transfer.seconds);
        }
        let carried = median(carried);
        rows.push(row(
            &format!("page data / {link}"),
            gbit(carried),
            gbit(rate.0 as f64),
            carried / rate.0 as f64,
            Limit::AtLeast(0.96),
        ));
    }
    Ok(rows)
}

/// Text over 1 Gbit/s, packed and whole in turn.
fn contents() -> anyhow::Result<Vec<Row>> {
    say("text over 1 Gbit/s");
    let hosts = Hosts::new(LinkShape::jumbo(Some("1gbit".parse().map_err(anyhow::Error::msg)?)))?;
    let text =
        ["--memory", "512MiB", "--workload", "stream,content=text,record=4KiB", "--rate", "1MB/s"];
    let (mut packed, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        packed.push(peers::ours(&hosts, &text)?);
        whole.push(peers::ours(&hosts, &[&text[..], &WHOLE].concat())?);
    }
    let time = |transfers: &[Transfer]| median_of(transfers, |t| t.seconds);
    let (packed, whole) = (time(&packed), time(&whole));
    Ok(vec![row(
        "text, 1 Gbit/s: time whole / packed",
        seconds(whole),
        seconds(packed),
        whole / packed,
        Limit::AtLeast(2.5),
    )])
}

/// Many stuns at half the link's rate, and QEMU's of a VM that does nothing.
fn downtime(effort: &Effort, qemu_ms: f64) -> anyhow::Result<Vec<Row>> {
    let hosts = Hosts::new(LinkShape::jumbo(Some("4gbit".parse().map_err(anyhow::Error::msg)?)))?;
    // r = 0.5 of 4 Gbit/s.
    let arguments = ["--memory", "1GiB", "--rate", "250MB/s", "--downtime", "10ms"];
    let mut downtimes = Vec::new();
    for turn in 1..=effort.stuns {
        if turn % 10 == 1 {
            say(&format!("stun {turn} of {} at r = 0.5 over 4 Gbit/s", effort.stuns));
        }
        downtimes.push(peers::ours(&hosts, &arguments)?.downtime_ms);
    }
    downtimes.sort_by(f64::total_cmp);
    let at = |q: f64| downtimes[((downtimes.len() as f64 * q).ceil() as usize).max(1) - 1];
    let limit = |value: f64| milliseconds(value);
    Ok(vec![
        row(
            "downtime at r = 0.5, p50, ms",
            milliseconds(at(0.5)),
            limit(10.0),
            at(0.5),
            Limit::AtMost(10.0),
        ),
        row(
            "downtime at r = 0.5, p99, ms",
            milliseconds(at(0.99)),
            limit(30.0),
            at(0.99),
            Limit::AtMost(30.0),
        ),
        row(
            "downtime p50 / QEMU's of an idle VM",
            milliseconds(at(0.5)),
            milliseconds(qemu_ms),
            at(0.5) / qemu_ms,
            Limit::AtMost(0.2),
        ),
    ])
}

/// A streaming writer at 90 % of 1 Gbit/s: what it writes per second while it is migrated.
fn guest() -> anyhow::Result<Vec<Row>> {
    say("a writer at 90 % of 1 Gbit/s");
    let hosts = Hosts::new(LinkShape::jumbo(Some("1gbit".parse().map_err(anyhow::Error::msg)?)))?;
    let arguments =
        ["--memory", "256MiB", "--rate", "112MB/s", "--policy", "precopy", "--rounds", "60"];
    let transfer = peers::ours(&hosts, &[&arguments[..], &WHOLE].concat())?;
    let report = transfer.ours()?;
    let wanted = report.rate_wanted.context("a rate was wanted")? as f64;
    let got = report.rate_achieved;
    let lost = 100.0 * (1.0 - got / wanted);
    Ok(vec![row(
        "throughput lost to write tracking, %",
        format!("{:.1} MB/s", got / 1e6),
        format!("{:.1} MB/s", wanted / 1e6),
        lost,
        Limit::AtMost(3.0),
    )])
}

/// `adaptive` beside `vmotion` and `auto-converge` on real links of 1 Gbit/s, same seeds.
fn policies(quick: bool) -> anyhow::Result<Vec<Row>> {
    const B: f64 = 125e6;
    let hosts = Hosts::new(LinkShape::jumbo(Some("1gbit".parse().map_err(anyhow::Error::msg)?)))?;
    let run = |policy: &str, workload: &str, r: f64, more: &[&str]| {
        say(&format!("{policy}: {workload} at r = {r}"));
        let rate = format!("{:.0}B/s", r * B);
        let base = [
            "--memory",
            "256MiB",
            "--downtime",
            "40ms",
            "--beta",
            "0.9",
            "--rounds",
            "300",
            "--policy",
            policy,
            "--workload",
            workload,
            "--rate",
            &rate,
        ];
        peers::ours(&hosts, &[&base[..], more].concat())
    };
    let lost_s = |t: &Transfer| -> anyhow::Result<f64> {
        Ok(t.ours()?.guest.as_ref().context("the guest's cost")?.lost_ms / 1e3)
    };
    let mut rows = Vec::new();
    let friendly = "stream,record=16KiB,content=delta:8";
    let adaptive = run("adaptive", friendly, 0.92, &[])?;
    let vmotion = run("vmotion", friendly, 0.92, &WHOLE)?;
    rows.push(row(
        "delta-friendly r=0.92: time / vmotion",
        seconds(adaptive.seconds),
        seconds(vmotion.seconds),
        adaptive.seconds / vmotion.seconds,
        Limit::AtMost(0.5),
    ));
    let mut cases = vec![("stream,record=16KiB", 1.1)];
    if !quick {
        cases.extend([("stream,record=16KiB", 2.0), ("zipf", 1.1), ("hotset", 2.0)]);
    }
    for (workload, r) in cases {
        let name = workload.split(',').next().unwrap_or(workload);
        let adaptive = run("adaptive", workload, r, &WHOLE)?;
        let vmotion = run("vmotion", workload, r, &WHOLE)?;
        rows.push(row(
            &format!("{name} r={r}: time / vmotion"),
            seconds(adaptive.seconds),
            seconds(vmotion.seconds),
            adaptive.seconds / vmotion.seconds,
            Limit::AtMost(1.0),
        ));
        rows.push(row(
            &format!("{name} r={r}: guest lost / vmotion"),
            seconds(lost_s(&adaptive)?),
            seconds(lost_s(&vmotion)?),
            lost_s(&adaptive)? / lost_s(&vmotion)?,
            Limit::AtMost(1.0),
        ));
    }
    // One writer, as in the simulation: two would be two laws, each over half of memory.
    for workload in ["zipf", "hotset"] {
        let more = [&WHOLE[..], &["--writers", "1"]].concat();
        let transfer = run("adaptive", workload, 0.9, &more)?;
        let optimality = transfer.ours()?.optimality.as_ref();
        let bytes = optimality.context("the bandwidth is not known")?.bytes_ratio;
        rows.push(row(
            &format!("{workload} r=0.9: bytes / least bytes"),
            format!("{bytes:.3}x"),
            "1x".to_owned(),
            bytes,
            Limit::AtMost(1.15),
        ));
    }
    Ok(rows)
}
