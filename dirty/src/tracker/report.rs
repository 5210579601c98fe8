//! Handing pages on, without those that have no content: for whoever makes a tracker.

use std::ops::Range;

use paguro_ram::{GuestRam, PageSet};

use super::TrackerError;

/// Whether the sets are those of the blocks, of their maximum length.
///
/// # Errors
///
/// [`TrackerError::Sets`].
pub fn check(ram: &GuestRam, dirty: &[PageSet]) -> Result<(), TrackerError> {
    let blocks = ram.blocks();
    let fits = |(block, set): (&std::sync::Arc<paguro_ram::RamBlock>, &PageSet)| {
        block.max_pages() == set.pages()
    };
    if blocks.len() != dirty.len() || !blocks.iter().zip(dirty).all(fits) {
        return Err(TrackerError::Sets);
    }
    Ok(())
}

/// A set for each block.
pub(super) fn sets(ram: &GuestRam) -> Vec<PageSet> {
    let blocks = ram.blocks().iter();
    blocks
        .map(|block| PageSet::new(block.max_pages()))
        .collect()
}

/// Puts those of the pages `within` a block into `dirty` that have content and that `take` names:
/// it is given the number of a word of the block's set and the bits that are asked for, and returns
/// those that were written. How many were new in `dirty`.
///
/// Pages without content are not asked for, so what is known of them stays where it is.
pub fn report(
    ram: &GuestRam,
    block: usize,
    within: Range<usize>,
    dirty: &PageSet,
    mut take: impl FnMut(usize, u64) -> u64,
) -> usize {
    let ram_block = &ram.blocks()[block];
    let within = within.start..within.end.min(ram_block.pages());
    if within.is_empty() {
        return 0;
    }
    let mut new = 0;
    ram.discards().populated(ram_block, within, &mut |part| {
        for (word, mask) in words(part) {
            let bits = take(word, mask) & mask;
            new += dirty.insert_word(word, bits).count_ones() as usize;
        }
    });
    new
}

/// The words that a range of pages lies in, with its bits.
pub(super) fn words(pages: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let bits = |range: Range<usize>| match range.len() {
        64 => u64::MAX,
        count => ((1 << count) - 1) << range.start,
    };
    (pages.start / 64..pages.end.div_ceil(64)).map(move |word| {
        let first = pages.start.max(word * 64) - word * 64;
        let end = pages.end.min(word * 64 + 64) - word * 64;
        (word, bits(first..end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_whole_words_and_its_ends() {
        let got = |range| words(range).collect::<Vec<_>>();
        assert_eq!(got(0..64), [(0, u64::MAX)]);
        assert_eq!(got(3..5), [(0, 0b11000)]);
        assert_eq!(got(63..130), [(0, 1 << 63), (1, u64::MAX), (2, 3)]);
        assert_eq!(got(128..128), []);
    }
}
