//! Copies of pages, on their way to the file.

use std::sync::Arc;

use paguro_sys::{Unit, page_size};

use crate::buffer::Buffer;
use crate::sizes::UNIT_PAGES;

/// Room for copies, and what was copied ahead of the scan.
pub type PageBuffer = Buffer<Copied>;

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
