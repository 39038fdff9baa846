//! Fingerprints of worlds: 64 bits, good enough for some ten million states.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// Multiplies and folds: fast, and all bits of all words matter.
#[derive(Clone, Copy)]
pub struct Fingerprint(u64);

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Fingerprint {
    pub fn of(value: &impl Hash) -> u64 {
        let mut hasher = Self(0x243f_6a88_85a3_08d3);
        value.hash(&mut hasher);
        hasher.finish()
    }

    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(ODD);
        self.0 = (product as u64).rotate_left(29) ^ (product >> 64) as u64 ^ word;
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        let mut last = *self;
        last.mix(ODD);
        last.mix(0xd6e8_feb8_6659_fd93);
        last.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word) ^ (chunk.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.mix(value as u64);
    }
}

/// A machine that many worlds share, with its fingerprint.
#[derive(Clone)]
pub struct Kept<T> {
    value: Arc<T>,
    print: u64,
}

impl<T: Hash> Kept<T> {
    pub fn new(value: T) -> Self {
        let print = Fingerprint::of(&value);
        Self { value: Arc::new(value), print }
    }

    /// For worlds that are compared to none.
    pub fn unprinted(value: T) -> Self {
        Self { value: Arc::new(value), print: 0 }
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Hash for Kept<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.print);
    }
}

/// What tells no two worlds apart.
#[derive(Clone, Copy)]
pub struct Unhashed<T>(pub T);
