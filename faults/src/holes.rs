//! Parts of blocks that were unregistered ahead of the rest, and what they cost.
//!
//! Memory that is registered and memory that is not cannot be one mapping, so a hole in what is
//! registered makes three mappings of one, and a process may have only so many (`vm.max_map_count`,
//! 65530 unless somebody has changed it). In a large guest of which every other granule was touched
//! the kernel would soon refuse to go on. So holes are counted, and where there are too many the
//! part stays registered until all the rest goes, too. That costs a second walk over its page
//! tables, and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;

/// Of all mappings that a process may have, one in so many may come from holes. The rest is the
/// machine's.
const SHARE: usize = 4;
/// Mappings that a hole adds at most: itself and what follows it.
const MAPPINGS: usize = 2;

/// The holes of all blocks.
#[derive(Debug)]
pub(crate) struct Holes {
    /// Per block, where each begins and ends. No two touch.
    blocks: Vec<BTreeMap<usize, usize>>,
    count: usize,
    most: usize,
}

impl Holes {
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            blocks: vec![BTreeMap::new(); blocks],
            count: 0,
            most: 0,
        }
    }

    /// Says how many there may be, of a process that may have so many mappings.
    pub(crate) fn allow(&mut self, most_mappings: usize) {
        self.most = most_mappings / SHARE / MAPPINGS;
    }

    /// Notes one, if there may be one more. One that only makes another larger always may.
    pub(crate) fn add(&mut self, block: usize, pages: &Range<usize>) -> bool {
        let holes = &mut self.blocks[block];
        let (mut start, mut end) = (pages.start, pages.end);
        let mut joined = Vec::new();
        // From the last that begins before our end back to the first that touches us.
        for (&from, &to) in holes.range(..=end).rev() {
            if to < start {
                break;
            }
            start = start.min(from);
            end = end.max(to);
            joined.push(from);
        }
        let count = self.count + 1 - joined.len();
        if count > self.count && count > self.most {
            return false;
        }
        for from in joined {
            holes.remove(&from);
        }
        holes.insert(start, end);
        self.count = count;
        true
    }

    /// The kernel has no more mappings for us: from now on nothing is noted that makes more of them.
    pub(crate) fn exhausted(&mut self) {
        self.most = 0;
    }

    /// A block is of one piece again.
    pub(crate) fn clear(&mut self, block: usize) {
        self.count -= self.blocks[block].len();
        self.blocks[block].clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holes(most: usize) -> Holes {
        Holes {
            most,
            ..Holes::new(2)
        }
    }

    #[test]
    fn only_what_stands_alone_counts() {
        let mut holes = holes(2);
        assert!(holes.add(0, &(10..20)));
        assert!(holes.add(1, &(10..20)));
        assert!(!holes.add(0, &(30..40)), "a third one");
        assert!(holes.add(0, &(20..30)), "behind");
        assert!(holes.add(0, &(5..10)), "in front");
        assert!(holes.add(0, &(8..12)), "inside");
        assert_eq!(holes.count, 2);
        assert_eq!(holes.blocks[0], BTreeMap::from([(5, 30)]));
        holes.clear(0);
        assert!(holes.add(0, &(30..40)));
        holes.exhausted();
        assert!(!holes.add(0, &(50..60)));
        assert!(holes.add(0, &(40..50)));
    }

    #[test]
    fn what_lies_between_two_makes_them_one() {
        let mut holes = holes(3);
        for from in [0, 20, 40] {
            assert!(holes.add(0, &(from..from + 10)));
        }
        assert!(holes.add(0, &(10..40)));
        assert_eq!(holes.count, 1);
        assert_eq!(holes.blocks[0], BTreeMap::from([(0, 50)]));
    }
}
