//! What is wrong with a line that is not what it must be.
//!
//! Pure functions of the line found, the line expected, and for whole pages of the moments at
//! which each of its lines would have been right.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use workload::line::{
    Generation, Line, LineAddress, PlaceKey, StampKey, ZERO_LINE, distance_bits, place_of,
};

/// Most differing bits that still count as flipped bits of the expected line. Unrelated lines
/// differ in 256 bits, give or take 11; one foreign word differs in 32.
const FLIPPED_BITS_MAX: u32 = 16;

/// A class of fault; parameters are those that neighbouring faults can share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "class")]
pub enum Class {
    /// An older content of the same line: a write was lost.
    Stale {
        /// How many generations behind.
        behind: u64,
    },
    /// A newer content than the watermark accounts for.
    Future {
        /// How many generations ahead.
        ahead: u64,
    },
    /// One page holds two moments of its history.
    Torn,
    /// A line of another address.
    Misplaced {
        /// Address it belongs to minus address it was found at, in bytes.
        offset_bytes: i64,
    },
    /// Zero where there must be content.
    Zeroed,
    /// Content where there must be zero.
    Unzeroed,
    /// The expected line, but for some bits.
    BitFlip {
        /// How many.
        bits: u32,
    },
    /// A line of another run: memory of an earlier life, or of another guest.
    OtherRun {
        /// What names the run: the place key of its stamps, if the line stands at its own address.
        place: PlaceKey,
    },
    /// Bytes that were never a line of any region.
    Foreign,
}

impl Class {
    /// The class's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stale { .. } => "STALE",
            Self::Future { .. } => "FUTURE",
            Self::Torn => "TORN",
            Self::Misplaced { .. } => "MISPLACED",
            Self::Zeroed => "ZEROED",
            Self::Unzeroed => "UNZEROED",
            Self::BitFlip { .. } => "BITFLIP",
            Self::OtherRun { .. } => "OTHER-RUN",
            Self::Foreign => "FOREIGN",
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stale { behind } => write!(f, "STALE ({behind} behind)"),
            Self::Future { ahead } => write!(f, "FUTURE ({ahead} ahead)"),
            Self::Misplaced { offset_bytes } => {
                write!(f, "MISPLACED (belongs {offset_bytes:+} bytes from here)")
            }
            Self::BitFlip { bits } => write!(f, "BITFLIP ({bits} bits)"),
            Self::OtherRun { place } => write!(f, "OTHER-RUN (key {place})"),
            other => f.write_str(other.name()),
        }
    }
}

/// A line that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineFault {
    /// What is wrong with it.
    pub class: Class,
    /// The generation found, where the line could be identified as one of this address.
    pub found: Option<Generation>,
    /// First byte of the line that differs from the expected one, from 0.
    pub first_byte: u32,
}

/// What must stand at an address.
#[derive(Clone, Copy, Debug)]
pub struct Expectation<'a> {
    /// The line.
    pub line: &'a Line,
    /// The generation that its stamp is of, or that made it zero.
    pub generation: Generation,
    /// The line before that generation rewrote it; `None` for the fill.
    pub before: Option<&'a Line>,
}

/// How far ahead of what is expected a stamp is believed. The two stamps of a text line invert to
/// some address and generation whatever is in them; nonsense is not to be called the future.
pub(crate) const AHEAD_MAX: u64 = 1 << 20;

/// Judges one line at `address`; `None` if it is as expected. `lines` is the number of lines of
/// the region.
pub fn line(
    key: StampKey,
    lines: u64,
    address: LineAddress,
    expected: Expectation<'_>,
    found: &Line,
) -> Option<LineFault> {
    let Expectation { line: expected, generation, before } = expected;
    if expected == found {
        return None;
    }
    let first_byte = first_difference(expected, found);
    let fault = |class, found| Some(LineFault { class, found, first_byte });
    if *found == ZERO_LINE {
        return fault(Class::Zeroed, None);
    }
    match key.identify(found) {
        Some((at, g)) if at == address && g <= generation && *expected == ZERO_LINE => {
            return fault(Class::Unzeroed, Some(g));
        }
        Some((at, g)) if at == address && g < generation => {
            return fault(Class::Stale { behind: generation - g }, Some(g));
        }
        Some((at, g)) if at == address && g - generation <= AHEAD_MAX => {
            return fault(Class::Future { ahead: g - generation }, Some(g));
        }
        Some((at, _)) if at < lines && at != address => {
            let offset_bytes = (at as i64 - address as i64) * workload::LINE_BYTES as i64;
            return fault(Class::Misplaced { offset_bytes }, None);
        }
        _ => {}
    }
    let bits = distance_bits(expected, found);
    if bits <= FLIPPED_BITS_MAX {
        return fault(Class::BitFlip { bits }, Some(generation));
    }
    // A line torn inside: each word is of this generation or of the one before.
    if let Some(before) = before {
        if found.iter().zip(expected.iter().zip(before)).all(|(f, (e, o))| f == e || f == o) {
            return fault(Class::Torn, None);
        }
        let bits = distance_bits(before, found);
        if bits <= FLIPPED_BITS_MAX {
            return fault(Class::BitFlip { bits }, None);
        }
    }
    match place_of(found, address) {
        Some(place) if place != key.place() => fault(Class::OtherRun { place }, None),
        _ => fault(Class::Foreign, None),
    }
}

/// First byte, in the order of memory, in which two different lines differ.
fn first_difference(a: &Line, b: &Line) -> u32 {
    let words = a.iter().zip(b).zip(0..);
    let mut different = words.filter(|((a, b), _)| a != b);
    different.next().map_or(0, |((a, b), i)| i * 8 + (a ^ b).trailing_zeros() / 8)
}

/// The watermarks at which a line would be right: from `since` to `until`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// First watermark at which the line stands like this.
    pub since: u64,
    /// Last one.
    pub until: u64,
}

/// Whether no single moment explains all of a page's lines: the page is torn.
pub fn torn(lines: impl Iterator<Item = Moments>) -> bool {
    let (since, until) = lines
        .fold((0, u64::MAX), |(since, until), line| (since.max(line.since), until.min(line.until)));
    since > until
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::line::PageFormat;
    use workload::run::RunId;

    const LINES: u64 = 1 << 20;

    fn key() -> StampKey {
        StampKey::new(PageFormat::V2 { run: RunId(1) }, 1)
    }

    fn judge_as(expected: &Line, found: Line) -> Option<Class> {
        let key = key();
        let before = key.line(100, 4);
        let expectation = Expectation { line: expected, generation: 5, before: Some(&before) };
        line(key, LINES, 100, expectation, &found).map(|f| f.class)
    }

    fn judge(found: Line) -> Option<Class> {
        judge_as(&key().line(100, 5), found)
    }

    #[test]
    fn every_class_has_its_face() {
        let key = key();
        assert_eq!(judge(key.line(100, 5)), None);
        assert_eq!(judge(key.line(100, 2)), Some(Class::Stale { behind: 3 }));
        assert_eq!(judge(key.line(100, 6)), Some(Class::Future { ahead: 1 }));
        assert_eq!(judge(key.line(36, 9)), Some(Class::Misplaced { offset_bytes: -4096 }));
        assert_eq!(judge(ZERO_LINE), Some(Class::Zeroed));
        let mut flipped = key.line(100, 5);
        flipped[7] ^= 1 << 63;
        assert_eq!(judge(flipped), Some(Class::BitFlip { bits: 1 }));
        flipped[0] ^= 3;
        assert_eq!(judge(flipped), Some(Class::BitFlip { bits: 3 }));
        let other = StampKey::new(PageFormat::V2 { run: RunId(2) }, 1);
        let place = other.place();
        assert_eq!(judge(other.line(100, 5)), Some(Class::OtherRun { place }));
        assert_eq!(judge(other.text_line(100, 5)), Some(Class::OtherRun { place }));
        let first = StampKey::new(PageFormat::V1, 1);
        assert_eq!(judge(first.line(100, 5)), Some(Class::Foreign), "format 1 names no run");
        let line = key.line(LINES, 5);
        assert_eq!(
            judge(line),
            Some(Class::OtherRun { place: PlaceKey(key.place().0 ^ LINES ^ 100) })
        );
        let mut half = key.line(100, 5);
        half[4..].copy_from_slice(&key.line(100, 4)[4..]);
        assert_eq!(judge(half), Some(Class::Torn));
    }

    #[test]
    fn zero_has_its_own_faults() {
        let key = key();
        assert_eq!(judge_as(&ZERO_LINE, ZERO_LINE), None);
        assert_eq!(judge_as(&ZERO_LINE, key.line(100, 4)), Some(Class::Unzeroed));
        assert_eq!(judge_as(&ZERO_LINE, key.line(100, 7)), Some(Class::Future { ahead: 2 }));
        let mut one = ZERO_LINE;
        one[3] = 1;
        assert_eq!(judge_as(&ZERO_LINE, one), Some(Class::BitFlip { bits: 1 }));
        let mut half = key.line(100, 4);
        half[..4].fill(0);
        assert_eq!(judge_as(&ZERO_LINE, half), Some(Class::Torn));
        assert_eq!(judge_as(&ZERO_LINE, [7; 8]), Some(Class::Foreign));
    }

    /// A flipped stamp of a text line is a stamp of another time; it must not be believed.
    #[test]
    fn flipped_bits_of_text_are_flipped_bits() {
        let key = key();
        let (good, before) = (key.text_line(100, 5), key.text_line(100, 4));
        let expectation = Expectation { line: &good, generation: 5, before: Some(&before) };
        for bit in 0..512 {
            let mut found = good;
            found[bit / 64] ^= 1 << (bit % 64);
            let class = line(key, LINES, 100, expectation, &found).map(|f| f.class);
            assert_eq!(class, Some(Class::BitFlip { bits: 1 }), "bit {bit}");
        }
        let class = line(key, LINES, 100, expectation, &before).map(|f| f.class);
        assert_eq!(class, Some(Class::Stale { behind: 1 }));
    }

    #[test]
    fn torn_means_no_common_moment() {
        let m = |since, until| Moments { since, until };
        assert!(!torn([m(0, 5), m(5, 9), m(2, 7)].into_iter()));
        assert!(torn([m(0, 4), m(5, 9)].into_iter()));
        assert!(!torn([].into_iter()));
    }
}
