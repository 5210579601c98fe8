//! How much of the picture is left.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::PageBuffer;

/// Pages of the picture, known once it is held.
#[derive(Debug)]
pub(super) struct Tally {
    total: AtomicUsize,
    /// Neither saved nor known to be zero nor discarded.
    left: AtomicUsize,
}

/// What is left before that is known.
const UNKNOWN: usize = usize::MAX;

impl Default for Tally {
    fn default() -> Self {
        Self {
            total: AtomicUsize::new(0),
            left: AtomicUsize::new(UNKNOWN),
        }
    }
}

impl Tally {
    /// The picture has `total` pages, of which `left` are to be settled.
    pub(super) fn begin(&self, total: usize, left: usize) {
        self.total.store(total, Ordering::Release);
        self.left.store(left, Ordering::Release);
    }

    /// Pages of the picture, discarded ones included.
    pub(super) fn total_pages(&self) -> usize {
        self.total.load(Ordering::Acquire)
    }

    /// Pages that are not settled yet.
    pub(super) fn left_pages(&self) -> usize {
        match self.left.load(Ordering::Acquire) {
            UNKNOWN => 0,
            left => left,
        }
    }

    /// So many pages are settled. Whoever waits at the buffer for the last ones is told.
    pub(super) fn settle(&self, pages: usize, buffer: &PageBuffer) {
        let mut left = self.left.load(Ordering::Acquire);
        while let Err(now) = self.left.compare_exchange_weak(
            left,
            left.saturating_sub(pages),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            left = now;
        }
        if left <= pages {
            buffer.nudge();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use paguro_testkit::{ends, run};

    use super::*;
    use crate::buffer::Room;

    #[test]
    fn whoever_waits_for_the_last_page_is_told() {
        let tally = Arc::new(Tally::default());
        let buffer = Arc::new(PageBuffer::new(4 << 20, 16).unwrap());
        assert_eq!((tally.total_pages(), tally.left_pages()), (0, 0));
        tally.begin(10, 8);
        let (asks, asked) = channel();
        let waits = {
            let (tally, buffer) = (tally.clone(), buffer.clone());
            run(move || {
                buffer.next_queued(|| {
                    let is_pending = tally.left_pages() > 0;
                    let _ = asks.send(());
                    is_pending
                })
            })
        };
        // With the lock held until he waits.
        ends(&asked);
        tally.settle(3, &buffer);
        assert_eq!((tally.total_pages(), tally.left_pages()), (10, 5));
        tally.settle(6, &buffer);
        assert_eq!(tally.left_pages(), 0);
        assert!(matches!(ends(&waits), Room::Units(units) if units.is_empty()));
    }
}
