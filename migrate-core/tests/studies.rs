//! Many runs: swept, kept, gone on with, compared, drawn.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const VMIGRATE: &str = env!("CARGO_BIN_EXE_vmigrate");

fn vmigrate(folder: &Path, args: &[&str]) -> Output {
    Command::new(VMIGRATE).current_dir(folder).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn valid(document: &Value, schema: &str) {
    let path = format!("{}/../docs/schema/{schema}.schema.json", env!("CARGO_MANIFEST_DIR"));
    let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(document).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

const SWEEP: [&str; 17] = [
    "sweep",
    "--bandwidth",
    "400mbit",
    "--rates",
    "0.5,3",
    "--policy",
    "adaptive,precopy",
    "--memory",
    "8MiB",
    "--run-on",
    "100ms",
    "--rounds",
    "4",
    "--downtime",
    "30ms",
    "--out",
    "study",
];

fn lines(folder: &Path) -> Vec<Value> {
    let runs = std::fs::read_to_string(folder.join("study/runs.ndjson")).unwrap();
    runs.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One sweep, through everything that can be done with it.
#[test]
fn a_sweep_is_kept_gone_on_with_compared_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let swept = vmigrate(folder, &SWEEP);
    let said = text(&swept.stdout);
    assert_eq!(swept.status.code(), Some(0), "{said} {}", text(&swept.stderr));
    assert!(said.contains("WHERE IT CONVERGES"), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let whole = lines(folder);
    assert_eq!(whole.len(), 4);
    for line in &whole {
        valid(line, "sweep");
    }
    let table = std::fs::read_to_string(folder.join("study/runs.csv")).unwrap();
    assert_eq!(table.lines().count(), 5, "{table}");

    // A crash leaves half a line: it is done again, and the three before it are not.
    let runs = folder.join("study/runs.ndjson");
    let kept = std::fs::read_to_string(&runs).unwrap();
    std::fs::write(&runs, &kept[..kept.len() - 100]).unwrap();
    let resumed = vmigrate(folder, &[&SWEEP[..], &["--json"]].concat());
    assert_eq!(resumed.status.code(), Some(0), "{}", text(&resumed.stderr));
    assert!(text(&resumed.stderr).contains("half a run"), "{}", text(&resumed.stderr));
    let printed: Vec<Value> =
        text(&resumed.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed.len(), 1, "the fourth alone");
    let again = lines(folder);
    assert_eq!(again[..3], whole[..3]);
    assert_eq!((again.len(), &again[3]), (4, &printed[0]));

    // Another sweep does not go into this folder.
    let mut other = SWEEP;
    other[4] = "0.7";
    let refused = vmigrate(folder, &other);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("holds another sweep"), "{}", text(&refused.stderr));

    compared(folder, &again[0]);
    drawn(folder);
}

/// The same is no worse than itself; twice the downtime is.
fn compared(folder: &Path, line: &Value) {
    let same = vmigrate(folder, &["compare", "study", "study", "--json"]);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same.stderr));
    let report: Value = serde_json::from_slice(&same.stdout).unwrap();
    valid(&report, "compare");
    assert_eq!(report["worse"], json!(false));
    let mut worse = line["run"].clone();
    std::fs::write(folder.join("a.json"), worse.to_string()).unwrap();
    let downtime = worse["attempts"][0]["downtime"]["total_ms"].as_f64().unwrap();
    worse["attempts"][0]["downtime"]["total_ms"] = json!(downtime * 2.0);
    std::fs::write(folder.join("b.json"), worse.to_string()).unwrap();
    let compare =
        |a: &str, b: &str, more: &[&str]| vmigrate(folder, &[&["compare", a, b], more].concat());
    let found = compare("a.json", "b.json", &[]);
    let said = text(&found.stdout);
    assert_eq!(found.status.code(), Some(6), "{said}");
    assert!(said.starts_with("WORSE: 1 of") && said.contains("+100.0 %  WORSE"), "{said}");
    assert_eq!(compare("b.json", "a.json", &[]).status.code(), Some(0), "better is not worse");
    assert_eq!(compare("a.json", "b.json", &["--worse-by", "150%"]).status.code(), Some(0));
    let nothing = compare("a.json", "nowhere", &[]);
    assert_eq!(nothing.status.code(), Some(2));
    std::fs::write(folder.join("old.json"), r#"{"schema": 4, "workload": {}}"#).unwrap();
    let old = compare("old.json", "a.json", &[]);
    assert!(text(&old.stderr).contains("it is of schema 4"), "{}", text(&old.stderr));
    assert_eq!(old.status.code(), Some(2));
}

fn drawn(folder: &Path) {
    let report = vmigrate(folder, &["report", "study", "-o", "study.html"]);
    assert_eq!(report.status.code(), Some(0), "{}", text(&report.stderr));
    let page = std::fs::read_to_string(folder.join("study.html")).unwrap();
    assert!(page.matches("<svg").count() >= 5, "{}", page.matches("<svg").count());
    for part in ["Left to send", "Time over the dirty rate", "NOT MIGRATED", "PROVEN", "sweep"] {
        assert!(page.contains(part), "{part}");
    }
    // Everything is in the one file, and nothing in it runs.
    assert!(!page.contains("<script") && !page.contains("http://") || page.contains("w3.org"));
    let pair = vmigrate(folder, &["report", "a.json", "b.json", "-o", "-"]);
    assert!(text(&pair.stdout).contains("Two runs over each other"));
    let nowhere = vmigrate(folder, &["report", "a.json", "-o", "/nonexistent/report.html"]);
    assert_eq!(nowhere.status.code(), Some(2));
    std::fs::write(folder.join("empty.ndjson"), "").unwrap();
    let empty = vmigrate(folder, &["report", "empty.ndjson"]);
    assert_eq!(empty.status.code(), Some(2));
    assert!(text(&empty.stderr).contains("holds no run"), "{}", text(&empty.stderr));
}

#[test]
fn plans_and_wishes_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("unknown.toml"), "rate = [1]\n").unwrap();
    std::fs::write(folder.join("empty.toml"), "seeds = []\n").unwrap();
    for (args, part) in [
        (&["--plan", "unknown.toml"][..], "unknown field `rate`"),
        (&["--plan", "empty.toml"], "the matrix is empty: seeds"),
        (&["--plan", "nowhere.toml"], "nowhere.toml"),
        (&["--rates", "2..1/0.1"], "is no range"),
        (&["--repeat", "4000000000"], "more than 100000 runs"),
        (&["--require", "speed<1"], "nothing is called 'speed'"),
        (&["--repeat-on", "weather"], "no run ends with 'weather'"),
        (&["--to", "192.0.2.1"], "--insecure"),
    ] {
        let refused = vmigrate(folder, &[&["sweep", "--out", "none"], args].concat());
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?} should say '{part}': {said}");
        assert!(!folder.join("none").exists(), "{args:?} left a folder");
    }
}

#[test]
#[cfg_attr(not(has_chromium), ignore = "SKIPPED: there is no chromium-headless-shell")]
fn a_browser_shows_the_page_without_a_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bench = vmigrate(
        folder,
        &["bench", "--memory", "8MiB", "--links", "200mbit,800mbit", "--run-on", "100ms", "--json"],
    );
    std::fs::write(folder.join("bench.json"), &bench.stdout).unwrap();
    let report = vmigrate(folder, &["report", "bench.json"]);
    assert_eq!(report.status.code(), Some(0), "{}", text(&report.stderr));
    let page = format!("file://{}", folder.join("report.html").display());
    let shot = format!("--screenshot={}", folder.join("page.png").display());
    let browser = |how: &str| {
        Command::new("chromium-headless-shell")
            .args(["--no-sandbox", "--disable-gpu", "--enable-logging=stderr", how, &page])
            .output()
            .unwrap()
    };
    let dom = browser("--dump-dom");
    let shown = text(&dom.stdout);
    for part in ["4 of 4 guests migrated", "Left to send", "paper: 38 x", "<svg"] {
        assert!(shown.contains(part), "{part}");
    }
    let complaints = text(&dom.stderr);
    assert!(!complaints.contains("CONSOLE"), "{complaints}");
    browser(&shot);
    let picture = std::fs::metadata(folder.join("page.png")).unwrap();
    assert!(picture.len() > 20_000, "{} bytes", picture.len());
}

/// The shell of docs/in-your-pipeline.md, as it stands there, and the action's script.
#[test]
fn the_pipelines_of_the_docs_run() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/in-your-pipeline.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let script = docs.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let path = Path::new(VMIGRATE).parent().unwrap();
    let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let shell = |script: &str, more: &[(&str, &str)]| {
        let ran = Command::new("bash")
            .args(["-euc", script])
            .current_dir(folder)
            .env("PATH", &path)
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(ran.status.code(), Some(0), "{} {}", text(&ran.stdout), text(&ran.stderr));
    };
    shell(script, &[]);
    let kept = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let junit = kept("migration/junit.xml");
    assert!(junit.contains("tests=\"2\" disabled=\"0\" errors=\"0\" failures=\"0\""), "{junit}");
    assert!(kept("migration/metrics.prom").ends_with("# EOF\n"));
    assert!(kept("migration/summary.md").contains("2 of 2 as they should be"));
    assert!(kept("migration/report.html").contains("2 of 2 guests migrated"));
    let action = concat!(env!("CARGO_MANIFEST_DIR"), "/../ci/action/run");
    let arguments = "sweep --rates 0.5 --memory 8MiB --bandwidth 1gbit --run-on 100ms";
    let named = [
        ("VMIGRATE_ARGUMENTS", arguments),
        ("VMIGRATE_FOLDER", "acted"),
        ("GITHUB_STEP_SUMMARY", "step.md"),
    ];
    shell(action, &named);
    assert!(kept("acted/junit.xml").contains("failures=\"0\""));
    assert!(kept("step.md").contains("1 of 1 as they should be"));
}
