//! All machines that are tried: the full matrix, and a small selection of it in which every two
//! values of two dimensions meet.

use std::collections::BTreeSet;

use super::case::{Case, Dma, FORCES, PATTERNS};
use super::rng::Rng;
use crate::cli::{AccelArg, BackingArg, PagesArg, RestoreModeArg};

/// Values of `chunk`.
const CHUNKS: [u64; 4] = [4 << 10, 64 << 10, 512 << 10, 2 << 20];

/// How many values each dimension has.
const SIZES: [usize; 10] = [3, 2, 2, 2, 4, 2, 3, 3, FORCES.len(), CHUNKS.len()];

type Choice = [usize; SIZES.len()];

/// The case with these values.
fn case(choice: &Choice) -> Case {
    Case {
        pages: [PagesArg::Small, PagesArg::Thp, PagesArg::Huge][choice[0]],
        backing: [BackingArg::Anon, BackingArg::Memfd][choice[1]],
        accel: [AccelArg::Kvm, AccelArg::Threads][choice[2]],
        cpus: [1, 2][choice[3]],
        pattern: PATTERNS[choice[4]],
        unlimited: choice[5] == 0,
        dma: [Dma::Off, Dma::Read, Dma::Direct][choice[6]],
        restore: [
            RestoreModeArg::Lazy,
            RestoreModeArg::Map,
            RestoreModeArg::Eager,
        ][choice[7]],
        force: FORCES[choice[8]],
        chunk_bytes: CHUNKS[choice[9]],
        ..Case::default()
    }
}

fn choices() -> impl Iterator<Item = Choice> {
    let count: usize = SIZES.iter().product();
    (0..count)
        .map(|mut number| {
            let mut choice = [0; SIZES.len()];
            for (value, size) in choice.iter_mut().zip(SIZES) {
                *value = number % size;
                number /= size;
            }
            choice
        })
        .filter(|choice| case(choice).makes_sense())
}

/// Every case that makes sense, in one order; seeds are still to be given.
pub fn all() -> Vec<Case> {
    choices().map(|choice| case(&choice)).collect()
}

/// A few cases in which every two values that can meet, meet. `fits` says which cases this host
/// can run. Another seed gives another selection.
pub fn pairwise(seed: u64, fits: impl Fn(&Case) -> bool) -> Vec<Case> {
    let mut rng = Rng::new(seed);
    let mut choices: Vec<Choice> = choices().filter(|choice| fits(&case(choice))).collect();
    rng.shuffle(&mut choices);
    let mut missing: BTreeSet<_> = choices.iter().flat_map(pairs).collect();
    let mut selected = Vec::new();
    // Greedy: of some candidates, the one that brings most new pairs. A candidate that brings none
    // now never will.
    while !missing.is_empty() {
        let gain = |choice: &Choice| pairs(choice).filter(|pair| missing.contains(pair)).count();
        let best = choices.iter().max_by_key(|choice| gain(choice)).copied();
        let Some(best) = best else { break };
        for pair in pairs(&best) {
            missing.remove(&pair);
        }
        choices.retain(|choice| pairs(choice).any(|pair| missing.contains(&pair)));
        selected.push(case(&best));
    }
    selected
}

type Pair = ((usize, usize), (usize, usize));

fn pairs(choice: &Choice) -> impl Iterator<Item = Pair> {
    let choice = *choice;
    (0..SIZES.len()).flat_map(move |one| {
        (one + 1..SIZES.len()).map(move |two| ((one, choice[one]), (two, choice[two])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_has_no_case_twice() {
        let all = all();
        let texts: BTreeSet<_> = all.iter().map(Case::to_string).collect();
        assert_eq!(texts.len(), all.len());
        assert!(all.len() > 10_000, "{}", all.len());
    }

    #[test]
    fn in_a_selection_every_pair_that_can_meet_meets() {
        let selected = pairwise(1, |_| true);
        assert!((20..60).contains(&selected.len()), "{}", selected.len());
        let every: BTreeSet<_> = choices().flat_map(|choice| pairs(&choice)).collect();
        let all: Vec<_> = choices().collect();
        let met: BTreeSet<_> = selected
            .iter()
            .filter_map(|wanted| all.iter().find(|choice| case(choice) == *wanted))
            .flat_map(pairs)
            .collect();
        assert_eq!(met, every);
    }

    #[test]
    fn a_host_without_something_gets_a_selection_without_it() {
        let selected = pairwise(1, |case| case.accel == AccelArg::Threads);
        assert!(selected.iter().all(|case| case.accel == AccelArg::Threads));
        assert!(!selected.is_empty());
        assert_ne!(selected, pairwise(2, |case| case.accel == AccelArg::Threads));
    }
}
