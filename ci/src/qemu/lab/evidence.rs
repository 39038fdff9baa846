//! What is known of a VM after a migration, from three sides: its own scan of its memory, its
//! heartbeats in a journal outside, and its RAM as an image.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use verifier::case::Case;
use workload::clock::realtime_ns;
use workload::journal::Journal;

use super::bed::Life;
use crate::programs::beside;
use crate::qemu::vm::{Port, Vm};

/// How long the guest runs on before it is looked at once more.
const RUN_ON: Duration = Duration::from_millis(1500);

/// One look at memory.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(super) struct Look {
    /// `PROVEN`, `WRONG` or `INCONCLUSIVE`.
    pub(super) verdict: String,
    /// What was wrong, a line each, with class and address.
    pub(super) faults: Vec<String>,
}

/// All looks.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(super) struct Evidence {
    /// From outside, by the RAM of the stopped destination, before it ran.
    pub(super) image: Option<Look>,
    /// From inside, as soon as the guest could be told to pause.
    pub(super) inside: Look,
    /// From inside, after it ran on.
    pub(super) later: Look,
    /// From outside, at rest.
    pub(super) image_later: Look,
    /// By the heartbeats: rollback, fork, writers that stand still.
    pub(super) breaches: Vec<String>,
    /// The longest silence of the heartbeats since the migration began, in milliseconds, without the
    /// time in which the VM stood still to be looked at.
    pub(super) seen_ms: f64,
    /// The longest time in which the guest felt all its CPUs stand still, in milliseconds, since it
    /// booted, likewise; `None` if it felt none.
    pub(super) felt_ms: Option<f64>,
}

impl Evidence {
    /// PROVEN where every look is, WRONG where any is.
    pub(super) fn verdict(&self) -> &'static str {
        let looks =
            [self.image.as_ref(), Some(&self.inside), Some(&self.later), Some(&self.image_later)];
        let verdicts: Vec<_> = looks.into_iter().flatten().map(|l| l.verdict.as_str()).collect();
        if verdicts.contains(&"WRONG") || !self.breaches.is_empty() {
            "WRONG"
        } else if verdicts.iter().all(|verdict| *verdict == "PROVEN") {
            "PROVEN"
        } else {
            "INCONCLUSIVE"
        }
    }
}

impl Evidence {
    /// What any look found.
    pub(super) fn faults(&self) -> impl Iterator<Item = &String> {
        let looks = [Some(&self.inside), Some(&self.later), Some(&self.image_later)];
        self.image.iter().chain(looks.into_iter().flatten()).flat_map(|look| &look.faults)
    }
}

/// A VM that is looked at.
pub(super) trait Subject {
    /// How its workload talks.
    fn port(&mut self) -> &mut Port;
    /// The file that is its RAM.
    fn ram(&self) -> &Path;
    /// Stops its vCPUs.
    fn stand_still(&mut self) -> anyhow::Result<()>;
    /// Lets them go on.
    fn go_on(&mut self) -> anyhow::Result<()>;
    /// Waits until it has powered itself off.
    fn end(&mut self) -> anyhow::Result<()>;
}

impl Subject for Vm {
    fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    fn ram(&self) -> &Path {
        &self.machine.ram
    }

    fn stand_still(&mut self) -> anyhow::Result<()> {
        self.machine.qmp.run("stop", json!({})).map(drop)
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        self.machine.qmp.run("cont", json!({})).map(drop)
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.wait(Duration::from_secs(60))
    }
}

/// Looks at a VM that has just arrived, and ends it. One that stands still is looked at from
/// outside before it runs.
/// Its first image is held against `map`, if there is one.
pub(super) fn gather(
    mut vm: impl Subject,
    life: &Life,
    stands_still: bool,
    began_ns: u64,
    map: Option<&Path>,
) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence::default();
    let arrived = Instant::now();
    if stands_still {
        let map = map.map(|map| [OsStr::new("--map"), map.as_os_str()]);
        let map = map.as_ref().map_or(&[][..], |map| map);
        evidence.image = Some(image(vm.ram(), life, map)?);
    }
    // Told before it runs, so that the writers come to rest as soon as they can: what is rewritten
    // until then, they compare first.
    vm.port().tell("pause")?;
    if stands_still {
        vm.go_on()?;
    }
    let looked_ms = if stands_still { arrived.elapsed().as_secs_f64() * 1e3 } else { 0.0 };
    if let Err(error) = vm.port().hear("paused at") {
        crate::interrupted()?;
        // A guest whose memory is wrong may not live to say so.
        let Some(death) = death(&vm.port().console_text()) else { return Err(error) };
        let died = Look { verdict: "WRONG".to_owned(), faults: vec![death] };
        (evidence.inside, evidence.later) = (died, Look::default());
        return Ok(evidence);
    }
    evidence.inside = scan(vm.port())?;
    vm.port().ask("resume", "resumed")?;
    std::thread::sleep(RUN_ON);
    vm.port().ask("pause", "paused at")?;
    evidence.later = scan(vm.port())?;
    vm.stand_still()?;
    evidence.image_later = image(vm.ram(), life, &[])?;
    vm.go_on()?;
    vm.port().tell("stop")?;
    vm.end()?;
    evidence.felt_ms = felt(&vm.port().console_text()).map(|felt| (felt - looked_ms).max(0.0));
    let case = Case::read(&life.journal)?;
    let judged = case.evidence();
    evidence.breaches = judged.wrong();
    let idle = judged.idle_writers();
    evidence.breaches.extend(idle.iter().map(|w| format!("writer {w} was never seen to advance")));
    evidence.seen_ms = (longest_silence_ms(&case.journal, began_ns) - looked_ms).max(0.0);
    Ok(evidence)
}

/// The guest's own scan; its answer may be many lines.
pub(super) fn scan(port: &mut Port) -> anyhow::Result<Look> {
    const VERDICTS: [&str; 3] = ["PROVEN", "WRONG", "INCONCLUSIVE"];
    port.tell("scan")?;
    let mut look = Look::default();
    let mut begun = false;
    loop {
        let line = port.hear("")?;
        let (text, first) = match line.strip_prefix("scan: ") {
            Some(rest) => (rest, true),
            None => (line.as_str(), false),
        };
        begun |= first;
        if !begun {
            continue;
        }
        if let Some(verdict) = VERDICTS.iter().find(|v| text.starts_with(&format!("{v}:"))) {
            look.verdict = (*verdict).to_owned();
            return Ok(look);
        }
        if text.starts_with("0x") {
            look.faults.push(text.to_owned());
        }
    }
}

/// The RAM of a VM that stands still, as an image.
pub(super) fn image(ram: &Path, life: &Life, more: &[&OsStr]) -> anyhow::Result<Look> {
    let output = Command::new(beside("verifier")?)
        .arg("image")
        .arg(ram)
        .arg("--journal")
        .arg(&life.journal)
        .args(more)
        .output()
        .context("cannot run the verifier")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = || text.lines();
    let verdict = lines().find_map(|line| {
        let name = line.split(':').next()?;
        ["PROVEN", "WRONG", "INCONCLUSIVE"].contains(&name).then(|| name.to_owned())
    });
    let verdict = verdict.with_context(|| {
        format!("the verifier says nothing: {}", String::from_utf8_lossy(&output.stderr).trim())
    })?;
    let is_fault = |line: &&str| line.starts_with("0x") || line.starts_with("page ");
    Ok(Look { verdict, faults: lines().filter(is_fault).map(str::to_owned).collect() })
}

/// The longest time without a heartbeat since `from_ns`, by the journal's clock.
pub(super) fn longest_silence_ms(journal: &Journal, from_ns: u64) -> f64 {
    let mut times: Vec<u64> = journal.beats.iter().map(|beat| beat.journal_ns).collect();
    times.sort_unstable();
    let recent = times.windows(2).filter(|pair| pair[1] > from_ns);
    let longest = recent.map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    longest as f64 / 1e6
}

/// Now, by the journal's clock.
pub(super) fn now_ns() -> u64 {
    realtime_ns()
}

/// The longest stun of the guest's own summary, or the largest jump of its wall clock.
fn felt(console: &str) -> Option<f64> {
    let after = |line: &str, mark: &str| -> Option<f64> {
        let rest = &line[line.find(mark)? + mark.len()..];
        let number: String = rest
            .trim_start()
            .trim_start_matches('+')
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == '.')
            .collect();
        number.parse().ok()
    };
    console
        .lines()
        .filter_map(|line| {
            let stun = line.trim().starts_with("stun at").then(|| after(line, " s: ")).flatten();
            let jump =
                line.trim().starts_with("clock jump").then(|| after(line, "moved ")).flatten();
            stun.or(jump)
        })
        .reduce(f64::max)
}

/// What a guest's kernel said when it died.
fn death(console: &str) -> Option<String> {
    const SIGNS: [&str; 4] = ["Kernel panic", "BUG: ", "Oops: ", "general protection fault"];
    let line = console.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign)))?;
    let said = line.split_once("] ").map_or(line, |(_, said)| said);
    Some(format!("the guest died: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_felt_is_read_from_its_console() {
        let text = "felt on 2 CPUs (CLOCK_MONOTONIC): ran 99.0 % of the time, 2 stuns\n  \
            stun at 3.120 s: 35.5 ms on all CPUs\n  stun at 8.000 s: 210.0 ms on all CPUs\n  \
            clock jump at 9.0 s: the wall clock moved +12.5 ms against CLOCK_MONOTONIC\n";
        assert_eq!(felt(text), Some(210.0));
        assert_eq!(felt("nothing"), None);
        let text = "[    4.9] all is well\n[    5.1] Kernel panic - not syncing: lost\n";
        let died = death(text).unwrap_or_default();
        assert_eq!(died, "the guest died: Kernel panic - not syncing: lost");
        assert_eq!(death("[    4.9] all is well\n"), None);
    }
}
