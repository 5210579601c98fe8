//! The words that a write stores.
//!
//! A write stores words `0..k` of its page in ascending order, `k` being 1, 8 or 512 for the
//! whole run; words from `k` on are never written and stay zero. No stored word is 0, so a
//! page that was written differs from one that was not.

use crate::layout::PAGE_WORDS;
use crate::mix::{SPREAD, mix, mix2};

/// The `i`-th word that write `n` of `writer` stores to area page `page`. Never 0.
pub const fn word(seed: u64, writer: u64, page: u64, n: u64, i: usize) -> u64 {
    Content::new(writer_key(seed, writer), page, n).word(i)
}

/// What one write stores: a mix a write, then an addition a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    base: u64,
}

impl Content {
    #[inline(always)]
    pub(crate) const fn new(writer_key: u64, page: u64, n: u64) -> Self {
        let place = writer_key ^ page.wrapping_mul(SPREAD[0]);
        Self {
            base: mix(place.wrapping_add(n.wrapping_mul(SPREAD[3]))),
        }
    }

    /// The `i`-th word. Never 0: its lowest bit is set.
    #[inline(always)]
    pub const fn word(self, i: usize) -> u64 {
        self.base.wrapping_add((i as u64).wrapping_mul(SPREAD[0])) | 1
    }

    /// Fills `page` as a write of `words` words to a page of zeros leaves it.
    pub fn fill(self, words: usize, page: &mut [u8; PAGE_WORDS * 8]) {
        for (i, bytes) in page.chunks_exact_mut(8).enumerate() {
            let value = if i < words { self.word(i) } else { 0 };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

pub(crate) const fn writer_key(seed: u64, writer: u64) -> u64 {
    mix2(seed, writer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_differ_by_every_argument_and_are_never_zero() {
        let mut seen = BTreeSet::new();
        for seed in 0..4 {
            for writer in [0, 1, 1024] {
                for page in 0..8 {
                    for n in 0..8 {
                        for i in 0..16 {
                            let value = word(seed, writer, page, n, i);
                            assert_ne!(value, 0);
                            assert!(seen.insert(value), "{seed} {writer} {page} {n} {i}");
                        }
                    }
                }
            }
        }
    }
}
