//! The sizes in which a freeze deals with pages.

use std::ops::Range;

/// Pages in 2 MiB: the granule in which ranges are armed or left alone.
pub(crate) const CHUNK: usize = 512;

/// Pages in a unit of the page buffer: 64 KiB.
pub const UNIT_PAGES: usize = 16;

/// `size` pages around `page`, aligned to `size`, within a block of `end` pages.
pub(crate) fn span(page: usize, size: usize, end: usize) -> Range<usize> {
    let first = page / size * size;
    first..(first + size).min(end)
}

/// The pages of a granule, within a block of `end` pages.
pub(crate) fn granule(index: usize, end: usize) -> Range<usize> {
    index * CHUNK..((index + 1) * CHUNK).min(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_surrounds_a_page_ends_with_its_block() {
        assert_eq!(span(0, 16, 100), 0..16);
        assert_eq!(span(31, 16, 100), 16..32);
        assert_eq!(span(99, 16, 100), 96..100);
        assert_eq!(span(99, CHUNK, 100), 0..100);
        assert_eq!(granule(1, 3 * CHUNK), CHUNK..2 * CHUNK);
        assert_eq!(granule(1, CHUNK + 7), CHUNK..CHUNK + 7);
    }
}
