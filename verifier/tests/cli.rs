//! `verifier` as a user meets it: exit codes, addresses, and bad input.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::FileExt;
use std::process::Command;

use support::{Files, files, files_of, told, valid};
use workload::beat::said::Kind;
use workload::beat::writer::JournalWriter;
use workload::run::RunId;

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
    // What is not whole is not there, and that it is missing is seen.
    for less in [&text[..text.len() - 4], &text.replace(" 200 ", " 199 ")] {
        let (code, said) = with(less);
        assert_eq!((code, said.contains("session are missing")), (Some(4), true), "{said}");
    }
    for other in ["", "my notes\n"] {
        let (code, said) = with(other);
        assert_eq!((code, said.contains("holds no session")), (Some(2), true), "{said}");
    }
    let (code, said) = with(&text);
    assert_eq!(code, Some(0), "{said}");
    std::fs::File::options().write(true).open(&files.region).unwrap().set_len(999).unwrap();
    let (code, said) = files.scan(&[]);
    assert_eq!((code, said.contains("holds 999 bytes")), (Some(2), true), "{said}");
}

#[test]
fn a_region_that_changes_at_rest_is_no_verdict() {
    let files = files();
    files.write(70_000, b"x");
    let region = files.region.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        let file = std::fs::File::options().write(true).open(region).unwrap();
        for byte in (0..=255u8).cycle() {
            file.write_all_at(&[byte], 70_000).unwrap();
            std::thread::sleep(std::time::Duration::from_micros(300));
            if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
        }
    });
    let told: Vec<_> = (0..5).map(|_| files.scan(&[])).collect();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    // Two looks may find the same byte by chance, five times in a row they do not.
    let changed = |(code, text): &(Option<i32>, String)| {
        *code == Some(4) && text.contains("changed while it was scanned")
    };
    assert!(told.iter().any(changed), "{told:?}");
}

#[test]
fn the_self_test_passes() {
    let output = Command::new(env!("CARGO_BIN_EXE_verifier")).arg("self-test").output().unwrap();
    let (code, text) = told(output);
    assert_eq!(
        (code, text.contains("each was found") && text.contains("30 lies, 0 missed")),
        (Some(0), true),
        "{text}"
    );
}

#[test]
fn heartbeats_are_collected_from_a_link() {
    let files = files();
    let socket = files.directory.path().join("socket");
    let collected = files.directory.path().join("collected");
    let mut collector = Command::new(env!("CARGO_BIN_EXE_verifier"))
        .args(["collect", "--from", &format!("unix:{}", socket.display()), "--journal"])
        .arg(&collected)
        .spawn()
        .unwrap();
    while !socket.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let link = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for line in files.said().lines() {
        link.send_to(format!("{line}\n").as_bytes(), &socket).unwrap();
    }
    // It ends by itself: every writer has come to rest.
    assert_eq!(collector.wait().unwrap().code(), Some(0));
    let scan = Command::new(env!("CARGO_BIN_EXE_verifier"))
        .arg("scan")
        .arg(&files.region)
        .arg("--journal")
        .arg(&collected)
        .output()
        .unwrap();
    let (code, text) = told(scan);
    assert_eq!(code, Some(0), "{text}");
}

/// C20, C21: over a link that loses some beats and delays others, heard by a host whose wall clock steps,
/// a run is judged as it was said.
#[test]
fn a_bad_link_and_a_clock_that_steps_change_no_verdict() {
    use workload::beat::said::{sealed, unsealed};
    use workload::beat::session::{Entry, Line};
    let files = files();
    let said = files.said();
    let (start, _) = said.split_once('\n').unwrap();
    // A run of 300 beats of each writer.
    let spoken = files.directory.path().join("spoken");
    let interval = std::time::Duration::from_millis(5);
    let mut log = JournalWriter::create(&spoken, &files.spec, interval).unwrap();
    for beat in 0..300 {
        log.beats(Kind::Running, 0, &[beat, beat], beat);
    }
    log.beats(Kind::Ended, 0, &[300, 300], 300);
    drop(log);
    let said = Files { journal: spoken, ..files };
    let lines: Vec<String> = said.said().lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with(&start[..4]));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    drop(socket);
    let collected = said.directory.path().join("collected");
    let mut collector = Command::new(env!("CARGO_BIN_EXE_verifier"))
        .args(["collect", "--from", &format!("udp:{address}"), "--journal"])
        .arg(&collected)
        .spawn()
        .unwrap();
    while !collected.exists() {
        std::thread::sleep(interval);
    }
    let link = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // One in fifty is lost, and of each dozen the last comes first.
    let mut sent = 0;
    for dozen in lines.chunks(12) {
        for line in dozen.iter().rev() {
            sent += 1;
            if sent % 50 != 7 || line.starts_with('S') || line.starts_with('E') {
                link.send_to(format!("{line}\n").as_bytes(), &address).unwrap();
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(collector.wait().unwrap().code(), Some(0));
    let judge = |journal: &std::path::Path| {
        let mut verifier = Command::new(env!("CARGO_BIN_EXE_verifier"));
        let (code, said) =
            told(verifier.args(["journal", "--json"]).arg(journal).output().unwrap());
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        let evidence = &report["evidence"];
        (
            code,
            report["verdict"].clone(),
            evidence["longest_gap_ms"].clone(),
            evidence["lost"].clone(),
        )
    };
    let heard = judge(&collected);
    assert_eq!((heard.0, heard.1.as_str()), (Some(0), Some("PROVEN")), "{heard:?}");
    assert!(!heard.3.as_array().unwrap().is_empty(), "some were lost: {heard:?}");
    // The host's clock steps by an hour, and back by two.
    let text = std::fs::read_to_string(&collected).unwrap();
    let step = |line: &str| {
        let mut line = Line::read(unsealed(line.as_bytes()).unwrap()).unwrap().unwrap();
        if let Entry::Tick { wall_us, .. } = &mut line.entry {
            *wall_us =
                wall_us.wrapping_add(3_600_000_000).wrapping_sub(line.number % 3 * 7_200_000_000);
        }
        sealed(&line.text())
    };
    std::fs::write(&collected, text.lines().map(step).collect::<String>()).unwrap();
    assert_eq!(judge(&collected), heard);
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

/// B44, B47: what cannot be a manifest, or is no file, is refused and compares as nothing.
#[test]
fn manifests_that_lie_compare_with_nothing() {
    let files = files();
    let verifier = |args: &[&std::path::Path]| {
        told(Command::new(env!("CARGO_BIN_EXE_verifier")).args(args).output().unwrap())
    };
    let path = |p: &'static str| std::path::Path::new(p);
    let manifest = files.directory.path().join("manifest");
    verifier(&[path("manifest"), &files.region, path("--output"), &manifest]);
    let good: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let lies: [(&str, serde_json::Value, &str); 5] = [
        ("schema", 99.into(), "schema 99"),
        ("leaf_bytes", 4096.into(), "leaves cover 4096 bytes"),
        ("leaves", serde_json::json!([]), "was cut or added to"),
        ("root", "0".repeat(64).into(), "its root is not that of its leaves"),
        ("bytes", 0.into(), "no whole number of pages"),
    ];
    for (key, value, says) in lies {
        let mut lie = good.clone();
        lie[key] = value;
        let lying = files.directory.path().join("lying");
        std::fs::write(&lying, lie.to_string()).unwrap();
        for pair in [[&lying, &lying], [&manifest, &lying]] {
            let (code, said) = verifier(&[path("compare"), pair[0], pair[1]]);
            assert_eq!((code, said.contains(says)), (Some(2), true), "{key}: {said}");
        }
    }
    let pipe = files.directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let journal = path("--journal");
    for args in [
        &[path("compare"), &manifest, &pipe][..],
        &[path("scan"), &pipe, journal, &files.journal],
        &[path("manifest"), &pipe],
    ] {
        let (code, said) = verifier(args);
        assert_eq!((code, said.contains("no regular file")), (Some(2), true), "{said}");
    }
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
    files.go_on(Kind::Running, 1, [150, 200]);
    let (code, said) = verifier("journal");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot be of one guest"), "{said}");
}

/// C30: what the error names does it.
#[test]
fn a_garbled_journal_is_read_by_collect() {
    let files = files();
    let garbled = files.said().replacen("\nE", "\n[    5.1] usb 1-1: new device\nE", 1);
    let (from, to) = (files.directory.path().join("console"), files.directory.path().join("new"));
    std::fs::write(&from, garbled).unwrap();
    let verifier = |args: &[&std::path::Path]| {
        told(Command::new(env!("CARGO_BIN_EXE_verifier")).args(args).output().unwrap())
    };
    let path = |p: &'static str| std::path::Path::new(p);
    let (code, said) = verifier(&[path("journal"), &from]);
    assert_eq!((code, said.contains("verifier collect --from")), (Some(2), true), "{said}");
    let (_, said) = verifier(&[path("collect"), path("--from"), &from, path("--journal"), &to]);
    let (code, judged) = verifier(&[path("journal"), &to]);
    assert_eq!((code, judged.contains("PROVEN")), (Some(0), true), "{said} {judged}");
}

/// C18: a guest reboots under one collector. What its second life left in memory is not proven by
/// what was heard of the first.
#[test]
fn a_guest_that_starts_again_is_another_run() {
    let second = files_of("stream", RunId(10), 5);
    let (console, collected) =
        (second.directory.path().join("console"), second.directory.path().join("collected"));
    let first = files_of("stream", RunId(9), 5).said();
    let first: Vec<&str> = first.lines().filter(|line| !line.starts_with('E')).collect();
    std::fs::write(&console, first.join("\n") + "\n").unwrap();
    let verifier = |words: &str| {
        let place = |word: &str| match word {
            "CONSOLE" => console.clone(),
            "COLLECTED" => collected.clone(),
            "REGION" => second.region.clone(),
            word => word.into(),
        };
        let arguments = words.split(' ').map(place);
        told(Command::new(env!("CARGO_BIN_EXE_verifier")).args(arguments).output().unwrap())
    };
    let collect = "collect --from CONSOLE --journal COLLECTED";
    let judge = ["journal COLLECTED", "scan REGION --journal COLLECTED"];
    let (code, said) = verifier(collect);
    assert_eq!(code, Some(0), "{said}");
    // Who was only heard before it started is never seen to advance; of its memory nothing is there.
    let [(heard, _), (scanned, said)] = judge.map(verifier);
    assert_eq!((heard, scanned), (Some(4), Some(1)), "{said}");
    assert!(said.contains("all are OTHER-RUN (key "), "{said}");
    let both = [std::fs::read_to_string(&console).unwrap(), second.said()].concat();
    std::fs::write(&console, both).unwrap();
    let (code, said) = verifier(collect);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("collecting run 000000000000000a") && said.contains("of 2 runs"),
        "{said}"
    );
    // Each is judged by itself, and memory by its own.
    let [(heard, both), (scanned, said)] = judge.map(verifier);
    assert_eq!((heard, scanned), (Some(4), Some(0)), "{both} {said}");
    let runs: Vec<&str> = both.lines().filter(|line| line.starts_with("run ")).collect();
    assert!(runs.len() == 2 && both.contains("PROVEN (heard by "), "{both}");
}

/// The caller's own thread does what others cannot be had for.
#[test]
#[cfg_attr(not(is_root), ignore = "SKIPPED: needs root")]
fn a_user_who_may_start_no_thread_gets_a_verdict() {
    use std::os::unix::fs::PermissionsExt;
    let files = files();
    let open_to_all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(files.directory.path(), open_to_all).unwrap();
    let user = "setpriv --reuid=54322 --regid=54322 --clear-groups";
    let program = env!("CARGO_BIN_EXE_verifier");
    // The directories above the program may be closed to that user; an open file is not.
    let limited =
        format!("exec {user} bash -c 'ulimit -u 1; exec /dev/fd/9 \"$@\"' - \"$@\" 9<{program}");
    let output = Command::new("bash")
        .args(["-c", &limited, "-", "scan"])
        .arg(&files.region)
        .arg("--journal")
        .arg(&files.journal)
        .output()
        .unwrap();
    let (code, text) = told(output);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_watermark_that_no_run_has_is_refused() {
    let files = files_of("iid", RunId(9), 200);
    files.go_on(Kind::Ended, 0, [200, 1 << 60]);
    let (code, text) = files.scan(&[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("1152921504606846976 operations"), "{text}");
    // B46: the limit has a name, and can be another.
    let files = files_of("iid", RunId(9), 200);
    let (code, text) = files.scan(&["--replay-limit", "399"]);
    assert_eq!(
        (code, text.contains("limit is 399") && text.contains("--replay-limit")),
        (Some(2), true),
        "{text}"
    );
    assert_eq!(files.scan(&["--replay-limit", "400"]).0, Some(0));
}

#[test]
fn every_document_is_of_its_schema_which_is_that_of_docs() {
    let run = |args: &[&std::ffi::OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_verifier")).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for command in ["scan", "image", "compare", "journal", "self-test"] {
        let path =
            format!("{}/../docs/schema/verifier-{command}.schema.json", env!("CARGO_MANIFEST_DIR"));
        let printed = run(&["schema".as_ref(), command.as_ref()]);
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(printed == stored, "{path} is old: write `verifier schema {command}` to it");
    }
    let files = files();
    files.write(70_000, &[1, 2, 3]);
    files.write(3 * 4096, &[0; 4096]);
    let (region, journal) = (files.region.as_os_str(), files.journal.as_os_str());
    let json = "--json".as_ref();
    for command in ["scan", "image"] {
        let words = [command.as_ref(), region, "--journal".as_ref(), journal, json];
        valid(&run(&words), &format!("verifier-{command}"));
    }
    valid(&run(&["journal".as_ref(), journal, json]), "verifier-journal");
    valid(&run(&["compare".as_ref(), region, region, json]), "verifier-compare");
    valid(&run(&["self-test".as_ref(), json]), "verifier-self-test");
}

#[test]
fn what_is_wrong_is_a_failed_case_of_a_pipeline() {
    let files = files();
    files.write(70_000, &[1, 2, 3]);
    let junit = files.directory.path().join("junit.xml");
    let (code, _) = files.scan(&["--junit", junit.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    let text = std::fs::read_to_string(&junit).unwrap();
    assert!(text.contains("failures=\"1\"") && text.contains("type=\"wrong\""), "{text}");
    // What cannot be written is said, and the answer holds.
    let (code, _) = files.scan(&["--junit", "/nonexistent/junit.xml"]);
    assert_eq!(code, Some(1));
}

/// A guest that keeps a journal, until it is killed; run as a process of its own.
#[test]
fn a_writer_to_be_killed() {
    let Some(path) = std::env::var_os("VERIFIER_TESTS_KILL") else { return };
    let spec = files().spec;
    let mut journal = JournalWriter::create(path.as_ref(), &spec, support::INTERVAL).unwrap();
    for watermark in 0..50 {
        journal.beats(Kind::Running, 0, &[watermark; 2], 2);
        std::thread::sleep(support::INTERVAL);
    }
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// That a writer is gone is no line in its journal: whoever follows it sees so at the end.
#[test]
fn a_guest_that_was_killed_is_not_proven_by_whoever_watched() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_writer_to_be_killed"])
        .env("VERIFIER_TESTS_KILL", &journal)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begin = std::time::Instant::now();
    let beats = || std::fs::read_to_string(&journal).unwrap_or_default().lines().count();
    while beats() < 100 && begin.elapsed().as_secs() < 20 {
        std::thread::sleep(support::INTERVAL);
    }
    let watch = Command::new(env!("CARGO_BIN_EXE_verifier"))
        .arg("watch")
        .arg(&journal)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    writer.kill().unwrap();
    writer.wait().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&watch);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (code, text) = told(watch.wait_with_output().unwrap());
    assert_eq!(code, Some(4), "{text}");
}

/// A collector that was killed leaves its socket behind; the next one takes its place.
#[test]
fn the_socket_of_a_dead_collector_is_cleared_away() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, name) in [("listen", "a"), ("unix", "b")] {
        let socket = directory.path().join(name);
        let start = || {
            Command::new(env!("CARGO_BIN_EXE_verifier"))
                .arg("collect")
                .arg("--from")
                .arg(format!("{kind}:{}", socket.display()))
                .arg("--journal")
                .arg(directory.path().join(format!("journal-{name}")))
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        for _ in 0..2 {
            let mut collector = start();
            std::thread::sleep(std::time::Duration::from_millis(400));
            let ended = collector.try_wait().unwrap();
            collector.kill().unwrap();
            let said = String::from_utf8(collector.wait_with_output().unwrap().stderr).unwrap();
            assert_eq!(ended, None, "{kind}: {said}");
            assert!(socket.exists(), "{kind}");
        }
    }
}
