//! Pages that come in find their place.

use std::io::Read;

use paguro_ram::{GuestRam, PageSet};
use paguro_sys::page_size;
use paguro_wire::input::Input;
use paguro_wire::stream::ram::{BlockTable, RamRecord};
use paguro_wire::stream::{ChannelInput, xbzrle};
use paguro_wire::{DecodeError, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;

/// RAM that is being filled.
///
/// It is fresh: whatever was never received is zero. So a page of zeros is written only over
/// content, and what is absent at the source stays absent here (P4).
pub(super) struct Arriving {
    ram: GuestRam,
    /// Pages that have content, or had it.
    received: Vec<PageSet>,
    /// Which block here is a block of the stream.
    blocks: Vec<usize>,
}

impl Arriving {
    /// The list of blocks came: all of them must be here, each with its length.
    pub(super) fn new(
        ram: GuestRam,
        table: &BlockTable,
        here: &BlockTable,
        at: u64,
    ) -> Result<Self, DecodeError> {
        let received = ram.blocks().iter().map(|b| PageSet::new(b.max_pages()));
        Ok(Self {
            received: received.collect(),
            blocks: table.same_as(here, at)?,
            ram,
        })
    }

    /// A page with content.
    pub(super) fn page(&self, block: usize, offset: u64, page: &[u8]) {
        let (block, offset) = self.place(block, offset);
        self.ram.blocks()[block].mapping().copy_in(offset, page);
        self.received[block].insert(offset / page_size());
    }

    /// A page of zeros.
    pub(super) fn zero(&self, block: usize, offset: u64) {
        let (block, offset) = self.place(block, offset);
        if self.received[block].contains(offset / page_size()) {
            self.ram.blocks()[block]
                .mapping()
                .copy_in(offset, &[0; PAGE]);
        }
    }

    /// A record of a page; what belongs to it is next in the input. Whether it had content.
    pub(super) fn take<R: Read>(
        &self,
        record: RamRecord,
        input: &mut ChannelInput<R>,
    ) -> Result<bool, DecodeError> {
        match record {
            RamRecord::Page { block, offset } => {
                self.page(block, offset, input.page("page")?);
                Ok(true)
            }
            RamRecord::Zero { block, offset } => {
                self.zero(block, offset);
                Ok(false)
            }
            RamRecord::Xbzrle {
                block,
                offset,
                bytes,
            } => {
                let (block, offset) = self.place(block, offset);
                let mut delta = [0; PAGE];
                let at = input.offset();
                input.fill("difference of a page", &mut delta[..bytes])?;
                let mut page = [0; PAGE];
                let mapping = self.ram.blocks()[block].mapping();
                mapping.copy_out(offset, &mut page);
                xbzrle::decode(&delta[..bytes], at, &mut page)?;
                mapping.copy_in(offset, &page);
                self.received[block].insert(offset / page_size());
                Ok(true)
            }
            RamRecord::MultifdFlush | RamRecord::Eos => Ok(false),
        }
    }

    /// The reader of records has checked that it is inside the block.
    fn place(&self, block: usize, offset: u64) -> (usize, usize) {
        (self.blocks[block], offset as usize)
    }
}
