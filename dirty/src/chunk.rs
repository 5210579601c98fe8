//! Copies of pages, on their way to the file.

use std::ops::Range;
use std::sync::Arc;

use paguro_sys::{Unit, page_size};

use crate::PageBuffer;

/// Pages in a unit of the page buffer: 64 KiB.
pub const UNIT_PAGES: usize = 16;

/// Pages of one block, copied at the moment of the freeze. Dropping it gives its room back.
#[derive(Debug)]
pub struct Copied {
    block: usize,
    /// Pages with content, ascending; page *i* of the list is at slot *i* of the units.
    pages: Vec<usize>,
    units: Vec<Unit>,
    zeros: usize,
    buffer: Option<Arc<PageBuffer>>,
}

impl Copied {
    pub(crate) fn new(block: usize, units: Vec<Unit>, buffer: &Arc<PageBuffer>) -> Self {
        let pages = Vec::with_capacity(units.len() * UNIT_PAGES);
        Self {
            block,
            pages,
            units,
            zeros: 0,
            buffer: Some(buffer.clone()),
        }
    }

    /// Nothing but pages that are zero.
    pub(crate) fn zeros(block: usize, zeros: usize) -> Self {
        Self {
            block,
            pages: Vec::new(),
            units: Vec::new(),
            zeros,
            buffer: None,
        }
    }

    /// Index of the block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Pages that are zero and were not copied.
    pub fn zero_pages(&self) -> usize {
        self.zeros
    }

    /// Pages with content, ascending.
    pub fn pages(&self) -> &[usize] {
        &self.pages
    }

    /// The content of `pages()[index]`.
    pub fn content(&self, index: usize) -> &[u8] {
        let page = page_size();
        let at = index % UNIT_PAGES * page;
        &self.units[index / UNIT_PAGES][at..at + page]
    }

    /// The longest contiguous piece of memory from `pages()[index]` that is also contiguous in
    /// RAM: its bytes and the number of pages in it. It never spans two units.
    pub fn piece(&self, index: usize) -> (&[u8], usize) {
        let page = page_size();
        let slot = index % UNIT_PAGES;
        let first = self.pages[index];
        let count = self.pages[index..]
            .iter()
            .take(UNIT_PAGES - slot)
            .enumerate()
            .take_while(|&(offset, &number)| number == first + offset)
            .count();
        (
            &self.units[index / UNIT_PAGES][slot * page..(slot + count) * page],
            count,
        )
    }

    pub(crate) fn add_zeros(&mut self, count: usize) {
        self.zeros += count;
    }

    /// The place for the next page, which counts only after [`Copied::keep`].
    pub(crate) fn next_place(&mut self) -> &mut [u8] {
        let index = self.pages.len();
        let at = index % UNIT_PAGES * page_size();
        &mut self.units[index / UNIT_PAGES][at..at + page_size()]
    }

    pub(crate) fn keep(&mut self, page: usize) {
        self.pages.push(page);
    }

    /// Gives back the units that turned out not to be needed.
    pub(crate) fn shrink(&mut self) {
        let needed = self.pages.len().div_ceil(UNIT_PAGES);
        if let Some(buffer) = &self.buffer
            && needed < self.units.len()
        {
            buffer.give_back(self.units.drain(needed..));
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take()
            && !self.units.is_empty()
        {
            buffer.give_back(self.units.drain(..));
        }
    }
}

/// Chooses how much a fault copies and releases. A fault costs far more than a page, so a guest
/// that writes much is better served by large chunks, one that writes here and there by small
/// ones: the size doubles while faults follow each other closely and halves when they are far
/// apart. The upper bound keeps a single stall short.
#[derive(Debug)]
pub(crate) struct Sizing {
    most: usize,
    pages: std::sync::atomic::AtomicUsize,
    last_us: std::sync::atomic::AtomicU64,
    since: std::time::Instant,
}

/// Faults closer than this are a guest that writes much.
const CLOSE_US: u64 = 1_000;
/// Faults farther apart than this are a guest that writes here and there.
const FAR_US: u64 = 20_000;

impl Sizing {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            pages: UNIT_PAGES.min(most).into(),
            last_us: 0.into(),
            since: std::time::Instant::now(),
        }
    }

    /// The span for a fault on `page`: aligned to its own size, at least `unit` pages.
    pub(crate) fn span(&self, page: usize, unit: usize, end: usize) -> Range<usize> {
        use std::sync::atomic::Ordering::Relaxed;
        let now = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let gap = now.saturating_sub(self.last_us.swap(now, Relaxed));
        let mut pages = self.pages.load(Relaxed);
        if gap < CLOSE_US {
            pages = (pages * 2).min(self.most);
        } else if gap > FAR_US {
            pages = (pages / 2).max(UNIT_PAGES.min(self.most));
        }
        self.pages.store(pages, Relaxed);
        span(page, pages.max(unit), end)
    }
}

/// `size` pages around `page`, aligned to `size`, within a block of `end` pages.
pub(crate) fn span(page: usize, size: usize, end: usize) -> Range<usize> {
    let first = page / size * size;
    first..(first + size).min(end)
}
