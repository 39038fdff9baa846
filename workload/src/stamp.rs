//! Stamping and checking neighbouring lines at the full width of the machine.
//!
//! Each way of computing gives the same bytes; the tests hold each against [`StampKey::line`]. What
//! the machine has is found out when the program runs, so that a static binary is fast anywhere. A
//! guest that moves between processors is told to use what all of them have (`--isa`).

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::LINE_WORDS;
use crate::line::{Generation, LineAddress, StampKey};

/// How far ahead of a comparison memory is asked for: the processor's own prefetching stops at the
/// end of a page, and computing a line leaves it little room to look ahead.
const PREFETCH_LINES: usize = 32;

/// What lines are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// A line is one vector.
    Avx512,
    /// A line is two vectors.
    Avx2,
    /// What every machine has; on x86-64 that is SSE2.
    Portable,
}

/// Every way, the widest first.
const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

/// The one in use, by its place in [`ALL`]; [`UNDECIDED`] until lines are computed.
static CHOSEN: AtomicU8 = AtomicU8::new(UNDECIDED);
const UNDECIDED: u8 = u8::MAX;

impl Isa {
    /// Whether this machine has it.
    pub fn is_here(self) -> bool {
        sys::has(self)
    }

    /// Those that this machine has, the widest first.
    pub fn here() -> impl Iterator<Item = Self> {
        ALL.into_iter().filter(|isa| isa.is_here())
    }

    /// The one that this program uses.
    #[inline]
    pub fn in_use() -> Self {
        match ALL.get(CHOSEN.load(Ordering::Relaxed) as usize) {
            Some(isa) => *isa,
            None => Self::widest(),
        }
    }

    #[cold]
    fn widest() -> Self {
        let widest = Self::here().next().unwrap_or(Self::Portable);
        // Whoever chose meanwhile is right.
        let place = ALL.iter().position(|isa| *isa == widest).unwrap_or_default() as u8;
        let _ = CHOSEN.compare_exchange(UNDECIDED, place, Ordering::Relaxed, Ordering::Relaxed);
        widest
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IsaChoice {
    /// The widest that the machine has.
    #[default]
    Auto,
    /// This one.
    Only(Isa),
}

impl IsaChoice {
    /// Has this program compute lines so from now on.
    ///
    /// # Errors
    /// This machine does not have it.
    pub fn apply(self) -> Result<(), String> {
        let Self::Only(isa) = self else {
            CHOSEN.store(UNDECIDED, Ordering::Relaxed);
            return Ok(());
        };
        if !isa.is_here() {
            let here: Vec<_> = Isa::here().map(|isa| isa.to_string()).collect();
            return Err(format!("this machine has no {isa}; it has: {}", here.join(", ")));
        }
        let place = ALL.iter().position(|other| *other == isa).unwrap_or_default();
        CHOSEN.store(place as u8, Ordering::Relaxed);
        Ok(())
    }
}

impl FromStr for IsaChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let named = ALL.into_iter().find(|isa| isa.to_string() == text);
        named
            .map(Self::Only)
            .ok_or_else(|| format!("'{text}': there are auto, avx512, avx2, portable"))
    }
}

impl fmt::Display for IsaChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(isa) => isa.fmt(f),
        }
    }
}

/// Writes the lines from address `first` on at `generation` into `words`, ascending.
#[inline]
pub fn store(key: StampKey, words: &[AtomicU64], first: LineAddress, generation: Generation) {
    store_with(Isa::in_use(), key, words, first, generation);
}

/// Whether `words` are the lines from address `first` on at `generation`.
#[inline]
pub fn stands(
    key: StampKey,
    words: &[AtomicU64],
    first: LineAddress,
    generation: Generation,
) -> bool {
    stands_with(Isa::in_use(), key, words, first, generation)
}

#[inline]
fn store_with(
    isa: Isa,
    key: StampKey,
    words: &[AtomicU64],
    first: LineAddress,
    generation: Generation,
) {
    debug_assert!(words.len().is_multiple_of(LINE_WORDS), "whole lines");
    if key.is_multiplied() || !sys::store(isa, key, words, first, generation) {
        for (line, address) in words.chunks_exact(LINE_WORDS).zip(first..) {
            for (word, value) in line.iter().zip(key.line(address, generation)) {
                word.store(value.to_le(), Ordering::Relaxed);
            }
        }
    }
}

#[inline]
fn stands_with(
    isa: Isa,
    key: StampKey,
    words: &[AtomicU64],
    first: LineAddress,
    generation: Generation,
) -> bool {
    debug_assert!(words.len().is_multiple_of(LINE_WORDS), "whole lines");
    let known =
        if key.is_multiplied() { None } else { sys::stands(isa, key, words, first, generation) };
    known.unwrap_or_else(|| {
        let mut different = [0; LINE_WORDS];
        for (found, address) in words.chunks_exact(LINE_WORDS).zip(first..) {
            sys::prefetch(found.as_ptr().wrapping_add(PREFETCH_LINES * LINE_WORDS));
            let expected = key.line(address, generation);
            for i in 0..LINE_WORDS {
                different[i] |= u64::from_le(found[i].load(Ordering::Relaxed)) ^ expected[i];
            }
        }
        different == [0; LINE_WORDS]
    })
}

/// Lines in vectors. Loads and stores are instructions and not Rust's memory accesses, so that a race with
/// somebody who looks while a guest writes, which is this project's subject, is the machine's business: a
/// line is written in ascending stores, and each aligned word of it whole.
#[cfg(target_arch = "x86_64")]
mod sys {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::sync::atomic::AtomicU64;

    use super::{Isa, PREFETCH_LINES};
    use crate::LINE_WORDS;
    use crate::line::{BODY, Generation, LineAddress, StampKey, TURNS};

    const A: i32 = TURNS[0] as i32;
    const B: i32 = TURNS[1] as i32;
    /// `shuffle_epi32` with this swaps the two words of each 128 bits.
    const SWAP: i32 = 0b01_00_11_10;

    pub(super) fn has(isa: Isa) -> bool {
        match isa {
            Isa::Avx512 => std::arch::is_x86_feature_detected!("avx512f"),
            Isa::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
            Isa::Portable => true,
        }
    }

    #[inline(always)]
    pub(super) fn prefetch(word: *const AtomicU64) {
        // SAFETY: a hint; an address that nothing is mapped at is no harm.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(word.cast()) }
    }

    /// Whether it was done: `false` where this way is not there.
    #[inline]
    pub(super) fn store(
        isa: Isa,
        key: StampKey,
        words: &[AtomicU64],
        first: LineAddress,
        generation: Generation,
    ) -> bool {
        // SAFETY: whoever names a way asked [`has`] first, or the user was refused.
        unsafe {
            match isa {
                Isa::Avx512 => avx512::store(key, words, first, generation),
                Isa::Avx2 => avx2::store(key, words, first, generation),
                Isa::Portable => sse2::store(key, words, first, generation),
            }
        }
        true
    }

    #[inline]
    pub(super) fn stands(
        isa: Isa,
        key: StampKey,
        words: &[AtomicU64],
        first: LineAddress,
        generation: Generation,
    ) -> Option<bool> {
        // SAFETY: as above.
        Some(unsafe {
            match isa {
                Isa::Avx512 => avx512::stands(key, words, first, generation),
                Isa::Avx2 => avx2::stands(key, words, first, generation),
                Isa::Portable => sse2::stands(key, words, first, generation),
            }
        })
    }

    /// `store` and `stands` over vectors that are computed by `lines` of the module.
    macro_rules! over_lines {
        ($feature:literal, $register:ident, $vector:ty, $move:literal, $words:literal) => {
            #[target_feature(enable = $feature)]
            pub(super) fn store(
                key: StampKey,
                words: &[AtomicU64],
                first: LineAddress,
                generation: Generation,
            ) {
                let constants = constants();
                for (line, address) in words.chunks_exact(LINE_WORDS).zip(first..) {
                    let (w0, w1) = key.stamps(address, generation);
                    for (part, vector) in line.chunks_exact($words).zip(vectors(w0, w1, &constants)) {
                        // SAFETY: `part` is as long as the vector, and its words may be written
                        // by anybody.
                        unsafe {
                            asm!(
                                concat!($move, " [{to}], {from}"),
                                to = in(reg) part.as_ptr(),
                                from = in($register) vector,
                                options(nostack, preserves_flags)
                            );
                        }
                    }
                }
            }

            #[target_feature(enable = $feature)]
            pub(super) fn stands(
                key: StampKey,
                words: &[AtomicU64],
                first: LineAddress,
                generation: Generation,
            ) -> bool {
                let constants = constants();
                let mut different = none();
                for (line, address) in words.chunks_exact(LINE_WORDS).zip(first..) {
                    prefetch(line.as_ptr().wrapping_add(PREFETCH_LINES * LINE_WORDS));
                    let (w0, w1) = key.stamps(address, generation);
                    for (part, vector) in line.chunks_exact($words).zip(vectors(w0, w1, &constants)) {
                        let found: $vector;
                        // SAFETY: `part` is as long as the vector.
                        unsafe {
                            asm!(
                                concat!($move, " {to}, [{from}]"),
                                from = in(reg) part.as_ptr(),
                                to = out($register) found,
                                options(nostack, preserves_flags, readonly)
                            );
                        }
                        different = gather(different, found, vector);
                    }
                }
                is_none(different)
            }
        };
    }

    mod sse2 {
        use super::*;

        type Constants = [__m128i; 3];

        #[target_feature(enable = "sse2")]
        fn constants() -> Constants {
            let pair = |i: usize| _mm_set_epi64x(BODY[i + 1] as i64, BODY[i] as i64);
            [pair(0), pair(2), pair(4)]
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        fn vectors(w0: u64, w1: u64, constants: &Constants) -> [__m128i; 4] {
            let stamps = _mm_set_epi64x(w1 as i64, w0 as i64);
            let swapped = _mm_shuffle_epi32::<SWAP>(stamps);
            let a =
                _mm_or_si128(_mm_slli_epi64::<A>(swapped), _mm_srli_epi64::<{ 64 - A }>(swapped));
            let b =
                _mm_or_si128(_mm_slli_epi64::<B>(swapped), _mm_srli_epi64::<{ 64 - B }>(swapped));
            [
                stamps,
                _mm_add_epi64(_mm_xor_si128(stamps, a), constants[0]),
                _mm_add_epi64(_mm_xor_si128(stamps, b), constants[1]),
                _mm_add_epi64(_mm_xor_si128(_mm_shuffle_epi32::<SWAP>(a), b), constants[2]),
            ]
        }

        #[target_feature(enable = "sse2")]
        fn none() -> __m128i {
            _mm_setzero_si128()
        }

        #[target_feature(enable = "sse2")]
        #[inline]
        fn gather(different: __m128i, found: __m128i, expected: __m128i) -> __m128i {
            _mm_or_si128(different, _mm_xor_si128(found, expected))
        }

        #[target_feature(enable = "sse2")]
        fn is_none(different: __m128i) -> bool {
            let either = _mm_or_si128(different, _mm_shuffle_epi32::<SWAP>(different));
            _mm_cvtsi128_si64(either) == 0
        }

        over_lines!("sse2", xmm_reg, __m128i, "movdqu", 2);
    }

    mod avx2 {
        use super::*;

        struct Constants {
            add: [__m256i; 2],
            /// Turns of the swapped stamps in the first half: none of the stamps themselves, which
            /// only shifts by all bits leave out.
            first: [__m256i; 2],
            /// Turns of the stamps in the second half.
            second: [__m256i; 2],
        }

        #[target_feature(enable = "avx2")]
        fn constants() -> Constants {
            let four = |words: [i64; 4]| _mm256_setr_epi64x(words[0], words[1], words[2], words[3]);
            let (a, b) = (i64::from(A), BODY.map(|word| word as i64));
            Constants {
                add: [four([0, 0, b[0], b[1]]), four([b[2], b[3], b[4], b[5]])],
                first: [four([64, 64, a, a]), four([64, 64, 64 - a, 64 - a])],
                second: [four([0, 0, a, a]), four([64, 64, 64 - a, 64 - a])],
            }
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        fn vectors(w0: u64, w1: u64, constants: &Constants) -> [__m256i; 2] {
            let stamps = _mm256_broadcastsi128_si256(_mm_set_epi64x(w1 as i64, w0 as i64));
            let swapped = _mm256_shuffle_epi32::<SWAP>(stamps);
            let turn = |x, [left, right]: [__m256i; 2]| {
                _mm256_or_si256(_mm256_sllv_epi64(x, left), _mm256_srlv_epi64(x, right))
            };
            let b = _mm256_or_si256(
                _mm256_slli_epi64::<B>(swapped),
                _mm256_srli_epi64::<{ 64 - B }>(swapped),
            );
            [
                _mm256_add_epi64(
                    _mm256_xor_si256(stamps, turn(swapped, constants.first)),
                    constants.add[0],
                ),
                _mm256_add_epi64(
                    _mm256_xor_si256(turn(stamps, constants.second), b),
                    constants.add[1],
                ),
            ]
        }

        #[target_feature(enable = "avx2")]
        fn none() -> __m256i {
            _mm256_setzero_si256()
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        fn gather(different: __m256i, found: __m256i, expected: __m256i) -> __m256i {
            _mm256_or_si256(different, _mm256_xor_si256(found, expected))
        }

        #[target_feature(enable = "avx2")]
        fn is_none(different: __m256i) -> bool {
            _mm256_testz_si256(different, different) == 1
        }

        over_lines!("avx2", ymm_reg, __m256i, "vmovdqu", 4);
    }

    mod avx512 {
        use super::*;

        struct Constants {
            add: __m512i,
            /// Turns of the stamps.
            stamps: __m512i,
            /// Turns of the swapped stamps.
            swapped: __m512i,
        }

        #[target_feature(enable = "avx512f")]
        fn constants() -> Constants {
            let eight = |pairs: [i64; 4]| {
                let [p, q, r, s] = pairs;
                _mm512_setr_epi64(p, p, q, q, r, r, s, s)
            };
            let (a, b, c) = (i64::from(A), i64::from(B), BODY.map(|word| word as i64));
            Constants {
                add: _mm512_setr_epi64(0, 0, c[0], c[1], c[2], c[3], c[4], c[5]),
                stamps: eight([0, 0, 0, a]),
                swapped: eight([0, a, b, b]),
            }
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn vectors(w0: u64, w1: u64, constants: &Constants) -> [__m512i; 1] {
            let stamps =
                _mm512_mask_set1_epi64(_mm512_set1_epi64(w0 as i64), 0b1010_1010, w1 as i64);
            // Nothing where the stamps themselves stand.
            let swapped = _mm512_maskz_shuffle_epi32(0xFFF0, stamps, SWAP);
            let mixed = _mm512_xor_si512(
                _mm512_rolv_epi64(stamps, constants.stamps),
                _mm512_rolv_epi64(swapped, constants.swapped),
            );
            [_mm512_add_epi64(mixed, constants.add)]
        }

        #[target_feature(enable = "avx512f")]
        fn none() -> __m512i {
            _mm512_setzero_si512()
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn gather(different: __m512i, found: __m512i, expected: __m512i) -> __m512i {
            _mm512_or_si512(different, _mm512_xor_si512(found, expected))
        }

        #[target_feature(enable = "avx512f")]
        fn is_none(different: __m512i) -> bool {
            _mm512_test_epi64_mask(different, different) == 0
        }

        over_lines!("avx512f", zmm_reg, __m512i, "vmovdqu64", 8);
    }
}

/// Elsewhere lines are computed word by word.
#[cfg(not(target_arch = "x86_64"))]
mod sys {
    use std::sync::atomic::AtomicU64;

    use super::Isa;
    use crate::line::{Generation, LineAddress, StampKey};

    pub(super) fn has(isa: Isa) -> bool {
        isa == Isa::Portable
    }

    pub(super) fn prefetch(_: *const AtomicU64) {}

    pub(super) fn store(
        _: Isa,
        _: StampKey,
        _: &[AtomicU64],
        _: LineAddress,
        _: Generation,
    ) -> bool {
        false
    }

    pub(super) fn stands(
        _: Isa,
        _: StampKey,
        _: &[AtomicU64],
        _: LineAddress,
        _: Generation,
    ) -> Option<bool> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PageFormat;
    use crate::run::RunId;
    use proptest::prelude::*;

    fn memory(lines: usize) -> Vec<AtomicU64> {
        (0..lines * LINE_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    fn key(format: u32, seed: u64) -> StampKey {
        let run = RunId(seed ^ 5);
        StampKey::new(if format == 1 { PageFormat::V1 } else { PageFormat::V2 { run } }, seed)
    }

    /// The slow text of docs/page-format.md.
    fn documented(key: StampKey, address: u64, generation: u64) -> [u64; 8] {
        let (w0, w1) = key.stamps(address, generation);
        let r = |x: u64, n: u32| x.rotate_left(n);
        let c = [
            0x6A09E667F3BCC909,
            0xBB67AE8584CAA73B,
            0x3C6EF372FE94F82B,
            0xA54FF53A5F1D36F1,
            0x510E527FADE682D1u64,
            0x9B05688C2B3E6C1F,
        ];
        [
            w0,
            w1,
            (w0 ^ r(w1, 13)).wrapping_add(c[0]),
            (w1 ^ r(w0, 13)).wrapping_add(c[1]),
            (w0 ^ r(w1, 50)).wrapping_add(c[2]),
            (w1 ^ r(w0, 50)).wrapping_add(c[3]),
            (r(w0, 13) ^ r(w1, 50)).wrapping_add(c[4]),
            (r(w1, 13) ^ r(w0, 50)).wrapping_add(c[5]),
        ]
    }

    proptest! {
        #[test]
        fn every_way_gives_the_same_bytes(seed: u64, first in 0u64..1 << 58, generation: u64, lines in 0usize..70) {
            let key = key(2, seed);
            for isa in Isa::here() {
                let words = memory(lines);
                store_with(isa, key, &words, first, generation);
                for (line, address) in words.chunks_exact(LINE_WORDS).zip(first..) {
                    let found: Vec<u64> = line.iter().map(|w| u64::from_le(w.load(Ordering::Relaxed))).collect();
                    prop_assert_eq!(&found, &documented(key, address, generation), "{}", isa);
                    prop_assert_eq!(&found, &key.line(address, generation));
                }
            }
        }

        #[test]
        fn every_way_sees_every_bit(format in 1u32..3, seed: u64, first in 0u64..1 << 58, generation: u64, lines in 1usize..70, bit: prop::sample::Index) {
            let key = key(format, seed);
            for isa in Isa::here() {
                let words = memory(lines);
                store_with(isa, key, &words, first, generation);
                prop_assert!(stands_with(isa, key, &words, first, generation), "{}", isa);
                prop_assert!(!stands_with(isa, key, &words, first, generation ^ 1));
                let bit = bit.index(lines * 512);
                words[bit / 64].fetch_xor(1 << (bit % 64), Ordering::Relaxed);
                prop_assert!(!stands_with(isa, key, &words, first, generation), "{} bit {}", isa, bit);
            }
        }
    }

    #[test]
    fn a_way_is_named_and_one_that_is_not_there_is_refused() {
        assert_eq!("auto".parse(), Ok(IsaChoice::Auto));
        assert_eq!("avx2".parse(), Ok(IsaChoice::Only(Isa::Avx2)));
        assert!("sse9".parse::<IsaChoice>().unwrap_err().contains("portable"));
        assert!(Isa::Portable.is_here());
        for isa in ALL {
            let applied = IsaChoice::Only(isa).apply();
            assert_eq!(applied.is_ok(), isa.is_here(), "{applied:?}");
            assert!(!isa.is_here() || Isa::in_use() == isa);
        }
        IsaChoice::Auto.apply().unwrap();
        assert_eq!(Some(Isa::in_use()), Isa::here().next());
    }
}
