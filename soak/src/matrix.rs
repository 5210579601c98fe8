//! All machines that are tried: the full matrix, and a small selection of it in which every two
//! values of two dimensions meet.
//!
//! The matrix has the dimensions of a machine: pages, backing, accelerator, vCPUs, pattern, rate,
//! device, restore mode. Fallbacks, chunk sizes and whether the host is busy are drawn for each of
//! its cases; in the selection fallbacks and chunk sizes are dimensions too.

use paguro_lab::{Accel, Backing, Pages, RestoreMode};

use super::case::{Case, Dma, FORCES, PATTERNS};
use super::pairs;
use super::rng::Rng;

/// Values of `chunk`.
const CHUNKS: [u64; 4] = [4 << 10, 64 << 10, 512 << 10, 2 << 20];

/// How many values each dimension has; the last two are drawn in the full matrix.
const SIZES: [usize; 10] = [3, 2, 2, 2, 4, 2, 3, 3, FORCES.len(), CHUNKS.len()];
const DRAWN: usize = 2;

type Choice = [usize; SIZES.len()];

/// The case with these values.
fn case(choice: &Choice) -> Case {
    Case {
        pages: [Pages::Small, Pages::Thp, Pages::Huge][choice[0]],
        backing: [Backing::Anon, Backing::Memfd][choice[1]],
        accel: [Accel::Kvm, Accel::Threads][choice[2]],
        cpus: [1, 2][choice[3]],
        pattern: PATTERNS[choice[4]],
        unlimited: choice[5] == 0,
        dma: [Dma::Off, Dma::Read, Dma::Direct][choice[6]],
        restore: [RestoreMode::Lazy, RestoreMode::Map, RestoreMode::Eager][choice[7]],
        force: FORCES[choice[8]],
        chunk_bytes: CHUNKS[choice[9]],
        ..Case::default()
    }
}

/// Choices with all values of the first `dimensions`, and the first value of the others.
fn choices(dimensions: usize) -> impl Iterator<Item = Choice> {
    pairs::choices(&SIZES, dimensions).filter(|choice| case(choice).makes_sense())
}

/// The full matrix in a random order, each case with a seed of its own.
pub fn full(rng: &mut Rng, fits: impl Fn(&Case) -> bool) -> Vec<Case> {
    let mut all: Vec<_> = choices(SIZES.len() - DRAWN)
        .map(|choice| case(&choice))
        .filter(&fits)
        .collect();
    rng.shuffle(&mut all);
    for case in &mut all {
        case.seed = rng.next() >> 32;
        case.chunk_bytes = rng.pick(&CHUNKS);
        case.busy = rng.one_in(8);
        let drawn = Case {
            force: rng.pick(&FORCES),
            ..*case
        };
        // Every other one as the host is.
        if rng.one_in(2) && drawn.makes_sense() && fits(&drawn) {
            *case = drawn;
        }
    }
    all
}

/// A few cases in which every two values that can meet, meet. `fits` says which cases this host
/// can run. Another seed gives another selection.
pub fn pairwise(rng: &mut Rng, fits: impl Fn(&Case) -> bool) -> Vec<Case> {
    let left = choices(SIZES.len())
        .filter(|choice| fits(&case(choice)))
        .collect();
    let selected = pairs::select(rng, left);
    let with_seed = |choice| Case {
        seed: rng.next() >> 32,
        ..case(choice)
    };
    selected.iter().map(with_seed).collect()
}

#[cfg(test)]
mod tests {
    use super::pairs::Pairs;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_matrix_has_no_case_twice_and_no_senseless_one() {
        let all = full(&mut Rng::new(1), |_| true);
        assert!(all.iter().all(Case::makes_sense));
        let machines: BTreeSet<_> = all
            .iter()
            .map(|case| {
                let plain = Case {
                    force: "none",
                    chunk_bytes: 0,
                    seed: 0,
                    busy: false,
                    ..*case
                };
                plain.to_string()
            })
            .collect();
        assert_eq!(machines.len(), all.len());
        assert!(all.len() > 1_000, "{}", all.len());
    }

    #[test]
    fn in_a_selection_every_pair_that_can_meet_meets() {
        let selected = pairwise(&mut Rng::new(1), |_| true);
        assert!((20..60).contains(&selected.len()), "{}", selected.len());
        let (mut every, mut met) = (Pairs::default(), Pairs::default());
        for choice in choices(SIZES.len()) {
            every.set(&choice, true);
            let chosen = |case: &Case| Case { seed: 1, ..*case } == self::case(&choice);
            if selected.iter().any(chosen) {
                met.set(&choice, true);
            }
        }
        assert!(every == met);
    }

    #[test]
    fn a_host_without_something_gets_a_selection_without_it() {
        let threads = |case: &Case| case.accel == Accel::Threads;
        let selected = pairwise(&mut Rng::new(1), threads);
        assert!(selected.iter().all(threads) && !selected.is_empty());
        assert_ne!(selected, pairwise(&mut Rng::new(2), threads));
    }
}
