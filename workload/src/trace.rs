//! Traces: which pages were dirty in each interval, recorded here or by a hypervisor.
//!
//! ```text
//! vmigrate-trace 1 <pages> <interval in ns>
//! <page or first-last> <page or first-last> ...      one line per interval; `-` when none was
//! end <intervals> <XXH3-64 of every byte before this line, 16 hexadecimal digits>
//! ```
//!
//! A spec of one's own names its trace by path, one that somebody else sent by checksum only.
//! Whatever is read is a regular file of bounded size: a device or a pipe has no end.
//!
//! The format and the two ways to make one (recording, and converting the bitmaps that
//! hypervisors log) are this module's; replay is [`pattern`](crate::pattern)'s.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::regular;

const MAGIC: &str = "vmigrate-trace 1";
/// Most page visits that a trace may have: replay keeps 16 bytes for each.
const VISITS_MAX: u64 = 1 << 27;
/// Longest line that a reader accepts.
const LINE_BYTES_MAX: u64 = 256 << 20;
/// Largest file that a reader accepts: as many page visits as there may be, in eight bytes each.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Most intervals that a trace may have.
const INTERVALS_MAX: usize = 1 << 24;
/// Most files of a folder that are looked at.
const FOLDER_FILES_MAX: usize = 4096;
/// As much of a file's end as holds its end line.
const END_BYTES: u64 = 64;

/// Why a trace cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be read or written.
    #[error("cannot {doing} trace {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A device, a pipe or a directory.
    #[error("trace {} is not a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// More than a trace has.
    #[error("trace {} has {bytes} bytes; at most {FILE_BYTES_MAX} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// No file of a folder is that trace.
    #[error("no trace in {} has the checksum {sum:016x}; copy the trace there that the run replays", folder.display())]
    NotThere {
        /// The folder.
        folder: PathBuf,
        /// XXH3-64 of the trace.
        sum: u64,
    },
    /// Not what was written.
    #[error("trace {}: line {line} {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The end line is missing or does not match.
    #[error("trace {} is cut or was edited: its end does not match what stands before it; record it again", path.display())]
    Cut {
        /// The file.
        path: PathBuf,
    },
    /// Bitmaps of another size.
    #[error("{} holds {bytes} bytes, which is not a whole number of bitmaps of {pages} pages ({each} bytes each); say how many pages the VM has with --pages", path.display())]
    Bitmaps {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Pages per bitmap.
        pages: u64,
        /// Bytes per bitmap.
        each: u64,
    },
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> TraceError {
    move |source| TraceError::Io { path: path.to_owned(), doing, source }
}

/// A recorded sequence of dirty pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Pages of the memory that was watched.
    pub pages: u64,
    /// Time between two looks.
    pub interval_ns: u64,
    /// Runs of dirty pages, ascending, by interval.
    pub intervals: Vec<Vec<Range<u64>>>,
    /// XXH3-64 of the file, which pins it.
    pub sum: u64,
}

impl Trace {
    /// Reads and checks a trace file.
    ///
    /// # Errors
    /// [`TraceError`] names the first line that cannot be.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let (file, bytes) = open(path)?;
        if bytes > FILE_BYTES_MAX {
            return Err(TraceError::TooLarge { path: path.to_owned(), bytes });
        }
        // It may grow while it is read.
        let mut reader = BufReader::new(file.take(FILE_BYTES_MAX));
        let mut hash = Xxh3::new();
        let mut trace: Option<Self> = None;
        let (mut visits, mut line) = (0, String::new());
        for number in 1.. {
            line.clear();
            let format = |what| TraceError::Format { path: path.to_owned(), line: number, what };
            reader
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_line(&mut line)
                .map_err(io_error(path, "read"))?;
            let Some(text) = line.strip_suffix('\n') else {
                return Err(match trace {
                    None => format("is not 'vmigrate-trace 1 <pages> <interval in ns>'"),
                    Some(_) => TraceError::Cut { path: path.to_owned() },
                });
            };
            let Some(trace) = &mut trace else {
                trace =
                    Some(start(text).ok_or_else(|| {
                        format("is not 'vmigrate-trace 1 <pages> <interval in ns>'")
                    })?);
                hash.update(line.as_bytes());
                continue;
            };
            if let Some(end) = text.strip_prefix("end ") {
                trace.sum = hash.digest();
                let mut rest = String::new();
                let more = reader.read_line(&mut rest).map_err(io_error(path, "read"))?;
                let wanted = format!("{} {:016x}", trace.intervals.len(), trace.sum);
                if end != wanted || more > 0 {
                    return Err(TraceError::Cut { path: path.to_owned() });
                }
                return Ok(trace.clone());
            }
            let runs = runs(text, trace.pages)
                .ok_or_else(|| format("is not an ascending list of pages inside the memory"))?;
            visits += runs.iter().map(|run| run.end - run.start).sum::<u64>();
            if visits > VISITS_MAX {
                return Err(format("makes the trace too long: at most 134217728 page visits"));
            }
            if trace.intervals.len() == INTERVALS_MAX {
                return Err(format("makes the trace too long: at most 16777216 intervals"));
            }
            trace.intervals.push(runs);
            hash.update(line.as_bytes());
        }
        unreachable!("line numbers do not end")
    }

    /// The trace in `folder` whose checksum is `sum`.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn find(folder: &Path, sum: u64) -> Result<Self, TraceError> {
        let files = std::fs::read_dir(folder).map_err(io_error(folder, "look for a"))?;
        for entry in files.take(FOLDER_FILES_MAX) {
            let path = entry.map_err(io_error(folder, "look for a"))?.path();
            // What is no trace is none of ours.
            if ends_with(&path, sum).unwrap_or(false)
                && let trace = Self::read(&path)?
                && trace.sum == sum
            {
                return Ok(trace);
            }
        }
        Err(TraceError::NotThere { folder: folder.to_owned(), sum })
    }

    /// The dirty pages inside `range`, in the order in which they were seen.
    pub fn pages_in(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        self.intervals
            .iter()
            .flatten()
            .flat_map(move |run| run.start.max(range.start)..run.end.min(range.end))
    }

    /// Page visits per second, as recorded.
    pub fn pages_per_s(&self) -> f64 {
        let visits: u64 = self.intervals.iter().flatten().map(|run| run.end - run.start).sum();
        visits as f64 * 1e9 / (self.interval_ns as f64 * self.intervals.len().max(1) as f64)
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn write(&self, path: &Path) -> Result<(), TraceError> {
        let mut writer = TraceWriter::create(path, self.pages, self.interval_ns)?;
        self.intervals.iter().try_for_each(|runs| writer.interval(runs))?;
        writer.finish()
    }

    /// Converts raw dirty bitmaps, one after the other, as `KVM_GET_DIRTY_LOG` fills them: bit
    /// p mod 64 of little-endian word p / 64 stands for page p; ceil(pages / 64) words each.
    ///
    /// # Errors
    /// The file cannot be read, or is not of a whole number of bitmaps.
    pub fn from_bitmaps(path: &Path, pages: u64, interval_ns: u64) -> Result<Self, TraceError> {
        let words = pages.div_ceil(64);
        let (file, bytes) = open(path)?;
        if bytes == 0 || !bytes.is_multiple_of(words * 8) {
            let path = path.to_owned();
            return Err(TraceError::Bitmaps { path, bytes, pages, each: words * 8 });
        }
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut trace = Self { pages, interval_ns, intervals: Vec::new(), sum: 0 };
        for _ in 0..bytes / (words * 8) {
            let mut runs: Vec<Range<u64>> = Vec::new();
            for index in 0..words {
                let mut word = [0; 8];
                reader.read_exact(&mut word).map_err(io_error(path, "read"))?;
                let mut word = u64::from_le_bytes(word);
                while word != 0 {
                    let page = index * 64 + u64::from(word.trailing_zeros());
                    word &= word - 1;
                    match runs.last_mut() {
                        _ if page >= pages => {}
                        Some(run) if run.end == page => run.end += 1,
                        _ => runs.push(page..page + 1),
                    }
                }
            }
            trace.intervals.push(runs);
        }
        Ok(trace)
    }
}

fn open(path: &Path) -> Result<(File, u64), TraceError> {
    regular::open(path).map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => TraceError::NotRegular { path: path.to_owned() },
        _ => io_error(path, "open")(error),
    })
}

/// Whether a file ends as the trace with this checksum does.
fn ends_with(path: &Path, sum: u64) -> Result<bool, TraceError> {
    let (mut file, bytes) = open(path)?;
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(bytes.saturating_sub(END_BYTES)))
        .and_then(|_| file.take(END_BYTES).read_to_end(&mut end))
        .map_err(io_error(path, "read"))?;
    Ok(end.ends_with(format!(" {sum:016x}\n").as_bytes()))
}

fn start(text: &str) -> Option<Trace> {
    let mut fields = text.strip_prefix(MAGIC)?.split_whitespace().map(str::parse::<u64>);
    let (pages, interval_ns) = (fields.next()?.ok()?, fields.next()?.ok()?);
    let fits = fields.next().is_none() && (1..=1 << 40).contains(&pages) && interval_ns > 0;
    fits.then(|| Trace { pages, interval_ns, intervals: Vec::new(), sum: 0 })
}

fn runs(text: &str, pages: u64) -> Option<Vec<Range<u64>>> {
    if text == "-" {
        return Some(Vec::new());
    }
    let mut runs: Vec<Range<u64>> = Vec::new();
    for field in text.split(' ') {
        let (first, last) = field.split_once('-').unwrap_or((field, field));
        let (first, last) = (first.parse().ok()?, last.parse::<u64>().ok()?);
        if first > last || last >= pages || runs.last().is_some_and(|run| run.end > first) {
            return None;
        }
        runs.push(first..last + 1);
    }
    Some(runs)
}

/// Writes a trace interval by interval.
pub struct TraceWriter {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Xxh3,
    intervals: usize,
}

impl std::fmt::Debug for TraceWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TraceWriter({}, {} intervals)", self.path.display(), self.intervals)
    }
}

impl TraceWriter {
    /// Starts a trace file.
    ///
    /// # Errors
    /// The file could not be made.
    pub fn create(path: &Path, pages: u64, interval_ns: u64) -> Result<Self, TraceError> {
        let file = BufWriter::new(File::create(path).map_err(io_error(path, "create"))?);
        let mut this = Self { path: path.to_owned(), file, hash: Xxh3::new(), intervals: 0 };
        this.line(&format!("{MAGIC} {pages} {interval_ns}\n"))?;
        Ok(this)
    }

    /// Adds an interval: its runs of dirty pages, ascending.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn interval(&mut self, runs: &[Range<u64>]) -> Result<(), TraceError> {
        let text = |run: &Range<u64>| match run.end - run.start {
            1 => run.start.to_string(),
            _ => format!("{}-{}", run.start, run.end - 1),
        };
        let mut line = match runs {
            [] => "-".to_owned(),
            runs => runs.iter().map(text).collect::<Vec<_>>().join(" "),
        };
        line.push('\n');
        self.intervals += 1;
        self.line(&line)
    }

    /// Ends the file; without this it is refused as cut.
    ///
    /// # Errors
    /// The file could not be written whole.
    pub fn finish(mut self) -> Result<(), TraceError> {
        let end = format!("end {} {:016x}\n", self.intervals, self.hash.digest());
        self.line(&end)?;
        self.file.flush().map_err(io_error(&self.path, "write"))
    }

    fn line(&mut self, line: &str) -> Result<(), TraceError> {
        self.hash.update(line.as_bytes());
        self.file.write_all(line.as_bytes()).map_err(io_error(&self.path, "write"))
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a run of one range is what is meant")]
mod tests {
    use super::*;

    fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_dir, path) = file("");
        let intervals = vec![vec![0..3, 7..8], vec![], vec![2..3]];
        let trace = Trace { pages: 10, interval_ns: 5, intervals, sum: 0 };
        trace.write(&path).unwrap();
        let read = Trace::read(&path).unwrap();
        assert_eq!(read.intervals, trace.intervals);
        assert_eq!(read.pages_in(1..8).collect::<Vec<_>>(), [1, 2, 7, 2]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("vmigrate-trace 1 10 5\n0-2 7\n-\n2\nend 3 "), "{text}");
        for cut in [text.len() - 1, text.len() - 10, 30, 27, 5, 0] {
            let (_dir, path) = file(&text[..cut]);
            assert!(Trace::read(&path).is_err(), "cut after {cut} bytes");
        }
        let (_dir, path) = file(text.replace("0-2 7", "0-2 8"));
        assert!(matches!(Trace::read(&path), Err(TraceError::Cut { .. })));
        for bad in ["0-2 2", "5-4", "10", "x", "1,2", ""] {
            let (_dir, path) = file(text.replace("0-2 7", bad));
            assert!(matches!(Trace::read(&path), Err(TraceError::Format { line: 2, .. })), "{bad}");
        }
    }

    #[test]
    fn a_trace_is_found_by_its_checksum_among_other_things() {
        let (dir, path) = file("");
        let (pages, interval_ns, sum) = (10, 5, 0);
        Trace { pages, interval_ns, intervals: vec![vec![0..3]], sum }.write(&path).unwrap();
        let trace = Trace::read(&path).unwrap();
        std::fs::write(dir.path().join("another"), "end 1 0000000000000007\n").unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert_eq!(Trace::find(dir.path(), trace.sum).unwrap(), trace);
        assert!(matches!(Trace::find(dir.path(), 9), Err(TraceError::NotThere { sum: 9, .. })));
        assert!(Trace::find(dir.path(), 7).is_err(), "it only ends like one");
        assert!(Trace::find(&path, trace.sum).is_err());
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let (dir, path) = file("");
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [&pipe, Path::new("/dev/zero"), dir.path()] {
            let error = Trace::read(path).unwrap_err();
            assert!(matches!(error, TraceError::NotRegular { .. }), "{error}");
        }
        File::options().write(true).open(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(Trace::read(&path), Err(TraceError::TooLarge { .. })));
    }

    #[test]
    fn bitmaps_become_a_trace() {
        let words: [u64; 4] = [0b1011, 1 << 5, 0, u64::MAX];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let (_dir, path) = file(bytes);
        let trace = Trace::from_bitmaps(&path, 70, 9).unwrap();
        // Bits beyond the last page mean nothing.
        assert_eq!(trace.intervals, [vec![0..2, 3..4, 69..70], vec![64..70]]);
        assert!(matches!(Trace::from_bitmaps(&path, 300, 9), Err(TraceError::Bitmaps { .. })));
    }
}
