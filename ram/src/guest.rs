//! All RAM blocks of a guest.

use std::sync::Arc;

use paguro_sys::page_size;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::{Discards, GuestRamBuilder, NothingDiscarded, RamBlock, RamError, Spans};

/// The RAM blocks of one guest, and what of them is discarded.
#[derive(Clone, Debug)]
pub struct GuestRam {
    blocks: Arc<[Arc<RamBlock>]>,
    spans: Spans,
    discards: Arc<dyn Discards>,
}

/// A page found by its host address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Index of the block.
    pub block: usize,
    /// Page in the block.
    pub page: usize,
}

impl GuestRam {
    /// RAM of these blocks, of which nothing is discarded. That no two have a name or a place in common
    /// is the caller's to know; [`GuestRam::builder`] looks.
    pub fn new(blocks: Vec<RamBlock>) -> Self {
        Self {
            spans: Spans::here(blocks.iter().map(|block| block.span().clone())),
            blocks: blocks.into_iter().map(Arc::new).collect(),
            discards: Arc::new(NothingDiscarded),
        }
    }

    /// The same RAM with a device that discards parts of it.
    pub fn with_discards(mut self, discards: Arc<dyn Discards>) -> Self {
        self.discards = discards;
        self
    }

    /// RAM that a VMM holds as `vm-memory` regions. The first block is named `name`, the others
    /// `name1`, `name2`, ...; each is a [`RamBlock::of_region`].
    ///
    /// # Errors
    ///
    /// Those of [`RamBlock::of_region`].
    pub fn of_guest_memory<B>(name: &str, memory: &GuestMemoryMmap<B>) -> Result<Self, RamError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let blocks = memory.iter().enumerate().map(|(index, region)| {
            let id = match index {
                0 => name.to_owned(),
                _ => format!("{name}{index}"),
            };
            RamBlock::of_region(&id, region)
        });
        Ok(Self::new(blocks.collect::<Result<_, _>>()?))
    }

    /// RAM of blocks of all kinds, one after the other.
    pub fn builder() -> GuestRamBuilder {
        GuestRamBuilder::default()
    }

    /// The blocks, in the order of their guest addresses as the VMM gave them.
    pub fn blocks(&self) -> &[Arc<RamBlock>] {
        &self.blocks
    }

    /// Where they are, for whoever answers their faults.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// The block of that name.
    pub fn block(&self, id: &str) -> Option<&Arc<RamBlock>> {
        self.blocks.iter().find(|block| block.id() == id)
    }

    /// Which parts have content.
    pub fn discards(&self) -> &dyn Discards {
        &*self.discards
    }

    /// The page at a host virtual address.
    pub fn locate(&self, address: usize) -> Option<Located> {
        self.spans.locate(address)
    }

    /// Bytes in use, over all blocks.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.used_bytes()).sum()
    }

    /// Pages in use, over all blocks.
    pub fn pages(&self) -> usize {
        self.bytes() / page_size()
    }
}
