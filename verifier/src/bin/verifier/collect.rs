//! `verifier collect`: heartbeats from any number of links into a journal on this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use socket2::{Domain, SockAddr, Socket, Type};
use verifier::verdict::Verdict;
use workload::beat::collector::{Collected, Collector};
use workload::beat::ledger::here;
use workload::beat::said::{Beat, Kind, Tag};
use workload::beat::session::Name;
use workload::outlet::{addresses, open_serial};
use workload::pipe;
use workload::say::Reader;
use workload::{interrupt, say};

/// How long a quiet link is listened to before anything else is looked at.
const PATIENCE: Duration = Duration::from_millis(200);
/// A run that is not heard for so long is silent.
const SILENCE: Duration = Duration::from_secs(1);
/// Longest line.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Every guest's and the host's own: any.
const VMADDR_CID_ANY: u32 = u32::MAX;
/// Connections that wait to be taken.
const LINKS_WAITING: i32 = 64;
/// Lines that wait to be written down.
const LINES_WAITING: usize = 4096;

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    verifier collect --from udp:0.0.0.0:7007 --journal journal\n  \
    (guest) workload run --heartbeat udp:HOST:7007\n\n  \
    qemu-system-x86_64 ... -serial unix:/tmp/serial,server=on\n  \
    verifier collect --from stream:/tmp/serial --journal journal --control stdin\n\n  \
    firecracker or cloud-hypervisor: a guest's vsock port 7007 comes out of UDS_7007 on its host\n  \
    verifier collect --from listen:/tmp/vsock_7007 --journal journal\n  \
    QEMU with -device vhost-vsock-pci: the port is this machine's own\n  \
    verifier collect --from vsock:7007 --journal journal\n  \
    (guest) workload run --heartbeat vsock:2:7007\n\n\
    A journal that is there goes on. Every run that is heard is kept; each is judged by itself.\n\
    Ends when every run that is heard has ended, when all links end, or at Ctrl-C.\n\n\
    Lines from --control: `restored TAG [FIRST..]BEAT [BITS]` says that a restore was meant, and\n\
    which beat the guest goes on from (say it before it does); `phase NAME` that a phase begins\n\
    which every writer must be seen to advance in. All others (pause, scan, resume, rate R, stop)\n\
    go to the guests, over the links that lead there.")]
pub(crate) struct Args {
    /// Where heartbeats come from: udp:ADDR:PORT or unix:PATH (datagrams, bound here),
    /// stream:PATH (a Unix socket that is connected to), listen:PATH (one that is listened at),
    /// vsock:PORT (a port of this machine that its guests connect to), serial:TTY, or a file or pipe; more than one may be named
    #[arg(long, required = true, value_name = "WHERE")]
    from: Vec<Inlet>,
    /// Journal to write
    #[arg(long)]
    journal: PathBuf,
    /// Take words and commands from stdin or a named pipe, made if it is not there
    #[arg(long, value_name = "stdin|PIPE")]
    control: Option<PathBuf>,
    /// This collector's name in the journal [default: the host's]
    #[arg(long, value_name = "ID")]
    name: Option<Name>,
}

#[derive(Clone, Debug)]
enum Inlet {
    Udp(String),
    Unix(PathBuf),
    Stream(PathBuf),
    Listen(PathBuf),
    Vsock(u32),
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
            Some(("listen", path)) => Self::Listen(path.into()),
            Some(("vsock", port)) => {
                Self::Vsock(port.parse().map_err(|_| format!("'{port}' is no vsock port"))?)
            }
            Some(("serial", path)) => Self::Serial(path.into()),
            _ => Self::File(text.into()),
        })
    }
}

impl Inlet {
    /// What may pass from a beat's being said to its being heard.
    fn late(&self) -> Duration {
        match self {
            Self::Udp(_) => Duration::from_secs(1),
            _ => Duration::ZERO,
        }
    }
}

/// What a thread that listens has to tell.
enum Event {
    /// A line of a link.
    Line(Vec<u8>),
    /// A link has ended, or failed.
    Over(Option<anyhow::Error>),
    /// A line of whoever has the control.
    Told(String),
}

/// Links that can be written to.
type Ways = Arc<Mutex<Vec<Box<dyn Write + Send>>>>;

pub(crate) fn run(args: &Args) -> anyhow::Result<Verdict> {
    interrupt::install()?;
    let (sender, events) = sync_channel(LINES_WAITING);
    let ways = Ways::default();
    for inlet in &args.from {
        listen(inlet, &sender, &ways)?;
    }
    if let Some(control) = &args.control {
        take_control(control.clone(), sender.clone())?;
    }
    drop(sender);
    let late = args.from.iter().map(Inlet::late).max().unwrap_or_default();
    let name = args.name.clone().unwrap_or_else(here);
    let collector = Collector::open(&args.journal, &name, late)?;
    let heard = Heard { collector, runs: BTreeMap::new(), reader: Reader::There, ways };
    heard.listen(args, &events)
}

/// What is heard, and of whom.
struct Heard {
    collector: Collector,
    runs: BTreeMap<Tag, Run>,
    reader: Reader,
    ways: Ways,
}

/// How far a run is known to be.
struct Run {
    writers: Option<u32>,
    ended: std::collections::BTreeSet<u16>,
    last: Option<Beat>,
    at: Instant,
    /// Its silence was said.
    silent: bool,
    /// That it went back was said.
    back: bool,
}

impl Run {
    fn is_ended(&self) -> bool {
        self.writers.is_some_and(|writers| self.ended.len() as u32 >= writers)
    }
}

impl Heard {
    fn listen(mut self, args: &Args, events: &Receiver<Event>) -> anyhow::Result<Verdict> {
        let mut links = args.from.len();
        while links > 0 && interrupt::count() == 0 {
            match events.recv_timeout(PATIENCE) {
                Ok(Event::Line(line)) => self.line(&line)?,
                Ok(Event::Told(line)) => self.told(&line)?,
                Ok(Event::Over(error)) => {
                    links -= 1;
                    if let Some(error) = error {
                        say!("verifier: a link failed: {error:#}");
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.collector.tick(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look_for_silence();
            if self.is_over() {
                break;
            }
        }
        // What has come is taken in before it is closed.
        while let Ok(event) = events.try_recv() {
            if let Event::Line(line) = event {
                self.line(&line)?;
            }
        }
        let runs = self.runs.values().filter(|run| run.writers.is_some()).count();
        say!(
            "verifier: {} heartbeats of {} in {}, {} other lines",
            self.collector.beats,
            if runs == 1 { "a run".to_owned() } else { format!("{runs} runs") },
            args.journal.display(),
            self.collector.dropped
        );
        Ok(if runs > 0 { Verdict::Proven } else { Verdict::Inconclusive })
    }

    fn run(&mut self, tag: Tag) -> &mut Run {
        self.runs.entry(tag).or_insert_with(|| Run {
            writers: None,
            ended: std::collections::BTreeSet::new(),
            last: None,
            at: Instant::now(),
            silent: false,
            back: false,
        })
    }

    fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        match self.collector.line(line)? {
            Collected::Start(tag, start) => {
                let others =
                    self.runs.iter().filter(|(other, run)| **other != tag && !run.is_ended());
                let others = others.count();
                let run = start.spec.run().map_or(String::new(), |run| format!("{run} "));
                let again = match others {
                    0 => "",
                    _ => ": a guest started again, or another one is heard as well",
                };
                say!("verifier: collecting run {run}(tag {tag}){again}");
                self.run(tag).writers = Some(start.spec.writers);
            }
            Collected::Beat(tag, beat) => self.beat(tag, beat),
            Collected::Again => {}
            Collected::Dropped => {
                // What else the guest has to say, such as answers to commands.
                let text = String::from_utf8_lossy(line);
                if text.starts_with("# ") && self.reader == Reader::There {
                    self.reader =
                        say::report("verifier", |out| writeln!(out, "{}", text.trim_end()));
                }
            }
        }
        Ok(())
    }

    fn beat(&mut self, tag: Tag, beat: Beat) {
        let run = self.run(tag);
        run.at = Instant::now();
        if std::mem::take(&mut run.silent) {
            say!("verifier: run {tag} is heard again");
        }
        match beat.kind {
            Kind::Ended => drop(run.ended.insert(beat.writer)),
            Kind::Running => drop(run.ended.remove(&beat.writer)),
            Kind::Held => {}
        }
        // Datagrams overtake each other; a guest that went back says a number again in another way.
        let back = run.last.is_some_and(|last| last.number == beat.number && last != beat);
        let far = run.last.is_some_and(|last| last.number > beat.number.saturating_add(1000));
        if (back || far) && !std::mem::replace(&mut run.back, true) {
            say!(
                "verifier: run {tag} went back to beat {}: it was restored or reset to an earlier \
                 moment, or two guests beat as this one",
                beat.number
            );
        }
        if run.last.is_none_or(|last| last.number <= beat.number) || back || far {
            run.last = Some(beat);
        }
    }

    fn look_for_silence(&mut self) {
        for (tag, run) in &mut self.runs {
            let running = run.last.is_some_and(|beat| beat.kind == Kind::Running);
            if running && !run.silent && !run.is_ended() && run.at.elapsed() >= SILENCE {
                run.silent = true;
                say!("verifier: run {tag} is silent");
            }
        }
    }

    /// Whether every run that is heard has ended.
    fn is_over(&self) -> bool {
        let heard = |run: &&Run| run.is_ended() || run.at.elapsed() < SILENCE * 2;
        let mut heard = self.runs.values().filter(heard).peekable();
        heard.peek().is_some() && heard.all(Run::is_ended)
    }

    fn told(&mut self, line: &str) -> anyhow::Result<()> {
        let line = line.trim();
        let said = match line.split_once(' ') {
            Some(("restored", rest)) => self.restored(rest),
            Some(("phase", name)) => {
                name.parse().map_err(anyhow::Error::msg).and_then(|name: Name| {
                    let said = format!("phase {name} begins");
                    Ok(self.collector.mark(name).map(|()| said)?)
                })
            }
            _ if line.is_empty() => return Ok(()),
            _ => Ok(self.pass_on(line)),
        };
        match said {
            Ok(said) => say!("verifier: {said}"),
            Err(error) => say!("verifier: not taken: {error:#}"),
        }
        Ok(())
    }

    fn restored(&mut self, rest: &str) -> anyhow::Result<String> {
        let form = "it takes: restored TAG [FIRST..]BEAT [BITS]";
        let mut words = rest.split_whitespace();
        let tag: Tag = words.next().context(form)?.parse().map_err(anyhow::Error::msg)?;
        let beats = words.next().context(form)?;
        let (first, last) = match beats.split_once("..") {
            Some((first, last)) => (Some(first), last),
            None => (None, beats),
        };
        let last: u64 = last.parse().context(form)?;
        let first = first.map_or(Ok(last), str::parse).context(form)?;
        let bits = words.next().map(str::parse::<Tag>).transpose();
        let bits = bits.map_err(|_| anyhow::anyhow!("the bits are 8 hexadecimal digits"))?;
        anyhow::ensure!(first <= last && words.next().is_none(), form);
        let word = self.collector.restored(tag, first, last, bits.map(|bits| bits.0))?;
        Ok(format!("run {tag} is restored to beat {}, with bits {:08x}", word.last, word.bits))
    }

    fn pass_on(&self, line: &str) -> String {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ways.len();
        let text = format!("{line}\n");
        ways.retain_mut(|way| way.write_all(text.as_bytes()).and_then(|()| way.flush()).is_ok());
        match (before, ways.len()) {
            (0, _) => format!("'{line}' leads nowhere: none of the links can be written to"),
            (_, taken) => format!("'{line}' sent over {taken} links"),
        }
    }
}

fn take_control(from: PathBuf, to: SyncSender<Event>) -> anyhow::Result<()> {
    let source: Box<dyn Read + Send> = match from.as_os_str() == "stdin" {
        true => Box::new(std::io::stdin()),
        false => {
            Box::new(pipe::open(&from).with_context(|| format!("cannot open {}", from.display()))?)
        }
    };
    spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if to.send(Event::Told(line)).is_err() {
                break;
            }
        }
    })
}

fn spawn(work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name("link".into()).spawn(work);
    thread.map(drop).context("cannot start a thread for a link")
}

/// Removes the socket of a collector that is gone; one that anybody listens at stays.
fn clear_away(path: &Path) {
    let is_socket = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    let unheard = UnixStream::connect(path).is_err_and(|error| refused(&error))
        || UnixDatagram::unbound()
            .is_ok_and(|socket| socket.connect(path).is_err_and(|error| refused(&error)));
    if is_socket && unheard {
        let _ = std::fs::remove_file(path);
    }
}

fn listen(inlet: &Inlet, to: &SyncSender<Event>, ways: &Ways) -> anyhow::Result<()> {
    let to = to.clone();
    let add = |way: Box<dyn Write + Send>| {
        ways.lock().unwrap_or_else(PoisonError::into_inner).push(way);
    };
    match inlet {
        Inlet::Udp(address) => {
            let socket = addresses(address)
                .and_then(|all| UdpSocket::bind(&all[..]))
                .with_context(|| format!("cannot listen at udp:{address}"))?;
            spawn(move || datagrams(|buffer| socket.recv(buffer), &to))
        }
        Inlet::Unix(path) => {
            clear_away(path);
            let socket = UnixDatagram::bind(path)
                .with_context(|| format!("cannot listen at unix:{}", path.display()))?;
            spawn(move || datagrams(|buffer| socket.recv(buffer), &to))
        }
        Inlet::Stream(path) => {
            let socket = UnixStream::connect(path)
                .with_context(|| format!("cannot connect to {}", path.display()))?;
            add(Box::new(socket.try_clone()?));
            spawn(move || over(lines(socket, &to), &to))
        }
        Inlet::Listen(path) => {
            clear_away(path);
            let listener = UnixListener::bind(path)
                .with_context(|| format!("cannot listen at {}", path.display()))?;
            greet(move || listener.accept().map(|(stream, _)| stream.into()), to, ways.clone())
        }
        Inlet::Vsock(port) => {
            let listener = Socket::new(Domain::VSOCK, Type::STREAM, None).and_then(|socket| {
                socket.bind(&SockAddr::vsock(VMADDR_CID_ANY, *port))?;
                socket.listen(LINKS_WAITING)?;
                Ok(socket)
            });
            let listener = listener.with_context(|| format!("cannot listen at vsock:{port}"))?;
            greet(move || listener.accept().map(|(stream, _)| stream), to, ways.clone())
        }
        Inlet::Serial(path) => {
            let port =
                open_serial(path).with_context(|| format!("cannot open {}", path.display()))?;
            add(Box::new(port.try_clone()?));
            spawn(move || over(lines(port, &to), &to))
        }
        Inlet::File(path) => {
            // A pipe is waited for by whoever reads it; what is not there is said at once.
            let path = path.clone();
            path.metadata().with_context(|| format!("cannot open {}", path.display()))?;
            spawn(move || over(File::open(&path).and_then(|file| lines(file, &to)), &to))
        }
    }
}

/// Takes every connection that comes; one that comes later is another link.
fn greet(
    mut accept: impl FnMut() -> std::io::Result<Socket> + Send + 'static,
    to: SyncSender<Event>,
    ways: Ways,
) -> anyhow::Result<()> {
    spawn(move || {
        while let Ok(stream) = accept() {
            if let Ok(way) = stream.try_clone() {
                ways.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(way));
            }
            let to = to.clone();
            let _ = spawn(move || drop(lines(stream, &to)));
        }
    })
}

fn over(result: std::io::Result<()>, to: &SyncSender<Event>) {
    let _ = to.send(Event::Over(result.err().map(anyhow::Error::from)));
}

fn datagrams(mut receive: impl FnMut(&mut [u8]) -> std::io::Result<usize>, to: &SyncSender<Event>) {
    let mut buffer = vec![0; LINE_BYTES_MAX];
    loop {
        match receive(&mut buffer) {
            Ok(length) => {
                // A console's shared line may begin with an end.
                for line in buffer[..length].split(|byte| *byte == b'\n').filter(|l| !l.is_empty())
                {
                    if to.send(Event::Line(line.to_vec())).is_err() {
                        return;
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return over(Err(e), to),
        }
    }
}

fn lines(source: impl Read, to: &SyncSender<Event>) -> std::io::Result<()> {
    let mut reader = BufReader::new(source);
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {
                line.truncate(line.strip_suffix(b"\n").unwrap_or(&line).len());
                if !line.is_empty() && to.send(Event::Line(line)).is_err() {
                    return Ok(());
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
