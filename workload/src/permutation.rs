//! Permutations of `0..size` that can be walked both ways.
//!
//! Three rounds of add, multiply by an odd number and fold the upper half of the bits into the
//! lower, all modulo the power of two that covers `size`: each step is a bijection of that
//! power of two. What lands outside `0..size` is sent through again until it lands inside,
//! which keeps it a bijection of `0..size` and takes fewer than two tries on average.

use crate::mix::SPREAD;

/// The set `0..size`; the permutations over it differ by key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Domain {
    size: u64,
    mask: u64,
    shift: u32,
}

impl Domain {
    /// `size` is at least 1 and at most 2^63.
    pub(crate) const fn new(size: u64) -> Self {
        let bits = 64 - size.saturating_sub(1).leading_zeros();
        // At least half of the bits, so that folding twice undoes it.
        let half = bits.div_ceil(2);
        Self {
            size,
            mask: (1u64 << bits).wrapping_sub(1),
            shift: if half == 0 { 1 } else { half },
        }
    }

    /// Where the permutation `key` sends `x`, which is less than the size.
    #[inline(always)]
    pub(crate) const fn forward(self, key: u64, mut x: u64) -> u64 {
        loop {
            x = self.round(x, key, SPREAD[0]);
            x = self.round(x, key.rotate_left(21), SPREAD[1]);
            x = self.round(x, key.rotate_left(43), SPREAD[2]);
            if x < self.size {
                return x;
            }
        }
    }

    /// What the permutation `key` sends to `x`, which is less than the size.
    #[inline(always)]
    pub(crate) const fn backward(self, key: u64, mut x: u64) -> u64 {
        loop {
            x = self.unround(x, key.rotate_left(43), INVERSE[2]);
            x = self.unround(x, key.rotate_left(21), INVERSE[1]);
            x = self.unround(x, key, INVERSE[0]);
            if x < self.size {
                return x;
            }
        }
    }

    #[inline(always)]
    const fn round(self, x: u64, key: u64, factor: u64) -> u64 {
        let x = x.wrapping_add(key).wrapping_mul(factor) & self.mask;
        x ^ (x >> self.shift)
    }

    #[inline(always)]
    const fn unround(self, x: u64, key: u64, inverse: u64) -> u64 {
        let x = x ^ (x >> self.shift);
        x.wrapping_mul(inverse).wrapping_sub(key) & self.mask
    }
}

/// Inverses of the round factors modulo 2^64, hence modulo every smaller power of two.
const INVERSE: [u64; 3] = [invert(SPREAD[0]), invert(SPREAD[1]), invert(SPREAD[2])];

/// Newton's iteration: each step doubles the number of right bits, beginning with three.
const fn invert(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mix::mix;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec;

    #[test]
    fn small_domains_are_permuted_and_walked_back() {
        for size in 1..200 {
            let domain = Domain::new(size);
            for key in (0..8).map(mix) {
                let images: BTreeSet<u64> = (0..size).map(|x| domain.forward(key, x)).collect();
                assert_eq!(images, (0..size).collect());
                for x in 0..size {
                    assert_eq!(domain.backward(key, domain.forward(key, x)), x);
                }
            }
        }
    }

    #[test]
    fn keys_give_different_orders() {
        let domain = Domain::new(30);
        let orders: BTreeSet<std::vec::Vec<u64>> = (0..100)
            .map(|key| (0..30).map(|x| domain.forward(mix(key), x)).collect())
            .collect();
        assert!(orders.len() > 95, "{} of 100", orders.len());
    }

    #[test]
    fn a_prefix_is_scattered() {
        // 1/8 of the pages: in each 64th of the area about an eighth of them.
        let (size, parts) = (1 << 18, 64);
        let domain = Domain::new(size);
        for key in (1..5).map(mix) {
            let mut hits = vec![0u64; parts];
            for x in 0..size / 8 {
                hits[(domain.forward(key, x) * parts as u64 / size) as usize] += 1;
            }
            assert!(hits.iter().all(|h| (384..=640).contains(h)), "{hits:?}");
        }
    }

    proptest! {
        #[test]
        fn large_domains_are_walked_back(size in 1u64..=1 << 63, key: u64, x: u64) {
            let domain = Domain::new(size);
            let x = x % size;
            let y = domain.forward(key, x);
            prop_assert!(y < size);
            prop_assert_eq!(domain.backward(key, y), x);
        }
    }
}
