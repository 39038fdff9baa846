//! `ci recipe`: the shell of docs/in-your-vm.md, word for word, on an emulated processor.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};
use workload::exit;

use crate::qemu::static_programs;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/in-your-vm.md");
/// The whole of it takes a fraction of this.
const TIME_MAX: Duration = Duration::from_secs(180);

/// Why it cannot be run on this machine.
pub(crate) fn missing() -> Option<String> {
    ["cpio", "apt-get", "dpkg-deb", "bash"].into_iter().find_map(|program| {
        let tried = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        tried.is_err().then(|| format!("'{program}' is not installed"))
    })
}

/// The processes of a script, ended with this value, however many they are.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

pub(crate) fn run() -> anyhow::Result<u8> {
    let document =
        std::fs::read_to_string(DOCUMENT).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let script = document.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
    let script = script.with_context(|| format!("{DOCUMENT} has no recipe"))?;
    let programs = static_programs().canonicalize().context("no static programs; run ci/static")?;
    // RAM of a VM is a file in the folder.
    let folder = tempfile::tempdir_in("/dev/shm").context("cannot make a folder")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let log = folder.path().join("log");
    let output = std::fs::File::create(&log)?;
    let child = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", programs.display()))
        .env("ACCEL", "tcg")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .context("cannot run bash")?;
    let mut group = Group(child);
    let begin = Instant::now();
    let status = loop {
        crate::interrupted()?;
        if let Some(status) = group.0.try_wait()? {
            break status;
        }
        anyhow::ensure!(
            begin.elapsed() < TIME_MAX,
            "the recipe does not end within {} s; it said:\n{}",
            TIME_MAX.as_secs(),
            said(&log, folder.path())
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(group);
    let text = said(&log, folder.path());
    let mut out = std::io::stdout();
    writeln!(out, "{text}")?;
    writeln!(out, "the recipe: {:.0} s, {status}", begin.elapsed().as_secs_f64())?;
    // From inside, from outside, and by the heartbeats.
    let verdicts: Vec<&str> = text.lines().filter_map(verdict).collect();
    let proven = verdicts.len() >= 3 && verdicts.iter().all(|verdict| *verdict == "PROVEN");
    Ok(if status.success() && proven { exit::PROVEN } else { exit::WRONG })
}

/// The answer that a line is: of a scan, which may stand behind its notes, or of a whole journal.
fn verdict(line: &str) -> Option<&'static str> {
    let line = line.trim_start_matches("# ").trim_start_matches("scan: ");
    let whole = line.strip_prefix("longest gap ").and_then(|rest| rest.split_once(": "));
    let text = whole.map_or(line, |(_, verdict)| verdict);
    ["PROVEN", "WRONG", "INCONCLUSIVE"]
        .into_iter()
        .find(|verdict| text.strip_prefix(verdict).is_some_and(|rest| rest.starts_with([':', ' '])))
}

/// What the script said, and, where it was cut off, what the guest did.
fn said(log: &Path, folder: &Path) -> String {
    let read = |path: &Path| {
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    };
    let text = read(log);
    match text.contains("workload") {
        true => text,
        false => text + &read(&folder.join("answers")) + &read(&folder.join("console")),
    }
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn answers_are_told_from_notes() {
        for (line, wanted) in [
            ("# scan: PROVEN: 64 lines, at rest", Some("PROVEN")),
            ("# WRONG: 64 lines, at rest", Some("WRONG")),
            ("longest gap 17.3 ms: PROVEN (heard by vm, until its end)", Some("PROVEN")),
            ("longest gap 17.3 ms: INCONCLUSIVE (heard by none)", Some("INCONCLUSIVE")),
            ("    8.192 s  1 heartbeats lost in 10.0 ms: INCONCLUSIVE for that time", None),
            ("note: PROVEN or not", None),
        ] {
            assert_eq!(verdict(line), wanted, "{line}");
        }
    }
}
