//! How heartbeats leave a guest: a file or pipe, a serial line, UDP, a Unix socket, a vsock port.
//!
//! Files and pipes are to take every line; a link may lose some. What is lost there is seen from the
//! numbers of the lines that arrive, so a guest never fails because nobody listens. No reader holds
//! a guest: a pipe or a port that is full loses lines, and they are counted. Lines stand alone: of
//! one that a full disk took in part nothing is left, and of one that a pipe took in part the rest
//! goes before anything else.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use socket2::{Domain, SockAddr, Socket, Type};

/// Why a way out could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {outlet}: {source}")]
pub struct OutletError {
    /// Which way out.
    pub outlet: OutletAddress,
    /// What was being done.
    pub doing: &'static str,
    /// What the system said.
    pub source: io::Error,
}

/// Where heartbeats go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutletAddress {
    /// Appended to a file, or written to a pipe.
    File(PathBuf),
    /// A serial port, switched to raw mode.
    Serial(PathBuf),
    /// One datagram per line to HOST:PORT.
    Udp(String),
    /// One datagram per line to a Unix socket.
    Unix(PathBuf),
    /// A connection to a Unix socket.
    Stream(PathBuf),
    /// A connection to a port of another virtual machine or, as number 2, of the host.
    Vsock {
        /// Whose port it is.
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl FromStr for OutletAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let address = match text.split_once(':') {
            Some(("udp", host)) if host.contains(':') => Self::Udp(host.to_owned()),
            Some(("udp", _)) => return Err(format!("'{text}': udp takes HOST:PORT")),
            Some(("unix", path)) => Self::Unix(path.into()),
            Some(("stream", path)) => Self::Stream(path.into()),
            Some(("vsock", of)) => {
                let (cid, port) = of.split_once(':').unwrap_or(("", of));
                match (cid.parse(), port.parse()) {
                    (Ok(cid), Ok(port)) => Self::Vsock { cid, port },
                    _ => {
                        return Err(format!(
                            "'{text}': vsock takes CID:PORT, and the host is CID 2"
                        ));
                    }
                }
            }
            Some(("serial", path)) => Self::Serial(path.into()),
            Some(("file", path)) => Self::File(path.into()),
            _ => Self::File(text.into()),
        };
        Ok(address)
    }
}

impl fmt::Display for OutletAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "journal {}", path.display()),
            Self::Serial(path) => write!(f, "serial port {}", path.display()),
            Self::Udp(host) => write!(f, "udp:{host}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Stream(path) => write!(f, "stream:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

/// An open way out.
#[derive(Debug)]
pub(crate) struct Outlet {
    address: OutletAddress,
    link: Link,
    refused: u64,
    /// Part of a line is out and could not be taken back.
    torn: bool,
}

#[derive(Debug)]
enum Link {
    File(File),
    Pipe(Stream),
    Serial(Stream),
    Udp(Datagrams),
    Unix { socket: UnixDatagram, path: PathBuf },
    Connection(Connection),
}

impl Outlet {
    pub(crate) fn open(address: &OutletAddress) -> Result<Self, OutletError> {
        let link = match address {
            OutletAddress::File(path) if is_pipe(path) => Stream::pipe(path).map(Link::Pipe),
            OutletAddress::File(path) => {
                File::options().append(true).create(true).open(path).map(Link::File)
            }
            OutletAddress::Serial(path) => open_serial(path).and_then(Stream::of).map(Link::Serial),
            OutletAddress::Udp(host) => Datagrams::open(host).map(Link::Udp),
            OutletAddress::Stream(path) => {
                SockAddr::unix(path).map(Connection::to).map(Link::Connection)
            }
            OutletAddress::Vsock { cid, port } => {
                let to = Connection::to(SockAddr::vsock(*cid, *port));
                // Whether the kernel has such sockets.
                Socket::new(Domain::VSOCK, Type::STREAM, None).map(|_| Link::Connection(to))
            }
            OutletAddress::Unix(path) => {
                // Whether somebody listens shows later; whether anybody can shows here.
                let place = std::os::unix::net::SocketAddr::from_pathname(path);
                let socket = place.and_then(|_| UnixDatagram::unbound()).and_then(|s| {
                    // A reader that does not keep up must not hold the guest.
                    s.set_nonblocking(true).map(|()| s)
                });
                socket.map(|socket| Link::Unix { socket, path: path.clone() })
            }
        };
        let link = link.map_err(|e| failed(address, "open", e))?;
        Ok(Self { address: address.clone(), link, refused: 0, torn: false })
    }

    /// Empties a file. Not pipes and links: they have nothing to empty.
    pub(crate) fn truncate(&mut self) -> Result<(), OutletError> {
        match &self.link {
            Link::File(file) if file.metadata().is_ok_and(|m| m.is_file()) => {
                file.set_len(0).map_err(|e| failed(&self.address, "truncate", e))
            }
            _ => Ok(()),
        }
    }

    /// The file, if it is one that keeps what is written.
    pub(crate) fn file(&self) -> Option<&File> {
        match &self.link {
            Link::File(file) if file.metadata().is_ok_and(|m| m.is_file()) => Some(file),
            _ => None,
        }
    }

    /// Whether others may write to it as well.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.link, Link::Serial(_))
    }

    /// Ends a line that somebody else began, before the next one.
    pub(crate) fn end_line(&mut self) {
        self.torn = true;
    }

    /// Lines that the link did not take.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Sends one line, if need be after waiting for a reader who is slow: for the last words of a
    /// run. All of them together wait for [`PATIENCE_MAX`] at most.
    pub(crate) fn send_last(&mut self, line: &str) -> Result<(), OutletError> {
        match &mut self.link {
            Link::Pipe(stream) | Link::Serial(stream) => stream.wait_for_room(),
            Link::Connection(Connection { state: State::Open(stream), .. }) => {
                stream.wait_for_room()
            }
            _ => {}
        }
        self.send(line)
    }

    /// Sends one line in one piece.
    pub(crate) fn send(&mut self, line: &str) -> Result<(), OutletError> {
        let bytes = line.as_bytes();
        let sent = match &mut self.link {
            Link::File(file) => {
                return write_line(file, bytes, &mut self.torn)
                    .map_err(|e| failed(&self.address, "write", e));
            }
            Link::Pipe(stream) => {
                return stream.send(bytes).map_err(|e| failed(&self.address, "write", e));
            }
            Link::Serial(stream) => stream.send(bytes),
            Link::Udp(datagrams) => datagrams.send(bytes),
            Link::Unix { socket, path } => socket.send_to(bytes, path).map(drop),
            Link::Connection(connection) => connection.send(bytes),
        };
        // Nobody listening is no fault of the guest.
        self.refused += u64::from(sent.is_err());
        Ok(())
    }
}

/// Bytes to a reader who may be slow, or not there: whoever writes never waits.
#[derive(Debug)]
struct Stream {
    file: File,
    /// The rest of a line that was taken in part.
    rest: Vec<u8>,
    /// How long it will still be waited for a reader.
    patience: Duration,
}

/// Longest time that the last words of a run wait for a reader.
const PATIENCE_MAX: Duration = Duration::from_secs(1);

impl Stream {
    /// A pipe by its name. Opened for both directions, which needs no reader: one may come later.
    fn pipe(path: &Path) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Self { file, rest: Vec::new(), patience: PATIENCE_MAX })
    }

    fn of(file: File) -> io::Result<Self> {
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
        Ok(Self { file, rest: Vec::new(), patience: PATIENCE_MAX })
    }

    /// Waits until something is taken, while there is patience.
    fn wait_for_room(&mut self) {
        while !self.patience.is_zero() {
            // What is wrong with it, the line that follows will say.
            let _ = self.send_rest();
            let begin = Instant::now();
            let mut room = [PollFd::new(&self.file, PollFlags::OUT)];
            let limit = Timespec::try_from(self.patience).ok();
            let ready = poll(&mut room, limit.as_ref()).unwrap_or(0) > 0;
            self.patience = self.patience.saturating_sub(begin.elapsed());
            if ready && self.rest.is_empty() {
                break;
            }
        }
    }

    /// Sends a line whole, at once or its rest before the next one; or nothing of it.
    fn send(&mut self, line: &[u8]) -> io::Result<()> {
        self.send_rest()?;
        if !self.rest.is_empty() {
            return Err(nobody_reads());
        }
        match self.take(line)? {
            0 => Err(nobody_reads()),
            taken => {
                self.rest = line[taken..].to_vec();
                Ok(())
            }
        }
    }

    /// Sends what is left of the line before, as far as it is taken.
    fn send_rest(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        let taken = self.take(&rest);
        self.rest = rest[*taken.as_ref().unwrap_or(&0)..].to_vec();
        taken.map(drop)
    }

    /// How many of the bytes were taken without waiting.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.file.write(&bytes[taken..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Ok(0) => break,
                Ok(more) => taken += more,
                Err(e) => return Err(e),
            }
        }
        Ok(taken)
    }
}

/// A connection that is made when there is something to say, and made again when it is lost; never
/// waited for.
#[derive(Debug)]
struct Connection {
    to: SockAddr,
    state: State,
    /// When this state began.
    since: Instant,
}

#[derive(Debug)]
enum State {
    /// Not tried yet.
    New,
    /// Begun: nobody has answered.
    Begun(Socket),
    /// There.
    Open(Stream),
    /// Refused, or lost.
    Lost,
}

/// Time between two attempts to connect, and how long one of them may take.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

impl Connection {
    fn to(to: SockAddr) -> Self {
        Self { to, state: State::New, since: Instant::now() }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let state = std::mem::replace(&mut self.state, State::Lost);
        let late = self.since.elapsed() >= CONNECT_AGAIN;
        let next = match state {
            State::New => self.begin(),
            State::Lost if late => self.begin(),
            State::Lost => Ok(State::Lost),
            State::Begun(socket) => Self::look(socket, late),
            open @ State::Open(_) => Ok(open),
        };
        let before = self.since;
        self.since = Instant::now();
        self.state = next?;
        match &mut self.state {
            State::Open(stream) => {
                let sent = stream.send(bytes);
                let gone = |e: &io::Error| e.kind() != io::ErrorKind::WouldBlock;
                if sent.as_ref().is_err_and(gone) {
                    self.state = State::Lost;
                }
                sent
            }
            // Still waiting, for as long as before.
            _ => {
                if !late {
                    self.since = before;
                }
                Err(io::ErrorKind::NotConnected.into())
            }
        }
    }

    fn begin(&self) -> io::Result<State> {
        let socket = Socket::new(self.to.domain(), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&self.to) {
            Ok(()) => Self::opened(socket),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                Ok(State::Begun(socket))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a connection that was begun is there now.
    fn look(socket: Socket, late: bool) -> io::Result<State> {
        let mut room = [PollFd::new(&socket, PollFlags::OUT)];
        let ready = poll(&mut room, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0;
        match (ready, socket.take_error()?) {
            (_, Some(error)) => Err(error),
            (true, None) => Self::opened(socket),
            (false, None) if late => Ok(State::Lost),
            (false, None) => Ok(State::Begun(socket)),
        }
    }

    fn opened(socket: Socket) -> io::Result<State> {
        Stream::of(File::from(std::os::fd::OwnedFd::from(socket))).map(State::Open)
    }
}

fn nobody_reads() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "it is full: nobody reads it, or not fast enough")
}

fn is_pipe(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// Writes a line whole, or nothing of it where the file allows that; what remains torn is ended
/// before the next line.
fn write_line(file: &mut File, line: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        file.write_all(b"\n")?;
        *torn = false;
    }
    let mut written = 0;
    while written < line.len() {
        match file.write(&line[written..]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => written += bytes,
            Err(e) => {
                *torn = written > 0 && !take_back(file, written as u64);
                return Err(e);
            }
        }
    }
    Ok(())
}

/// Cuts the last `bytes` that we wrote, unless somebody has written behind them.
fn take_back(file: &mut File, bytes: u64) -> bool {
    let ours_until = file.stream_position();
    let cut = ours_until.and_then(|end| match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() == end => file.set_len(end - bytes),
        _ => Err(io::ErrorKind::Unsupported.into()),
    });
    cut.is_ok()
}

fn failed(address: &OutletAddress, doing: &'static str, source: io::Error) -> OutletError {
    OutletError { outlet: address.clone(), doing, source }
}

/// Datagrams to a name: to one of its addresses, and to the next when nobody listens there.
#[derive(Debug)]
struct Datagrams {
    /// One for each address that there is a way to.
    sockets: Vec<UdpSocket>,
    current: usize,
}

impl Datagrams {
    fn open(host: &str) -> io::Result<Self> {
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut sockets = Vec::new();
        for address in addresses(host)? {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            match UdpSocket::bind(any).and_then(|s| s.connect(address).map(|()| s)) {
                Ok(socket) => sockets.push(socket),
                Err(e) => failed = e,
            }
        }
        match sockets.is_empty() {
            true => Err(failed),
            false => Ok(Self { sockets, current: 0 }),
        }
    }

    /// Sends to the first address, beginning with the current one, that does not refuse at once.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Over a network a refusal comes later, and would else be taken for one of this datagram.
        if self.refusal()?.is_some() {
            self.turn();
        }
        let mut result = Ok(());
        for _ in 0..self.sockets.len() {
            let sent = self.sockets[self.current].send(bytes);
            // On this machine a refusal is there when the call returns.
            result = match (sent, self.refusal()?) {
                (Ok(_), None) => return Ok(()),
                (Err(error), _) | (_, Some(error)) => Err(error),
            };
            self.turn();
        }
        result
    }

    fn refusal(&self) -> io::Result<Option<io::Error>> {
        self.sockets[self.current].take_error()
    }

    fn turn(&mut self) {
        self.current = (self.current + 1) % self.sockets.len();
    }
}

/// Every address that HOST:PORT stands for. The system is asked for the host without its brackets:
/// it knows a scope by its name (`[fe80::1%eth0]:7007`).
///
/// # Errors
/// It stands for none.
pub fn addresses(text: &str) -> io::Result<Vec<SocketAddr>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "HOST:PORT is wanted");
    let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok((bare, port).to_socket_addrs()?.collect())
}

/// Opens a serial port for reading and writing, in raw mode: no echo, no translation of line ends.
///
/// # Errors
/// It is not there, or not a terminal.
pub fn open_serial(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut settings = tcgetattr(&file)?;
    settings.make_raw();
    tcsetattr(&file, OptionalActions::Now, &settings)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let read = |text: &str| text.parse::<OutletAddress>();
        assert_eq!(read("udp:10.0.0.1:99"), Ok(OutletAddress::Udp("10.0.0.1:99".into())));
        assert_eq!(read("unix:/run/x"), Ok(OutletAddress::Unix("/run/x".into())));
        assert_eq!(read("serial:/dev/ttyS0"), Ok(OutletAddress::Serial("/dev/ttyS0".into())));
        assert_eq!(read("dir/journal"), Ok(OutletAddress::File("dir/journal".into())));
        assert_eq!(read("stream:/run/x"), Ok(OutletAddress::Stream("/run/x".into())));
        assert_eq!(read("vsock:2:7007"), Ok(OutletAddress::Vsock { cid: 2, port: 7007 }));
        for text in ["udp:nowhere", "vsock:7007", "vsock:x:1", "vsock:2:-1"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn datagrams_arrive_and_silence_is_no_error() {
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = OutletAddress::Udp(listener.local_addr().unwrap().to_string());
        let mut outlet = Outlet::open(&address).unwrap();
        outlet.send("one\n").unwrap();
        let mut buffer = [0; 16];
        let length = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"one\n");
        drop(listener);
        (0..5).for_each(|_| outlet.send("two\n").unwrap());
        assert_eq!(outlet.refused(), 5);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut outlet = Outlet::open(&OutletAddress::Unix(path.clone())).unwrap();
        outlet.send("early\n").unwrap();
        assert_eq!(outlet.refused(), 1);
        let listener = UnixDatagram::bind(&path).unwrap();
        outlet.send("late\n").unwrap();
        let length = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"late\n");
    }

    #[test]
    fn datagrams_go_to_the_address_that_listens() {
        let bound = |ip: &str| UdpSocket::bind((ip, 0)).unwrap();
        let (first, second) = (bound("127.0.0.1"), bound("127.0.0.2"));
        let to = |listener: &UdpSocket| {
            let socket = bound("0.0.0.0");
            socket.connect(listener.local_addr().unwrap()).unwrap();
            socket
        };
        let mut datagrams = Datagrams { sockets: vec![to(&first), to(&second)], current: 0 };
        let mut buffer = [0; 16];
        let mut heard = |listener: &UdpSocket| {
            let length = listener.recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        };
        datagrams.send(b"one").unwrap();
        assert_eq!(heard(&first), b"one");
        drop(first);
        for text in [&b"two"[..], b"three"] {
            datagrams.send(text).unwrap();
            assert_eq!(heard(&second), text);
        }
        drop(second);
        assert!(datagrams.send(b"four").is_err());
    }

    #[test]
    fn hosts_are_written_as_elsewhere() {
        let first = |text: &str| addresses(text).map(|found| found[0].to_string()).ok();
        assert_eq!(first("[fe80::1%lo]:9"), Some("[fe80::1%1]:9".to_owned()));
        assert_eq!(first("[::1]:9"), Some("[::1]:9".to_owned()));
        assert_eq!(first("127.0.0.1:9"), Some("127.0.0.1:9".to_owned()));
        assert_eq!((first("nowhere"), first("host:port")), (None, None));
    }

    #[test]
    fn a_file_is_no_serial_port() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(open_serial(file.path()).is_err());
    }

    /// C23: a pipe without a reader is opened, takes what it holds, and then says so; whoever reads
    /// later gets whole lines.
    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let mut outlet = Outlet::open(&OutletAddress::File(path.clone())).unwrap();
        let line = |number: u64| format!("{number:0>76}\n");
        let taken =
            (0..2000).take_while(|number| outlet.send(&line(*number)).is_ok()).count() as u64;
        assert!((100..2000).contains(&taken), "{taken}");
        let error = outlet.send(&line(taken)).unwrap_err().to_string();
        assert!(error.contains("nobody reads it"), "{error}");
        let flags = OFlags::NONBLOCK.bits() as i32;
        let mut reader = File::options().read(true).custom_flags(flags).open(&path).unwrap();
        let mut text = vec![0; 1 << 20];
        let first = io::Read::read(&mut reader, &mut text).unwrap();
        outlet.send(&line(9999)).unwrap();
        let second = io::Read::read(&mut reader, &mut text[first..]).unwrap();
        let wanted: String = (0..taken).chain([9999]).map(line).collect();
        assert_eq!(String::from_utf8_lossy(&text[..first + second]), wanted);
        // The last words of all writers together wait for a moment, and not for ever.
        (0..2000).any(|number| outlet.send(&line(number)).is_err());
        let begin = Instant::now();
        (0..50).for_each(|_| assert!(outlet.send_last(&line(0)).is_err()));
        assert!(begin.elapsed() >= PATIENCE_MAX, "{:?}", begin.elapsed());
        assert!(begin.elapsed() < PATIENCE_MAX * 5, "{:?}", begin.elapsed());
    }

    /// A connection is made when somebody listens, and made again when it was lost; nobody waits for it.
    #[test]
    fn a_connection_comes_back() {
        use std::os::unix::net::UnixListener;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut outlet = Outlet::open(&OutletAddress::Stream(path.clone())).unwrap();
        let begin = Instant::now();
        outlet.send("early\n").unwrap();
        assert_eq!(outlet.refused(), 1);
        let listener = UnixListener::bind(&path).unwrap();
        let mut refused = 0;
        let mut accept = |outlet: &mut Outlet| {
            listener.set_nonblocking(true).unwrap();
            loop {
                refused = outlet.refused();
                outlet.send("late\n").unwrap();
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).unwrap();
                    return stream;
                }
                assert!(begin.elapsed() < CONNECT_AGAIN * 20, "no connection is made");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let heard = |mut stream: &std::os::unix::net::UnixStream| {
            let mut buffer = [0; 64];
            let length = io::Read::read(&mut stream, &mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        let first = accept(&mut outlet);
        assert_eq!(heard(&first), "late\n");
        drop(first);
        let second = accept(&mut outlet);
        assert_eq!(heard(&second), "late\n");
        assert_eq!(outlet.refused(), refused);
        // Nobody reads: it is full at some time, and the guest goes on.
        (0..10_000).for_each(|number| outlet.send(&format!("{number:0>76}\n")).unwrap());
        assert!(outlet.refused() > refused);
    }

    /// To another machine there is no way here: nothing is sent, and nobody waits.
    #[test]
    fn a_port_that_nobody_has_holds_nobody() {
        let mut outlet = match Outlet::open(&OutletAddress::Vsock { cid: 77, port: 7007 }) {
            Ok(outlet) => outlet,
            Err(error) => return println!("SKIPPED: no vsock on this machine: {error}"),
        };
        let begin = Instant::now();
        (0..100).for_each(|_| outlet.send("beat\n").unwrap());
        assert_eq!(outlet.refused(), 100);
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    }

    /// C23: a terminal whose other end is not read.
    #[test]
    fn a_serial_port_that_nobody_reads_holds_nobody() {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&host).unwrap();
        unlockpt(&host).unwrap();
        let name = ptsname(&host, Vec::new()).unwrap().into_string().unwrap();
        let mut outlet = Outlet::open(&OutletAddress::Serial(name.into())).unwrap();
        for number in 0..5000 {
            outlet.send(&format!("{number:0>76}\n")).unwrap();
        }
        assert!((1..5000).contains(&outlet.refused()), "{}", outlet.refused());
    }

    /// C35: a path that no socket can have loses every beat, and is refused before the first.
    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let long = OutletAddress::Unix(format!("/tmp/{}", "x".repeat(130)).into());
        let error = Outlet::open(&long).unwrap_err().to_string();
        assert!(
            error.contains("cannot open unix:/tmp/xxx") && error.contains("shorter"),
            "{error}"
        );
    }
}
