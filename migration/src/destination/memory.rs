//! Pages that come in find their place.

use std::io::Read;
use std::ops::Range;

use paguro_faults::{Arrivals, FaultsError};
use paguro_ram::GuestRam;
use paguro_sys::{Advice, Mapping, page_size};
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

/// What came cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeError {
    /// The source's, or the network's.
    #[error(transparent)]
    Stream(#[from] DecodeError),
    /// This host's.
    #[error(transparent)]
    Place(#[from] FaultsError),
}

/// RAM that a stream fills. Whatever never comes is zero here, and what is absent at the source stays
/// absent (P4).
pub(super) struct Arriving {
    ram: GuestRam,
    arrivals: Arrivals,
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
        Ok(Self {
            blocks: table.same_as(here, at)?,
            arrivals: Arrivals::new(ram.spans().clone()),
            ram,
        })
    }

    /// A page with content.
    pub(super) fn page(&self, block: usize, offset: u64, page: &[u8]) -> Result<(), FaultsError> {
        let (block, offset) = self.place(block, offset);
        self.arrivals.land(block, offset, page, |_| {})
    }

    /// A page of zeros.
    pub(super) fn zero(&self, block: usize, offset: u64) -> Result<(), FaultsError> {
        let (block, offset) = self.place(block, offset);
        self.arrivals.zero(block, offset, PAGE, |_| {})
    }

    /// Has these pages, no more of them than a packet has, put where they belong by `pour`; false if
    /// only this side can do that.
    pub(super) fn pour<E>(
        &self,
        block: usize,
        offsets: &[u64],
        pour: impl FnOnce(&mut Landing<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let block = self.blocks[block];
        let offsets = || offsets.iter().map(|&offset| offset as usize);
        let Some(places) = self.arrivals.places(block, offsets(), PAGE) else {
            return Ok(false);
        };
        pour(&mut Landing(places))?;
        self.arrivals.filled(block, offsets(), PAGE);
        Ok(true)
    }

    /// A record of a page; what belongs to it is next in the input. Whether it had content.
    pub(super) fn take<R: Read>(
        &self,
        record: RamRecord,
        input: &mut ChannelInput<R>,
        ahead: &mut Ahead,
    ) -> Result<bool, TakeError> {
        match record {
            RamRecord::Page { block, offset } => {
                self.prepare(block, offset, input.buffered(), ahead);
                self.page(block, offset, input.page("page")?)?;
                Ok(true)
            }
            RamRecord::Zero { block, offset } => {
                self.zero(block, offset)?;
                Ok(false)
            }
            RamRecord::Xbzrle {
                block,
                offset,
                bytes,
            } => {
                let (here, at) = (self.place(block, offset), input.offset());
                let (mut delta, mut page) = ([0; PAGE], [0; PAGE]);
                input.fill("difference of a page", &mut delta[..bytes])?;
                self.mapping(here.0).copy_out(here.1, &mut page);
                xbzrle::decode(&delta[..bytes], at, &mut page)?;
                self.page(block, offset, &page)?;
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
        if is_prepared || ahead.cannot || self.has_come(block, offset) {
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
            if !ahead.cannot && !self.has_come(block, offset) {
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
        let mapping = self.mapping(block);
        let advised = mapping.advise(bytes.start, bytes.len(), Advice::PopulateWrite);
        if let Err(error) = advised {
            tracing::debug!(%error, "pages are made present one by one");
            ahead.cannot = true;
        }
        (ahead.block, ahead.pages) = (block, pages);
    }

    fn mapping(&self, block: usize) -> &Mapping {
        self.ram.blocks()[block].mapping()
    }

    fn has_come(&self, block: usize, offset: usize) -> bool {
        self.arrivals.received(block).contains(offset / page_size())
    }

    /// The reader of records has checked that it is inside the block.
    fn place(&self, block: usize, offset: u64) -> (usize, usize) {
        (self.blocks[block], offset as usize)
    }
}
