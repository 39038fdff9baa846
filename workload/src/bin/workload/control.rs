//! Commands to a running guest, a line each: `pause`, `scan`, `resume`, `rate R`, `stop`.
//!
//! Answers are lines that start with `#`, which no journal takes for a heartbeat.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::Context;
use workload::beat::said::Kind;
use workload::beat::writer::JournalWriter;
use workload::heartbeat;
use workload::outlet::open_serial;
use workload::pipe;
use workload::rate::Demand;

use crate::guest::Guest;

/// Longest command line.
const COMMAND_BYTES_MAX: usize = 1000;
/// Commands that may wait.
const QUEUE: usize = 16;

/// Where commands come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlAddress {
    Stdin,
    Serial(PathBuf),
    /// A named pipe, made if it is not there.
    File(PathBuf),
}

impl FromStr for ControlAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once(':') {
            None if text == "stdin" => Self::Stdin,
            Some(("serial", path)) => Self::Serial(path.into()),
            _ => Self::File(text.into()),
        })
    }
}

/// An order to the guest.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Pause,
    Scan,
    Resume,
    Rate(Demand),
    Stop,
}

impl FromStr for Command {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().split_once(' ') {
            None => match text.trim() {
                "pause" => Ok(Self::Pause),
                "scan" => Ok(Self::Scan),
                "resume" => Ok(Self::Resume),
                "stop" => Ok(Self::Stop),
                other => Err(format!("'{other}' is none of pause, scan, resume, rate RATE, stop")),
            },
            Some(("rate", rate)) => rate.trim().parse().map(Self::Rate),
            Some((other, _)) => Err(format!("'{other}' takes no argument, or is no command")),
        }
    }
}

/// Commands as they come in, and the way for answers.
pub(crate) struct Control {
    incoming: Receiver<Result<Command, String>>,
    answers: Box<dyn Write>,
}

impl Control {
    pub(crate) fn open(address: &ControlAddress) -> anyhow::Result<Self> {
        let (source, answers): (Box<dyn BufRead + Send>, Box<dyn Write>) = match address {
            ControlAddress::Stdin => {
                (Box::new(BufReader::new(std::io::stdin())), Box::new(std::io::stderr()))
            }
            ControlAddress::Serial(path) => {
                let port = open_serial(path)
                    .with_context(|| format!("cannot open serial port {}", path.display()))?;
                (Box::new(BufReader::new(port.try_clone()?)), Box::new(port))
            }
            ControlAddress::File(path) => {
                let pipe = pipe::open(path);
                let pipe = pipe.with_context(|| format!("cannot open {}", path.display()))?;
                (Box::new(BufReader::new(pipe)), Box::new(std::io::stderr()))
            }
        };
        let (sender, incoming) = sync_channel(QUEUE);
        std::thread::Builder::new().name("control".into()).spawn(move || {
            for line in bounded_lines(source) {
                if line.trim().is_empty() || is_ours(&line) {
                    continue;
                }
                if sender.send(line.parse()).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { incoming, answers })
    }

    /// Obeys what has come in; `true` when told to stop.
    pub(crate) fn obey(&mut self, guest: &Guest) -> bool {
        while let Ok(command) = self.incoming.try_recv() {
            let stop = matches!(command, Ok(Command::Stop));
            let answer = match command {
                Ok(command) => obey(&command, guest).unwrap_or_else(|e| format!("error: {e:#}")),
                Err(e) => format!("error: {e}"),
            };
            for line in answer.lines() {
                // In one piece: heartbeats go over the same line.
                let _ = self.answers.write_all(format!("# {line}\n").as_bytes());
            }
            let _ = self.answers.flush();
            if stop {
                return true;
            }
        }
        false
    }
}

fn obey(command: &Command, guest: &Guest) -> anyhow::Result<String> {
    match command {
        Command::Pause => {
            guest.pause()?;
            Ok(format!("paused at {:?}", guest.watermarks.read()))
        }
        Command::Resume => {
            guest.resume();
            Ok("resumed".to_owned())
        }
        Command::Rate(demand) => {
            guest.set_rate(demand)?;
            Ok(format!("rate {}", String::from(demand.clone())))
        }
        Command::Stop => Ok("stopping".to_owned()),
        Command::Scan => {
            let was_paused = guest.is_paused();
            guest.pause()?;
            let result = scan(guest);
            if !was_paused {
                guest.resume();
            }
            result
        }
    }
}

/// The verifier: beside this program, or wherever programs are.
fn verifier() -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("verifier");
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut places = std::iter::once(beside.clone())
        .chain(std::env::split_paths(&path).map(|folder| folder.join("verifier")));
    places.find(|place| place.is_file()).with_context(|| {
        format!("no verifier to scan with: put it beside the workload, as {}", beside.display())
    })
}

/// Has the `verifier` that stands beside this program look at the region.
fn scan(guest: &Guest) -> anyhow::Result<String> {
    let verifier = verifier()?;
    let journal = std::env::temp_dir().join(format!("vmigrate-scan-{}", std::process::id()));
    let result = write_journal(&journal, guest).and_then(|()| {
        let output = Process::new(&verifier)
            .arg("scan")
            .arg(guest.region.path())
            .arg("--journal")
            .arg(&journal)
            .output()
            .context("cannot run the verifier")?;
        let text = [output.stdout, output.stderr].concat();
        Ok(format!("scan: {}", String::from_utf8_lossy(&text)))
    });
    let _ = std::fs::remove_file(&journal);
    result
}

/// The guest as it stands: from the fill to its watermarks now.
fn write_journal(path: &Path, guest: &Guest) -> anyhow::Result<()> {
    let spec = guest.workload.spec();
    let mut journal = JournalWriter::create(path, spec, heartbeat::interval(spec.writers))?;
    journal.beats(Kind::Running, 0, &vec![0; spec.writers as usize], 0);
    journal.beats(Kind::Held, 0, &guest.watermarks.read(), 0);
    Ok(journal.complete()?)
}

/// Lines of at most [`COMMAND_BYTES_MAX`] bytes; what is longer is cut there.
fn bounded_lines(mut source: Box<dyn BufRead + Send>) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            match source.read(&mut byte) {
                Ok(1) if matches!(byte[0], b'\n' | b'\r') => break,
                Ok(1) if line.len() < COMMAND_BYTES_MAX => line.push(byte[0]),
                Ok(1) => {}
                _ if line.is_empty() => return None,
                _ => break,
            }
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    })
}

/// Whether a line is what we said ourselves: a terminal at the other end may echo it. An answer to it
/// would be echoed as well, and so on.
fn is_ours(line: &str) -> bool {
    let line = line.trim_start();
    let beat = |rest: &str| rest.bytes().take(8).filter(u8::is_ascii_hexdigit).count() == 8;
    let said = ["B ", "P ", "E ", "S 2 "].iter().find_map(|start| line.strip_prefix(start));
    line.starts_with("# ") || said.is_some_and(beat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        assert_eq!("pause".parse(), Ok(Command::Pause));
        assert_eq!(" stop ".parse(), Ok(Command::Stop));
        assert_eq!("rate 5MB/s".parse(), Ok(Command::Rate("5MB/s".parse().unwrap())));
        for bad in ["rate", "rate x", "go", "pause now"] {
            assert!(bad.parse::<Command>().is_err(), "{bad}");
        }
    }

    /// C29: a terminal that echoes says our own beats and answers to us.
    #[test]
    fn an_echo_is_no_command() {
        use workload::beat::said::{Beat, Tag, sealed};
        for kind in [Kind::Running, Kind::Held, Kind::Ended] {
            let (number, epoch, writer, watermark, clock_us) = (0, 0, 0, 5, 1);
            let (bits, links) = (0x0001_0001, [0, 0]);
            let beat = Beat { number, bits, kind, epoch, writer, watermark, clock_us, links };
            assert!(is_ours(&sealed(&beat.text(Tag(7)))), "{beat:?}");
        }
        assert!(is_ours("# error: 'go' is none of pause, scan, resume, rate RATE, stop"));
        for command in ["pause", "scan", "rate 5MB/s", "go", "S now", "B 00", "#"] {
            assert!(!is_ours(command), "{command}");
        }
    }

    #[test]
    fn lines_are_bounded() {
        let text = format!("a\r\nbb\n{}\nend", "x".repeat(5000));
        let lines: Vec<_> = bounded_lines(Box::new(std::io::Cursor::new(text))).collect();
        assert_eq!(lines[..3], ["a", "", "bb"]);
        assert_eq!((lines[3].len(), lines[4].as_str()), (COMMAND_BYTES_MAX, "end"));
    }
}
