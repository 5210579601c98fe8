//! The body of section `ram`: records of an offset and flags, and the list of RAM blocks.
//!
//! Every record begins with a `u64`: an offset, with flags in the bits below the page size.
//!
//! ```text
//! flags                     after the word
//! 004 MEM_SIZE              the list of RAM blocks, as many as make up the total in the offset:
//!                             str8 name, u64 used length
//!                             [ u64 page size ]       postcopy, pages of another size than usual
//!                             [ u64 guest address ]   x-ignore-shared
//!                             [ MappedRamHeader ]     a mapped-ram file
//! 002 ZERO                  [ str8 block ]  u8 0
//! 008 PAGE                  [ str8 block ]  one page
//! 040 XBZRLE                [ str8 block ]  u8 1, u16 n, n bytes (see `super::xbzrle`)
//! 020 CONTINUE              added to one of these three: no name, the block is that of the
//!                             record before it on this channel, in whichever section that was
//! 200 MULTIFD_FLUSH         nothing: wait for the multifd channels
//! 010 EOS                   nothing: the body ends
//! ```
//!
//! START carries the list and ends; PART and END carry pages. HOOK (RDMA) and COMPRESS_PAGE (gone
//! since QEMU 9.1) are refused. A list may be bounded by memory, a number of pages cannot be: a
//! page that was written again is sent again, for as long as the source likes.
//!
//! [`BlockTable`] is the list, [`RamReader`] and [`RamWriter`] are the records; they allocate
//! nothing for a page.

mod blocks;
mod reader;
mod writer;

pub use blocks::{BlockTable, ListExtras, ListedBlock, TableError};
pub use reader::{RamReader, RamRecord};
pub use writer::RamWriter;

use crate::input::Input;
use crate::{DecodeError, PAGE_BYTES};

use super::put_str8;

/// The section's name.
pub const NAME: &str = "ram";
/// The section's version.
pub const VERSION: u32 = 4;

/// Flags of a record.
pub mod flag {
    /// A page of zeros.
    pub const ZERO: u64 = 0x02;
    /// The block list.
    pub const MEM_SIZE: u64 = 0x04;
    /// A page's content.
    pub const PAGE: u64 = 0x08;
    /// The end of the body.
    pub const EOS: u64 = 0x10;
    /// The block is that of the record before; modifies others.
    pub const CONTINUE: u64 = 0x20;
    /// A page's difference to what the destination has.
    pub const XBZRLE: u64 = 0x40;
    /// RDMA only.
    pub const HOOK: u64 = 0x80;
    /// A page compressed on its own; gone since QEMU 9.1.
    pub const COMPRESS_PAGE: u64 = 0x100;
    /// Wait for the multifd channels.
    pub const MULTIFD_FLUSH: u64 = 0x200;
    /// All bits that are flags where the page size is 4 KiB.
    pub const MASK: u64 = 0xfff;
}

/// The most RAM blocks that are read.
pub const BLOCKS_MAX: usize = 4096;

/// Appends a record's first word.
pub fn encode_record(offset: u64, flags: u64, out: &mut Vec<u8>) {
    debug_assert!(offset & flag::MASK == 0 && flags & !flag::MASK == 0);
    out.extend_from_slice(&(offset | flags).to_be_bytes());
}

/// Decodes a record's first word into offset and flags.
///
/// # Errors
/// As [`Input::fill`].
pub fn decode_record<I: Input>(input: &mut I) -> Result<(u64, u64), DecodeError> {
    let word = input.u64("RAM record")?;
    Ok((word & !flag::MASK, word & flag::MASK))
}

/// How many pages with content follow each other from the page at `offset` on, as far as the bytes that
/// are here say; `ahead` begins with the content of that page, of which not all need be here. At
/// least 1. It may say more than the block has.
pub fn run_ahead(offset: u64, ahead: &[u8]) -> usize {
    const RECORD: usize = 8 + PAGE_BYTES as usize;
    let words = ahead.get(PAGE_BYTES as usize..).unwrap_or_default();
    let words = words
        .chunks(RECORD)
        .map_while(|record| record.first_chunk());
    let next = (1..).map(|page| offset.wrapping_add(page * PAGE_BYTES));
    let follows = |(word, next): &(&[u8; 8], u64)| {
        u64::from_be_bytes(**word) == next | flag::PAGE | flag::CONTINUE
    };
    1 + words.zip(next).take_while(follows).count()
}

/// A block's entry in the block list, without what some capabilities add to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// The block's name.
    pub id: String,
    /// Its used length in bytes.
    pub used_length_bytes: u64,
}

impl BlockEntry {
    /// Appends the entry. The id must not be longer than [`crate::NAME_MAX_BYTES`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_str8(out, &self.id);
        out.extend_from_slice(&self.used_length_bytes.to_be_bytes());
    }

    /// Decodes the entry.
    ///
    /// # Errors
    /// As [`Input::fill`]; [`DecodeError::Corrupt`] for an id that is empty or not UTF-8.
    pub fn decode<I: Input>(input: &mut I) -> Result<Self, DecodeError> {
        let offset = input.offset();
        let id = input.str8("RAM block's id")?;
        if id.is_empty() {
            return Err(DecodeError::corrupt(
                "RAM block's id",
                offset,
                "a name",
                "none",
            ));
        }
        Ok(Self {
            id,
            used_length_bytes: input.u64("RAM block's used length")?,
        })
    }
}

/// Where a block's bitmap and pages stand in a mapped-ram file; offsets are absolute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRamHeader {
    /// The version, 1; QEMU reads 0 as well.
    pub version: u32,
    /// The bytes of a page.
    pub page_size_bytes: u64,
    /// Where the bitmap of pages that are present begins.
    pub bitmap_offset: u64,
    /// Where page 0 stands; page *i* stands *i* page sizes after it.
    pub pages_offset: u64,
}

impl MappedRamHeader {
    /// The version that is written.
    pub const VERSION: u32 = 1;
    /// The header's bytes.
    pub const BYTES: u64 = 28;

    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&self.page_size_bytes.to_be_bytes());
        out.extend_from_slice(&self.bitmap_offset.to_be_bytes());
        out.extend_from_slice(&self.pages_offset.to_be_bytes());
    }

    /// Decodes the header; looks at the version only.
    ///
    /// # Errors
    /// [`DecodeError::Unsupported`] for a version above 1.
    pub fn decode<I: Input>(input: &mut I) -> Result<Self, DecodeError> {
        let offset = input.offset();
        let header = Self {
            version: input.u32("mapped-ram header")?,
            page_size_bytes: input.u64("mapped-ram header")?,
            bitmap_offset: input.u64("mapped-ram header")?,
            pages_offset: input.u64("mapped-ram header")?,
        };
        if header.version > Self::VERSION {
            return Err(DecodeError::unsupported(
                "mapped-ram header",
                offset,
                format!("version {}", header.version),
                "versions 0 and 1",
            ));
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_at_what_is_no_next_page_and_where_the_bytes_end() {
        const CONTENT: u64 = flag::PAGE | flag::CONTINUE;
        let mut ahead = vec![1; PAGE_BYTES as usize];
        assert_eq!(run_ahead(0x5000, &[]), 1);
        assert_eq!(run_ahead(0x5000, &ahead), 1);
        for page in [0x6000, 0x7000, 0x8000] {
            encode_record(page, CONTENT, &mut ahead);
            ahead.resize(ahead.len() + PAGE_BYTES as usize, 1);
        }
        assert_eq!(run_ahead(0x5000, &ahead), 4);
        // Its content is still on its way, or its word is.
        let (word, page) = (8, PAGE_BYTES as usize);
        assert_eq!(run_ahead(0x5000, &ahead[..ahead.len() - page]), 4);
        assert_eq!(run_ahead(0x5000, &ahead[..ahead.len() - page - 1]), 3);
        assert_eq!(run_ahead(0x5000, &ahead[..page + word]), 2);
        assert_eq!(run_ahead(0x4000, &ahead), 1);
        let last = ahead.len();
        encode_record(0x9000, flag::ZERO | flag::CONTINUE, &mut ahead);
        assert_eq!(run_ahead(0x5000, &ahead), 4);
        ahead.truncate(last);
        encode_record(0xa000, CONTENT, &mut ahead);
        assert_eq!(run_ahead(0x5000, &ahead), 4);
        assert_eq!(
            run_ahead(u64::MAX - 0xfff, &[0; 3 * PAGE_BYTES as usize]),
            1
        );
    }
}
