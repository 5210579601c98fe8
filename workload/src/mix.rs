//! Mixing of 64-bit words, and division by a number known beforehand.

/// Odd constants with irregular bits, for spreading small integers over 64 bits.
pub(crate) const SPREAD: [u64; 4] = [
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
    0xaef1_7502_108e_f2d9,
    0xf135_7aea_2e62_a9c5,
];

/// A bijection of 64 bits in which every input bit reaches every output bit.
#[inline(always)]
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 32)).wrapping_mul(SPREAD[1]);
    x = (x ^ (x >> 29)).wrapping_mul(SPREAD[2]);
    x ^ (x >> 32)
}

/// Mixes two words, in an order that matters.
#[inline(always)]
pub(crate) const fn mix2(a: u64, b: u64) -> u64 {
    mix(mix(a ^ SPREAD[3]).wrapping_add(b.wrapping_mul(SPREAD[0])))
}

/// A divisor with its reciprocal: a division a write is what the loop would otherwise spend
/// most of its time on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Divisor {
    pub(crate) value: u64,
    reciprocal: u64,
}

impl Divisor {
    /// `value` must not be 0; 0 is taken as 1.
    pub(crate) const fn new(value: u64) -> Self {
        let value = if value == 0 { 1 } else { value };
        Self {
            value,
            reciprocal: u64::MAX / value,
        }
    }

    /// Quotient and remainder.
    #[inline(always)]
    pub(crate) const fn div_rem(self, n: u64) -> (u64, u64) {
        // The estimate is the quotient or one less: the reciprocal is too small by less than
        // one part in 2^64 of `n`.
        let estimate = ((n as u128 * self.reciprocal as u128) >> 64) as u64;
        let rest = n - estimate * self.value;
        if rest >= self.value {
            (estimate + 1, rest - self.value)
        } else {
            (estimate, rest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn division_is_exact_at_the_edges() {
        for d in [
            1,
            2,
            3,
            7,
            4095,
            4096,
            4097,
            u64::MAX / 2,
            u64::MAX - 1,
            u64::MAX,
        ] {
            for n in [0, 1, d - 1, d, d.wrapping_add(1), u64::MAX - 1, u64::MAX] {
                assert_eq!(Divisor::new(d).div_rem(n), (n / d, n % d), "{n} / {d}");
            }
        }
    }

    proptest! {
        #[test]
        fn division_is_exact(n in any::<u64>(), d in 1u64.., shift in 0u32..63) {
            let d = (d >> shift).max(1);
            prop_assert_eq!(Divisor::new(d).div_rem(n), (n / d, n % d));
        }
    }
}
