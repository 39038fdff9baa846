//! The lines that a guest says: beats, and the description of its run.
//!
//! ```text
//! S 2 <tag> <interval us> fresh|weak <workload spec as JSON> <sum>
//! B <tag> <epoch> <number> <writer> <watermark> <clock us> <bits> <links> <sum>
//! ```
//!
//! `P` and `E` are beats of a guest that stands still. Tag, bits, links and sum are eight hexadecimal
//! digits, the other numbers decimal; the sum is the low half of XXH3-64 of what stands before it.

use crate::digits::written_in_digits;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::spec::{WRITERS_MAX, WorkloadSpec};
use crate::units::Bytes;

/// Most memory of a run that a reader believes: 64 TiB.
const MEMORY_MAX: Bytes = Bytes(64 << 40);
/// Longest interval of beats that a reader believes: a minute.
const INTERVAL_US_MAX: u64 = 60_000_000;

/// Tells runs apart: drawn anew at each start of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(pub u32);

written_in_digits!(Tag, u32, 8, "tag");

/// Whether the guest goes on after a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It runs.
    Running,
    /// It stands still at exactly this watermark, and may go on, here or elsewhere.
    Held,
    /// It was ended by its owner.
    Ended,
}

/// One writer's counter at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Beat {
    /// How many beats the run said before, all writers together, on every host.
    pub number: u64,
    /// Drawn at this beat; neither half is zero.
    pub bits: u32,
    /// Whether the guest goes on.
    pub kind: Kind,
    /// How many hosts the guest has been moved across.
    pub epoch: u32,
    /// Which writer.
    pub writer: u16,
    /// Operations completed.
    pub watermark: u64,
    /// The guest's own monotonic clock, microseconds.
    pub clock_us: u64,
    /// The low halves of the bits of the beats at [`linked`] numbers; zero for none.
    pub links: [u16; 2],
}

/// The description of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Time between two beats.
    pub interval_us: u64,
    /// The guest has neither a generator of its own nor a cycle counter: a copy of it may draw the
    /// same bits.
    pub weak: bool,
    /// What it writes.
    pub spec: WorkloadSpec,
}

/// Something that a guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// What it is.
    Start(Box<Start>),
    /// How far it came.
    Beat(Beat),
}

/// How far back the second link of a beat reaches, by its number.
const REACH: [u64; 32] = {
    let mut reach = [0; 32];
    let mut i = 0;
    while i < 32 {
        reach[i] = match i % 4 {
            3 => 1 << (8 + i / 4),
            rest => 1 << (1 + (3 * (i / 4) + rest) % 7),
        };
        i += 1;
    }
    reach
};

/// Most numbers that a link reaches back.
pub const REACH_MAX: u64 = 1 << 15;

/// The numbers of the beats that beat `number` is linked to, if there were such.
pub fn linked(number: u64) -> [Option<u64>; 2] {
    [number.checked_sub(1), number.checked_sub(REACH[(number % 32) as usize])]
}

/// `text` with its sum, as a line.
pub fn sealed(text: &str) -> String {
    format!("{text} {:08x}\n", xxh3_64(text.as_bytes()) as u32)
}

/// What stands before the sum of a line, if the sum is that of it.
pub fn unsealed(line: &[u8]) -> Option<&[u8]> {
    let at = line.len().checked_sub(9)?;
    let (text, sum) = line.split_at(at);
    let sum = sum.strip_prefix(b" ")?;
    (hexadecimal(sum)? == xxh3_64(text) as u32).then_some(text)
}

impl Beat {
    /// As it stands in a line, without its sum.
    pub fn text(&self, tag: Tag) -> String {
        let Self { number, bits, kind, epoch, writer, watermark, clock_us, links } = self;
        let letter = match kind {
            Kind::Running => 'B',
            Kind::Held => 'P',
            Kind::Ended => 'E',
        };
        format!(
            "{letter} {tag} {epoch} {number} {writer} {watermark} {clock_us} {bits:08x} {:04x}{:04x}",
            links[0], links[1]
        )
    }

    fn read(kind: Kind, rest: &[u8]) -> Option<(Tag, Self)> {
        let mut fields = rest.split(|byte| *byte == b' ');
        let mut next = || fields.next();
        let tag = Tag(hexadecimal(next()?)?);
        let epoch = u32::try_from(decimal(next()?)?).ok()?;
        let number = decimal(next()?)?;
        let writer = decimal(next()?).filter(|writer| *writer < u64::from(WRITERS_MAX))? as u16;
        let (watermark, clock_us) = (decimal(next()?)?, decimal(next()?)?);
        let bits = hexadecimal(next()?).filter(|bits| bits & 0xFFFF != 0 && bits >> 16 != 0)?;
        let links = hexadecimal(next()?)?;
        let links = [(links >> 16) as u16, links as u16];
        let beat = Self { number, bits, kind, epoch, writer, watermark, clock_us, links };
        next().is_none().then_some((tag, beat))
    }
}

impl Start {
    /// As it stands in a line, without its sum.
    pub fn text(&self, tag: Tag) -> String {
        let json = serde_json::to_string(&self.spec).unwrap_or_else(|_| unreachable!("plain data"));
        let entropy = if self.weak { "weak" } else { "fresh" };
        format!("S 2 {tag} {} {entropy} {json}", self.interval_us)
    }

    fn read(rest: &[u8]) -> Result<(Tag, Self), String> {
        let text = std::str::from_utf8(rest).map_err(|_| "is no text")?;
        let mut fields = text.splitn(5, ' ');
        let mut next = || fields.next().ok_or("is no description of a run");
        match next()? {
            "2" => {}
            other => {
                return Err(format!("is of journal format {}: use a newer version", short(other)));
            }
        }
        let tag = next()?.parse()?;
        let interval_us =
            decimal(next()?.as_bytes()).filter(|us| (1..=INTERVAL_US_MAX).contains(us));
        let interval_us = interval_us.ok_or("has an interval of beats that cannot be")?;
        let weak = match next()? {
            "fresh" => false,
            "weak" => true,
            _ => return Err("says neither fresh nor weak".to_owned()),
        };
        let spec: WorkloadSpec = serde_json::from_str(next()?)
            .map_err(|e| format!("describes a workload that is not known here: {e}"))?;
        if spec.writers == 0 || spec.writers > WRITERS_MAX || spec.memory > MEMORY_MAX {
            return Err("describes a run that cannot be".to_owned());
        }
        Ok((tag, Self { interval_us, weak, spec }))
    }
}

impl Said {
    /// Reads what stands before a sum.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence about the line.
    pub fn read(text: &[u8]) -> Result<(Tag, Self), String> {
        let (letter, rest) = text.split_at_checked(2).ok_or("is of no kind")?;
        let kind = match letter {
            b"B " => Kind::Running,
            b"P " => Kind::Held,
            b"E " => Kind::Ended,
            b"S " => {
                return Start::read(rest).map(|(tag, start)| (tag, Self::Start(Box::new(start))));
            }
            _ => return Err("is of a kind that is not known here".to_owned()),
        };
        let (tag, beat) = Beat::read(kind, rest).ok_or("has numbers that no beat has")?;
        Ok((tag, Self::Beat(beat)))
    }

    /// As it stands in a line, without its sum.
    pub fn text(&self, tag: Tag) -> String {
        match self {
            Self::Start(start) => start.text(tag),
            Self::Beat(beat) => beat.text(tag),
        }
    }
}

/// The start of a word that somebody else wrote, for a message.
pub(super) fn short(text: &str) -> String {
    text.chars().take(20).flat_map(char::escape_default).collect()
}

/// The value of each hexadecimal digit in small letters; of what is none, one too great by far.
const DIGITS: [u32; 256] = {
    let mut digits = [u32::MAX; 256];
    let mut i = 0;
    while i < 16 {
        digits[b"0123456789abcdef"[i] as usize] = i as u32;
        i += 1;
    }
    digits
};

/// Eight digits as they are written here, and nothing else that could be read as a number.
pub(super) fn hexadecimal(digits: &[u8]) -> Option<u32> {
    if digits.len() != 8 {
        return None;
    }
    let digits = digits.iter().map(|digit| DIGITS[usize::from(*digit)]);
    let (value, all) = digits.fold((0, 0), |(value, all), digit| (value << 4 | digit, all | digit));
    (all < 16).then_some(value)
}

/// A number as it is written here: no sign, no zeros before it.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 1 && digits[0] == b'0' {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PageFormat;
    use crate::run::RunId;
    use proptest::prelude::*;

    fn start() -> Start {
        let spec = WorkloadSpec {
            format: PageFormat::V2 { run: RunId(1) },
            seed: 7,
            memory: Bytes(1 << 20),
            writers: 2,
            workload: "stream".parse().unwrap(),
        };
        Start { interval_us: 10_000, weak: false, spec }
    }

    fn beat() -> Beat {
        Beat {
            number: 10_000_000,
            bits: 0x1234_5678,
            kind: Kind::Running,
            epoch: 3,
            writer: 1023,
            watermark: 99_999_999,
            clock_us: 86_400_000_000,
            links: [0xA906, 0],
        }
    }

    #[test]
    fn what_was_said_reads_back() {
        for kind in [Kind::Running, Kind::Held, Kind::Ended] {
            let said = Said::Beat(Beat { kind, ..beat() });
            assert_eq!(Said::read(said.text(Tag(9)).as_bytes()), Ok((Tag(9), said)));
        }
        for weak in [false, true] {
            let said = Said::Start(Box::new(Start { weak, ..start() }));
            assert_eq!(Said::read(said.text(Tag(9)).as_bytes()), Ok((Tag(9), said)));
        }
        let line = sealed(&beat().text(Tag(0xFFFF_FFFF)));
        assert!(line.len() <= 85, "{} bytes: {line}", line.len());
    }

    #[test]
    fn whole_lines_that_nobody_wrote_are_named() {
        let refused = |text: &str| Said::read(text.as_bytes()).unwrap_err();
        let good = start().text(Tag(9));
        assert!(refused(&good.replacen("S 2", "S 3", 1)).contains("journal format 3"));
        assert!(refused(&good.replacen("fresh", "stale", 1)).contains("neither fresh nor weak"));
        assert!(refused(&good.replacen("10000", "0", 1)).contains("interval"));
        assert!(refused(&good.replacen("\"writers\":2", "\"writers\":0", 1)).contains("cannot be"));
        assert!(refused(&good.replacen("stream", "magic", 1)).contains("not known here"));
        assert!(
            refused(&good.replacen("\"format\":2", "\"format\":4", 1)).contains("page format 4")
        );
        assert!(refused("Q 1").contains("kind"));
        assert!(refused("").contains("no kind"));
        let good = beat().text(Tag(9));
        for (old, new) in [
            ("1023", "1024"),
            ("12345678", "00005678"),
            ("12345678", "12340000"),
            (" 3 ", " 03 "),
            (" 3 ", " 4294967296 "),
            ("a9060000", "a906"),
            ("a9060000", "a9060000 1"),
            ("99999999", "99999999999999999999"),
            ("99999999", "-1"),
        ] {
            assert!(refused(&good.replacen(old, new, 1)).contains("no beat"), "{old} {new}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, letter in prop::sample::select(vec!["B ", "S 2 ", ""])) {
            let line = [letter.as_bytes(), &bytes].concat();
            let _ = (Said::read(&line), unsealed(&line));
        }

        #[test]
        fn a_changed_byte_is_no_line(at: prop::sample::Index, by in 1u8..) {
            let line = sealed(&beat().text(Tag(9)));
            let mut bytes = line.trim_end().as_bytes().to_vec();
            prop_assert!(unsealed(&bytes).is_some());
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert_eq!(unsealed(&bytes), None);
        }
    }

    #[test]
    fn links_reach_as_documented() {
        assert_eq!(linked(0), [None, None]);
        assert_eq!(linked(1), [Some(0), None]);
        let doc: Vec<u64> = [
            2, 4, 8, 256, 16, 32, 64, 512, 128, 2, 4, 1024, 8, 16, 32, 2048, 64, 128, 2, 4096, 4,
            8, 16, 8192, 32, 64, 128, 16384, 2, 4, 8, 32768,
        ]
        .to_vec();
        assert_eq!(REACH.to_vec(), doc);
        assert_eq!(REACH.iter().max(), Some(&REACH_MAX));
    }
}
