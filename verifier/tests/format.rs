//! Page formats: what lines of both say, and that they are the same bytes however they are computed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::process::Command;

use support::{Files, files, files_of, told};
use workload::PAGE_BYTES;
use workload::run::RunId;
use workload::stamp::Isa;

fn verifier(arguments: &str, region: &Path, journal: &Path) -> (Option<i32>, String) {
    let mut words = arguments.split(' ');
    let command = words.next().unwrap();
    let mut verifier = Command::new(env!("CARGO_BIN_EXE_verifier"));
    verifier.arg(command).arg(region).arg("--journal").arg(journal).args(words);
    told(verifier.output().unwrap())
}

/// A region and its journal that a version of this program wrote which knew format 1 alone.
#[test]
fn what_version_1_wrote_is_still_judged() {
    let of_1 = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/v1"));
    let (region, journal) = (of_1.join("region"), of_1.join("journal"));
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("region");
    std::fs::copy(&region, &copy).unwrap();
    for command in ["scan", "image"] {
        let (code, said) = verifier(command, &copy, &journal);
        assert_eq!(code, Some(0), "{command}: {said}");
    }
    let mut bytes = std::fs::read(&region).unwrap();
    bytes[777] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let (code, said) = verifier("scan", &copy, &journal);
    assert_eq!((code, said.contains("BITFLIP (1 bits)")), (Some(1), true), "{said}");
}

/// A guest that lived here before left a page that the one of today never got: with the same seed it
/// would be a page of another time, neither lost nor foreign.
#[test]
fn a_page_of_an_earlier_life_is_another_runs() {
    let [today, before] = [9, 10].map(|run| files_of("stream", RunId(run), 200));
    let [mut bytes, old] = [&today, &before].map(|files| std::fs::read(&files.region).unwrap());
    let page = 7 * PAGE_BYTES as usize;
    let page = page..page + PAGE_BYTES as usize;
    bytes[page.clone()].copy_from_slice(&old[page]);
    std::fs::write(&today.region, bytes).unwrap();
    let (code, said) = verifier("scan", &today.region, &today.journal);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("64 lines are OTHER-RUN") && !said.contains("STALE"), "{said}");
    // Who has heard it names it.
    let mut both = Command::new(env!("CARGO_BIN_EXE_verifier"));
    both.arg("scan").arg(&today.region);
    both.arg("--journal").arg(&today.journal).arg("--journal").arg(&before.journal);
    let (code, said) = told(both.output().unwrap());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(") of run 000000000000000a, first wrong byte"), "{said}");
    // Garbage is not taken for a run.
    let mut bytes = std::fs::read(&today.region).unwrap();
    bytes[..64].fill(0x5A);
    std::fs::write(&today.region, bytes).unwrap();
    let (_, said) = verifier("scan", &today.region, &today.journal);
    assert!(said.contains("1 lines are FOREIGN"), "{said}");
}

#[test]
fn each_way_of_computing_reads_what_the_others_wrote() {
    let Files { directory: _directory, region, journal, .. } = files();
    for isa in Isa::here() {
        for command in ["scan", "image"] {
            let (code, said) = verifier(&format!("{command} --isa {isa}"), &region, &journal);
            assert_eq!(code, Some(0), "{command} {isa}: {said}");
        }
    }
    let mut bytes = std::fs::read(&region).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x80;
    std::fs::write(&region, bytes).unwrap();
    for isa in Isa::here() {
        let (code, said) = verifier(&format!("scan --isa {isa}"), &region, &journal);
        assert_eq!((code, said.contains("BITFLIP (1 bits)")), (Some(1), true), "{isa}: {said}");
    }
    let (code, said) = verifier("scan --isa mmx", &region, &journal);
    let named = said.contains("there are auto, avx512, avx2, portable");
    assert_eq!((code, named), (Some(2), true), "{said}");
}
