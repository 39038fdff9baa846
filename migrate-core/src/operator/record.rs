//! The record of a handover on disk: one block, written in place, locked by whoever holds the guest.
//!
//! ```text
//! vmigrate-record 1 source 0123...cdef committed stun=1 epoch=1 timeout_ms=4000 boot=UUID peer=10.0.0.2:7400 sum=16 hex digits
//! ```
//!
//! padded with spaces to 511 bytes and ended by a newline. The sum is XXH3 (64 bits, no seed) of all
//! before ` sum=`. A record is taken up only under its lock: an owner that is merely stopped still
//! holds it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use xxhash_rust::xxh3::xxh3_64;

use super::directory::StateDirectory;
use crate::Error;
use crate::proto::hello::MigrationId;
use crate::proto::{Epoch, StunNumber};
use crate::session::record::{Boot, DestinationRecord, SourceRecord};

/// Bytes of a record.
const RECORD_BYTES: usize = 512;
/// Version of the format.
const VERSION: &str = "1";
/// Longest text for the peer: a name, or an address.
const PEER_BYTES_MAX: usize = 128;

/// What a record says, of either end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// The source's.
    Source(SourceRecord),
    /// The destination's.
    Destination(DestinationRecord),
}

impl Says {
    fn role(self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Destination(_) => "destination",
        }
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Source(record) => record.word(),
            Self::Destination(record) => record.word(),
        }
    }

    fn parse(role: &str, word: &str) -> Option<Self> {
        match role {
            "source" => SourceRecord::ALL.into_iter().find(|r| r.word() == word).map(Self::Source),
            "destination" => {
                let mut all = DestinationRecord::ALL.into_iter();
                all.find(|r| r.word() == word).map(Self::Destination)
            }
            _ => None,
        }
    }

    /// Whether it must be on disk before what follows it.
    fn is_synced(self) -> bool {
        match self {
            Self::Source(_) | Self::Destination(DestinationRecord::Refused) => true,
            Self::Destination(
                DestinationRecord::Receiving
                | DestinationRecord::Prepared
                | DestinationRecord::Opening
                | DestinationRecord::Running
                | DestinationRecord::GoneOn
                | DestinationRecord::Ended,
            ) => false,
        }
    }
}

/// All that a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Which migration.
    pub migration: MigrationId,
    /// How it stands.
    pub says: Says,
    /// The stun that it is about.
    pub stun: StunNumber,
    /// How many hosts the guest will have left.
    pub epoch: Epoch,
    /// The link timeout that both ends kept to.
    pub timeout: Duration,
    /// The boot it was written in.
    pub boot: String,
    /// The other side's address.
    pub peer: String,
}

impl Contents {
    /// Whether it was written since this host booted.
    pub fn boot(&self) -> Boot {
        match self.boot == boot_id() {
            true => Boot::This,
            false => Boot::Earlier,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut text = format!(
            "vmigrate-record {VERSION} {} {} {} stun={} epoch={} timeout_ms={} boot={} peer={}",
            self.says.role(),
            self.migration,
            self.says.word(),
            self.stun.0,
            self.epoch,
            self.timeout.as_millis(),
            self.boot,
            self.peer,
        );
        let sum = xxh3_64(text.as_bytes());
        text += &format!(" sum={sum:016x}");
        let mut bytes = text.into_bytes();
        bytes.resize(RECORD_BYTES - 1, b' ');
        bytes.push(b'\n');
        bytes
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// What is wrong with them: torn, of another version, or no record.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let torn = || "it is torn: its sum does not fit".to_owned();
        if bytes.len() != RECORD_BYTES {
            return Err(format!("it has {} bytes and not {RECORD_BYTES}", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| torn())?.trim_end();
        let mut words = text.split(' ');
        if words.next() != Some("vmigrate-record") {
            return Err("it is no record of a handover".to_owned());
        }
        match words.next() {
            Some(VERSION) => {}
            other => {
                let version = other.unwrap_or("none");
                return Err(format!("it is of version {version}; use the program that wrote it"));
            }
        }
        let (body, sum) = text.rsplit_once(" sum=").ok_or_else(torn)?;
        if sum.len() != 16 || u64::from_str_radix(sum, 16) != Ok(xxh3_64(body.as_bytes())) {
            return Err(torn());
        }
        let fields: Vec<_> = body.split(' ').skip(2).collect();
        let [role, migration, word, stun, epoch, timeout, boot, peer] = fields[..] else {
            return Err("it has other fields than a record of this version".to_owned());
        };
        let unknown = |what: &str| format!("it says {what}, which no record does");
        let number = |field: &str, name: &str| -> Result<u64, String> {
            let value = field.strip_prefix(name).ok_or_else(|| unknown(field))?;
            value.parse().map_err(|_| unknown(field))
        };
        let text = |field: &str, name: &str| -> Result<String, String> {
            Ok(field.strip_prefix(name).ok_or_else(|| unknown(field))?.to_owned())
        };
        Ok(Self {
            migration: migration.parse()?,
            says: Says::parse(role, word).ok_or_else(|| unknown(word))?,
            stun: StunNumber(number(stun, "stun=")?),
            epoch: Epoch(number(epoch, "epoch=")?),
            timeout: Duration::from_millis(number(timeout, "timeout_ms=")?),
            boot: text(boot, "boot=")?,
            peer: text(peer, "peer=")?,
        })
    }
}

/// This boot's id.
pub fn boot_id() -> String {
    // A process does not outlive its boot, and a stun has no time to ask.
    static ID: OnceLock<String> = OnceLock::new();
    let read = || {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        match id.trim() {
            "" => "unknown".to_owned(),
            id => id.to_owned(),
        }
    };
    ID.get_or_init(read).clone()
}

/// A record that this process owns.
#[derive(Debug)]
pub struct Record {
    file: File,
    path: PathBuf,
    directory: StateDirectory,
    contents: Contents,
    /// The next write is synced whatever it says: what a failed sync, or an earlier program, left may
    /// be on disk or not, and must not be found in place of what comes now.
    sync_next: bool,
}

fn path_of(directory: &StateDirectory, migration: MigrationId, role: &str) -> PathBuf {
    directory.path().join(format!("{migration}.{role}"))
}

impl Record {
    /// Makes a record, before there is anything to decide: creating a file is slow, and may fail;
    /// deciding must not.
    ///
    /// # Errors
    /// It cannot be written; no handover could be.
    pub fn create(
        directory: &StateDirectory,
        migration: MigrationId,
        says: Says,
        epoch: Epoch,
        timeout: Duration,
        peer: &str,
    ) -> Result<Self, Error> {
        let path = path_of(directory, migration, says.role());
        let failed = |source| Error::Record { path: path.display().to_string(), source };
        let peer: String =
            peer.chars().filter(|c| !c.is_whitespace()).take(PEER_BYTES_MAX).collect();
        let contents = Contents {
            migration,
            says,
            stun: StunNumber(0),
            epoch,
            timeout,
            boot: boot_id(),
            peer: if peer.is_ascii() && !peer.is_empty() { peer } else { "unknown".to_owned() },
        };
        // Under a name that nobody takes up until it is locked and whole.
        let draft = path.with_extension(format!("{}-new", says.role()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
        file.write_all_at(&contents.encode(), 0).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&draft, &path).map_err(failed)?;
        directory.sync().map_err(failed)?;
        let directory = directory.clone();
        Ok(Self { file, path, directory, contents, sync_next: false })
    }

    /// Takes up a record that another process left; `None` if its owner lives.
    ///
    /// # Errors
    /// It cannot be read, is torn, or of another version.
    pub fn take_up(directory: &StateDirectory, path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::Record { path: path.display().to_string(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(failed(e.into())),
        }
        let contents =
            read(&file).map_err(failed)?.map_err(|why| failed(std::io::Error::other(why)))?;
        let (path, directory) = (path.to_owned(), directory.clone());
        Ok(Some(Self { file, path, directory, contents, sync_next: true }))
    }

    /// What it says.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Writes it, in place, and syncs it where what follows must not come before it.
    ///
    /// # Errors
    /// It could not be, or the file is not there any more: what it says would be found by nobody.
    pub fn write(
        &mut self,
        says: Says,
        stun: StunNumber,
        timeout: Duration,
    ) -> std::io::Result<()> {
        let here = std::fs::symlink_metadata(&self.path)?;
        let ours = self.file.metadata()?;
        if (here.dev(), here.ino()) != (ours.dev(), ours.ino()) {
            return Err(std::io::Error::other("the file was replaced"));
        }
        let contents = Contents { says, stun, timeout, boot: boot_id(), ..self.contents.clone() };
        let synced = says.is_synced() || self.sync_next;
        self.sync_next = true;
        self.file.write_all_at(&contents.encode(), 0)?;
        if synced {
            self.file.sync_data()?;
        }
        (self.sync_next, self.contents) = (false, contents);
        Ok(())
    }

    /// The handover is over, one way or the other, and nobody will ask.
    pub fn remove(self) {
        // A record left behind is a nuisance, not a danger: its migration id never comes again.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.directory.sync();
    }
}

fn read(file: &File) -> std::io::Result<Result<Contents, String>> {
    let mut bytes = vec![0; RECORD_BYTES + 1];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(Contents::decode(&bytes[..filled]))
}

/// A record in a directory.
#[derive(Debug)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// What it says, or what is wrong with it.
    pub contents: Result<Contents, String>,
    /// Whether a process holds it.
    pub owned: bool,
}

/// All records in a directory.
///
/// # Errors
/// The directory cannot be read.
pub fn all(directory: &StateDirectory) -> Result<Vec<Found>, Error> {
    let failed = |e: std::io::Error| Error::StateDirectory {
        path: directory.path().to_owned(),
        why: e.to_string(),
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory.path()).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_record = path.extension().is_some_and(|e| e == "source" || e == "destination");
        // One that goes away while we look is over.
        let Some(file) = is_record.then(|| File::open(&path).ok()).flatten() else { continue };
        let owned = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        let contents = read(&file).unwrap_or_else(|e| Err(e.to_string()));
        found.push(Found { path, contents, owned });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, StateDirectory) {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = StateDirectory::open(&temporary.path().join("state")).expect("ours");
        (temporary, directory)
    }

    fn create(directory: &StateDirectory) -> Record {
        let says = Says::Source(SourceRecord::Open);
        let timeout = Duration::from_secs(4);
        Record::create(directory, MigrationId(7), says, Epoch(1), timeout, "10.0.0.2:7400")
            .expect("a record")
    }

    #[test]
    fn records_are_written_and_taken_up_once_their_owner_is_gone() {
        let (_keep, directory) = directory();
        let mut record = create(&directory);
        let committed = Says::Source(SourceRecord::Committed);
        record.write(committed, StunNumber(2), Duration::from_secs(1)).expect("room on disk");
        let path = record.path.clone();
        assert!(Record::take_up(&directory, &path).expect("it is whole").is_none(), "it is owned");
        let found = all(&directory).expect("readable");
        assert!(found.len() == 1 && found[0].owned);
        assert_eq!(found[0].contents.as_ref().map(|c| c.says), Ok(committed));
        let wanted = record.contents().clone();
        drop(record);
        let taken = Record::take_up(&directory, &path).expect("whole").expect("nobody owns it");
        assert_eq!(*taken.contents(), wanted);
        assert_eq!(taken.contents().boot(), Boot::This);
        taken.remove();
        assert!(all(&directory).expect("readable").is_empty());
    }

    #[test]
    fn a_record_whose_file_is_gone_cannot_be_committed() {
        let (_keep, directory) = directory();
        let mut record = create(&directory);
        std::fs::remove_dir_all(directory.path()).expect("ours");
        let committed = Says::Source(SourceRecord::Committed);
        assert!(record.write(committed, StunNumber(1), Duration::ZERO).is_err());
    }

    #[test]
    fn what_is_torn_or_of_another_version_is_refused_with_the_reason() {
        let (_keep, directory) = directory();
        let good = create(&directory).contents().encode();
        assert!(Contents::decode(&good).is_ok());
        for cut in 0..good.len() {
            assert!(Contents::decode(&good[..cut]).is_err());
            let mut changed = good.clone();
            changed[cut] ^= 1;
            // A changed pad is no change: spaces are not summed.
            let same = Contents::decode(&changed).is_ok_and(|c| Ok(c) == Contents::decode(&good));
            assert!(Contents::decode(&changed).is_err() || same, "{cut}");
        }
        let text = String::from_utf8(good).expect("text").replace("record 1", "record 9");
        let why = Contents::decode(text.as_bytes()).expect_err("no such version");
        assert!(why.contains("version 9"), "{why}");
    }
}
