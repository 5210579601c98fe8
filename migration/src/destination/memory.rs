//! Pages that come in find their place.

use std::io::Read;
use std::ops::Range;

use paguro_ram::{GuestRam, PageSet};
use paguro_sys::{Advice, Places, page_size};
use paguro_wire::input::Input;
use paguro_wire::stream::ram::{BlockTable, RamRecord, run_ahead};
use paguro_wire::stream::{ChannelInput, xbzrle};
use paguro_wire::{DecodeError, PAGE_BYTES};

use super::direct::Landing;

const PAGE: usize = PAGE_BYTES as usize;

/// Fewer pages are not worth a call.
const WORTH_PAGES: usize = 4;

/// What of RAM was made present before it came.
///
/// Most of what it costs to fill RAM is the host handing out memory, and much of that is to fault page
/// by page. So pages that follow each other, and of which the input says already that they come, are
/// made present in one go.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    block: usize,
    pages: Range<usize>,
    /// The host cannot make pages present.
    cannot: bool,
}

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
        self.note(block, offset);
    }

    /// Where these pages, no more of them than a packet has, belong; all of them are about to come.
    pub(super) fn places(&self, block: usize, offsets: &[u64]) -> Landing<'_> {
        let mut places = Places::new(self.ram.blocks()[self.blocks[block]].mapping());
        for &offset in offsets {
            let (block, offset) = self.place(block, offset);
            self.note(block, offset);
            places.push(offset, PAGE);
        }
        Landing(places)
    }

    /// A page has content now, or is about to: should it not come, all of this is thrown away.
    fn note(&self, block: usize, offset: usize) {
        // An atomic write waits until all of the page has left the core, a look does not.
        let received = &self.received[block];
        if !received.contains(offset / page_size()) {
            received.insert(offset / page_size());
        }
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
        ahead: &mut Ahead,
    ) -> Result<bool, DecodeError> {
        match record {
            RamRecord::Page { block, offset } => {
                self.prepare(block, offset, input.buffered(), ahead);
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

    /// Makes the page and those that follow it present, if `buffered` says that enough of them come.
    fn prepare(&self, block: usize, offset: u64, buffered: &[u8], ahead: &mut Ahead) {
        let (block, offset) = self.place(block, offset);
        let first = offset / PAGE;
        let is_prepared = ahead.block == block && ahead.pages.contains(&first);
        if is_prepared || ahead.cannot || self.received[block].contains(offset / page_size()) {
            return;
        }
        let here = &self.ram.blocks()[block];
        let most = (here.used_bytes() - offset) / PAGE;
        let pages = run_ahead(offset as u64, buffered).min(most);
        self.populate(block, first..first + pages, ahead);
    }

    /// As for pages one by one, for those of a packet, which the reader of packets has checked.
    pub(super) fn prepare_all(&self, block: usize, offsets: &[u64], ahead: &mut Ahead) {
        let follows = |a: &u64, b: &u64| a.checked_add(PAGE_BYTES) == Some(*b);
        for run in offsets.chunk_by(follows) {
            let (block, offset) = self.place(block, run[0]);
            if !ahead.cannot && !self.received[block].contains(offset / page_size()) {
                let first = offset / PAGE;
                self.populate(block, first..first + run.len(), ahead);
            }
        }
    }

    /// Pages of a block here, all of which are about to come.
    fn populate(&self, block: usize, pages: Range<usize>, ahead: &mut Ahead) {
        if pages.len() < WORTH_PAGES {
            return;
        }
        let bytes = pages.start * PAGE..pages.end * PAGE;
        let mapping = self.ram.blocks()[block].mapping();
        match mapping.advise(bytes.start, bytes.len(), Advice::PopulateWrite) {
            Ok(()) => {
                // Present they are: nothing is lost if zeros are written there should they not come.
                let here = bytes.start / page_size()..bytes.end / page_size();
                self.received[block].insert_range(here);
            }
            Err(error) => {
                tracing::debug!(%error, "pages are made present one by one");
                ahead.cannot = true;
            }
        }
        (ahead.block, ahead.pages) = (block, pages);
    }

    /// The reader of records has checked that it is inside the block.
    fn place(&self, block: usize, offset: u64) -> (usize, usize) {
        (self.blocks[block], offset as usize)
    }
}
