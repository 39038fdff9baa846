//! Replayed generations, kept for the next time: what a pattern that draws at random has done to each
//! slot is known by doing all of it again, which for 10^9 operations takes a while.
//!
//! A file holds the generations of one writer at one watermark, and is found by what they follow
//! from. They are the verifier's own sums and nobody else's: a folder or a file that others can write
//! is not believed, and neither is a file whose sum does not agree.

use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use workload::generations::Generations;
use workload::line::Generation;
use workload::pattern::Operation;
use workload::spec::Workload;

/// Fewest operations that are worth a file: half a second of replay.
const OPERATIONS_MIN: u64 = 1 << 24;
/// Most that all files together may take; those that were not used for longest go first.
const BYTES_MAX: u64 = 1 << 30;
/// What a file begins with.
const MAGIC: &str = "vmigrate generations 1";
/// How its name ends.
const SUFFIX: &str = ".generations";
/// Bytes of the sum at its end.
const SUM_BYTES: usize = 32;

/// A folder with generations.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    bytes_max: u64,
}

/// What a writer's generations follow from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    sum: String,
    slots: u64,
}

impl Cause {
    /// That of one writer of a workload.
    pub fn of(workload: &Workload, writer: usize) -> Self {
        let spec = workload.spec();
        let of_all = (spec.seed, spec.memory.0, spec.writers, writer);
        let mut sum = Sha256::new();
        sum.update(format!("{of_all:?} {}", spec.workload));
        Self { sum: hex::encode(&sum.finalize()[..16]), slots: workload.shares()[writer].slots }
    }

    fn head(&self, watermark: Operation) -> String {
        format!("{MAGIC} {} {watermark} {}\n", self.sum, self.slots)
    }
}

impl Cache {
    /// Where a user's caches are, by the rules of the XDG base directories; `None` where there is no
    /// such place.
    pub fn usual() -> Option<PathBuf> {
        let absolute = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(base.join("vmigrate").join("generations"))
    }

    /// Opens or makes the folder.
    ///
    /// # Errors
    /// It cannot be made, or others could write what is found in it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        match is_ours(&folder.metadata()?) {
            true => Ok(Self { folder: folder.to_owned(), bytes_max: BYTES_MAX }),
            false => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "others can write to it, and what they write is not to be believed: chmod go-w, or name \
                 a folder of your own",
            )),
        }
    }

    /// The newest generations that are not newer than `watermark`. What cannot be believed is as if it
    /// were not there.
    pub fn recall(
        &self,
        cause: &Cause,
        watermark: Operation,
    ) -> Option<(Operation, Vec<Generation>)> {
        let mut known: Vec<Operation> = self
            .files()
            .filter_map(|(path, _)| {
                let name = path.file_name()?.to_str()?;
                let rest = name.strip_suffix(SUFFIX)?.strip_prefix(&cause.sum)?;
                rest.strip_prefix('-')?.parse().ok()
            })
            .filter(|known| *known <= watermark)
            .collect();
        known.sort_unstable();
        let read = |known: Operation| Some((known, self.read(cause, known)?));
        known.into_iter().rev().find_map(read)
    }

    fn read(&self, cause: &Cause, watermark: Operation) -> Option<Vec<Generation>> {
        let file = File::open(self.path(cause, watermark)).ok()?;
        let metadata = file.metadata().ok()?;
        let head = cause.head(watermark);
        let bytes = cause.slots.checked_mul(8)?;
        let whole = head.len() as u64 + bytes + SUM_BYTES as u64;
        if !metadata.is_file() || !is_ours(&metadata) || metadata.len() != whole {
            return None;
        }
        // Used: what is not goes first.
        let _ = file.set_modified(SystemTime::now());
        let mut reader = BufReader::new(file);
        let mut found = vec![0; head.len()];
        reader.read_exact(&mut found).ok()?;
        let mut sum = Sha256::new();
        sum.update(&found);
        let mut counts = Vec::with_capacity(usize::try_from(cause.slots).ok()?);
        let mut word = [0; 8];
        for _ in 0..cause.slots {
            reader.read_exact(&mut word).ok()?;
            sum.update(word);
            counts.push(u64::from_le_bytes(word));
        }
        let mut end = [0; SUM_BYTES];
        reader.read_exact(&mut end).ok()?;
        (found == head.as_bytes() && sum.finalize()[..] == end).then_some(counts)
    }

    /// Keeps generations, if they are worth it.
    ///
    /// # Errors
    /// They cannot be written; nothing of them is left.
    pub fn keep(&self, cause: &Cause, generations: &Generations) -> io::Result<()> {
        let (watermark, counts) = (generations.watermark(), generations.counts());
        let path = self.path(cause, watermark);
        if watermark < OPERATIONS_MIN || counts.is_empty() || path.exists() {
            return Ok(());
        }
        let bytes = counts.len() as u64 * 8 + MAGIC.len() as u64;
        if bytes > self.bytes_max {
            return Ok(());
        }
        self.make_room(bytes);
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = write(&temporary, &cause.head(watermark), counts)
            .and_then(|()| std::fs::rename(&temporary, &path));
        written.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
    }

    /// Removes files that were not used for longest, until there is room for so many bytes.
    fn make_room(&self, bytes: u64) {
        let mut files: Vec<(PathBuf, Metadata)> = self.files().collect();
        files.sort_by_key(|(_, metadata)| metadata.modified().ok());
        let mut taken: u64 = files.iter().map(|(_, metadata)| metadata.len()).sum();
        for (path, metadata) in files {
            if taken + bytes <= self.bytes_max {
                break;
            }
            if std::fs::remove_file(path).is_ok() {
                taken -= metadata.len();
            }
        }
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, Metadata)> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?))).filter(
            |(path, metadata)| metadata.is_file() && path.to_string_lossy().contains(SUFFIX),
        )
    }

    fn path(&self, cause: &Cause, watermark: Operation) -> PathBuf {
        self.folder.join(format!("{}-{watermark}{SUFFIX}", cause.sum))
    }
}

fn write(path: &Path, head: &str, counts: &[Generation]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut sum = Sha256::new();
    sum.update(head);
    file.write_all(head.as_bytes())?;
    for count in counts {
        let word = count.to_le_bytes();
        sum.update(word);
        file.write_all(&word)?;
    }
    file.write_all(&sum.finalize())?;
    file.flush()
}

/// Whether nobody else but root can have written it.
fn is_ours(metadata: &Metadata) -> bool {
    let me = rustix::process::geteuid().as_raw();
    [0, me].contains(&metadata.uid()) && metadata.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use workload::spec::WorkloadSpec;

    use crate::expected::Expected;
    use workload::work::Unwatched;

    fn workload(seed: u64) -> Workload {
        let spec = format!(
            r#"{{"seed":{seed},"memory":1048576,"writers":2,"workload":"iid,record=4KiB"}}"#
        );
        serde_json::from_str::<WorkloadSpec>(&spec).unwrap().resolve().unwrap()
    }

    fn names(cache: &Cache) -> usize {
        cache.files().count()
    }

    fn expected(cache: &Cache, workload: &Workload, watermark: u64) -> Expected {
        Expected::recall(workload, &[watermark, 5], Some(cache), &Unwatched).unwrap()
    }

    fn agree(workload: &Workload, one: &Expected, other: &Expected) {
        assert_eq!(one.watermarks(), other.watermarks());
        for writer in 0..2 {
            let slots = 0..workload.shares()[writer].slots;
            let of = |e: &Expected| -> Vec<u64> {
                slots.clone().map(|slot| e.generation(writer, slot)).collect()
            };
            assert_eq!(of(one), of(other));
        }
    }

    #[test]
    fn what_was_replayed_is_not_replayed_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("new")).unwrap();
        let one = workload(7);
        let watermark = OPERATIONS_MIN + 1000;
        let first = expected(&cache, &one, watermark);
        agree(&one, &first, &Expected::at(&one, &[watermark, 5]));
        assert_eq!(names(&cache), 1, "the second writer's is not worth it");
        let cause = Cause::of(&one, 0);
        assert_eq!(cache.recall(&cause, watermark - 1), None);
        assert_eq!(cache.recall(&cause, watermark + 1).unwrap().0, watermark);
        assert_eq!(cache.recall(&Cause::of(&one, 1), watermark), None);
        assert_eq!(cache.recall(&Cause::of(&workload(8), 0), watermark), None);
        // From there on, and to the same end.
        let later = expected(&cache, &one, watermark + 500);
        agree(&one, &later, &Expected::at(&one, &[watermark + 500, 5]));
    }

    /// Whatever is done to a file: it is believed whole or not at all.
    #[test]
    fn what_others_could_have_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let one = workload(7);
        let watermark = OPERATIONS_MIN;
        expected(&cache, &one, watermark);
        let cause = Cause::of(&one, 0);
        let path = cache.path(&cause, watermark);
        let good = std::fs::read(&path).unwrap();
        let believed = || cache.recall(&cause, watermark).is_some();
        assert!(believed());
        for place in [0, 30, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[place] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(!believed(), "bit of byte {place}");
        }
        for length in [0, 10, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(!believed(), "{length} bytes");
        }
        std::fs::write(&path, &good).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(!believed(), "a file that others can write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(believed());
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(Cache::open(dir.path()).is_err());
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(dir.path()).unwrap();
        let one = workload(7);
        cache.bytes_max = 3000;
        for more in 0..3 {
            expected(&cache, &one, OPERATIONS_MIN + more);
        }
        assert_eq!(names(&cache), 2);
        assert!(cache.recall(&Cause::of(&one, 0), OPERATIONS_MIN).is_none());
    }
}
