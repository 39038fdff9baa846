//! Stamped lines: 64 bytes that say where they belong and how old they are.
//!
//! Eight 64-bit words, little-endian. `w0` is an invertible mix of the line's address, `w1` an
//! invertible mix of its generation and `w0`, and the six body words are mixes of both. A line
//! found anywhere is identified by inverting `w0` and `w1` and recomputing the body: 384 bits
//! must agree, so 64 arbitrary bytes pass for a line with probability 2^-384.
//!
//! Since format 2 the keys of `w0` and `w1` are made of seed, run and domain, and the body of `w0`
//! and `w1` alone: the line of a run that nobody knows is still known for a line.
//!
//! The exact arithmetic is written down in `docs/page-format.md`. Which lines a generation
//! rewrites is the spec's business, not this module's; how they are stamped and checked at the full
//! width of the machine is [`crate::stamp`]'s.

use serde::{Deserialize, Serialize};

use crate::digits::written_in_digits;
use crate::run::RunId;
use crate::{LINE_WORDS, PAGE_LINES};

/// The eight words of a line.
pub type Line = [u64; LINE_WORDS];

/// Index of a line in its region (byte offset divided by 64).
pub type LineAddress = u64;

/// How often a slot has been written; 0 is the initial fill.
pub type Generation = u64;

/// A line that holds nothing.
pub const ZERO_LINE: Line = [0; LINE_WORDS];

const MUL_A: u64 = 0x9E37_79B9_7F4A_7C15;
const MUL_B: u64 = 0xD6E8_FEB8_6659_FD93;
const MUL_A_INVERSE: u64 = inverse_mod_2_64(MUL_A);
const MUL_B_INVERSE: u64 = inverse_mod_2_64(MUL_B);

/// Constants of the six body words, in format 1 their multipliers (fractional parts of square
/// roots of primes, made odd, as in SHA-512's initial values: constants with nothing up the sleeve).
pub(crate) const BODY: [u64; 6] = [
    0x6A09_E667_F3BC_C909,
    0xBB67_AE85_84CA_A73B,
    0x3C6E_F372_FE94_F82B,
    0xA54F_F53A_5F1D_36F1,
    0x510E_527F_ADE6_82D1,
    0x9B05_688C_2B3E_6C1F,
];

/// What the lines of one run have in common, for whoever finds them: the key of their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlaceKey(pub u64);

written_in_digits!(PlaceKey, u64, 16, "key");

/// How far the body words of format 2 turn the stamps: neither by whole bytes, nor so that two words
/// turn them by the same distance from each other.
pub(crate) const TURNS: [u32; 2] = [13, 50];

/// Version of the page format, with what it knows of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFormat {
    /// Keys of the seed alone: two runs with one seed write the same lines.
    V1,
    /// Keys of seed and run.
    V2 {
        /// The run that wrote the lines.
        run: RunId,
    },
}

impl PageFormat {
    /// The newest, of a run that nobody had before.
    pub fn fresh() -> Self {
        Self::V2 { run: RunId::fresh() }
    }
}

/// Bodies of text lines: 48 bytes of ASCII each, as little-endian words.
const SENTENCES: [[u64; 6]; 8] = [
    words(b"order 7731 accepted, two items leave the store; "),
    words(b"sensor north reports 21.4 degrees, all is quiet "),
    words(b"the ferry leaves at nine, bicycles travel free. "),
    words(b"GET /index.html HTTP/1.1 200 OK, cache hit, 3 ms"),
    words(b"account settled in full, next review in October "),
    words(b"frame 1024 of 4096 received, checksum is correct"),
    words(b"rain is likely in the hills, with wind from west"),
    words(b"user signed in from a known device, no challenge"),
];

const fn words(text: &[u8; 48]) -> [u64; 6] {
    let mut words = [0; 6];
    let mut i = 0;
    while i < 48 {
        words[i / 8] |= (text[i] as u64) << (8 * (i % 8));
        i += 1;
    }
    words
}

/// Inverse of an odd number modulo 2^64, by Newton's iteration (each step doubles the good bits).
pub(crate) const fn inverse_mod_2_64(odd: u64) -> u64 {
    let mut x = odd; // good to 3 bits
    let mut i = 0;
    while i < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        i += 1;
    }
    x
}

/// An invertible two-multiply mix.
#[inline(always)]
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_mul(MUL_A);
    let x = x ^ (x >> 32);
    let x = x.wrapping_mul(MUL_B);
    x ^ (x >> 32)
}

/// The inverse of [`mix`].
#[inline(always)]
pub fn unmix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(MUL_B_INVERSE);
    (x ^ (x >> 32)).wrapping_mul(MUL_A_INVERSE)
}

/// The keys of a region's stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampKey {
    place: u64,
    age: u64,
    /// Bodies of format 1.
    multiplied: bool,
}

impl StampKey {
    /// Keys of a run's memory; other seeds, and since format 2 other runs, give unrelated lines.
    pub fn new(format: PageFormat, seed: u64) -> Self {
        match format {
            PageFormat::V1 => {
                let place = mix(seed ^ 0x706C_6163_6500_0000);
                let age = mix(seed.rotate_left(32) ^ 0x6167_6500_0000_0000 ^ place);
                Self { place, age, multiplied: true }
            }
            PageFormat::V2 { run } => {
                let key = mix(mix(seed ^ 0x7365_6564_0000_0000) ^ run.0);
                let place = mix(key ^ mix(DOMAIN_MEMORY ^ 0x706C_6163_6500_0000));
                let age =
                    mix(key.rotate_left(32) ^ mix(DOMAIN_MEMORY ^ 0x6167_6500_0000_0000) ^ place);
                Self { place, age, multiplied: false }
            }
        }
    }

    /// The keys of the two stamps, place and age, the multipliers of the mix, and the constants of
    /// the body: for guests that stamp by themselves, in format 2 (docs/page-format.md).
    pub fn constants(self) -> ([u64; 2], [u64; 2], [u64; 6]) {
        ([self.place, self.age], [MUL_A, MUL_B], BODY)
    }

    /// Whether bodies are those of format 1, which no hand-written code knows.
    #[inline(always)]
    pub(crate) fn is_multiplied(self) -> bool {
        self.multiplied
    }

    /// The place key: what `unmix(w0) ^ address` is for the lines of this run at their places, and
    /// for no other run's.
    pub fn place(self) -> PlaceKey {
        PlaceKey(self.place)
    }

    /// The two stamps of the line at `address` at `generation`.
    #[inline(always)]
    pub fn stamps(self, address: LineAddress, generation: Generation) -> (u64, u64) {
        let w0 = mix(address ^ self.place);
        (w0, mix(generation ^ w0.rotate_left(32) ^ self.age))
    }

    /// The line that stands at `address` at `generation`.
    #[inline(always)]
    pub fn line(self, address: LineAddress, generation: Generation) -> Line {
        let (w0, w1) = self.stamps(address, generation);
        let body = match self.multiplied {
            true => multiplied_body(w0, w1),
            false => body(w0, w1),
        };
        [w0, w1, body[0], body[1], body[2], body[3], body[4], body[5]]
    }

    /// The line that stands at `address` at `generation` where content is text: the same two
    /// stamps before a body of ASCII, alike for all lines of a page.
    #[inline]
    pub fn text_line(self, address: LineAddress, generation: Generation) -> Line {
        let (w0, w1) = self.stamps(address, generation);
        let sentence = mix((address / PAGE_LINES) ^ self.age) >> 61;
        let body = &SENTENCES[sentence as usize];
        [w0, w1, body[0], body[1], body[2], body[3], body[4], body[5]]
    }

    /// Where a line belongs and how old it is, or `None` if it is no stamped line of this key. A
    /// line of another run passes, as one of an address and a generation that no region has: ask
    /// whether they can be.
    pub fn identify(self, line: &Line) -> Option<(LineAddress, Generation)> {
        let address = unmix(line[0]) ^ self.place;
        let generation = unmix(line[1]) ^ line[0].rotate_left(32) ^ self.age;
        let is_stamp =
            self.line(address, generation) == *line || self.text_line(address, generation) == *line;
        is_stamp.then_some((address, generation))
    }

    /// A number that depends on the seed, a place and a time: for choices that content makes.
    #[inline]
    pub(crate) fn draw(self, place: LineAddress, time: u64) -> u64 {
        mix(mix(place ^ self.place) ^ time.rotate_left(32) ^ self.age)
    }
}

/// What stamps are in: memory. Disks are 1, where they are stamped.
const DOMAIN_MEMORY: u64 = 0;

/// The body of format 1.
#[inline(always)]
fn multiplied_body(w0: u64, w1: u64) -> [u64; 6] {
    let mut body = [0; 6];
    let mut i = 0;
    while i < 6 {
        // The constant inside keeps an all-zero line from ever being a stamp.
        let x = w0.rotate_left(9 * (i as u32 + 1)) ^ w1 ^ BODY[5 - i];
        body[i] = x.wrapping_mul(BODY[i]);
        i += 1;
    }
    body
}

/// The body of format 2: for one of the stamps, each word is another for each value of the other.
/// The constants keep an all-zero line from ever being a stamp.
#[inline(always)]
fn body(w0: u64, w1: u64) -> [u64; 6] {
    let turned = TURNS.map(|turn| (w0.rotate_left(turn), w1.rotate_left(turn)));
    let [(a0, a1), (b0, b1)] = turned;
    let words = [w0 ^ a1, w1 ^ a0, w0 ^ b1, w1 ^ b0, a0 ^ b1, a1 ^ b0];
    std::array::from_fn(|i| words[i].wrapping_add(BODY[i]))
}

/// The place key of the run that wrote a line, if it is a line of format 2 that stands at its own
/// address: lines of one run agree on it, whoever looks ([`StampKey::place`]).
pub fn place_of(line: &Line, address: LineAddress) -> Option<PlaceKey> {
    let [w0, w1, found @ ..] = *line;
    let stamped = body(w0, w1) == found || SENTENCES.contains(&found);
    stamped.then(|| PlaceKey(unmix(w0) ^ address))
}

/// Number of bits in which two lines differ.
pub fn distance_bits(a: &Line, b: &Line) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMATS: [PageFormat; 2] = [PageFormat::V1, PageFormat::V2 { run: RunId(9) }];

    fn keys(seed: u64) -> [StampKey; 2] {
        FORMATS.map(|format| StampKey::new(format, seed))
    }

    proptest! {
        #[test]
        fn mix_is_invertible(x: u64) {
            prop_assert_eq!(unmix(mix(x)), x);
        }

        #[test]
        fn every_line_says_where_and_when(seed: u64, address in 0u64..1 << 58, generation: u64) {
            for key in keys(seed) {
                let line = key.line(address, generation);
                prop_assert_eq!(key.identify(&line), Some((address, generation)));
            }
        }

        #[test]
        fn random_bytes_are_never_a_line(seed: u64, line: [u64; 8]) {
            for key in keys(seed) {
                prop_assert_eq!(key.identify(&line), None);
            }
            prop_assert_eq!(place_of(&line, 0), None);
        }

        #[test]
        fn a_flipped_line_is_never_accepted(seed: u64, address in 0u64..1 << 40, generation in 0u64..1 << 40, word in 0usize..8, bit in 0u32..64) {
            for key in keys(seed) {
                let mut line = key.line(address, generation);
                line[word] ^= 1 << bit;
                prop_assert_eq!(key.identify(&line), None);
                prop_assert_eq!(place_of(&line, address).filter(|_| !key.multiplied), None);
            }
        }

        /// Words of two generations are no line, however they are mixed.
        #[test]
        fn a_mix_of_two_generations_is_never_accepted(seed: u64, address in 0u64..1 << 40, generation in 0u64..1 << 40, later in 1u64..1 << 20, chosen in 1u8..127) {
            for key in keys(seed) {
                let (old, new) = (key.line(address, generation), key.line(address, generation + later));
                // w0 is the same in both.
                let mix: Line = std::array::from_fn(|i| {
                    if i > 0 && chosen >> (i - 1) & 1 == 1 { new[i] } else { old[i] }
                });
                prop_assert_eq!(key.identify(&mix), None);
                prop_assert!(old.iter().zip(&new).skip(1).all(|(old, new)| old != new));
            }
        }

        /// Whoever has no key sees that lines are of one run, and of which if he has its key.
        #[test]
        fn lines_of_one_run_agree(seed: u64, run: u64, address in 0u64..1 << 40, generation: u64) {
            let key = StampKey::new(PageFormat::V2 { run: RunId(run) }, seed);
            for line in [key.line(address, generation), key.text_line(address, generation)] {
                prop_assert_eq!(place_of(&line, address), Some(key.place()));
            }
            let other = StampKey::new(PageFormat::V2 { run: RunId(run ^ 1) }, seed);
            let address = other.identify(&key.line(address, generation)).map(|(at, _)| at);
            prop_assert!(address.is_some_and(|at| at > 1 << 40), "{address:?}");
        }
    }

    #[test]
    fn zero_is_no_line() {
        for key in keys(7) {
            assert_eq!(key.identify(&ZERO_LINE), None);
        }
        assert_eq!(place_of(&ZERO_LINE, 0), None);
    }

    /// The examples of docs/page-format.md; if one changes, the format's version must.
    #[test]
    fn documented_examples() {
        let doc = include_str!("../../docs/page-format.md");
        let run = RunId(0x0123_4567_89ab_cdef);
        for format in [PageFormat::V1, PageFormat::V2 { run }] {
            let line = StampKey::new(format, 7).line(3, 2);
            let text = line.map(|w| format!("{w:016x}")).join(" ");
            assert!(doc.contains(&text), "docs/page-format.md should show {text}");
        }
    }
}
