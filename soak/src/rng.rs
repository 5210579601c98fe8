//! Random numbers that a seed brings back.
//!
//! The cases of a seed are those of the version of `fastrand` in `Cargo.lock`: another one may draw
//! others.

use std::ops::Range;
use std::time::Duration;

/// A generator.
#[derive(Clone, Debug)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// The one of a seed.
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A number in a range; of one that is empty its start.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        self.0
            .u64(range.start..=range.start.max(range.end.saturating_sub(1)))
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.usize(..from.len())]
    }

    /// A time of up to so many microseconds, short ones as likely as long ones.
    pub fn moment(&mut self, most_us: u64) -> Duration {
        let scale = self.within(0..most_us.max(1).ilog2() as u64 + 1);
        Duration::from_micros(self.within(0..(2 << scale)).min(most_us))
    }

    /// Another order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        self.0.shuffle(list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_brings_back_the_numbers() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            [rng.next(), rng.next(), rng.within(0..10)]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    /// Whoever repeats a case by its number and its seed gets another one when this changes, and the
    /// changelog must say so.
    #[test]
    fn a_seed_means_the_same_in_every_build() {
        let mut rng = Rng::new(1);
        let mut list = [0, 1, 2, 3, 4, 5, 6, 7];
        rng.shuffle(&mut list);
        assert_eq!((list, rng.within(0..1000)), ([5, 2, 1, 4, 0, 6, 7, 3], 848));
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut rng = Rng::new(2);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[rng.within(3..8) as usize - 3] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!((rng.within(4..4), rng.within(4..5)), (4, 4));
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut list: Vec<_> = (0..100).collect();
        Rng::new(1).shuffle(&mut list);
        assert_ne!(list, (0..100).collect::<Vec<_>>());
        list.sort_unstable();
        assert_eq!(list, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn moments_stay_within_their_bound() {
        let mut rng = Rng::new(3);
        assert!((0..1000).all(|_| rng.moment(500) <= Duration::from_micros(500)));
    }
}
