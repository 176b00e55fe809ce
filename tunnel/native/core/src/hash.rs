//! A hash for keys strangers choose: quick on twelve octets, and seeded anew in each process.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

/// What makes `Folding` hashers.
#[derive(Clone, Copy)]
pub struct Seeded(u64, u64);

impl Seeded {
    /// With this process's seed.
    pub fn new() -> Seeded {
        static SEED: OnceLock<(u64, u64)> = OnceLock::new();
        let random = || RandomState::new().build_hasher().finish();
        let (one, other) = *SEED.get_or_init(|| (random(), random() | 1));
        Seeded(one, other)
    }
}

impl Default for Seeded {
    fn default() -> Seeded {
        Seeded::new()
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding { state: self.0, factor: self.1 }
    }
}

/// Multiplies 64 bits by 64 and adds the halves of what comes of it.
pub struct Folding {
    state: u64,
    factor: u64,
}

impl Folding {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        self.state = product as u64 ^ (product >> 64) as u64;
    }
}

impl Hasher for Folding {
    fn write(&mut self, octets: &[u8]) {
        let (words, rest) = octets.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_ne_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_ne_bytes(last) ^ (rest.len() as u64) << 56);
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.state) * 0x9E37_79B9_7F4A_7C15;
        product as u64 ^ (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_that_differ_in_one_octet_spread() {
        let seeded = Seeded::new();
        let low: HashSet<u64> = (0..4096u32)
            .map(|number| {
                let mut key = [2u8; 12];
                key[8..].copy_from_slice(&number.to_be_bytes());
                seeded.hash_one(key) & 0xFFFF
            })
            .collect();
        assert!(low.len() > 3700, "{} of 4096", low.len()); // by chance 3970
    }
}
