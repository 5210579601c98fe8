//! What QEMU's format lacks: checksums, and where the file comes from.
//!
//! The extension stands directly behind VMDESCRIPTION, where QEMU never reads, and is found from
//! a trailer of fixed size at the very end of the file. All integers are big-endian, all
//! checksums CRC-32C.
//!
//! ```text
//! E = end of VMDESCRIPTION
//!     page tables      for each RAM block, in the file's order: 4 bytes a page, the checksum of
//!                      the page's bytes; 0 where the page's bit in the bitmap is clear
//! D   directory        4   checksum of the metadata (below)
//!                      4   number of RAM blocks
//!                      for each: 8  offset of its page table in the file
//!                                8  number of pages
//!                                4  checksum of its page table's bytes
//!                      4   length of the facts
//!                      n   facts, JSON
//!                      4   checksum of the directory up to here
//! T   trailer          8   "paguro\r\n"
//!                      4   version 1
//!                      4   0
//!                      8   E
//!                      8   T - E
//!                      8   D
//!                      4   checksum of the trailer up to here
//! T + 44 = end of the file
//! ```
//!
//! The metadata are, in this order: for each RAM block the stream's bytes in front of its bitmap
//! (for the first block from the start of the file, for others from the end of the pages before)
//! and its bitmap; then all bytes from the end of the last block's pages to E. So every byte of
//! the file is under a checksum, but for pages whose bit is clear (their places are holes, or
//! hold something stale) and the holes between bitmaps and pages.
//!
//! A table has its own checksum so that a damaged table is told from damaged pages. It comes
//! before the directory so that it can be written piece by piece.
//!
//! An extension of a later version is refused as unsupported; additions within version 1 go into
//! the facts, whose unknown keys are ignored.

mod plan;
mod trailer;

use serde::{Deserialize, Serialize};

use crate::input::read;
use crate::{DecodeError, ReadAt};

pub use plan::{ExtensionPlan, encode_table};
pub(super) use trailer::Trailer;

/// The version of the extension.
pub const VERSION: u32 = 1;
/// The first bytes of the trailer. A transfer that rewrites line ends damages it.
pub const MAGIC: [u8; 8] = *b"paguro\r\n";
/// The bytes of the trailer.
pub const TRAILER_BYTES: u64 = 44;
/// The longest facts that are read, in bytes.
pub const FACTS_MAX_BYTES: usize = 64 << 10;

/// The bytes of a page's checksum.
pub const CRC_BYTES: u64 = 4;

/// The checksum of a page, and of everything else here.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Goes on with a checksum: `crc32c_append(crc32c(a), b)` is that of `a` and `b` together.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// Where a snapshot comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The version of paguro that wrote the file.
    #[serde(default)]
    pub paguro_version: String,
    /// The time of the picture, in seconds since 1970, UTC.
    #[serde(default)]
    pub taken_at_unix_s: u64,
    /// Was the guest running when the snapshot was asked for?
    #[serde(default)]
    pub was_running: bool,
    /// The page size of the host's mapping of guest RAM, in bytes.
    #[serde(default)]
    pub host_page_size_bytes: u64,
}

/// An extension that was read and whose own checksums are right, the tables' excepted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extension {
    /// Where it begins, directly behind VMDESCRIPTION.
    pub offset: u64,
    /// Its bytes, with the trailer.
    pub length_bytes: u64,
    /// The checksum of the metadata.
    pub metadata_crc: u32,
    /// The page tables, one a block.
    pub tables: Vec<Table>,
    /// Where the snapshot comes from.
    pub facts: Facts,
}

/// A block's page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Table {
    /// Where it begins.
    pub offset: u64,
    /// The number of pages; each takes four bytes.
    pub pages: u64,
    /// The checksum of its bytes.
    pub crc: u32,
}

impl Table {
    /// Where its bytes stand in the file.
    pub fn range(&self) -> std::ops::Range<u64> {
        // No overflow: it was found inside a file.
        self.offset..self.offset + self.pages * CRC_BYTES
    }

    /// Reads the checksums of `pages` pages from page `first` on; the caller bounds the range.
    ///
    /// # Errors
    /// [`DecodeError::Read`].
    pub fn read<R: ReadAt + ?Sized>(
        &self,
        reader: &R,
        first: u64,
        pages: u64,
    ) -> Result<Vec<u32>, DecodeError> {
        debug_assert!(first + pages <= self.pages);
        let mut bytes = vec![0; (pages * CRC_BYTES) as usize];
        let offset = self.offset + first * CRC_BYTES;
        read(reader, "table of page checksums", offset, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| u32::from_be_bytes(*word)).collect())
    }
}
