//! The lines of whoever hears a guest: sessions of collectors.
//!
//! ```text
//! <session> <number> <us since C> C 2 <collector> <boot> <boot-time us> <wall us> <late us> <before>:<lines>|- <sum>
//! <session> <number> <us since C> T <wall us> <words told so far> <sum>
//! <session> <number> <us since C> B|P|E|S ...as the guest said it, without its sum... <sum>
//! <session> <number> <us since C> R <tag> <first beat> <beat> <bits> <sum>
//! <session> <number> <us since C> M <name> <sum>
//! <session> <number> <us since C> Z <lines> <sum>
//! ```

use crate::digits::written_in_digits;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::said::{Said, Tag, decimal, hexadecimal, short};

/// Longest line that a session has.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest name of a collector or a mark.
const NAME_BYTES_MAX: usize = 32;

/// Names one session: drawn anew at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(pub u32);

written_in_digits!(SessionId, u32, 8, "session");

/// A name that stands in a line as one word: of a collector, or of a mark.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Name(String);

impl Name {
    /// The nearest name to any text.
    pub fn of(text: &str) -> Self {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let text: String = text.chars().filter(|c| fits(*c)).take(NAME_BYTES_MAX).collect();
        Self(if text.is_empty() { "collector".to_owned() } else { text })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.len() <= NAME_BYTES_MAX && !text.is_empty() && Self::of(text).0 == text {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "'{}' is no name: it takes 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-'",
                short(text)
            )),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// How a session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Who collects.
    pub collector: Name,
    /// Names the time since its host was started: clocks of one boot can be compared.
    pub boot: u32,
    /// Microseconds since that start, sleep included.
    pub boot_us: u64,
    /// Microseconds since 1970.
    pub wall_us: u64,
    /// What may pass from a beat's being said to its being heard.
    pub late_us: u64,
    /// The session that stands before this one in the file, and how many of its lines were found.
    pub after: Option<(SessionId, u64)>,
}

/// A restore that was meant, told to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Restored {
    /// Of which run.
    pub tag: Tag,
    /// The guest goes on from this beat at the earliest.
    pub first: u64,
    /// And from this one at the latest.
    pub last: u64,
    /// The bits of the last one.
    pub bits: u32,
}

/// What a line of a session says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It begins.
    Open(Opening),
    /// The collector is awake.
    Tick {
        /// Microseconds since 1970.
        wall_us: u64,
        /// Words told so far.
        words: u64,
    },
    /// A guest said something.
    Heard(Tag, Said),
    /// Somebody told of a restore.
    Restored(Restored),
    /// Somebody told that a phase begins.
    Mark(Name),
    /// It ends, after so many lines, this one among them.
    Close(u64),
}

/// A line of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Of which.
    pub session: SessionId,
    /// Lines of the session before it.
    pub number: u64,
    /// Microseconds since the session began, by the boot-time clock.
    pub at_us: u64,
    /// What it says.
    pub entry: Entry,
}

impl Line {
    /// As it stands in a file, without its sum.
    pub fn text(&self) -> String {
        let Self { session, number, at_us, entry } = self;
        let head = format!("{session} {number} {at_us}");
        match entry {
            Entry::Open(Opening { collector, boot, boot_us, wall_us, late_us, after }) => {
                let after = after.map_or("-".to_owned(), |(id, lines)| format!("{id}:{lines}"));
                format!("{head} C 2 {collector} {boot:08x} {boot_us} {wall_us} {late_us} {after}")
            }
            Entry::Tick { wall_us, words } => format!("{head} T {wall_us} {words}"),
            Entry::Heard(tag, said) => format!("{head} {}", said.text(*tag)),
            Entry::Restored(Restored { tag, first, last, bits }) => {
                format!("{head} R {tag} {first} {last} {bits:08x}")
            }
            Entry::Mark(name) => format!("{head} M {name}"),
            Entry::Close(lines) => format!("{head} Z {lines}"),
        }
    }

    /// Reads what stands before a sum; `None` for what is no line of a session at all.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence about the line.
    pub fn read(text: &[u8]) -> Option<Result<Self, String>> {
        let mut parts = text.splitn(4, |byte| *byte == b' ');
        let session = SessionId(hexadecimal(parts.next()?)?);
        let (number, at_us) = (decimal(parts.next()?)?, decimal(parts.next()?)?);
        let entry = Entry::read(parts.next()?);
        Some(entry.map(|entry| Self { session, number, at_us, entry }))
    }
}

impl Entry {
    fn read(text: &[u8]) -> Result<Self, String> {
        let (letter, rest) = text.split_at_checked(2).ok_or("is of no kind")?;
        if !matches!(letter, b"C " | b"T " | b"R " | b"M " | b"Z ") {
            return Said::read(text).map(|(tag, said)| Self::Heard(tag, said));
        }
        let fields: Vec<&[u8]> = rest.split(|byte| *byte == b' ').collect();
        if letter == b"C " && fields[0] != b"2" {
            let other = String::from_utf8_lossy(fields[0]);
            return Err(format!("is of journal format {}: use a newer version", short(&other)));
        }
        Self::own(letter[0], &fields).ok_or_else(|| "has fields that no such line has".to_owned())
    }

    /// A line of the collector's own.
    fn own(letter: u8, fields: &[&[u8]]) -> Option<Self> {
        let name = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
        match (letter, fields) {
            (b'C', [_, collector, boot, boot_us, wall_us, late_us, after]) => {
                let after = match *after {
                    b"-" => None,
                    after => {
                        let (id, lines) = after.split_at_checked(8)?;
                        let lines = decimal(lines.strip_prefix(b":")?)?;
                        Some((SessionId(hexadecimal(id)?), lines))
                    }
                };
                Some(Self::Open(Opening {
                    collector: name(collector)?,
                    boot: hexadecimal(boot)?,
                    boot_us: decimal(boot_us)?,
                    wall_us: decimal(wall_us)?,
                    late_us: decimal(late_us)?,
                    after,
                }))
            }
            (b'T', [wall_us, words]) => {
                Some(Self::Tick { wall_us: decimal(wall_us)?, words: decimal(words)? })
            }
            (b'R', [tag, first, last, bits]) => {
                let (first, last) = (decimal(first)?, decimal(last)?);
                let (tag, bits) = (Tag(hexadecimal(tag)?), hexadecimal(bits)?);
                (first <= last).then_some(Self::Restored(Restored { tag, first, last, bits }))
            }
            (b'M', [mark]) => Some(Self::Mark(name(mark)?)),
            (b'Z', [lines]) => Some(Self::Close(decimal(lines)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::said::{Beat, Kind, sealed};
    use super::*;
    use proptest::prelude::*;

    fn entries() -> Vec<Entry> {
        let opening = Opening {
            collector: Name::of("lab-1"),
            boot: 5,
            boot_us: 1,
            wall_us: 1_795_761_413_391_387,
            late_us: 1_000_000,
            after: None,
        };
        let beat = Beat {
            number: 360_000,
            bits: 0x1234_5678,
            kind: Kind::Running,
            epoch: 0,
            writer: 7,
            watermark: 9_999_999,
            clock_us: 3_600_000_000,
            links: [1, 2],
        };
        vec![
            Entry::Open(opening.clone()),
            Entry::Open(Opening { after: Some((SessionId(0xAB), 17)), ..opening }),
            Entry::Tick { wall_us: 1, words: 0 },
            Entry::Heard(Tag(3), Said::Beat(beat)),
            Entry::Restored(Restored { tag: Tag(3), first: 9, last: 11, bits: 0xAA }),
            Entry::Mark(Name::of("after-the-move")),
            Entry::Close(9),
        ]
    }

    #[test]
    fn what_was_written_reads_back() {
        for entry in entries() {
            let line = Line { session: SessionId(7), number: 400_000, at_us: 3_600_000_000, entry };
            assert_eq!(Line::read(line.text().as_bytes()), Some(Ok(line.clone())));
            let length = sealed(&line.text()).len();
            let beat = matches!(line.entry, Entry::Heard(..));
            assert!(!beat || length <= 100, "{length} bytes: {}", line.text());
        }
    }

    #[test]
    fn whole_lines_that_nobody_wrote_are_named() {
        let refused = |text: &str| Line::read(text.as_bytes()).unwrap().unwrap_err();
        assert!(refused("00000007 0 0 C 3 x").contains("journal format 3"));
        assert!(refused("00000007 0 0 Q 3").contains("kind"));
        for wrong in ["C 2 x", "T 1", "R 00000003 9 8 00000001", "M a b", "M", "Z -1", "Z 1 1"] {
            let said = refused(&format!("00000007 0 0 {wrong}"));
            assert!(said.contains("no such line has") || said.contains("kind"), "{wrong}: {said}");
        }
        for other in ["", "S 7 7", "00000007 0", "0000007 0 0 Z 1", "00000007 -1 0 Z 1"] {
            assert_eq!(Line::read(other.as_bytes()), None, "{other}");
        }
        assert!("a b".parse::<Name>().unwrap_err().contains("is no name"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, letter in prop::sample::select(vec!["C 2 ", "R ", ""])) {
            let _ = Line::read(&[b"00000007 1 2 ", letter.as_bytes(), &bytes].concat());
        }
    }
}
