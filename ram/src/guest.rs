//! All RAM blocks of a guest.

use std::sync::Arc;

use paguro_sys::page_size;
use rustix::mm::MapFlags;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::{Backing, Discards, NothingDiscarded, RamBlock, Spans};

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
    /// RAM of these blocks, of which nothing is discarded.
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
    /// `name1`, `name2`, ... What is behind a block follows from the region's mmap flags and file.
    pub fn of_guest_memory<B>(name: &str, memory: &GuestMemoryMmap<B>) -> Option<Self>
    where
        B: vm_memory::bitmap::NewBitmap + Send + Sync + 'static,
    {
        let mut blocks = Vec::new();
        for (index, region) in memory.iter().enumerate() {
            let id = if index == 0 {
                name.to_owned()
            } else {
                format!("{name}{index}")
            };
            let mapped = region.get_mmap();
            let shared = mapped.flags() as u32 & MapFlags::SHARED.bits() != 0;
            let backing = match (shared, region.file_offset()) {
                (true, _) => Backing::Memfd,
                (false, Some(_)) => Backing::PrivateFile,
                (false, None) => Backing::Anonymous,
            };
            let huge = mapped.is_hugetlbfs() == Some(true);
            let page = if huge {
                paguro_sys::HUGE_PAGE_BYTES
            } else {
                page_size()
            };
            let mapping = paguro_sys::Mapping::of_region(mapped, page)?;
            let mut block = RamBlock::adopt(&id, region.start_addr().0, Arc::new(mapping), backing);
            if let Some(file) = region.file_offset() {
                block = block.with_file(file.file().try_clone().ok()?.into(), file.start());
            }
            blocks.push(block);
        }
        Some(Self::new(blocks))
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
