//! All RAM blocks of a guest.

use std::ops::Range;
use std::sync::Arc;

use paguro_sys::page_size;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::{Discards, Located, NothingDiscarded, RamBlock, RamError, Spans};

/// The RAM blocks of one guest, and what of them is discarded.
#[derive(Clone, Debug)]
pub struct GuestRam {
    blocks: Arc<[Arc<RamBlock>]>,
    spans: Spans,
    discards: Arc<dyn Discards>,
}

/// Pages of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Index of the block.
    pub block: usize,
    /// Pages in the block.
    pub pages: Range<usize>,
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

    /// What of a range of guest addresses can be given back: of each block in it the pages, in whole units
    /// ([`RamBlock::unit_pages`]). What lies in a unit only in part stays, as it may be wanted; so a range
    /// may have nothing to give. `None` if any byte of it is outside of what blocks use.
    pub fn units_at(&self, addresses: Range<u64>) -> Option<Vec<Pages>> {
        let mut found = Vec::new();
        let mut at = addresses.start;
        while at < addresses.end {
            let (block, ram) = self.blocks.iter().enumerate().find(|(_, block)| {
                let offset = at.checked_sub(block.guest_address());
                offset.is_some_and(|offset| offset < block.used_bytes() as u64)
            })?;
            let end = ram.guest_address() + ram.used_bytes() as u64;
            let end = end.min(addresses.end);
            let bytes = at - ram.guest_address()..end - ram.guest_address();
            let unit = (ram.unit_pages() * page_size()) as u64;
            let (first, end_unit) = (bytes.start.div_ceil(unit), bytes.end / unit);
            if first < end_unit {
                let page = |number: u64| number as usize * ram.unit_pages();
                found.push(Pages {
                    block,
                    pages: page(first)..page(end_unit),
                });
            }
            at = end;
        }
        Some(found)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, BlockConfig, PageKind};

    const PAGE: u64 = 4096;

    fn ram() -> GuestRam {
        let block = |(id, pages): (&str, Range<u64>)| BlockConfig {
            id: id.to_owned(),
            guest_address: pages.start * PAGE,
            bytes: ((pages.end - pages.start) * PAGE) as usize,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        };
        let blocks = [("low", 0..8), ("next", 8..16), ("high", 32..40)].map(block);
        let builder = blocks
            .into_iter()
            .fold(GuestRam::builder(), |b, c| b.block(c));
        builder.build().unwrap()
    }

    #[test]
    fn a_range_of_guest_addresses_is_whole_pages_of_blocks() {
        let ram = ram();
        let units = |range: Range<u64>| -> Option<Vec<_>> {
            let found = ram.units_at(range)?;
            Some(found.into_iter().map(|f| (f.block, f.pages)).collect())
        };
        assert_eq!(units(6 * PAGE..10 * PAGE), Some(vec![(0, 6..8), (1, 0..2)]));
        assert_eq!(units(PAGE + 1..4 * PAGE - 1), Some(vec![(0, 2..3)]));
        assert_eq!(units(PAGE + 1..2 * PAGE), Some(vec![]));
        assert_eq!(units(5..5), Some(vec![]));
        assert_eq!(units(32 * PAGE..40 * PAGE), Some(vec![(2, 0..8)]));
        // Where there is no RAM, or none of it in use.
        for outside in [
            15 * PAGE..17 * PAGE,
            31 * PAGE..33 * PAGE,
            39 * PAGE..u64::MAX,
        ] {
            assert_eq!(units(outside.clone()), None, "{outside:?}");
        }
        ram.blocks()[2].resize(4 * PAGE as usize).unwrap();
        assert_eq!(units(34 * PAGE..37 * PAGE), None);
    }
}
