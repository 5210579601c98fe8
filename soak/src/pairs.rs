//! A small selection of a matrix in which every two values of two dimensions meet.

use super::rng::Rng;

/// Most values that a dimension has.
const WIDTH: usize = 8;

/// All choices of values of the first `dimensions`, with the first value of the others. `sizes` says
/// how many values each has.
pub fn choices<const N: usize>(
    sizes: &[usize; N],
    dimensions: usize,
) -> impl Iterator<Item = [usize; N]> {
    let sizes = &sizes[..dimensions];
    debug_assert!(sizes.iter().all(|&size| size <= WIDTH));
    let count: usize = sizes.iter().product();
    (0..count).map(move |mut number| {
        let mut choice = [0; N];
        for (value, size) in choice.iter_mut().zip(sizes) {
            *value = number % size;
            number /= size;
        }
        choice
    })
}

/// A few of them in which all pairs of values meet that meet in any. Another state of `rng` gives
/// another selection.
pub fn select<const N: usize>(rng: &mut Rng, mut left: Vec<[usize; N]>) -> Vec<[usize; N]> {
    rng.shuffle(&mut left);
    let mut missing = Pairs::default();
    left.iter().for_each(|choice| missing.set(choice, true));
    let mut selected = Vec::new();
    // Greedy: the one that brings most new pairs. One that brings none now never will.
    while let Some(best) = left.iter().max_by_key(|choice| missing.count(choice)) {
        let best = *best;
        missing.set(&best, false);
        left.retain(|choice| missing.count(choice) > 0);
        selected.push(best);
    }
    selected
}

/// A set of pairs of values.
#[derive(PartialEq, Eq)]
pub struct Pairs<const N: usize>(Vec<bool>);

impl<const N: usize> Default for Pairs<N> {
    fn default() -> Self {
        let values = N * WIDTH;
        Self(vec![false; values * values])
    }
}

impl<const N: usize> Pairs<N> {
    /// Puts the pairs of a choice in, or takes them out.
    pub fn set(&mut self, choice: &[usize; N], to: bool) {
        indexes(choice).for_each(|index| self.0[index] = to);
    }

    fn count(&self, choice: &[usize; N]) -> usize {
        indexes(choice).filter(|index| self.0[*index]).count()
    }
}

fn indexes<const N: usize>(choice: &[usize; N]) -> impl Iterator<Item = usize> + '_ {
    let value = |dimension: usize| dimension * WIDTH + choice[dimension];
    (0..N).flat_map(move |one| (one + 1..N).map(move |two| value(one) * N * WIDTH + value(two)))
}
