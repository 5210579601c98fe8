//! All failures that are tried: each as often as there are [`ROUNDS`], and a selection in which every
//! work, every kind of fault, every party and both accelerators meet, and every fault occurs.

use paguro_lab::{Accel, Choice};

use super::case::{FailureCase, Fault, Party, Work};
use crate::pairs;
use crate::rng::Rng;

/// How often each is tried, at moments of its own.
const ROUNDS: usize = 8;

const SIZES: [usize; 4] = [5, 6, 3, 2];

/// All of it in a random order, each case with a seed of its own.
pub fn full(rng: &mut Rng, fits: impl Fn(&FailureCase) -> bool) -> Vec<FailureCase> {
    let mut all: Vec<_> = every().filter(fits).collect();
    all = all.repeat(ROUNDS);
    rng.shuffle(&mut all);
    all.iter_mut().for_each(|case| case.seed = rng.next() >> 32);
    all
}

/// A few of them. Another seed gives another selection.
pub fn pairwise(rng: &mut Rng, fits: impl Fn(&FailureCase) -> bool) -> Vec<FailureCase> {
    let mut all: Vec<_> = every().filter(fits).collect();
    rng.shuffle(&mut all);
    let choices = pairs::choices(&SIZES, SIZES.len());
    let can_be = |choice: &[usize; 4]| all.iter().any(|case| choice_of(case) == *choice);
    let selected = pairs::select(rng, choices.filter(can_be).collect());
    let mut chosen: Vec<FailureCase> = Vec::new();
    for choice in &selected {
        // Of those that it can be, the one whose fault was met least.
        let met = |case: &FailureCase| {
            let same = chosen.iter().filter(|other| other.fault == case.fault);
            same.count()
        };
        let fitting = all.iter().filter(|case| choice_of(case) == *choice);
        let case = fitting.min_by_key(|case| met(case)).copied();
        chosen.extend(case);
    }
    for case in &all {
        if !chosen.iter().any(|other| other.fault == case.fault) {
            chosen.push(*case);
        }
    }
    let mut seeded = chosen;
    seeded
        .iter_mut()
        .for_each(|case| case.seed = rng.next() >> 32);
    seeded
}

/// Each that there is.
pub fn every() -> impl Iterator<Item = FailureCase> {
    let works = Work::ALL.iter();
    works.flat_map(|(_, work)| {
        Fault::ALL.iter().flat_map(move |(_, fault)| {
            Party::ALL.iter().flat_map(move |(_, to)| {
                let with = move |accel| FailureCase {
                    work: *work,
                    fault: *fault,
                    to: *to,
                    accel,
                    seed: 1,
                };
                let both = [Accel::Kvm, Accel::Threads].map(with).into_iter();
                both.filter(FailureCase::makes_sense)
            })
        })
    })
}

fn choice_of(case: &FailureCase) -> [usize; 4] {
    [
        case.work as usize,
        case.fault.kind() as usize,
        case.to as usize,
        case.accel as usize,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_small_and_has_every_fault_for_every_work_of_its_kind() {
        let selected = pairwise(&mut Rng::new(1), |_| true);
        assert!((30..50).contains(&selected.len()), "{}", selected.len());
        for wanted in every() {
            let faults = |case: &FailureCase| case.fault == wanted.fault;
            assert!(selected.iter().any(faults), "{wanted}");
            let (work, kind) = (wanted.work, wanted.fault.kind());
            let kinds = |case: &FailureCase| (case.work, case.fault.kind()) == (work, kind);
            assert!(selected.iter().any(kinds), "{wanted}");
        }
    }
}
