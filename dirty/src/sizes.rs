//! The sizes in which a freeze deals with pages.

use std::ops::Range;

/// Pages in 2 MiB: the granule in which ranges are armed or left alone.
pub(crate) const GRANULE: usize = 512;

/// Pages in a unit of the page buffer: 64 KiB.
pub const UNIT_PAGES: usize = 16;

/// `size` pages around `page`, aligned to `size`, within a block of `end` pages.
pub(crate) fn span(page: usize, size: usize, end: usize) -> Range<usize> {
    let first = page / size * size;
    first..(first + size).min(end)
}

/// The pages of a granule, within a block of `end` pages.
pub(crate) fn granule(index: usize, end: usize) -> Range<usize> {
    index * GRANULE..((index + 1) * GRANULE).min(end)
}

/// The granules in which a range lies, each with the part of the range in it.
pub(crate) fn granules(pages: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    (pages.start / GRANULE..pages.end.div_ceil(GRANULE)).map(move |granule| {
        let part = pages.start.max(granule * GRANULE)..pages.end.min((granule + 1) * GRANULE);
        (granule, part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_surrounds_a_page_ends_with_its_block() {
        assert_eq!(span(0, 16, 100), 0..16);
        assert_eq!(span(31, 16, 100), 16..32);
        assert_eq!(span(99, 16, 100), 96..100);
        assert_eq!(span(99, GRANULE, 100), 0..100);
        assert_eq!(granule(1, 3 * GRANULE), GRANULE..2 * GRANULE);
        assert_eq!(granule(1, GRANULE + 7), GRANULE..GRANULE + 7);
    }

    #[test]
    fn a_range_is_cut_where_granules_end() {
        let parts: Vec<_> = granules(GRANULE - 1..2 * GRANULE + 1).collect();
        let expect = [
            (0, GRANULE - 1..GRANULE),
            (1, GRANULE..2 * GRANULE),
            (2, 2 * GRANULE..2 * GRANULE + 1),
        ];
        assert_eq!(parts, expect);
        assert_eq!(granules(5..9).collect::<Vec<_>>(), [(0, 5..9)]);
        assert_eq!(granules(GRANULE..GRANULE).count(), 0);
    }
}
