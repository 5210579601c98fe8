//! Random numbers that a seed brings back.

use std::time::{SystemTime, UNIX_EPOCH};

/// xorshift64*.
pub struct Rng(u64);

impl Rng {
    /// By `PAGURO_TEST_SEED`, or new ones; the seed is printed.
    pub fn new(what: &str) -> Self {
        let seed = std::env::var("PAGURO_TEST_SEED").map_or_else(
            |_| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                now.as_nanos() as u64 >> 10 & 0xffff_ffff
            },
            |text| text.parse().expect("PAGURO_TEST_SEED: a number"),
        );
        println!("{what}: PAGURO_TEST_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Less than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
