//! The counters that a vCPU keeps in its mailbox page, in RAM.
//!
//! For write `n` the vCPU stores, in this order: `mark` for *2n+1*, `begun` = n+1, the words
//! of the write, `done` = n+1, `mark` for *2n+2*. Each counter has a cache line of its own.
//! The page is zero before the first write and outside the counters.
//!
//! `begun` and `done` say how far the vCPU is. `mark` only guards them: it is a multiple of a
//! large odd number, so no damage of a few bytes turns one state that a pause can show into
//! another.

use crate::mix::SPREAD;

/// Byte offset of `begun`: writes begun, stored before a write's first word.
pub const BEGUN: usize = 0;
/// Byte offset of `done`: writes complete, stored after a write's last word.
pub const DONE: usize = 64;
/// Byte offset of `mark`, which guards the two.
pub const MARK: usize = 128;

/// What is stored at [`MARK`] before write `n` begins (`2n+1`) and after it is done (`2n+2`).
#[inline(always)]
pub const fn mark(step: u64) -> u64 {
    step.wrapping_mul(SPREAD[0])
}

/// The counters of one vCPU as found in RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes begun.
    pub begun: u64,
    /// Writes complete.
    pub done: u64,
    /// Their guard.
    pub mark: u64,
}

impl Counters {
    /// Whether a vCPU stopped between any two of its stores can have left these counters.
    pub fn are_possible(&self) -> bool {
        let before = mark(self.done.wrapping_mul(2));
        let within = mark(self.done.wrapping_mul(2).wrapping_add(1));
        let closing = mark(self.done.wrapping_mul(2).wrapping_sub(1));
        if self.begun == self.done {
            self.mark == before || self.mark == within || (self.done > 0 && self.mark == closing)
        } else {
            self.begun.checked_sub(1) == Some(self.done) && self.mark == within
        }
    }

    /// The write that may be half done, if any. Every other write is done or not begun.
    pub fn in_flight(&self) -> Option<u64> {
        (self.begun != self.done).then_some(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pause_is_possible_and_no_damaged_byte_is() {
        for n in [0u64, 1, 2, 254, 255, 256, 65_535, 1 << 40] {
            let rest = Counters {
                begun: n,
                done: n,
                mark: mark(2 * n),
            };
            let marked = Counters {
                mark: mark(2 * n + 1),
                ..rest
            };
            let begun = Counters {
                begun: n + 1,
                ..marked
            };
            let done = Counters {
                done: n + 1,
                ..begun
            };
            for state in [rest, marked, begun, done] {
                assert!(state.are_possible(), "{state:?}");
            }
            for byte in 0..8 {
                for flip in 1..=255u64 {
                    let flip = flip << (8 * byte);
                    for damaged in [
                        Counters {
                            begun: n ^ flip,
                            ..rest
                        },
                        Counters {
                            done: n ^ flip,
                            ..rest
                        },
                        Counters {
                            mark: rest.mark ^ flip,
                            ..rest
                        },
                    ] {
                        assert!(!damaged.are_possible(), "{rest:?} became {damaged:?}");
                    }
                }
            }
        }
    }
}
