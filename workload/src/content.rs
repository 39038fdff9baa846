//! Content profiles: which lines a generation of a slot rewrites, and what their bodies hold.
//!
//! Every profile is a pure function of (slot, generation). A line that is not zero is always a
//! stamped line of its address; profiles differ in its six body words, in which lines are zero,
//! and in how old the lines of a slot are.

use std::fmt;
use std::str::FromStr;

use crate::PAGE_LINES;
use crate::line::{Generation, Line, LineAddress, StampKey, ZERO_LINE, mix};

/// Most parts of a mix.
const PARTS_MAX: usize = 16;
/// Largest weight of a part.
const WEIGHT_MAX: u32 = 1_000_000;

/// A content profile by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContentSpec {
    /// Incompressible words.
    #[default]
    Random,
    /// Bodies of text, which compress.
    Text,
    /// Half of the lines are zero, other ones at each generation.
    Sparse,
    /// The whole record is zero at one generation in four.
    ZeroFlip,
    /// Always zero: memory that was written and holds nothing.
    Zero,
    /// A generation rewrites this many of the 64 lines of each page.
    Delta(u32),
    /// Each slot has one of these profiles, by weight.
    Mix(Vec<(ContentSpec, u32)>),
}

/// Every profile, with the line that a list shows.
pub const CONTENTS: [(&str, &str); 7] = [
    ("random", "incompressible"),
    ("text", "text bodies: compresses 3:1 with lz4, 3.5:1 with zstd"),
    ("sparse", "half of the lines are zero, others at each generation"),
    ("zero-flip", "a record becomes all zero at one generation in four"),
    ("zero", "always zero; in a mix, that share of memory holds nothing"),
    ("delta:D", "a generation rewrites D of the 64 lines of each page (1 to 64)"),
    ("A*2+B*1", "a mix: each record has one of the profiles, by weight"),
];

impl ContentSpec {
    /// Whether it speaks of whole pages, so that records must have them.
    pub(crate) fn needs_pages(&self) -> bool {
        match self {
            Self::Delta(_) => true,
            Self::Mix(parts) => parts.iter().any(|(part, _)| part.needs_pages()),
            _ => false,
        }
    }
}

impl FromStr for ContentSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(['+', '*']) {
            let part = |text: &str| {
                let (name, weight) = text.rsplit_once('*').unwrap_or((text, "1"));
                let weight = weight.trim().parse().ok().filter(|w| (1..=WEIGHT_MAX).contains(w));
                let weight =
                    weight.ok_or_else(|| format!("'{text}': a weight is 1 to {WEIGHT_MAX}"))?;
                match name.trim().parse()? {
                    Self::Mix(_) => Err(format!("'{text}': a mix is not a part of a mix")),
                    profile => Ok((profile, weight)),
                }
            };
            let parts = text.split('+').map(part).collect::<Result<Vec<_>, String>>()?;
            if parts.len() > PARTS_MAX {
                return Err(format!("a mix has at most {PARTS_MAX} parts"));
            }
            return Ok(Self::Mix(parts));
        }
        Ok(match text {
            "random" => Self::Random,
            "text" => Self::Text,
            "sparse" => Self::Sparse,
            "zero-flip" => Self::ZeroFlip,
            "zero" => Self::Zero,
            _ => match text.strip_prefix("delta:").map(str::parse) {
                Some(Ok(lines @ 1..=64)) => Self::Delta(lines),
                Some(_) => return Err(format!("content '{text}': delta:D takes 1 to 64 lines")),
                None => {
                    let names = CONTENTS.map(|(name, _)| name).join(", ");
                    return Err(format!("no content is called '{text}'; there are: {names}"));
                }
            },
        })
    }
}

impl fmt::Display for ContentSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Text => f.write_str("text"),
            Self::Sparse => f.write_str("sparse"),
            Self::ZeroFlip => f.write_str("zero-flip"),
            Self::Zero => f.write_str("zero"),
            Self::Delta(lines) => write!(f, "delta:{lines}"),
            Self::Mix(parts) => {
                for (i, (part, weight)) in parts.iter().enumerate() {
                    let plus = if i > 0 { "+" } else { "" };
                    write!(f, "{plus}{part}*{weight}")?;
                }
                Ok(())
            }
        }
    }
}

/// A content profile, ready to compute lines.
#[derive(Clone, Debug)]
pub struct Content(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Random,
    Text,
    Sparse,
    ZeroFlip,
    Zero,
    /// Generations since a line was rewritten: `ages[generation % 64][line % 64]`.
    Delta(Box<[[u8; 64]; 64]>),
    /// Parts with the sum of weights up to and with each.
    Mix {
        parts: Vec<(u64, Content)>,
        total: u64,
    },
}

/// A slot's place as far as its content depends on it: the address of its first line. Lines
/// outside of any slot count as slots of a page, at generation 0.
pub type SlotAddress = LineAddress;

impl Content {
    /// Resolves a profile.
    pub fn new(spec: &ContentSpec) -> Self {
        Self(match spec {
            ContentSpec::Random => Kind::Random,
            ContentSpec::Text => Kind::Text,
            ContentSpec::Sparse => Kind::Sparse,
            ContentSpec::ZeroFlip => Kind::ZeroFlip,
            ContentSpec::Zero => Kind::Zero,
            ContentSpec::Delta(lines) => Kind::Delta(Box::new(delta_ages(*lines))),
            ContentSpec::Mix(parts) => {
                let mut total = 0;
                let parts = parts
                    .iter()
                    .map(|(part, weight)| {
                        total += u64::from(*weight);
                        (total, Self::new(part))
                    })
                    .collect();
                Kind::Mix { parts, total }
            }
        })
    }

    /// The profile of one slot: itself, or the slot's part of a mix.
    #[inline]
    pub fn of_slot(&self, key: StampKey, slot: SlotAddress) -> &Self {
        match &self.0 {
            Kind::Mix { parts, total } => {
                let drawn = key.draw(slot, 0x6D69_7800) % total;
                let part = parts.iter().find(|(sum, _)| drawn < *sum);
                part.map_or(self, |(_, part)| part)
            }
            _ => self,
        }
    }

    /// Whether lines are plain stamps of the slot's generation: the fast path.
    #[inline]
    pub fn is_plain(&self) -> bool {
        matches!(self.0, Kind::Random)
    }

    /// The line at `address` in a slot of this profile at `generation`.
    ///
    /// # Panics
    /// Asked of a mix: [`Content::of_slot`] comes first.
    #[inline]
    pub fn line(
        &self,
        key: StampKey,
        slot: SlotAddress,
        address: LineAddress,
        generation: Generation,
    ) -> Line {
        match &self.0 {
            Kind::Random => key.line(address, generation),
            Kind::Text => key.text_line(address, generation),
            Kind::Sparse => {
                let line = key.line(address, generation);
                // The generation stamp is as good as a coin.
                if mix(line[1]) >> 63 == 0 { line } else { ZERO_LINE }
            }
            Kind::ZeroFlip => match zero_at(key, slot, generation) {
                true => ZERO_LINE,
                false => key.line(address, generation),
            },
            Kind::Zero => ZERO_LINE,
            Kind::Delta(_) => key.line(address, self.stamped_at(address, generation)),
            Kind::Mix { .. } => unreachable!("a slot has one part of a mix"),
        }
    }

    /// The generation, up to `generation`, at which the line at `address` was last rewritten.
    #[inline]
    pub fn stamped_at(&self, address: LineAddress, generation: Generation) -> Generation {
        match &self.0 {
            Kind::Delta(ages) => {
                let age = ages[(generation % 64) as usize][(address % PAGE_LINES) as usize];
                generation.saturating_sub(u64::from(age))
            }
            _ => generation,
        }
    }

    /// The first generation after `generation` at which the line at `address` is rewritten.
    pub fn rewritten_after(&self, address: LineAddress, generation: Generation) -> Generation {
        let next = (generation + 1..).find(|g| self.stamped_at(address, *g) == *g);
        next.unwrap_or(generation + 1)
    }
}

/// Whether a record of `zero-flip` is all zero: one generation in four, never the fill.
#[inline]
fn zero_at(key: StampKey, slot: SlotAddress, generation: Generation) -> bool {
    generation > 0 && key.draw(slot, generation) >> 62 == 0
}

/// Generation g rewrites the `lines` lines of a page from `g * lines mod 64` on, so that all get
/// their turn. How long ago each line had it depends on g mod 64 only.
fn delta_ages(lines: u32) -> [[u8; 64]; 64] {
    let lines = u64::from(lines);
    std::array::from_fn(|generation| {
        std::array::from_fn(|line| {
            let rewrites = |g: u64| (line as u64).wrapping_sub(g * lines) % 64 < lines;
            // Started high enough for no generation to be below zero.
            let age = (0..64).find(|age| rewrites(generation as u64 + 64 - age));
            age.unwrap_or_else(|| unreachable!("every line has its turn within 64 generations"))
                as u8
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PageFormat;
    use proptest::prelude::*;

    const KEY_SEED: u64 = 5;

    fn content(text: &str) -> Content {
        Content::new(&text.parse().unwrap())
    }

    /// Bytes of `pages` pages of records of 4 KiB, all at `generation`.
    fn bytes(text: &str, pages: u64, generation: u64) -> Vec<u8> {
        let (content, key) = (content(text), StampKey::new(PageFormat::V1, KEY_SEED));
        (0..pages * PAGE_LINES)
            .flat_map(|address| {
                let slot = address / PAGE_LINES * PAGE_LINES;
                let line = content.of_slot(key, slot).line(key, slot, address, generation);
                line.into_iter().flat_map(u64::to_le_bytes)
            })
            .collect()
    }

    proptest! {
        /// The obvious way: rewrite generation by generation.
        #[test]
        fn delta_rewrites_its_lines_and_no_others(lines in 1u32..=64, generations in 0u64..200) {
            let content = Content::new(&ContentSpec::Delta(lines));
            let mut page = [0; 64];
            for generation in 1..=generations {
                for i in 0..u64::from(lines) {
                    page[((generation * u64::from(lines) + i) % 64) as usize] = generation;
                }
            }
            for (line, wanted) in page.into_iter().enumerate() {
                prop_assert_eq!(content.stamped_at(line as u64, generations), wanted);
                let next = content.rewritten_after(line as u64, generations);
                prop_assert!(next > generations && next <= generations + 64);
                prop_assert_eq!(content.stamped_at(line as u64, next - 1), wanted);
            }
        }

        #[test]
        fn every_line_is_zero_or_says_where_and_when(name in prop::sample::select(vec!["random", "text", "sparse", "zero-flip", "zero", "delta:7", "text*1+sparse*2+delta:3*4"]), address in 0u64..1 << 40, generation in 0u64..1 << 40) {
            let key = StampKey::new(PageFormat::V1, KEY_SEED);
            let whole = content(name);
            let slot = address / 64 * 64;
            let content = whole.of_slot(key, slot);
            let line = content.line(key, slot, address, generation);
            if line != ZERO_LINE {
                prop_assert_eq!(key.identify(&line), Some((address, content.stamped_at(address, generation))));
            }
        }
    }

    #[test]
    fn names_are_read_back_as_printed() {
        for text in
            ["random", "text", "sparse", "zero-flip", "zero", "delta:9", "random*3+delta:64*1"]
        {
            assert_eq!(text.parse::<ContentSpec>().unwrap().to_string(), text);
        }
        for bad in ["", "delta", "delta:0", "delta:65", "random*0+text", "noise", "random*x"] {
            assert!(bad.parse::<ContentSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn zeros_are_as_many_as_promised() {
        let zero_lines = |bytes: &[u8]| {
            let lines = bytes.chunks(64);
            let count = lines.len() as f64;
            lines.filter(|l| l.iter().all(|b| *b == 0)).count() as f64 / count
        };
        let sparse = zero_lines(&bytes("sparse", 500, 3));
        assert!((sparse - 0.5).abs() < 0.02, "{sparse}");
        assert!(zero_lines(&bytes("zero-flip", 500, 0)) == 0.0);
        let flipped = zero_lines(&bytes("zero-flip", 2000, 7));
        assert!((flipped - 0.25).abs() < 0.05, "{flipped}");
        let holds_nothing = zero_lines(&bytes("zero*3+random*1", 2000, 2));
        assert!((holds_nothing - 0.75).abs() < 0.05, "{holds_nothing}");
        let mixed = zero_lines(&bytes("random*1+sparse*1", 1000, 1));
        assert!((mixed - 0.25).abs() < 0.05, "{mixed}");
    }

    #[test]
    fn content_compresses_as_promised() {
        let ratios = |text: &str| {
            let bytes = bytes(text, 64, 9);
            // Page by page, as migration does.
            let pages = || bytes.chunks(4096);
            let lz4: usize = pages().map(|p| lz4_flex::block::compress(p).len()).sum();
            let zstd: usize = pages().map(|p| zstd::bulk::compress(p, 1).unwrap().len()).sum();
            (bytes.len() as f64 / lz4 as f64, bytes.len() as f64 / zstd as f64)
        };
        let within = |name, low: (f64, f64), high: (f64, f64)| {
            let (lz4, zstd) = ratios(name);
            assert!(lz4 >= low.0 && lz4 <= high.0, "{name}: lz4 {lz4:.2}");
            assert!(zstd >= low.1 && zstd <= high.1, "{name}: zstd {zstd:.2}");
        };
        within("random", (0.98, 0.98), (1.0, 1.0));
        within("text", (2.9, 3.4), (3.3, 4.0));
        within("sparse", (1.8, 1.8), (2.1, 2.1));
    }
}
