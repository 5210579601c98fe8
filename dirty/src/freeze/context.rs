//! What all chapters of a freeze are given.

use std::ops::Range;
use std::sync::Arc;

use paguro_faults::{Faults, Supply, Use};
use paguro_ram::{GuestRam, PageSet};
use paguro_sys::page_size;
use paguro_sys::presence::Pagemap;

use super::life::Life;
use super::picture::Picture;
use super::stats::FreezeStats;
use crate::hooks::Hooks;
use crate::moments::Moments;
use crate::sizes::{GRANULE, UNIT_PAGES};
use crate::{FreezeError, FreezeOptions, PageBuffer};

/// The RAM that is frozen, who tells of its faults, and how far the freeze is.
pub(super) struct Context {
    /// None: nothing is ever protected, as the guest stands still.
    pub(super) faults: Option<Arc<Faults>>,
    pub(super) ram: GuestRam,
    pub(super) options: FreezeOptions,
    pub(super) blocks: Vec<Picture>,
    /// Where pages are that have not arrived yet.
    pub(super) source: Option<Arc<dyn Supply>>,
    pub(super) pagemap: Pagemap,
    pub(super) buffer: Arc<PageBuffer>,
    pub(super) life: Life,
    pub(super) stats: FreezeStats,
    pub(super) hooks: Hooks,
    pub(super) moments: Moments,
}

impl Context {
    /// Makes the sets of all blocks and the page buffer, and touches nothing.
    ///
    /// # Errors
    ///
    /// `Tables`, `Buffer`, `BufferTooSmall`, `Pagemap`.
    pub(super) fn new(
        faults: Option<Arc<Faults>>,
        ram: GuestRam,
        source: Option<Arc<dyn Supply>>,
        hot: &[PageSet],
        options: FreezeOptions,
    ) -> Result<Self, FreezeError> {
        let blocks = pictures(&ram, hot, &options)?;
        let buffer = Arc::new(page_buffer(&ram, &blocks, &options)?);
        let pagemap = Pagemap::open(&options.host).map_err(FreezeError::Pagemap)?;
        Ok(Self {
            faults,
            ram,
            blocks,
            source,
            pagemap,
            life: Life::new(buffer.clone()),
            buffer,
            stats: FreezeStats::default(),
            hooks: options.sabotage.into(),
            moments: Moments::default(),
            options,
        })
    }

    /// Takes protection from pages that are safe, and wakes who waits. Whole granules are
    /// unregistered at once where nobody else needs the registration, and where RAM is not in too
    /// many pieces already: one walk over the page tables, and one loss of KVM's mappings, instead
    /// of two.
    pub(super) fn let_go(&self, index: usize, pages: Range<usize>) -> Result<(), FreezeError> {
        let block = &self.blocks[index];
        let Some(faults) = self.faults.as_ref().filter(|_| block.is_protected()) else {
            return Ok(());
        };
        let whole = pages.start.is_multiple_of(GRANULE) && pages.len() == GRANULE;
        if whole && faults.unregister_part(index, Use::WriteProtect, pages.clone())? {
            block.gone.insert(pages.start / GRANULE);
            return Ok(());
        }
        Ok(faults.release(index, pages)?)
    }
}

fn pictures(
    ram: &GuestRam,
    hot: &[PageSet],
    options: &FreezeOptions,
) -> Result<Vec<Picture>, FreezeError> {
    let blocks: Vec<Picture> = ram
        .blocks()
        .iter()
        .map(|block| Picture::new(block.clone(), options))
        .collect::<Result<_, _>>()?;
    for (block, hot) in blocks.iter().zip(hot) {
        hot.runs(0..hot.pages().min(block.hot.pages()), |run| {
            block.hot.insert_range(run)
        });
    }
    Ok(blocks)
}

fn page_buffer(
    ram: &GuestRam,
    blocks: &[Picture],
    options: &FreezeOptions,
) -> Result<PageBuffer, FreezeError> {
    let largest = blocks.iter().map(|block| block.unit).max().unwrap_or(1);
    let largest = largest.max(options.most_pages());
    // More than all of RAM and a chunk for the scan is never in use.
    let most = ram.pages().next_multiple_of(GRANULE) + GRANULE + 2 * largest.max(UNIT_PAGES);
    PageBuffer::new(options.buffer_bytes.min(most * page_size()), largest)
}
