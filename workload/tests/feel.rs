//! What a guest feels when it is held from outside, by signals: a stun, a throttle.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Signals to a process that we started.
mod sys {
    pub(crate) fn signal(child: &std::process::Child, signal: libc::c_int) {
        // SAFETY: a plain system call; the process is our child and has not been waited for.
        let result = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        assert_eq!(result, 0);
    }
}

fn start(duration: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_workload"))
        .args(["run", "--memory", "16MiB", "--rate", "20MB/s", "--json", "--duration", duration])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn felt(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    summary["felt"].clone()
}

/// Holds the process for a time; returns how long it really was.
fn hold(child: &Child, time: Duration) -> Duration {
    let start = Instant::now();
    sys::signal(child, libc::SIGSTOP);
    std::thread::sleep(time);
    sys::signal(child, libc::SIGCONT);
    start.elapsed()
}

/// A busy host may itself take the CPUs away in the middle of a measurement; three times in a row
/// it does not.
fn one_of_three(attempt: impl Fn() -> Result<(), String>) {
    let failures: Vec<String> = (0..3).map_while(|_| attempt().err()).collect();
    assert!(failures.len() < 3, "{failures:#?}");
}

fn list<'a>(felt: &'a Value, name: &str) -> &'a [Value] {
    felt[name].as_array().unwrap()
}

#[test]
fn a_stop_of_300_ms_is_one_stun() {
    one_of_three(|| {
        let child = start("1500ms");
        std::thread::sleep(Duration::from_millis(700));
        let held_ms = hold(&child, Duration::from_millis(300)).as_secs_f64() * 1e3;
        let felt = felt(child);
        let [stun] = list(&felt, "stuns") else { return Err(felt.to_string()) };
        let off_ms = (stun["length_ms"].as_f64().unwrap() - held_ms).abs();
        match off_ms < 5.0 && list(&felt, "throttles").is_empty() {
            true => Ok(()),
            false => Err(format!("held for {held_ms} ms: {felt}")),
        }
    });
}

#[test]
fn a_comb_of_10_ms_is_a_throttle_with_its_duty_cycle() {
    one_of_three(|| {
        let child = start("2500ms");
        std::thread::sleep(Duration::from_millis(700));
        let (start, mut held) = (Instant::now(), Duration::ZERO);
        while start.elapsed() < Duration::from_secs(1) {
            held += hold(&child, Duration::from_millis(10));
            std::thread::sleep(Duration::from_millis(10));
        }
        let ran = 1.0 - held.as_secs_f64() / start.elapsed().as_secs_f64();
        let felt = felt(child);
        let [throttle] = list(&felt, "throttles") else { return Err(felt.to_string()) };
        let off = (throttle["duty"].as_f64().unwrap() - ran).abs();
        match off < 0.03 && list(&felt, "stuns").is_empty() {
            true => Ok(()),
            false => Err(format!("ran {ran}: {felt}")),
        }
    });
}
