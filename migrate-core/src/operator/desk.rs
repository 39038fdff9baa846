//! Where an operator asks and tells a running program: one Unix socket for each process, in the
//! private state directory, and answered at once.
//!
//! A request is a line (`status`; `cancel ID`; `set ID bandwidth 125000000`; `resolve ID
//! source-runs`, ...), `-` standing for the one migration under way. The answer is `taken` or
//! `refused` and a text, or a line for each migration.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::directory::StateDirectory;
use crate::Error;
use crate::error::spawn;
use crate::proto::hello::MigrationId;
use crate::session::{Reply, Word};

/// How often the socket is looked at.
const POLL: Duration = Duration::from_millis(10);
/// A client that says nothing, or reads nothing, for so long is hung up on.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request.
const REQUEST_BYTES_MAX: u64 = 4096;
/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A migration as an operator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Which.
    pub migration: String,
    /// `source` or `destination`.
    pub role: String,
    /// The session's state.
    pub state: String,
    /// Whether the other side can be talked to.
    pub connected: bool,
    /// The other side.
    pub peer: String,
    /// Pages of memory.
    pub memory_pages: u64,
    /// What is being done.
    pub doing: String,
    /// How much of it is done; 0 of 0 where that is not known.
    pub done: u64,
    /// Of how much.
    pub total: u64,
}

/// What may be changed while a migration goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting {
    /// Most bytes per second on the wire; `None` as many as the link takes.
    Bandwidth(Option<f64>),
    /// Most downtime.
    Downtime(Duration),
}

/// Who answers for one migration.
pub trait Attendant: Send + Sync {
    /// How it stands.
    fn status(&self) -> Status;
    /// Hears a word.
    fn word(&self, word: Word) -> Reply;
    /// Changes a setting.
    fn set(&self, setting: Setting) -> Reply;
    /// Lets the guest run there before its memory is there.
    fn switch(&self) -> Reply;
}

/// What an operator asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Request {
    /// How everything stands.
    Status,
    /// A word on a migration; without an id on the only one.
    Word(Option<MigrationId>, Word),
    /// A setting of a migration.
    Set(Option<MigrationId>, Setting),
    /// Switch to post-copy.
    Switch(Option<MigrationId>),
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |id: &Option<MigrationId>| id.map_or("-".to_owned(), |id| id.to_string());
        match self {
            Self::Status => f.write_str("status"),
            Self::Switch(id) => write!(f, "switch {}", name(id)),
            Self::Set(id, Setting::Bandwidth(Some(rate))) => {
                write!(f, "set {} bandwidth {rate}", name(id))
            }
            Self::Set(id, Setting::Bandwidth(None)) => {
                write!(f, "set {} bandwidth none", name(id))
            }
            Self::Set(id, Setting::Downtime(time)) => {
                write!(f, "set {} downtime_us {}", name(id), time.as_micros())
            }
            Self::Word(id, word) => {
                let id = name(id);
                match word {
                    Word::Cancel | Word::Interrupt => write!(f, "cancel {id}"),
                    Word::GiveUp => write!(f, "resolve {id} give-up"),
                    Word::SourceRuns { runs_nowhere_else: false } => {
                        write!(f, "resolve {id} source-runs")
                    }
                    Word::SourceRuns { runs_nowhere_else: true } => {
                        write!(f, "resolve {id} source-runs runs-nowhere-else")
                    }
                    Word::DestinationRuns { source_is_gone: false } => {
                        write!(f, "resolve {id} destination-runs")
                    }
                    Word::DestinationRuns { source_is_gone: true } => {
                        write!(f, "resolve {id} destination-runs source-is-gone")
                    }
                }
            }
        }
    }
}

impl FromStr for Request {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let unknown = || format!("'{line}' is no request; is this program of the same version?");
        let words: Vec<_> = line.split_whitespace().collect();
        let id = |text: &str| match text {
            "-" => Ok(None),
            text => text.parse().map(Some),
        };
        Ok(match words[..] {
            ["status"] => Self::Status,
            ["switch", which] => Self::Switch(id(which)?),
            ["cancel", which] => Self::Word(id(which)?, Word::Cancel),
            ["set", which, "bandwidth", "none"] => Self::Set(id(which)?, Setting::Bandwidth(None)),
            ["set", which, "bandwidth", rate] => {
                let rate: f64 = rate.parse().map_err(|_| unknown())?;
                let bandwidth = Some(rate).filter(|rate| rate.is_finite() && *rate >= 1.0);
                let bandwidth = bandwidth.ok_or("the least bandwidth is 1 byte per second")?;
                Self::Set(id(which)?, Setting::Bandwidth(Some(bandwidth)))
            }
            ["set", which, "downtime_us", time] => {
                let time = Duration::from_micros(time.parse().map_err(|_| unknown())?);
                Self::Set(id(which)?, Setting::Downtime(time))
            }
            ["resolve", which, ref word @ ..] => {
                let word = match word {
                    ["give-up"] => Word::GiveUp,
                    ["source-runs"] => Word::SourceRuns { runs_nowhere_else: false },
                    ["source-runs", "runs-nowhere-else"] => {
                        Word::SourceRuns { runs_nowhere_else: true }
                    }
                    ["destination-runs"] => Word::DestinationRuns { source_is_gone: false },
                    ["destination-runs", "source-is-gone"] => {
                        Word::DestinationRuns { source_is_gone: true }
                    }
                    _ => return Err(unknown()),
                };
                Self::Word(id(which)?, word)
            }
            _ => return Err(unknown()),
        })
    }
}

type Attendants = Mutex<HashMap<MigrationId, Arc<dyn Attendant>>>;

fn lock(attendants: &Attendants) -> MutexGuard<'_, HashMap<MigrationId, Arc<dyn Attendant>>> {
    attendants.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process's socket.
#[derive(Debug)]
pub struct Desk {
    directory: StateDirectory,
    path: PathBuf,
    attendants: Arc<Attendants>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for dyn Attendant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attendant")
    }
}

/// A name for a socket in the directory that is short however long the directory's is.
fn short(directory: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())
}

impl Desk {
    /// Opens the socket of this process in a state directory, and answers from now on.
    ///
    /// # Errors
    /// It cannot be made there.
    pub fn open(directory: &StateDirectory) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::StateDirectory {
            path: directory.path().to_owned(),
            why: format!("no socket can be made in it: {e}"),
        };
        // Several in one process, as tests have them, need a name each.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}.socket", std::process::id());
        let path = directory.path().join(&name);
        // Left by an earlier process with our number: nobody else may have a name like this.
        let _ = std::fs::remove_file(&path);
        let opened = File::open(directory.path()).map_err(failed)?;
        let socket = UnixListener::bind(short(&opened, &name)).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let attendants: Arc<Attendants> = Arc::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let (there, told) = (attendants.clone(), stop.clone());
        let thread = spawn("operator", move || {
            while !told.load(Ordering::Relaxed) {
                match socket.accept() {
                    // A client that hangs up early has told us nothing.
                    Ok((client, _)) => drop(serve(&client, &there)),
                    Err(_) => std::thread::sleep(POLL),
                }
            }
        })?;
        let directory = directory.clone();
        Ok(Self { directory, path, attendants, stop, thread: Some(thread) })
    }

    /// The directory that it is in.
    pub fn directory(&self) -> &StateDirectory {
        &self.directory
    }

    /// From now on `attendant` answers for `migration`.
    pub fn register(&self, migration: MigrationId, attendant: Arc<dyn Attendant>) -> Registration {
        lock(&self.attendants).insert(migration, attendant);
        Registration { attendants: self.attendants.clone(), migration }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = std::fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A migration that is answered for until this value goes.
#[derive(Debug)]
pub struct Registration {
    attendants: Arc<Attendants>,
    migration: MigrationId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.attendants).remove(&self.migration);
    }
}

fn serve(client: &UnixStream, attendants: &Attendants) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(client.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    let answer = answer(line.trim(), attendants);
    let mut client = client;
    client.write_all(answer.as_bytes())
}

fn answer(line: &str, attendants: &Attendants) -> String {
    let request: Request = match line.parse() {
        Ok(request) => request,
        Err(why) => return format!("refused {why}\n"),
    };
    let which = match request {
        Request::Status => {
            let mut all: Vec<_> = lock(attendants).values().map(|a| a.status()).collect();
            all.sort_by(|a, b| a.migration.cmp(&b.migration));
            return all.iter().map(|status| format!("{}\n", line_of(status))).collect();
        }
        Request::Word(which, _) | Request::Set(which, _) | Request::Switch(which) => which,
    };
    let attendant = {
        let attendants = lock(attendants);
        match which {
            Some(id) => attendants.get(&id).cloned(),
            None if attendants.len() == 1 => attendants.values().next().cloned(),
            None => return format!("refused {} migrations here; name one\n", attendants.len()),
        }
    };
    let Some(attendant) = attendant else {
        return "refused no such migration here\n".to_owned();
    };
    let reply = match request {
        Request::Status => unreachable!("answered above"),
        Request::Word(_, word) => attendant.word(word),
        Request::Set(_, setting) => attendant.set(setting),
        Request::Switch(_) => attendant.switch(),
    };
    let verdict = if reply.taken { "taken" } else { "refused" };
    format!("{verdict} {}\n", reply.text)
}

fn line_of(status: &Status) -> String {
    let word = |text: &str| text.replace(char::is_whitespace, "_");
    format!(
        "migration={} role={} state={} connected={} peer={} memory_pages={} doing={} done={} total={}",
        status.migration,
        status.role,
        word(&status.state),
        status.connected,
        word(&status.peer),
        status.memory_pages,
        word(&status.doing),
        status.done,
        status.total
    )
}

fn status_of(line: &str) -> Option<Status> {
    let mut status = Status::default();
    for field in line.split(' ') {
        let (name, value) = field.split_once('=')?;
        let text = || value.replace('_', " ");
        match name {
            "migration" => status.migration = value.to_owned(),
            "role" => status.role = value.to_owned(),
            "state" => status.state = text(),
            "connected" => status.connected = value.parse().ok()?,
            "peer" => status.peer = value.to_owned(),
            "memory_pages" => status.memory_pages = value.parse().ok()?,
            "doing" => status.doing = text(),
            "done" => status.done = value.parse().ok()?,
            "total" => status.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(status)
}

/// Asks every program that has a socket in the directory; the answers of those that have one to
/// give. Sockets that dead programs left are removed.
fn ask(directory: &StateDirectory, request: Request) -> Result<Vec<String>, Error> {
    let failed = |e: std::io::Error| Error::StateDirectory {
        path: directory.path().to_owned(),
        why: e.to_string(),
    };
    let opened = File::open(directory.path()).map_err(failed)?;
    let mut answers = Vec::new();
    for entry in std::fs::read_dir(directory.path()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".socket") {
            continue;
        }
        match UnixStream::connect(short(&opened, &name)) {
            Ok(socket) => answers.push(exchange(&socket, request).map_err(failed)?),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                let _ = std::fs::remove_file(entry.path());
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(answers)
}

fn exchange(mut socket: &UnixStream, request: Request) -> std::io::Result<String> {
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    socket.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    socket.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Every migration under way in programs of this state directory.
///
/// # Errors
/// The directory, or a program's socket, cannot be used.
pub fn status(directory: &StateDirectory) -> Result<Vec<Status>, Error> {
    let answers = ask(directory, Request::Status)?;
    Ok(answers.iter().flat_map(|answer| answer.lines().filter_map(status_of)).collect())
}

/// Says something to the program that holds the migration; `None` if no program does.
///
/// # Errors
/// As [`status`].
pub fn tell(directory: &StateDirectory, request: Request) -> Result<Option<Reply>, Error> {
    let answers = ask(directory, request)?;
    let replies = answers.iter().filter_map(|answer| {
        let (verdict, text) = answer.trim_end().split_once(' ')?;
        Some(Reply { taken: verdict == "taken", text: text.to_owned() })
    });
    let stranger = |reply: &Reply| {
        !reply.taken
            && (reply.text == "no such migration here" || reply.text.starts_with("0 migrations"))
    };
    let mut replies: Vec<_> = replies.filter(|reply| !stranger(reply)).collect();
    // Of two programs one may be the other's peer: the one that took it has the word.
    replies.sort_by_key(|reply| !reply.taken);
    Ok(replies.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Here;

    impl Attendant for Here {
        fn status(&self) -> Status {
            Status {
                migration: MigrationId(7).to_string(),
                role: "source".to_owned(),
                state: "Copying".to_owned(),
                doing: "sending pages".to_owned(),
                peer: "10.0.0.2:7400".to_owned(),
                memory_pages: 12,
                ..Status::default()
            }
        }
        fn word(&self, word: Word) -> Reply {
            Reply { taken: word == Word::Cancel, text: format!("{word:?}") }
        }
        fn set(&self, setting: Setting) -> Reply {
            Reply { taken: true, text: format!("{setting:?}") }
        }
        fn switch(&self) -> Reply {
            Reply { taken: false, text: "no".to_owned() }
        }
    }

    #[test]
    fn requests_survive_the_socket() {
        let id = Some(MigrationId(3));
        for request in [
            Request::Status,
            Request::Switch(None),
            Request::Set(id, Setting::Bandwidth(Some(1.5e8))),
            Request::Set(id, Setting::Bandwidth(None)),
            Request::Set(None, Setting::Downtime(Duration::from_millis(300))),
            Request::Word(id, Word::Cancel),
            Request::Word(id, Word::GiveUp),
            Request::Word(id, Word::SourceRuns { runs_nowhere_else: true }),
            Request::Word(id, Word::SourceRuns { runs_nowhere_else: false }),
            Request::Word(id, Word::DestinationRuns { source_is_gone: true }),
            Request::Word(id, Word::DestinationRuns { source_is_gone: false }),
        ] {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
        for bad in ["", "set - bandwidth 0", "set - bandwidth NaN", "resolve - perhaps", "cancel 7"]
        {
            assert!(bad.parse::<Request>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_is_asked_and_told_and_dead_sockets_go() {
        let temporary = tempfile::tempdir().expect("a directory");
        // Longer than a socket's name may be.
        let long = temporary.path().join("d".repeat(120));
        let directory = StateDirectory::open(&long).expect("ours");
        let dead = {
            let opened = File::open(directory.path()).expect("ours");
            drop(UnixListener::bind(short(&opened, "1-0.socket")).expect("a socket"));
            directory.path().join("1-0.socket")
        };
        let desk = Desk::open(&directory).expect("a socket");
        let _silent = UnixStream::connect(short(
            &File::open(directory.path()).expect("ours"),
            &desk.path.file_name().expect("a name").to_string_lossy(),
        ));
        assert_eq!(status(&directory).expect("answered"), vec![]);
        let registered = desk.register(MigrationId(7), Arc::new(Here));
        assert_eq!(status(&directory).expect("answered"), vec![Here.status()]);
        let cancel = Request::Word(Some(MigrationId(7)), Word::Cancel);
        assert!(tell(&directory, cancel).expect("answered").is_some_and(|reply| reply.taken));
        let other = Request::Word(Some(MigrationId(8)), Word::Cancel);
        assert_eq!(tell(&directory, other).expect("answered"), None);
        drop(registered);
        assert_eq!(tell(&directory, Request::Word(None, Word::Cancel)).expect("answered"), None);
        assert!(!dead.exists());
    }
}
