//! `verifier collect`: heartbeats from a link into a journal on this machine.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Args as ClapArgs;
use verifier::verdict::Verdict;
use workload::journal::{Collected, Collector, Motion};
use workload::outlet::{addresses, open_serial};
use workload::say::Reader;
use workload::{interrupt, say};

/// How long a quiet link is listened to before Ctrl-C is looked for.
const PATIENCE: Duration = Duration::from_millis(200);
/// Longest line.
const LINE_BYTES_MAX: u64 = 64 << 10;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    verifier collect --from udp:0.0.0.0:7007 --journal journal\n  \
    (guest) workload run --heartbeat udp:HOST:7007\n\n  \
    qemu-system-x86_64 ... -serial unix:/tmp/serial,server=on\n  \
    verifier collect --from stream:/tmp/serial --journal journal\n\n\
    Ends when every writer has come to rest, when the link ends, or at Ctrl-C.")]
pub(crate) struct Args {
    /// Where heartbeats come from: udp:ADDR:PORT or unix:PATH (datagrams, bound here),
    /// stream:PATH (a Unix socket that is connected to), serial:TTY, or a file or pipe
    #[arg(long, value_name = "WHERE")]
    from: Inlet,
    /// Journal to write
    #[arg(long)]
    journal: PathBuf,
}

#[derive(Clone, Debug)]
enum Inlet {
    Udp(String),
    Unix(PathBuf),
    Stream(PathBuf),
    Serial(PathBuf),
    File(PathBuf),
}

impl FromStr for Inlet {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once(':') {
            Some(("udp", address)) => Self::Udp(address.to_owned()),
            Some(("unix", path)) => Self::Unix(path.into()),
            Some(("stream", path)) => Self::Stream(path.into()),
            Some(("serial", path)) => Self::Serial(path.into()),
            _ => Self::File(text.into()),
        })
    }
}

/// Lines as they arrive; `None` for a moment without one.
type Lines = Box<dyn FnMut() -> std::io::Result<Arrived>>;

enum Arrived {
    Line(String),
    Nothing,
    End,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Verdict> {
    interrupt::install()?;
    let mut next = open(&args.from)?;
    let mut collector = Collector::create(&args.journal)?;
    let mut resting = std::collections::HashSet::new();
    let mut writers = None;
    let mut reader = Reader::There;
    let mut others = false;
    loop {
        match next().context("the link failed")? {
            Arrived::End => break,
            Arrived::Nothing => {}
            Arrived::Line(line) => match collector.line(&line)? {
                Collected::Start(run) => {
                    say!("verifier: collecting run {run}");
                    let journal = workload::journal::Journal::read(&args.journal)?;
                    writers = Some(journal.spec.writers as usize);
                }
                Collected::Beat(beat) => {
                    match beat.motion {
                        Motion::AtRest => resting.insert(beat.writer),
                        Motion::Running => resting.remove(&beat.writer),
                    };
                }
                Collected::OtherRun(run) => {
                    others = true;
                    say!(
                        "verifier: run {run} began: the guest started again, or another one beats into \
                         this link; its heartbeats are not collected (collect them into a journal of \
                         their own)"
                    );
                }
                Collected::Dropped => {
                    // What else the guest has to say, such as answers to commands.
                    if line.starts_with("# ") && reader == Reader::There {
                        reader =
                            say::report("verifier", |out| writeln!(out, "{}", line.trim_end()));
                    }
                }
            },
        }
        if interrupt::count() > 0 || writers == Some(resting.len()) {
            break;
        }
    }
    say!(
        "verifier: {} heartbeats in {}, {} other lines",
        collector.beats,
        args.journal.display(),
        collector.dropped
    );
    Ok(if writers.is_some() && !others { Verdict::Proven } else { Verdict::Inconclusive })
}

fn open(inlet: &Inlet) -> anyhow::Result<Lines> {
    Ok(match inlet {
        Inlet::Udp(address) => {
            let socket = addresses(address)
                .and_then(|all| UdpSocket::bind(&all[..]))
                .with_context(|| format!("cannot listen at udp:{address}"))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            datagrams(move |buffer| socket.recv(buffer))
        }
        Inlet::Unix(path) => {
            let socket = UnixDatagram::bind(path)
                .with_context(|| format!("cannot listen at unix:{}", path.display()))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            datagrams(move |buffer| socket.recv(buffer))
        }
        Inlet::Stream(path) => {
            let socket = UnixStream::connect(path)
                .with_context(|| format!("cannot connect to {}", path.display()))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            lines(socket)
        }
        Inlet::Serial(path) => {
            lines(open_serial(path).with_context(|| format!("cannot open {}", path.display()))?)
        }
        Inlet::File(path) => {
            lines(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
        }
    })
}

fn quiet(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn datagrams(mut receive: impl FnMut(&mut [u8]) -> std::io::Result<usize> + 'static) -> Lines {
    let mut buffer = vec![0; LINE_BYTES_MAX as usize];
    Box::new(move || match receive(&mut buffer) {
        Ok(length) => {
            let text = String::from_utf8_lossy(&buffer[..length]);
            Ok(Arrived::Line(text.trim_end_matches('\n').to_owned()))
        }
        Err(e) if quiet(&e) => Ok(Arrived::Nothing),
        Err(e) => Err(e),
    })
}

fn lines(source: impl Read + 'static) -> Lines {
    let mut reader = BufReader::new(source);
    let mut line = Vec::new();
    Box::new(move || {
        let rest = LINE_BYTES_MAX - line.len() as u64;
        match reader.by_ref().take(rest).read_until(b'\n', &mut line) {
            Ok(0) if rest > 0 => Ok(Arrived::End),
            Ok(_) => {
                let whole = line.ends_with(b"\n") || line.len() as u64 == LINE_BYTES_MAX;
                if !whole {
                    return Ok(Arrived::Nothing);
                }
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches('\n').to_owned();
                line.clear();
                Ok(Arrived::Line(text))
            }
            Err(e) if quiet(&e) => Ok(Arrived::Nothing),
            Err(e) => Err(e),
        }
    })
}
