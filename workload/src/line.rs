//! Stamped lines: 64 bytes that say where they belong and how old they are.
//!
//! Eight 64-bit words, little-endian. `w0` is an invertible mix of the line's address, `w1` an
//! invertible mix of its generation and `w0`, and the six body words are mixes of both. A line
//! found anywhere is identified by inverting `w0` and `w1` and recomputing the body: 384 bits
//! must agree, so 64 arbitrary bytes pass for a line with probability 2^-384.
//!
//! The exact arithmetic is written down in `docs/page-format.md`. Which lines a generation
//! rewrites is the spec's business, not this module's.

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

/// Odd multipliers of the six body words (fractional parts of square roots of primes, made odd,
/// as in SHA-512's initial values: constants with nothing up the sleeve).
const BODY: [u64; 6] = [
    0x6A09_E667_F3BC_C909,
    0xBB67_AE85_84CA_A73B,
    0x3C6E_F372_FE94_F82B,
    0xA54F_F53A_5F1D_36F1,
    0x510E_527F_ADE6_82D1,
    0x9B05_688C_2B3E_6C1F,
];

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

/// The two keys of a region, both functions of its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampKey {
    place: u64,
    age: u64,
}

impl StampKey {
    /// Keys for `seed`; different seeds give unrelated lines.
    pub fn from_seed(seed: u64) -> Self {
        let place = mix(seed ^ 0x706C_6163_6500_0000);
        let age = mix(seed.rotate_left(32) ^ 0x6167_6500_0000_0000 ^ place);
        Self { place, age }
    }

    /// The keys of the two stamps, place and age, and the multipliers: for guests that stamp by
    /// themselves (docs/page-format.md).
    pub fn constants(self) -> ([u64; 2], [u64; 2], [u64; 6]) {
        ([self.place, self.age], [MUL_A, MUL_B], BODY)
    }

    /// The line that stands at `address` at `generation`.
    #[inline(always)]
    pub fn line(self, address: LineAddress, generation: Generation) -> Line {
        let w0 = mix(address ^ self.place);
        let w1 = mix(generation ^ w0.rotate_left(32) ^ self.age);
        let mut line = [0; LINE_WORDS];
        line[0] = w0;
        line[1] = w1;
        let mut i = 0;
        while i < 6 {
            // The constant inside keeps an all-zero line from ever being a stamp.
            let x = w0.rotate_left(9 * (i as u32 + 1)) ^ w1 ^ BODY[5 - i];
            line[i + 2] = x.wrapping_mul(BODY[i]);
            i += 1;
        }
        line
    }

    /// The line that stands at `address` at `generation` where content is text: the same two
    /// stamps before a body of ASCII, alike for all lines of a page.
    #[inline]
    pub fn text_line(self, address: LineAddress, generation: Generation) -> Line {
        let w0 = mix(address ^ self.place);
        let w1 = mix(generation ^ w0.rotate_left(32) ^ self.age);
        let sentence = mix((address / PAGE_LINES) ^ self.age) >> 61;
        let body = &SENTENCES[sentence as usize];
        [w0, w1, body[0], body[1], body[2], body[3], body[4], body[5]]
    }

    /// Where a line belongs and how old it is, or `None` if it is no stamped line of this key.
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

/// Number of bits in which two lines differ.
pub fn distance_bits(a: &Line, b: &Line) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn mix_is_invertible(x: u64) {
            prop_assert_eq!(unmix(mix(x)), x);
        }

        #[test]
        fn every_line_says_where_and_when(seed: u64, address in 0u64..1 << 58, generation: u64) {
            let key = StampKey::from_seed(seed);
            prop_assert_eq!(key.identify(&key.line(address, generation)), Some((address, generation)));
        }

        #[test]
        fn random_bytes_are_never_a_line(seed: u64, line: [u64; 8]) {
            prop_assert_eq!(StampKey::from_seed(seed).identify(&line), None);
        }

        #[test]
        fn a_flipped_line_is_never_accepted(seed: u64, address in 0u64..1 << 40, generation in 0u64..1 << 40, word in 0usize..8, bit in 0u32..64) {
            let key = StampKey::from_seed(seed);
            let mut line = key.line(address, generation);
            line[word] ^= 1 << bit;
            prop_assert_eq!(key.identify(&line), None);
        }
    }

    #[test]
    fn zero_is_no_line() {
        assert_eq!(StampKey::from_seed(7).identify(&ZERO_LINE), None);
    }

    /// The example of docs/page-format.md; if this changes, the format's version must.
    #[test]
    fn documented_example() {
        let line = StampKey::from_seed(7).line(3, 2);
        let text = line.map(|w| format!("{w:016x}")).join(" ");
        let doc = include_str!("../../docs/page-format.md");
        assert!(doc.contains(&text), "docs/page-format.md should show {text}");
    }
}
