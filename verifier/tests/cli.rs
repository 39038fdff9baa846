//! `verifier` as a user meets it: exit codes, addresses, and bad input.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use workload::heartbeat::beat;
use workload::journal::{JournalWriter, Motion, RunId};
use workload::region::Region;
use workload::spec::WorkloadSpec;
use workload::units::Bytes;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};

struct Free;
impl Vcpu for Free {
    fn checkpoint(&mut self) -> Checkpoint {
        Checkpoint::Go { held: Duration::ZERO }
    }
}

/// A region file and its journal, as `workload run` leaves them.
struct Files {
    directory: tempfile::TempDir,
    region: PathBuf,
    journal: PathBuf,
}

fn files() -> Files {
    let directory = tempfile::tempdir().unwrap();
    let (region, journal) = (directory.path().join("region"), directory.path().join("journal"));
    let spec = WorkloadSpec {
        seed: 5,
        memory: Bytes(1 << 20),
        writers: 2,
        workload: "stream".parse().unwrap(),
    };
    let workload = Arc::new(spec.resolve().unwrap());
    let memory = Arc::new(Region::create(&region, spec.memory).unwrap());
    memory.fill(&workload, |_| {});
    let mut log = JournalWriter::create(&journal, RunId(9), &spec).unwrap();
    let watermarks = Watermarks::new(&[0, 0]);
    beat(&watermarks, 0, Motion::Running, &mut log).unwrap();
    for index in 0..2 {
        Writer::new(workload.clone(), memory.clone(), watermarks.clone(), index).run(
            Pace::Unlimited,
            &mut Free,
            200,
        );
    }
    beat(&watermarks, 0, Motion::AtRest, &mut log).unwrap();
    Files { directory, region, journal }
}

impl Files {
    fn scan(&self, more: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_verifier"))
            .arg("scan")
            .arg(&self.region)
            .arg("--journal")
            .arg(&self.journal)
            .args(more)
            .output()
            .unwrap();
        told(output)
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let file = std::fs::File::options().write(true).open(&self.region).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }
}

fn told(output: Output) -> (Option<i32>, String) {
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

#[test]
fn a_clean_region_is_proven() {
    let (code, text) = files().scan(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("PROVEN: 16384 lines, at rest"), "{text}");
}

#[test]
fn one_changed_byte_is_named_by_address_and_class() {
    let files = files();
    let mut byte = [0];
    std::fs::File::open(&files.region).unwrap().read_exact_at(&mut byte, 70_000).unwrap();
    files.write(70_000, &[byte[0] ^ 0x10]);
    let (code, text) = files.scan(&[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("first wrong byte at 0x11170"), "{text}");
    assert!(text.contains("0x000000011140") && text.contains("BITFLIP (1 bits)"), "{text}");
    let (code, json) = files.scan(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json["verdict"].as_str()), (Some(1), Some("WRONG")));
    assert_eq!(json["faults"]["extents"][0]["address"], 69952);
    assert_eq!(json["faults"]["extents"][0]["class"], "bit-flip");
}

#[test]
fn extents_say_what_they_have_in_common() {
    let files = files();
    for page in [10, 20, 30] {
        files.write(page * 4096, &[0; 4096]);
    }
    let (code, text) = files.scan(&[]);
    assert_eq!(code, Some(1));
    for fact in ["all are ZEROED", "repeat every 40960 bytes", "multiples of 4096", "writer 0"] {
        assert!(text.contains(fact), "{fact}: {text}");
    }
}

#[test]
fn without_a_journal_nothing_is_proven() {
    let files = files();
    std::fs::remove_file(&files.journal).unwrap();
    let (code, text) = files.scan(&[]);
    assert_eq!(code, Some(4), "{text}");
}

#[test]
fn bad_files_are_refused() {
    let files = files();
    let text = std::fs::read_to_string(&files.journal).unwrap();
    let with = |journal: &str| {
        std::fs::write(&files.journal, journal).unwrap();
        files.scan(&[])
    };
    let (code, said) = with(&text[..text.len() - 4]);
    assert_eq!((code, said.contains("is cut in the middle")), (Some(2), true), "{said}");
    let (code, said) = with(&text.replace(" 200 ", " 199 "));
    assert_eq!((code, said.contains("does not match its checksum")), (Some(2), true), "{said}");
    let (code, said) = with("");
    assert_eq!((code, said.contains("truncated")), (Some(2), true), "{said}");
    let (code, said) = with(&text);
    assert_eq!(code, Some(0), "{said}");
    std::fs::File::options().write(true).open(&files.region).unwrap().set_len(999).unwrap();
    let (code, said) = files.scan(&[]);
    assert_eq!((code, said.contains("holds 999 bytes")), (Some(2), true), "{said}");
}

#[test]
fn manifests_compare_and_locate() {
    let files = files();
    let verifier = |args: &[&std::path::Path]| {
        told(Command::new(env!("CARGO_BIN_EXE_verifier")).args(args).output().unwrap())
    };
    let path = |p: &'static str| std::path::Path::new(p);
    let manifest = files.directory.path().join("manifest");
    let (code, said) = verifier(&[path("manifest"), &files.region, path("--output"), &manifest]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(verifier(&[path("compare"), &manifest, &files.region]).0, Some(0));
    files.write(5, b"x");
    let (code, said) = verifier(&[path("compare"), &manifest, &files.region]);
    assert_eq!(code, Some(1));
    assert!(said.contains("different: bytes 0x0 to 0x100000"), "{said}");
    assert_eq!(verifier(&[path("compare"), &manifest, path("/nonexistent")]).0, Some(2));
}

#[test]
fn journals_are_judged_by_themselves() {
    let files = files();
    let verifier = |command: &str| {
        let mut verifier = Command::new(env!("CARGO_BIN_EXE_verifier"));
        told(verifier.arg(command).arg(&files.journal).output().unwrap())
    };
    for command in ["journal", "watch"] {
        let (code, said) = verifier(command);
        assert_eq!((code, said.contains("PROVEN")), (Some(0), true), "{said}");
    }
    assert!(verifier("journal").1.contains("writer 1: operations 0 to 200 (at rest)"));
    let log = JournalWriter::append(&files.journal, RunId(9));
    beat(&Watermarks::new(&[150, 200]), 1, Motion::Running, &mut log.unwrap()).unwrap();
    let (code, said) = verifier("journal");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("ROLLBACK: writer 0 was at operation 200 and then at 150"), "{said}");
}
