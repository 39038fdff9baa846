//! What surrounds `verifier`: outputs that nobody takes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use support::{Files, files, told};

/// A pipe whose reader is gone.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn run(stdout: Stdio, stderr: Stdio, arguments: &[&OsStr]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verifier"));
    command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    told(command.spawn().unwrap().wait_with_output().unwrap())
}

fn damage(files: &Files) {
    let region = File::options().write(true).open(&files.region).unwrap();
    region.write_all_at(b"wrong", 70_000).unwrap();
}

#[test]
fn outputs_that_nobody_takes_change_no_verdict() {
    let (good, bad) = (files(), files());
    damage(&bad);
    for (files, code) in [(&good, 0), (&bad, 1)] {
        let (region, journal) = (files.region.as_os_str(), files.journal.as_os_str());
        let word = OsStr::new;
        let commands: [(&[&OsStr], i32); 8] = [
            (&[word("scan"), region, word("--journal"), journal], code),
            (&[word("scan"), region, word("--journal"), journal, word("--json")], code),
            (&[word("image"), region, word("--journal"), journal], code),
            (&[word("image"), region, word("--journal"), journal, word("--json")], code),
            (&[word("compare"), region, good.region.as_os_str()], code),
            (&[word("compare"), region, good.region.as_os_str(), word("--json")], code),
            (&[word("journal"), journal], 0),
            (&[word("watch"), journal], 0),
        ];
        for (arguments, code) in commands {
            let (got, said) = run(full(), Stdio::piped(), arguments);
            assert_eq!(got, Some(code), "{arguments:?}: {said}");
            let told = "cannot print the report: No space left on device";
            assert!(said.contains(told), "{arguments:?}: {said}");
            let (got, said) = run(broken_pipe(), Stdio::piped(), arguments);
            assert_eq!((got, said), (Some(code), String::new()), "{arguments:?}");
            for stderr in [full, broken_pipe] {
                let (got, said) = run(Stdio::piped(), stderr(), arguments);
                assert_eq!(got, Some(code), "{arguments:?}: {said}");
            }
        }
    }
    let absent =
        [OsStr::new("scan"), OsStr::new("/absent"), OsStr::new("--journal"), OsStr::new("/absent")];
    assert_eq!(run(Stdio::piped(), full(), &absent).0, Some(4));
    // A manifest is all that was wanted: without it there is nothing.
    let manifest = [OsStr::new("manifest"), good.region.as_os_str()];
    assert_eq!(run(full(), Stdio::piped(), &manifest).0, Some(2));
    assert_eq!(run(broken_pipe(), Stdio::piped(), &manifest).0, Some(0));
    let self_test = [OsStr::new("self-test")];
    assert_eq!(run(broken_pipe(), Stdio::piped(), &self_test).0, Some(0));
}

/// A collector that loses its reader, or its terminal, goes on collecting.
#[test]
fn a_collector_goes_on_without_a_reader() {
    let files = files();
    let said = files.said();
    let (start, beats) = said.split_once('\n').unwrap();
    let stream = files.directory.path().join("stream");
    std::fs::write(&stream, format!("{start}\n# paused\n# resumed\n{beats}")).unwrap();
    for (stdout, stderr) in [(broken_pipe(), full()), (full(), broken_pipe())] {
        let collected = files.directory.path().join("collected");
        let _ = std::fs::remove_file(&collected);
        let arguments = ["collect", "--from", stream.to_str().unwrap(), "--journal"];
        let mut arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        arguments.push(collected.as_os_str());
        let (code, said) = run(stdout, stderr, &arguments);
        assert_eq!(code, Some(0), "{said}");
        let collected = workload::journal::Journal::read(&collected).unwrap();
        assert_eq!(collected.beats.len(), beats.lines().count());
    }
}

#[test]
fn a_limit_on_file_size_is_an_error_and_no_death() {
    let files = files();
    let map = files.directory.path().join("map");
    let big = support::files_of("stream", workload::run::RunId(4), 200);
    let script = format!(
        "ulimit -f 1; exec {} image {} --journal {} --write-map {}",
        env!("CARGO_BIN_EXE_verifier"),
        big.region.display(),
        big.journal.display(),
        map.display()
    );
    let (code, said) = told(Command::new("sh").args(["-c", &script]).output().unwrap());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("File too large"), "{said}");
}
