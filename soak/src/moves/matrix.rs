//! All machines that move: the full matrix, and a selection in which every two values meet.

use paguro_lab::{Backing, Pages};

use super::case::{ChannelArg, MoveCase, RateArg, TrackerArg, WayArg};
use crate::case::{Dma, PATTERNS};
use crate::pairs;
use crate::rng::Rng;

/// How many values each dimension has. In the full matrix the order and the device of each case are
/// drawn, and the channel of what is not in the stream: the product of all would take days.
const SIZES: [usize; 9] = [6, 3, 2, 2, 4, 4, 3, 3, 4];
const PATTERN: usize = 4;
const DMA: usize = 6;
const CHANNEL: usize = 7;
const WAY: usize = 8;

fn case(choice: &[usize; SIZES.len()]) -> MoveCase {
    MoveCase {
        tracker: [
            TrackerArg::Log,
            TrackerArg::Ring,
            TrackerArg::PlainLog,
            TrackerArg::WpAsync,
            TrackerArg::LogNotAllSet,
            TrackerArg::Stage2,
        ][choice[0]],
        pages: [Pages::Small, Pages::Thp, Pages::Huge][choice[1]],
        backing: [Backing::Anon, Backing::Memfd][choice[2]],
        cpus: [1, 2][choice[3]],
        pattern: PATTERNS[choice[PATTERN]],
        rate: [
            RateArg::Unlimited,
            RateArg::Idle,
            RateArg::Low,
            RateArg::High,
        ][choice[5]],
        dma: [Dma::Off, Dma::Read, Dma::Direct][choice[DMA]],
        channel: [ChannelArg::Tcp, ChannelArg::Unix, ChannelArg::Tls][choice[CHANNEL]],
        way: [WayArg::Plain, WayArg::Multifd, WayArg::Zstd, WayArg::Xbzrle][choice[WAY]],
        ..MoveCase::default()
    }
}

/// All of it in a random order, each case with a seed of its own.
pub fn full(rng: &mut Rng, fits: impl Fn(&MoveCase) -> bool) -> Vec<MoveCase> {
    let is_first = |choice: &[usize; SIZES.len()]| {
        let drawn = choice[WAY] > 0 && choice[CHANNEL] > 0;
        choice[PATTERN] + choice[DMA] == 0 && !drawn
    };
    let all = pairs::choices(&SIZES, SIZES.len()).filter(is_first);
    let drawn = all.map(|mut choice| {
        for dimension in [PATTERN, DMA] {
            choice[dimension] = rng.within(0..SIZES[dimension] as u64) as usize;
        }
        if choice[WAY] > 0 {
            choice[CHANNEL] = rng.within(0..SIZES[CHANNEL] as u64) as usize;
        }
        case(&choice)
    });
    let mut all: Vec<_> = drawn.filter(fits).collect();
    rng.shuffle(&mut all);
    all.iter_mut().for_each(|case| case.seed = rng.next() >> 32);
    all
}

/// A few cases in which every two values that can meet, meet. Another seed gives another selection.
pub fn pairwise(rng: &mut Rng, fits: impl Fn(&MoveCase) -> bool) -> Vec<MoveCase> {
    let all = pairs::choices(&SIZES, SIZES.len());
    let all = all.filter(|choice| fits(&case(choice))).collect();
    let selected = pairs::select(rng, all);
    let with_seed = |choice| MoveCase {
        seed: rng.next() >> 32,
        ..case(choice)
    };
    selected.iter().map(with_seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_small_and_has_every_value() {
        let selected = pairwise(&mut Rng::new(1), |_| true);
        assert!((24..45).contains(&selected.len()), "{}", selected.len());
        for choice in pairs::choices(&SIZES, SIZES.len()) {
            let wanted = case(&choice);
            let both = |case: &MoveCase| (case.tracker, case.rate) == (wanted.tracker, wanted.rate);
            assert!(selected.iter().any(both), "{wanted}");
        }
        assert_eq!(full(&mut Rng::new(1), |_| true).len(), 1728);
    }
}
