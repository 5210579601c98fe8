//! How much a fault copies and releases.
//!
//! A fault costs far more than a page, so a guest that writes much is better served by large chunks,
//! one that writes here and there by small ones: the size doubles while faults follow each other
//! closely and halves when they are far apart. The upper bound keeps a single stall short.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::sizes::{UNIT_PAGES, span};

/// Faults closer than this are a guest that writes much.
const CLOSE_US: u64 = 1_000;
/// Faults farther apart than this are a guest that writes here and there.
const FAR_US: u64 = 20_000;

/// The size of the last fault, and when it was.
#[derive(Debug)]
pub(super) struct Sizing {
    most: usize,
    pages: AtomicUsize,
    last_us: AtomicU64,
    since: Instant,
}

impl Sizing {
    /// For chunks of at most so many pages.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            pages: UNIT_PAGES.min(most).into(),
            last_us: 0.into(),
            since: Instant::now(),
        }
    }

    /// The span for a fault on `page`: aligned to its own size, at least `unit` pages.
    pub(super) fn span(&self, page: usize, unit: usize, end: usize) -> Range<usize> {
        let now = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let gap = now.saturating_sub(self.last_us.swap(now, Ordering::Relaxed));
        span(page, self.next(gap).max(unit), end)
    }

    /// The size for a fault that comes so long after the last one.
    fn next(&self, gap_us: u64) -> usize {
        let mut pages = self.pages.load(Ordering::Relaxed);
        if gap_us < CLOSE_US {
            pages = (pages * 2).min(self.most);
        } else if gap_us > FAR_US {
            pages = (pages / 2).max(UNIT_PAGES.min(self.most));
        }
        self.pages.store(pages, Ordering::Relaxed);
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_much_gets_more_at_a_time_up_to_the_bound() {
        let sizing = Sizing::new(100);
        let sizes: Vec<usize> = (0..4).map(|_| sizing.next(CLOSE_US - 1)).collect();
        assert_eq!(sizes, [32, 64, 100, 100]);
        assert_eq!(sizing.next(CLOSE_US), 100, "neither close nor far apart");
        let sizes: Vec<usize> = (0..4).map(|_| sizing.next(FAR_US + 1)).collect();
        assert_eq!(sizes, [50, 25, 16, 16]);
        assert_eq!(Sizing::new(4).next(FAR_US + 1), 4, "a bound below a unit");
    }
}
