//! A RAM block's place in a file.

use crate::input::read;
use crate::stream::ram::MappedRamHeader;
use crate::{DecodeError, ReadAt, bitmap};

/// The bytes of a bitmap that are read at once.
const STEP_BYTES: u64 = 64 << 10;

/// Where a RAM block's bitmap and pages stand in a file. Offsets are absolute, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Block {
    /// The block's id.
    pub id: String,
    /// Its used length in bytes.
    pub used_length_bytes: u64,
    /// The bytes of one page; the used length is a multiple of it.
    pub page_size_bytes: u64,
    /// Where the bitmap begins; it takes [`Block::bitmap_bytes`].
    pub bitmap_offset: u64,
    /// Where the pages begin; they take the used length.
    pub pages_offset: u64,
    /// The version of the mapped-ram header.
    pub header_version: u32,
}

impl Block {
    /// The number of pages.
    pub fn pages(&self) -> u64 {
        self.used_length_bytes / self.page_size_bytes
    }

    /// The bytes of the bitmap.
    pub fn bitmap_bytes(&self) -> u64 {
        bitmap::bytes_for(self.pages())
    }

    /// Where page `page` stands. The page must be one of the block's.
    pub fn page_offset(&self, page: u64) -> u64 {
        debug_assert!(page < self.pages());
        self.pages_offset + page * self.page_size_bytes
    }

    /// Reads the bitmap: bit *i* is set if page *i* stands in the file; pages without a bit are
    /// zero. Takes a bit a page of memory.
    ///
    /// # Errors
    /// [`DecodeError::Read`]; [`DecodeError::Corrupt`] if bits beyond the last page are set.
    pub fn read_bitmap<R: ReadAt + ?Sized>(&self, reader: &R) -> Result<Vec<u64>, DecodeError> {
        self.read_bitmap_words(reader, 0, bitmap::words_for(self.pages()))
    }

    /// Reads `words` words of the bitmap from word `first` on; no further than its end.
    ///
    /// # Errors
    /// As [`Block::read_bitmap`].
    pub fn read_bitmap_words<R: ReadAt + ?Sized>(
        &self,
        reader: &R,
        first: u64,
        words: u64,
    ) -> Result<Vec<u64>, DecodeError> {
        const WHAT: &str = "bitmap of a RAM block";
        let end = first
            .saturating_add(words)
            .min(bitmap::words_for(self.pages()));
        let first = first.min(end);
        let mut words = Vec::with_capacity((end - first) as usize);
        let mut bytes = vec![0; ((end - first) * 8).min(STEP_BYTES) as usize];
        let mut offset = self.bitmap_offset + first * 8;
        let end_offset = self.bitmap_offset + end * 8;
        while offset < end_offset {
            let step = (end_offset - offset).min(STEP_BYTES) as usize;
            read(reader, WHAT, offset, &mut bytes[..step])?;
            words.extend(bitmap::words(&bytes[..step]));
            offset += step as u64;
        }
        match bitmap::first_beyond(&words, self.pages() - (first * 64).min(self.pages())) {
            None => Ok(words),
            Some(page) => Err(DecodeError::corrupt(
                WHAT,
                self.bitmap_offset,
                format!("bits for {} pages of {:?}", self.pages(), self.id),
                format!("a bit for page {}", first * 64 + page),
            )),
        }
    }

    /// Counts the pages that stand in the file, with little memory however large the block is.
    ///
    /// # Errors
    /// As [`Block::read_bitmap`].
    pub fn count_present_pages<R: ReadAt + ?Sized>(&self, reader: &R) -> Result<u64, DecodeError> {
        let mut present = 0;
        let mut first = 0;
        while first < bitmap::words_for(self.pages()) {
            present +=
                bitmap::count_ones(&self.read_bitmap_words(reader, first, STEP_BYTES / 8)?);
            first += STEP_BYTES / 8;
        }
        Ok(present)
    }

    pub(crate) fn header(&self) -> MappedRamHeader {
        MappedRamHeader {
            version: self.header_version,
            page_size_bytes: self.page_size_bytes,
            bitmap_offset: self.bitmap_offset,
            pages_offset: self.pages_offset,
        }
    }
}
