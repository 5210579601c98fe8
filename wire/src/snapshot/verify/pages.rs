//! Checking pages.

use std::ops::Range;

use serde::Serialize;

use crate::input::read;
use crate::{DecodeError, ReadAt, bitmap};

use super::super::extension::{Extension, crc32c};
use super::super::{Block, SnapshotFile};
use super::{BAD_PAGES_NAMED_MAX, RANGE_PAGES};

/// The most bytes of pages that are read at once.
const READ_BYTES: u64 = 1 << 20;

/// A page whose bytes are not those that were saved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct BadPage {
    /// Where it stands in the file.
    pub file_offset: u64,
    /// Its RAM block.
    pub block: String,
    /// Its number in the block.
    pub page: u64,
    /// The checksum in the table.
    pub expected_crc: u32,
    /// The checksum of what the file has; nothing if the page is not in the file but the table
    /// has a checksum for it.
    pub found_crc: Option<u32>,
}

/// What [`verify_pages`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PageCheck {
    /// Pages whose content was checked.
    pub pages_checked: u64,
    /// Pages that are not in the file.
    pub zero_pages: u64,
    /// Pages that are wrong.
    pub bad_page_count: u64,
    /// The first of them.
    pub bad_pages: Vec<BadPage>,
}

/// Checks a range of pages of block number `block`. Pages beyond the block are left out; in a
/// file without checksums, or for a block that it does not have, nothing is checked.
///
/// # Errors
/// [`DecodeError`] if the file cannot be read or the bitmap is impossible.
pub fn verify_pages<R: ReadAt + ?Sized>(
    reader: &R,
    file: &SnapshotFile,
    block: usize,
    range: Range<u64>,
) -> Result<PageCheck, DecodeError> {
    let mut check = PageCheck::default();
    let (Some(extension), Some(place)) = (&file.extension, file.blocks.get(block)) else {
        return Ok(check);
    };
    let end = range.end.min(place.pages());
    let mut first = range.start.min(end);
    let mut buffer = Vec::new();
    while first < end {
        // One word's worth at a time would be slow, one range's worth may be anything.
        let last = end.min((first / 64) * 64 + RANGE_PAGES);
        let part = Part {
            block: place,
            first,
            words: place.read_bitmap_words(reader, first / 64, last.div_ceil(64) - first / 64)?,
            crcs: page_crcs(reader, extension, block, first..last)?,
        };
        part.verify(reader, last, &mut buffer, &mut check)?;
        first = last;
    }
    Ok(check)
}

fn page_crcs<R: ReadAt + ?Sized>(
    reader: &R,
    extension: &Extension,
    block: usize,
    range: Range<u64>,
) -> Result<Vec<u32>, DecodeError> {
    match extension.tables.get(block) {
        Some(table) => table.read(reader, range.start, range.end - range.start),
        None => Ok(Vec::new()),
    }
}

/// A range of a block's pages with what is known of them.
struct Part<'a> {
    block: &'a Block,
    first: u64,
    /// The bitmap from the word of page `first` on.
    words: Vec<u64>,
    crcs: Vec<u32>,
}

impl Part<'_> {
    fn verify<R: ReadAt + ?Sized>(
        &self,
        reader: &R,
        end: u64,
        buffer: &mut Vec<u8>,
        check: &mut PageCheck,
    ) -> Result<(), DecodeError> {
        let most = READ_BYTES / self.block.page_size_bytes;
        let mut page = self.first;
        while page < end {
            if !self.is_present(page) {
                check.zero_pages += 1;
                if self.crc(page) != 0 {
                    check.note(self.bad(page, None));
                }
                page += 1;
                continue;
            }
            let mut run_end = page + 1;
            while run_end < end.min(page + most) && self.is_present(run_end) {
                run_end += 1;
            }
            buffer.resize(((run_end - page) * self.block.page_size_bytes) as usize, 0);
            read(reader, "pages", self.block.page_offset(page), buffer)?;
            for bytes in buffer.chunks(self.block.page_size_bytes as usize) {
                let found = crc32c(bytes);
                check.pages_checked += 1;
                if found != self.crc(page) {
                    check.note(self.bad(page, Some(found)));
                }
                page += 1;
            }
        }
        Ok(())
    }

    fn is_present(&self, page: u64) -> bool {
        bitmap::is_set(&self.words, page - self.first / 64 * 64)
    }

    fn crc(&self, page: u64) -> u32 {
        let index = usize::try_from(page - self.first).unwrap_or(usize::MAX);
        self.crcs.get(index).copied().unwrap_or_default()
    }

    fn bad(&self, page: u64, found_crc: Option<u32>) -> BadPage {
        BadPage {
            file_offset: self.block.page_offset(page),
            block: self.block.id.clone(),
            page,
            expected_crc: self.crc(page),
            found_crc,
        }
    }
}

impl PageCheck {
    fn note(&mut self, page: BadPage) {
        self.bad_page_count += 1;
        if self.bad_pages.len() < BAD_PAGES_NAMED_MAX {
            self.bad_pages.push(page);
        }
    }

    /// Adds what another range's check found.
    pub fn add(&mut self, other: PageCheck) {
        self.pages_checked += other.pages_checked;
        self.zero_pages += other.zero_pages;
        self.bad_page_count += other.bad_page_count;
        self.bad_pages.extend(other.bad_pages);
        self.bad_pages.sort();
        self.bad_pages.truncate(BAD_PAGES_NAMED_MAX);
    }
}
