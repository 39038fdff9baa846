//! `ci lives`: what happens to real guests between two moves, as the law of evidence tells it: restores
//! that were meant and not, two guests from one snapshot, resets under one collector, collectors that are
//! killed or come late.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use verifier::case::Case;
use verifier::law::{Demand, Kind};
use verifier::verdict::Verdict;
use workload::beat::collector::Collector;
use workload::beat::ledger::here;
use workload::exit;

use super::machine::Begins;
use super::migration::{await_arrival, progress};
use super::vm::{Gathered, Recipe, Vm};
use super::{cache, initramfs, kernel, static_programs};

const MEMORY_KIB: u64 = 192 << 10;
/// How long a snapshot may take to be written or read under emulation.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a collector that was killed is not started again: fewer beats than the law calls near, so that
/// what is heard later joins what was heard before whichever beats were lost.
const UNHEARD: Duration = Duration::from_millis(80);
/// Bytes that it had not written when it was killed.
const KILLED_BYTES: usize = 37;

/// What is done with a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    RestoredAsTold,
    RestoredWithoutAWord,
    /// Both go on; with a processor that has a generator, and with one that has none.
    Twins {
        cpu: &'static str,
    },
    ResetTwice,
    /// And started again in its file; what the guest said meanwhile nobody heard.
    CollectorKilled,
    /// Whoever listens comes when the restored guest has passed all that was heard of it before.
    HeardLateAfterRestore,
}

impl Story {
    const ALL: [Self; 7] = [
        Self::RestoredAsTold,
        Self::RestoredWithoutAWord,
        Self::Twins { cpu: "max" },
        Self::Twins { cpu: "qemu64" },
        Self::ResetTwice,
        Self::CollectorKilled,
        Self::HeardLateAfterRestore,
    ];

    fn name(self) -> String {
        match self {
            Self::RestoredAsTold => "restored, as was told".to_owned(),
            Self::RestoredWithoutAWord => "restored without a word".to_owned(),
            Self::Twins { cpu } => format!("two from one snapshot, -cpu {cpu}"),
            Self::ResetTwice => "reset twice under one collector".to_owned(),
            Self::CollectorKilled => "collector killed, started again".to_owned(),
            Self::HeardLateAfterRestore => "collector comes late after a restore".to_owned(),
        }
    }

    fn cpu(self) -> &'static str {
        match self {
            Self::Twins { cpu } => cpu,
            _ => "max",
        }
    }

    /// What the law must say of the runs, in the order in which they began.
    fn is_told(self, cases: &[Case]) -> bool {
        let rulings: Vec<_> = cases.iter().filter_map(|case| case.ruling.as_ref()).collect();
        match (self, &rulings[..]) {
            (Self::RestoredAsTold, [one]) => one.verdict == Verdict::Proven && one.restored,
            (Self::CollectorKilled, [one]) => one.verdict == Verdict::Proven,
            (Self::RestoredWithoutAWord | Self::HeardLateAfterRestore, [one]) => {
                one.verdict == Verdict::Wrong && one.kinds.contains(&Kind::Rollback)
            }
            (Self::Twins { .. }, [one]) => {
                one.verdict == Verdict::Wrong && one.kinds.contains(&Kind::Fork) && !one.weak
            }
            (Self::ResetTwice, [first, second, third]) => {
                let verdicts = [first.verdict, second.verdict, third.verdict];
                verdicts == [Verdict::Inconclusive, Verdict::Inconclusive, Verdict::Proven]
            }
            _ => false,
        }
    }
}

/// Where a story is played.
struct Stage<'a> {
    directory: &'a Path,
    kernel: PathBuf,
    initramfs: PathBuf,
    gathered: Gathered,
    journal: PathBuf,
    cpu: &'static str,
}

impl Stage<'_> {
    fn start(&self, name: &str, begins: Begins) -> anyhow::Result<Vm> {
        let recipe = Recipe {
            name,
            directory: self.directory,
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            memory_kib: MEMORY_KIB,
            cpus: 1,
            cpu: self.cpu,
            settings: "workload.memory=32MiB workload.rate=2MB/s workload.seed=7",
            begins,
        };
        Vm::start(Command::new("qemu-system-x86_64"), &recipe, &self.gathered)
    }

    fn snapshot(&self) -> String {
        self.directory.join("snapshot").display().to_string()
    }

    /// Writes the guest, which stands still, into a file.
    fn save(&self, vm: &mut Vm) -> anyhow::Result<()> {
        let qmp = &mut vm.machine.qmp;
        qmp.run("stop", json!({}))?;
        qmp.run("migrate", json!({ "uri": format!("exec:cat > {}", self.snapshot()) }))?;
        let deadline = Instant::now() + SNAPSHOT_TIMEOUT;
        while progress(qmp)?.status != "completed" {
            crate::interrupted()?;
            anyhow::ensure!(Instant::now() < deadline, "the snapshot is not written");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A guest from the file; it runs, and its writers stand still as they did.
    fn load(&self, name: &str) -> anyhow::Result<Vm> {
        let mut vm = self.start(name, Begins::Incoming)?;
        let uri = json!({ "uri": format!("exec:cat {}", self.snapshot()) });
        vm.machine.qmp.run("migrate-incoming", uri)?;
        await_arrival(&mut vm.machine.qmp)?;
        vm.machine.qmp.run("cont", json!({}))?;
        Ok(vm)
    }

    /// Nobody listens from here on.
    fn stop_listening(&self) -> anyhow::Result<()> {
        let deaf = Collector::open(&self.directory.join("unheard"), &here(), Duration::ZERO)?;
        *self.gathered.lock().unwrap_or_else(PoisonError::into_inner) = deaf;
        Ok(())
    }

    /// The same by force: the journal ends in the middle of a line.
    fn kill_collector(&self) -> anyhow::Result<()> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let written = std::fs::read(&self.journal)?;
        *gathered = Collector::open(&self.directory.join("unheard"), &here(), Duration::ZERO)?;
        std::fs::write(&self.journal, &written[..written.len() - KILLED_BYTES])?;
        Ok(())
    }

    /// Somebody listens again, in the same file.
    fn listen(&self) -> anyhow::Result<()> {
        let again = Collector::open(&self.journal, &here(), Duration::ZERO)?;
        *self.gathered.lock().unwrap_or_else(PoisonError::into_inner) = again;
        Ok(())
    }

    /// The last beat that was heard.
    fn last_beat(&self) -> anyhow::Result<(workload::beat::said::Tag, u64)> {
        let case = Case::read(&self.journal)?;
        let tag = case.journal.tag.context("a journal of format 2")?;
        Ok((tag, case.journal.beats.last().context("no beat was heard")?.number))
    }
}

pub(crate) fn run() -> anyhow::Result<u8> {
    let kernel = kernel::fetch(&cache())?;
    let mut out = std::io::stdout().lock();
    let mut good = true;
    for (number, story) in Story::ALL.into_iter().enumerate() {
        let directory = tempfile::tempdir_in("/dev/shm").context("cannot make a directory")?;
        let initramfs = directory.path().join("initramfs");
        initramfs::write(&initramfs, &static_programs())?;
        let journal = directory.path().join("journal");
        let collector = Collector::open(&journal, &here(), Duration::ZERO)?;
        let stage = Stage {
            directory: directory.path(),
            kernel: kernel.clone(),
            initramfs,
            gathered: Arc::new(Mutex::new(collector)),
            journal,
            cpu: story.cpu(),
        };
        play(&stage, story).with_context(|| format!("story {number}, {}", story.name()))?;
        let mut cases = Case::read_all(&[&stage.journal], &Demand::default())?;
        cases.sort_by_key(|case| case.journal.beats.first().map(|beat| beat.journal_ns));
        let told = story.is_told(&cases);
        good &= told;
        if !told {
            let kept = std::env::temp_dir().join(format!("vmigrate-lives-{number}.journal"));
            std::fs::copy(&stage.journal, &kept)?;
            writeln!(out, "its journal is kept: {}", kept.display())?;
        }
        let verdict = if told { "as it should be" } else { "NOT TOLD" };
        writeln!(out, "{:<38} {verdict}", story.name())?;
        for case in &cases {
            let evidence = case.evidence();
            let why = [evidence.wrong(), evidence.doubts()].concat().join("; ");
            let beats = case.journal.beats.len();
            writeln!(
                out,
                "    {}: {beats} beats{}{why}",
                evidence.verdict(),
                if why.is_empty() { "" } else { "; " }
            )?;
        }
    }
    Ok(if good { exit::PROVEN } else { exit::WRONG })
}

fn play(stage: &Stage<'_>, story: Story) -> anyhow::Result<()> {
    let beats = |vm: &Vm, beats| vm.port.await_beats(&stage.gathered, beats);
    let mut first = stage.start("first", Begins::Running)?;
    beats(&first, 150)?;
    if story == Story::ResetTwice {
        first.machine.qmp.run("set-action", json!({ "reboot": "reset" }))?;
        for _ in 0..2 {
            first.machine.qmp.run("system_reset", json!({}))?;
            // The time that it takes to boot is a silence of the run before.
            beats(&first, 150)?;
        }
        first.port.tell("stop")?;
        return first.wait(SNAPSHOT_TIMEOUT);
    }
    if story == Story::CollectorKilled {
        stage.kill_collector()?;
        std::thread::sleep(UNHEARD);
        stage.listen()?;
        beats(&first, 300)?;
        first.port.tell("stop")?;
        return first.wait(SNAPSHOT_TIMEOUT);
    }
    first.port.ask("pause", "paused at")?;
    // The last beats before the snapshot have all come.
    std::thread::sleep(Duration::from_millis(300));
    let (tag, number) = stage.last_beat()?;
    stage.save(&mut first)?;
    first.machine.qmp.run("cont", json!({}))?;
    first.port.ask("resume", "resumed")?;
    beats(&first, 150)?;
    // Of two guests the first goes on as well.
    let first = Some(first).filter(|_| matches!(story, Story::Twins { .. }));
    if story == Story::RestoredAsTold {
        std::thread::sleep(Duration::from_millis(300));
        let mut collector = stage.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        collector.restored(tag, number, number, None)?;
    }
    if story == Story::HeardLateAfterRestore {
        drop(first);
        stage.stop_listening()?;
        let mut second = stage.load("second")?;
        second.port.ask("resume", "resumed")?;
        // More than the first said after the snapshot.
        beats(&second, 300)?;
        stage.listen()?;
        beats(&second, 300)?;
        second.port.tell("stop")?;
        return second.wait(SNAPSHOT_TIMEOUT);
    }
    let mut second = stage.load("second")?;
    second.port.ask("resume", "resumed")?;
    beats(&second, 300)?;
    drop(first);
    second.port.tell("stop")?;
    second.wait(SNAPSHOT_TIMEOUT)
}
