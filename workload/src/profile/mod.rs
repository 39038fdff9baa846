//! Workloads by name: a pattern, its settings, the record and what is in it.
//!
//! A workload is typed as a name with settings (`zipf,theta=0.99,record=4KiB,content=text`) or
//! kept in a TOML file with the same keys. Printing gives back the canonical text, which is what
//! journals carry. What the names do is [`pattern`](crate::pattern)'s and
//! [`content`](crate::content)'s subject.

mod catalogue;

use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use catalogue::{Info, PATTERNS, info};

use crate::content::ContentSpec;
use crate::regular;
use crate::units::{Bytes, parse_duration};

/// Smallest record.
pub const RECORD_BYTES_MIN: u64 = crate::LINE_BYTES;
/// Largest record.
pub const RECORD_BYTES_MAX: u64 = 2 << 20;
/// Most phases of one workload.
const PHASES_MAX: usize = 64;
/// Steepest law of `zipf`.
const THETA_PPM_MAX: u32 = 5_000_000;

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("workload '{text}': {what}")]
pub struct ProfileError {
    text: String,
    what: String,
}

/// The order of writing, with its settings. Shares and probabilities are in millionths, because
/// two builds must agree on them exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternSpec {
    /// A ring of records, one after the other.
    Stream,
    /// A ring, and a header page that is written after every so many records.
    StreamIndex {
        /// Records between two header writes.
        every: u32,
    },
    /// Every slot once per epoch, in a fresh random order.
    Uniform,
    /// Any slot at any time, with replacement.
    Iid,
    /// Slots by Zipf's law.
    Zipf {
        /// The exponent.
        theta_ppm: u32,
    },
    /// A hot set and the rest.
    Hotset {
        /// Share of the operations that go to the hot set.
        probability_ppm: u32,
        /// Share of the slots that are hot.
        fraction_ppm: u32,
    },
    /// One line in each page.
    Touch,
    /// Long runs inside files of a page cache.
    FileIo {
        /// Size of a file.
        file: Bytes,
        /// Bytes written before another file is taken.
        run: Bytes,
    },
    /// Random records, some of them read.
    Iometer {
        /// Share of the operations that read.
        reads_ppm: u32,
    },
    /// One pattern after the other, over and over.
    Phases(Vec<Phase>),
    /// A recorded sequence of dirty pages.
    Trace {
        /// The trace file.
        file: PathBuf,
        /// Its checksum, once it has been read.
        sum: Option<u64>,
    },
}

/// One part of a `phases` workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What it does.
    pub pattern: PatternSpec,
    /// For how many operations of each writer.
    pub operations: u64,
}

/// Longest TOML file of a workload.
const TOML_BYTES_MAX: u64 = 1 << 20;
/// Longest burst, and longest rest between two.
const BURST_MAX: Duration = Duration::from_secs(24 * 3600);

/// Bursts: time in which the schedule runs, and time in which it stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnOff {
    /// Length of a burst.
    pub on: Duration,
    /// Length of a pause.
    pub off: Duration,
}

/// A workload: what is written where, in what pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Profile {
    /// The order of writing.
    pub pattern: PatternSpec,
    /// Bytes that one operation writes: a power of two from 64 to 2 MiB.
    pub record: Bytes,
    /// What is written.
    pub content: ContentSpec,
    /// When it is written.
    pub timing: Option<OnOff>,
}

impl PatternSpec {
    /// The name used on command lines and in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::StreamIndex { .. } => "stream-index",
            Self::Uniform => "uniform",
            Self::Iid => "iid",
            Self::Zipf { .. } => "zipf",
            Self::Hotset { .. } => "hotset",
            Self::Touch => "touch",
            Self::FileIo { .. } => "fileio",
            Self::Iometer { .. } => "iometer",
            Self::Phases(_) => "phases",
            Self::Trace { .. } => "trace",
        }
    }

    /// What people are told about it.
    pub fn info(&self) -> &'static Info {
        info(self.name()).unwrap_or_else(|| unreachable!("every pattern is in the list"))
    }

    /// Its settings, as typed; ratios in the shortest form that gives the same millionths.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let ratio = |ppm: u32| (f64::from(ppm) / 1e6).to_string();
        match self {
            Self::Stream | Self::Uniform | Self::Iid | Self::Touch => Vec::new(),
            Self::StreamIndex { every } => vec![("every", every.to_string())],
            Self::Zipf { theta_ppm } => vec![("theta", ratio(*theta_ppm))],
            Self::Hotset { probability_ppm, fraction_ppm } => {
                vec![("p", ratio(*probability_ppm)), ("f", ratio(*fraction_ppm))]
            }
            Self::FileIo { file, run } => vec![("file", file.exact()), ("run", run.exact())],
            Self::Iometer { reads_ppm } => vec![("reads", ratio(*reads_ppm))],
            Self::Phases(phases) => {
                let text = |p: &Phase| {
                    let settings = p.pattern.settings();
                    let settings: String =
                        settings.iter().map(|(key, value)| format!(":{key}={value}")).collect();
                    format!("{}{settings}*{}", p.pattern.name(), p.operations)
                };
                vec![("of", phases.iter().map(text).collect::<Vec<_>>().join("+"))]
            }
            Self::Trace { file, sum } => {
                let mut settings = vec![("file", file.display().to_string())];
                settings.extend(sum.map(|sum| ("sum", format!("{sum:016x}"))));
                settings
            }
        }
    }

    /// Takes what it knows from `settings` and leaves the rest.
    fn take(name: &str, settings: &mut Settings) -> Result<Self, String> {
        let info = info(name).ok_or_else(|| {
            let names = PATTERNS.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
            format!("no workload is called '{name}'; there are: {names}")
        })?;
        let mut setting = |key: &str| {
            let default = info.settings.iter().find(|(name, ..)| *name == key);
            let default = default.map_or("", |(_, default, _)| default);
            settings.take(key).unwrap_or_else(|| default.to_owned())
        };
        Ok(match name {
            "stream" => Self::Stream,
            "uniform" => Self::Uniform,
            "iid" => Self::Iid,
            "touch" => Self::Touch,
            "stream-index" => {
                let every = setting("every");
                let every = every.parse().ok().filter(|e| (1..=1 << 20).contains(e));
                Self::StreamIndex { every: every.ok_or("every is a number from 1 to 1048576")? }
            }
            "zipf" => {
                let theta_ppm = ppm("theta", &setting("theta"), THETA_PPM_MAX)?;
                Self::Zipf { theta_ppm }
            }
            "hotset" => Self::Hotset {
                probability_ppm: ppm("p", &setting("p"), 1_000_000)?,
                fraction_ppm: ppm("f", &setting("f"), 1_000_000)?,
            },
            "fileio" => {
                let size = |key: &str, text: String| -> Result<Bytes, String> {
                    text.parse().map_err(|e| format!("{key}: {e}"))
                };
                let (file, run) = (size("file", setting("file"))?, size("run", setting("run"))?);
                if run > file {
                    return Err(format!("a run of {run} does not fit a file of {file}"));
                }
                Self::FileIo { file, run }
            }
            "iometer" => {
                let reads_ppm = ppm("reads", &setting("reads"), 1_000_000)?;
                if reads_ppm == 1_000_000 {
                    return Err("reads=1 would never write; choose less".to_owned());
                }
                Self::Iometer { reads_ppm }
            }
            "trace" => {
                let (file, sum) = (setting("file"), setting("sum"));
                if file.is_empty() {
                    return Err("name the trace: trace,file=FILE".to_owned());
                }
                let sum = match sum.as_str() {
                    "" => None,
                    sum => Some(
                        u64::from_str_radix(sum, 16)
                            .map_err(|_| "sum is 16 hexadecimal digits".to_owned())?,
                    ),
                };
                Self::Trace { file: file.into(), sum }
            }
            _ => {
                let phases = setting("of");
                let phases =
                    phases.split('+').map(Phase::from_str).collect::<Result<Vec<_>, _>>()?;
                if phases.len() > PHASES_MAX {
                    return Err(format!("more than {PHASES_MAX} phases"));
                }
                Self::Phases(phases)
            }
        })
    }
}

impl FromStr for PatternSpec {
    type Err = String;
    /// A pattern alone, without record, content or timing.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, mut settings) = Settings::split(text, ',')?;
        let pattern = Self::take(&name, &mut settings)?;
        settings.finish(&pattern).map(|()| pattern)
    }
}

impl FromStr for Phase {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("phase '{text}' is not PATTERN[:setting=value]*OPERATIONS");
        let (pattern, operations) = text.rsplit_once('*').ok_or_else(wrong)?;
        let operations: u64 = operations.trim().parse().map_err(|_| wrong())?;
        if operations == 0 || operations > 1 << 48 {
            return Err(format!("phase '{text}' needs 1 to 2^48 operations"));
        }
        let (name, mut settings) = Settings::split(pattern.trim(), ':')?;
        let pattern = PatternSpec::take(&name, &mut settings)?;
        if matches!(
            pattern,
            PatternSpec::Phases(_) | PatternSpec::Touch | PatternSpec::Trace { .. }
        ) {
            return Err(format!("'{name}' cannot be a phase: its slots are not the others'"));
        }
        settings.finish(&pattern)?;
        Ok(Self { pattern, operations })
    }
}

/// A ratio in millionths; above zero.
fn ppm(key: &str, text: &str, max: u32) -> Result<u32, String> {
    let value: f64 = text.parse().map_err(|_| format!("{key}='{text}' is not a number"))?;
    let limit = f64::from(max) / 1e6;
    if !(value >= 1e-6 && value <= limit) {
        return Err(format!("{key}={text} is out of range: above 0 and up to {limit}"));
    }
    Ok((value * 1e6).round() as u32)
}

/// Settings as `key=value`, each to be taken once.
struct Settings(Vec<(String, String)>);

impl Settings {
    fn split(text: &str, separator: char) -> Result<(String, Self), String> {
        let mut fields = text.split(separator).map(str::trim);
        let name = fields.next().unwrap_or_default().to_owned();
        let pairs = fields
            .map(|field| {
                let pair = field.split_once('=').map(|(k, v)| (k.trim().into(), v.trim().into()));
                pair.ok_or_else(|| format!("'{field}' is not a setting (name=value)"))
            })
            .collect::<Result<_, _>>()?;
        Ok((name, Self(pairs)))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let index = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(index).1)
    }

    /// Whatever nobody took is a mistake.
    fn finish(self, pattern: &PatternSpec) -> Result<(), String> {
        let Some((key, _)) = self.0.first() else { return Ok(()) };
        let known: Vec<_> = pattern.info().settings.iter().map(|(name, ..)| *name).collect();
        Err(match known.is_empty() {
            true => format!("'{}' has no setting '{key}' (or it is there twice)", pattern.name()),
            false => format!(
                "'{}' has no setting '{key}' (or it is there twice); it has {}",
                pattern.name(),
                known.join(", ")
            ),
        })
    }
}

impl Profile {
    /// A pattern with its usual record, random content and no pauses.
    pub fn new(pattern: PatternSpec) -> Self {
        let record = pattern.info().record;
        Self { pattern, record, content: ContentSpec::Random, timing: None }
    }

    /// From what was typed: a TOML file if it names one, else a name with settings.
    ///
    /// # Errors
    /// [`ProfileError`] says what cannot be.
    pub fn from_argument(text: &str) -> Result<Self, ProfileError> {
        let fail = |what: String| ProfileError { text: text.to_owned(), what };
        if !text.ends_with(".toml") {
            return text.parse();
        }
        let unreadable = |e: std::io::Error| fail(format!("cannot read it: {e}"));
        let (file, bytes) = regular::open(text.as_ref()).map_err(unreadable)?;
        if bytes > TOML_BYTES_MAX {
            return Err(fail(format!("it has {bytes} bytes; at most {TOML_BYTES_MAX} are read")));
        }
        let mut toml = String::new();
        file.take(TOML_BYTES_MAX).read_to_string(&mut toml).map_err(unreadable)?;
        Self::from_toml(&toml).map_err(fail)
    }

    /// From the text of a TOML file.
    ///
    /// # Errors
    /// Says what cannot be.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
        Self::from_pairs(pairs(table)?)
    }

    fn from_pairs((name, mut settings): (String, Settings)) -> Result<Self, String> {
        let pattern = PatternSpec::take(&name, &mut settings)?;
        let mut profile = Self::new(pattern);
        if let Some(record) = settings.take("record") {
            profile.record = record.parse().map_err(|e| format!("record: {e}"))?;
        }
        if let Some(content) = settings.take("content") {
            profile.content = content.parse()?;
        }
        if let Some(by) = settings.take("by") {
            written_by(&by)?;
        }
        let mut time = |key: &str| {
            let text = settings.take(key);
            text.map(|t| parse_duration(&t).map_err(|e| format!("{key}: {e}"))).transpose()
        };
        profile.timing = match (time("on")?, time("off")?) {
            (None, None) => None,
            (Some(on), Some(off)) if [on, off].iter().all(|t| !t.is_zero() && *t <= BURST_MAX) => {
                Some(OnOff { on, off })
            }
            _ => {
                let what = "on and off go together, and each is more than zero and at most a day";
                return Err(what.to_owned());
            }
        };
        settings.finish(&profile.pattern)?;
        profile.check()?;
        Ok(profile)
    }

    /// What the parts of a workload ask of each other.
    ///
    /// # Errors
    /// Says what contradicts what.
    pub fn check(&self) -> Result<(), String> {
        let record = self.record.0;
        if !record.is_power_of_two() || !(RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&record) {
            return Err(format!(
                "a record of {}; choose a power of two from 64 B to 2 MiB",
                self.record
            ));
        }
        match self.pattern {
            PatternSpec::Touch if record != 64 => {
                return Err("touch writes one line of 64 B in each page; leave out record".into());
            }
            PatternSpec::Trace { .. } if record != crate::PAGE_BYTES => {
                return Err("a trace is of whole pages; leave out record".into());
            }
            _ => {}
        }
        if self.content.needs_pages() && record < crate::PAGE_BYTES {
            return Err(format!(
                "content {} rewrites lines of whole pages; choose a record of 4 KiB or more",
                self.content
            ));
        }
        Ok(())
    }
}

/// Who writes: so far the processor alone. The others have their names so that no version takes a
/// workload of a later one for something else.
fn written_by(by: &str) -> Result<(), String> {
    match by {
        "cpu" => Ok(()),
        "device" | "discard" | "remap" | "fork" => {
            Err(format!("by={by} is not there in this version: only by=cpu, the default, is"))
        }
        _ => Err(format!("by={by} is unknown: records are written by=cpu")),
    }
}

/// A TOML table as the settings it stands for.
fn pairs(table: toml::Table) -> Result<(String, Settings), String> {
    let plain = |key: &str, value: &toml::Value| match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        _ => Err(format!("{key} is neither text nor a number")),
    };
    let (mut name, mut settings) = (String::new(), Vec::new());
    for (key, value) in &table {
        match (key.as_str(), value) {
            ("pattern", value) => name = plain(key, value)?,
            ("phase", toml::Value::Array(phases)) => {
                let text = |phase: &toml::Value| {
                    let table = phase.as_table().ok_or("a phase is a table")?.clone();
                    let (name, Settings(settings)) = pairs(table)?;
                    let operations = settings.iter().find(|(key, _)| key == "operations");
                    let (_, operations) = operations.ok_or("a phase needs operations = NUMBER")?;
                    let rest: String = settings
                        .iter()
                        .filter(|(key, _)| key != "operations")
                        .map(|(key, value)| format!(":{key}={value}"))
                        .collect();
                    Ok::<_, String>(format!("{name}{rest}*{operations}"))
                };
                let phases = phases.iter().map(text).collect::<Result<Vec<_>, _>>()?;
                settings.push(("of".to_owned(), phases.join("+")));
            }
            (key, value) => settings.push((key.to_owned(), plain(key, value)?)),
        }
    }
    match name.is_empty() {
        true => Err("pattern = \"NAME\" is missing".to_owned()),
        false => Ok((name, Settings(settings))),
    }
}

impl FromStr for Profile {
    type Err = ProfileError;
    fn from_str(text: &str) -> Result<Self, ProfileError> {
        Settings::split(text, ',')
            .and_then(Self::from_pairs)
            .map_err(|what| ProfileError { text: text.to_owned(), what })
    }
}

impl TryFrom<String> for Profile {
    type Error = ProfileError;
    fn try_from(text: String) -> Result<Self, ProfileError> {
        text.parse()
    }
}

impl From<Profile> for String {
    fn from(profile: Profile) -> Self {
        profile.to_string()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pattern.name())?;
        for (key, value) in self.pattern.settings() {
            write!(f, ",{key}={value}")?;
        }
        write!(f, ",record={},content={}", self.record.exact(), self.content)?;
        match &self.timing {
            None => Ok(()),
            Some(OnOff { on, off }) => {
                write!(f, ",on={}ns,off={}ns", on.as_nanos(), off.as_nanos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_as_printed() {
        for info in &PATTERNS {
            let text = match info.name {
                "trace" => "trace,file=/tmp/x,sum=00000000000000ff",
                name => name,
            };
            let profile: Profile = text.parse().unwrap();
            assert_eq!(profile.record, info.record);
            assert_eq!(profile.to_string().parse(), Ok(profile.clone()), "{profile}");
        }
        let full = "hotset,p=0.75,f=0.01,record=16KiB,content=random*2+delta:8*1,on=5ms,off=1s";
        let profile: Profile = full.parse().unwrap();
        assert_eq!(profile.to_string().parse(), Ok(profile));
    }

    #[test]
    fn a_file_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.toml");
        let text = "pattern = 'phases'\nrecord = '8KiB'\ncontent = 'text'\non = '1s'\noff = '2s'\n\
                    [[phase]]\npattern = 'stream'\noperations = 5\n\
                    [[phase]]\npattern = 'zipf'\ntheta = 1.5\noperations = 7\n";
        std::fs::write(&path, text).unwrap();
        let typed = "phases,of=stream*5+zipf:theta=1.5*7,record=8KiB,content=text,on=1s,off=2s";
        let from_file = Profile::from_argument(path.to_str().unwrap()).unwrap();
        assert_eq!(Ok(from_file), typed.parse());
        std::fs::write(&path, "pattern = 'zipf'\ntheta = [1]\n").unwrap();
        assert!(Profile::from_argument(path.to_str().unwrap()).is_err());
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, part) in [
            ("zipff", "there are: stream, stream-index"),
            ("zipf,theta=0", "out of range"),
            ("zipf,theta=9", "out of range"),
            ("zipf,theta=x", "not a number"),
            ("zipf,theta=nan", "out of range"),
            ("zipf,p=1", "no setting 'p'"),
            ("zipf,theta=1,theta=2", "twice"),
            ("stream,record=100", "power of two"),
            ("stream,record=4MiB", "power of two"),
            ("touch,record=4KiB", "leave out record"),
            ("stream,record=64,content=delta:8", "4 KiB or more"),
            ("stream,content=poem", "poem"),
            ("stream,on=1s", "go together"),
            ("fileio,file=1MiB,run=2MiB", "does not fit"),
            ("iometer,reads=1", "never write"),
            ("phases,of=stream", "OPERATIONS"),
            ("phases,of=touch*5", "cannot be a phase"),
            ("phases,of=stream*0", "operations"),
            ("trace", "name the trace"),
            ("stream,fast", "not a setting"),
        ] {
            let error = text.parse::<Profile>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
