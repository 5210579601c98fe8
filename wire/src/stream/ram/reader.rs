//! Reading records.

use std::sync::Arc;

use crate::input::Input;
use crate::stream::xbzrle;
use crate::{DecodeError, NAME_MAX_BYTES};

use super::{BlockTable, decode_record, flag};

const WHAT: &str = "RAM record";

/// A record. Blocks are numbers in the [`BlockTable`]; offsets are in bytes from the block's
/// beginning, those of pages that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamRecord {
    /// A page is zero.
    Zero {
        /// The page's block.
        block: usize,
        /// The page's offset.
        offset: u64,
    },
    /// A page's content is next in the input, and must be read before the next record.
    Page {
        /// The page's block.
        block: usize,
        /// The page's offset.
        offset: u64,
    },
    /// A page's difference is next in the input, and must be read before the next record: see
    /// [`xbzrle::decode`].
    Xbzrle {
        /// The page's block.
        block: usize,
        /// The page's offset.
        offset: u64,
        /// The bytes of the difference; at most a page.
        bytes: usize,
    },
    /// Wait until all multifd channels have come to their SYNC.
    MultifdFlush,
    /// The body ends.
    Eos,
}

/// Reads the records of one channel.
#[derive(Debug, Clone)]
pub struct RamReader {
    table: Arc<BlockTable>,
    previous: Option<usize>,
}

impl RamReader {
    /// Reads records of pages in these blocks.
    pub fn new(table: Arc<BlockTable>) -> Self {
        Self {
            table,
            previous: None,
        }
    }

    /// The blocks.
    pub fn table(&self) -> &Arc<BlockTable> {
        &self.table
    }

    /// Forgets the block of the record before, as both sides do when a channel takes another
    /// role: the next record must name its block.
    pub fn forget_block(&mut self) {
        self.previous = None;
    }

    /// Decodes the next record.
    ///
    /// # Errors
    /// [`DecodeError::Unsupported`] for HOOK and COMPRESS_PAGE, [`DecodeError::Corrupt`] for
    /// whatever is no record, names no block, or lies in no page.
    pub fn record<I: Input>(&mut self, input: &mut I) -> Result<RamRecord, DecodeError> {
        let at = input.offset();
        let (offset, flags) = decode_record(input)?;
        match flags & !flag::CONTINUE {
            flag::PAGE => {
                let block = self.page(input, at, offset, flags)?;
                Ok(RamRecord::Page { block, offset })
            }
            flag::ZERO => {
                let block = self.page(input, at, offset, flags)?;
                zero_byte(input)?;
                Ok(RamRecord::Zero { block, offset })
            }
            flag::XBZRLE => {
                let block = self.page(input, at, offset, flags)?;
                let bytes = xbzrle::decode_header(input)?;
                Ok(RamRecord::Xbzrle {
                    block,
                    offset,
                    bytes,
                })
            }
            flag::EOS if offset | (flags & flag::CONTINUE) == 0 => Ok(RamRecord::Eos),
            flag::MULTIFD_FLUSH if offset | (flags & flag::CONTINUE) == 0 => {
                Ok(RamRecord::MultifdFlush)
            }
            _ => Err(refused(at, offset, flags)),
        }
    }

    fn page<I: Input>(
        &mut self,
        input: &mut I,
        at: u64,
        offset: u64,
        flags: u64,
    ) -> Result<usize, DecodeError> {
        let block = match (flags & flag::CONTINUE != 0, self.previous) {
            (true, Some(block)) => block,
            (true, None) => {
                return Err(DecodeError::corrupt(
                    WHAT,
                    at,
                    "the name of a block in the first record",
                    format!("CONTINUE in flags {flags:#x}"),
                ));
            }
            (false, _) => self.name(input)?,
        };
        self.previous = Some(block);
        self.table.check_page(block, offset, at)?;
        Ok(block)
    }

    fn name<I: Input>(&self, input: &mut I) -> Result<usize, DecodeError> {
        const WHAT: &str = "RAM block's name";
        let at = input.offset();
        let mut name = [0; NAME_MAX_BYTES];
        let length = usize::from(input.u8(WHAT)?);
        input.fill(WHAT, &mut name[..length])?;
        self.table.named(&name[..length], at)
    }
}

fn zero_byte<I: Input>(input: &mut I) -> Result<(), DecodeError> {
    const WHAT: &str = "byte that fills a ZERO page";
    let at = input.offset();
    match input.u8(WHAT)? {
        0 => Ok(()),
        other => Err(DecodeError::corrupt(WHAT, at, 0, other)),
    }
}

#[cold]
fn refused(at: u64, offset: u64, flags: u64) -> DecodeError {
    let gone = flag::HOOK | flag::COMPRESS_PAGE;
    let found = format!("offset {offset:#x} with flags {flags:#x}");
    if flags & gone != 0 && flags & !(gone | flag::CONTINUE) == 0 {
        let supported = "pages as they are, of zeros, or as XBZRLE; no RDMA, no `compress`";
        return DecodeError::unsupported(WHAT, at, found, supported);
    }
    let expected = match flags {
        flag::MEM_SIZE => "pages: the list of blocks came already",
        _ => "ZERO, PAGE or XBZRLE with or without CONTINUE, MULTIFD_FLUSH, EOS",
    };
    DecodeError::corrupt(WHAT, at, expected, found)
}
