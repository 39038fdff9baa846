//! `examples/embed.rs` as a user runs it: two processes, built without this library's own guests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

/// Examples are built beside tests.
fn example() -> Command {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().with_file_name("examples").join("embed");
    assert!(program.exists(), "{} is built with the tests", program.display());
    Command::new(program)
}

/// The number after a word.
fn after(text: &str, word: &str) -> u64 {
    let rest = &text[text.find(word).unwrap() + word.len()..];
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn a_machine_of_sixty_lines_is_moved_whole() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut receiver = example()
        .args(["receive", "127.0.0.1:0"])
        .arg(there.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut heard = BufReader::new(receiver.stdout.take().unwrap());
    let mut line = String::new();
    heard.read_line(&mut line).unwrap();
    let address = line.trim().rsplit(' ').next().unwrap();
    let sent = example().args(["send", address]).arg(here.path()).output().unwrap();
    let told = String::from_utf8_lossy(&sent.stdout).into_owned();
    assert!(sent.status.success(), "{told} {}", String::from_utf8_lossy(&sent.stderr));
    let mut said = String::new();
    heard.read_to_string(&mut said).unwrap();
    assert!(receiver.wait().unwrap().success(), "{said}");
    assert!(told.contains("whole: true") && said.contains("whole: true"), "{told} {said}");
    let stopped = after(&told, "sent at");
    assert!(stopped > 1000, "{told}: it ran before");
    assert!(after(&said, "since about") >= stopped, "{said}: it goes on from {stopped}");
    assert!(after(&said, "now at") > stopped + 100, "{said}: it goes on");
}
