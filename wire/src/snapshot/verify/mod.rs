//! Checking a file against its checksums.
//!
//! [`SnapshotFile::parse`] has checked the structure already, with the checksums of the
//! extension's directory and trailer. What is left is the metadata (one checksum), the page
//! tables, and the pages. [`verify_pages`] checks a range of pages and shares nothing, so that
//! many threads can check many ranges; [`verify`] does all of it.
//!
//! A file without checksums, as QEMU writes them, has only a structure to check: its bitmaps are
//! read, and the report says that no more was possible.

mod pages;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::input::read;
use crate::{DecodeError, ReadAt};

pub use pages::{BadPage, PageCheck, verify_pages};

use super::extension::{Extension, Table, crc32c_append};
use super::{Block, SnapshotFile};

/// The pages that [`verify`] gives to a thread at a time.
const RANGE_PAGES: u64 = 16384;
/// The bytes of metadata that are read at once.
const STEP_BYTES: u64 = 64 << 10;
/// The most bad pages that a report names; all are counted.
pub const BAD_PAGES_NAMED_MAX: usize = 64;

/// What was checked, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Does the file have checksums? If not, only its structure was checked.
    pub checksums: bool,
    /// Things other than pages that are wrong, each as a sentence.
    pub damage: Vec<String>,
    /// Pages whose content was checked.
    pub pages_checked: u64,
    /// Pages that are not in the file: all zero.
    pub zero_pages: u64,
    /// Pages that are wrong.
    pub bad_page_count: u64,
    /// The first of them, at most [`BAD_PAGES_NAMED_MAX`], in the file's order.
    pub bad_pages: Vec<BadPage>,
}

impl VerifyReport {
    /// Is nothing wrong?
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.bad_page_count == 0
    }
}

/// How far [`verify`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Pages looked at so far, zero pages too.
    pub pages_done: u64,
    /// Pages in all.
    pub pages_total: u64,
}

/// Checks everything with `threads` threads; `progress` is called from any of them, about once
/// for every 64 MiB.
///
/// # Errors
/// [`DecodeError`] if the file cannot be read or a bitmap is impossible. Damage that a checksum
/// finds is not an error but the report's content.
pub fn verify<R: ReadAt + ?Sized>(
    reader: &R,
    file: &SnapshotFile,
    threads: usize,
    progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<VerifyReport, DecodeError> {
    let mut report = VerifyReport {
        checksums: file.extension.is_some(),
        damage: Vec::new(),
        pages_checked: 0,
        zero_pages: 0,
        bad_page_count: 0,
        bad_pages: Vec::new(),
    };
    if file.extension.is_some() {
        report.damage = verify_metadata(reader, file)?;
    }
    // Bitmaps say which pages to read: if they may be wrong, pages are not worth reading.
    if !report.damage.is_empty() {
        return Ok(report);
    }
    if file.extension.is_none() {
        for block in &file.blocks {
            report.zero_pages += block.pages() - block.count_present_pages(reader)?;
        }
        return Ok(report);
    }
    let pages = verify_all_pages(reader, file, threads, progress)?;
    report.pages_checked = pages.pages_checked;
    report.zero_pages = pages.zero_pages;
    report.bad_page_count = pages.bad_page_count;
    report.bad_pages = pages.bad_pages;
    Ok(report)
}

/// Checks everything but the pages: the stream's bytes, bitmaps, device bodies, page tables.
/// Each item of the result is something that is damaged.
///
/// # Errors
/// [`DecodeError::Read`].
pub fn verify_metadata<R: ReadAt + ?Sized>(
    reader: &R,
    file: &SnapshotFile,
) -> Result<Vec<String>, DecodeError> {
    let Some(extension) = &file.extension else {
        return Ok(Vec::new());
    };
    let mut damage = damaged_metadata(reader, file, extension)?;
    for (block, table) in file.blocks.iter().zip(&extension.tables) {
        let found = append(reader, TABLE, 0, table.range())?;
        damage.extend(damaged_table(block, table, found));
    }
    Ok(damage)
}

/// The same, and the checksums of all pages, by block, for who is to check pages while the file may
/// change: what was read here was checked here, whatever the file says later. They take
/// four bytes a page, a 1024th of RAM with pages of 4 KiB. None in a file without checksums.
///
/// # Errors
/// [`DecodeError::Read`], also where there is no memory for them.
pub fn verify_metadata_and_keep_tables<R: ReadAt + ?Sized>(
    reader: &R,
    file: &SnapshotFile,
) -> Result<(Vec<Vec<u32>>, Vec<String>), DecodeError> {
    let Some(extension) = &file.extension else {
        return Ok((Vec::new(), Vec::new()));
    };
    let mut damage = damaged_metadata(reader, file, extension)?;
    let mut tables = Vec::with_capacity(file.blocks.len());
    for (block, table) in file.blocks.iter().zip(&extension.tables) {
        let (crcs, found) = keep(reader, table)?;
        damage.extend(damaged_table(block, table, found));
        tables.push(crcs);
    }
    Ok((tables, damage))
}

const TABLE: &str = "table of page checksums";

/// A table, and the checksum of what was read.
fn keep<R: ReadAt + ?Sized>(reader: &R, table: &Table) -> Result<(Vec<u32>, u32), DecodeError> {
    let mut crcs: Vec<u32> = Vec::new();
    let pages = usize::try_from(table.pages).unwrap_or(usize::MAX);
    crcs.try_reserve_exact(pages)
        .map_err(|error| DecodeError::Read {
            what: TABLE,
            offset: table.offset,
            source: std::io::Error::new(std::io::ErrorKind::OutOfMemory, error),
        })?;
    let mut crc = 0;
    steps(reader, TABLE, table.range(), |bytes| {
        crc = crc32c_append(crc, bytes);
        let (words, _) = bytes.as_chunks::<4>();
        crcs.extend(words.iter().map(|word| u32::from_be_bytes(*word)));
    })?;
    Ok((crcs, crc))
}

fn damaged_metadata<R: ReadAt + ?Sized>(
    reader: &R,
    file: &SnapshotFile,
    extension: &Extension,
) -> Result<Vec<String>, DecodeError> {
    let (found, expected) = (metadata_crc(reader, file)?, extension.metadata_crc);
    let damaged = (found != expected).then(|| {
        format!(
            "metadata (block list, bitmaps or device state): checksum {found:08x}, expected \
             {expected:08x}"
        )
    });
    Ok(damaged.into_iter().collect())
}

fn damaged_table(block: &Block, table: &Table, found: u32) -> Option<String> {
    (found != table.crc).then(|| {
        format!(
            "page checksums of RAM block {:?}: checksum {found:08x}, expected {:08x}",
            block.id, table.crc
        )
    })
}

/// The checksum of a file's metadata as it is now.
fn metadata_crc<R: ReadAt + ?Sized>(reader: &R, file: &SnapshotFile) -> Result<u32, DecodeError> {
    const WHAT: &str = "metadata";
    let mut crc = 0;
    let mut stream_ranges = file.stream_ranges.iter();
    for (block, range) in file.blocks.iter().zip(stream_ranges.by_ref()) {
        crc = append(reader, WHAT, crc, range.clone())?;
        let bitmap = block.bitmap_offset..block.bitmap_offset + block.bitmap_bytes();
        crc = append(reader, WHAT, crc, bitmap)?;
    }
    // `zip` asks the blocks first, so the tail's range is still there.
    for range in stream_ranges {
        crc = append(reader, WHAT, crc, range.clone())?;
    }
    Ok(crc)
}

fn append<R: ReadAt + ?Sized>(
    reader: &R,
    what: &'static str,
    mut crc: u32,
    range: Range<u64>,
) -> Result<u32, DecodeError> {
    steps(reader, what, range, |bytes| crc = crc32c_append(crc, bytes))?;
    Ok(crc)
}

/// Reads a range in steps.
fn steps<R: ReadAt + ?Sized>(
    reader: &R,
    what: &'static str,
    range: Range<u64>,
    mut each: impl FnMut(&[u8]),
) -> Result<(), DecodeError> {
    let mut bytes = vec![0; (range.end - range.start).min(STEP_BYTES) as usize];
    let mut offset = range.start;
    while offset < range.end {
        let step = (range.end - offset).min(STEP_BYTES) as usize;
        read(reader, what, offset, &mut bytes[..step])?;
        each(&bytes[..step]);
        offset += step as u64;
    }
    Ok(())
}

fn verify_all_pages<R: ReadAt + ?Sized>(
    reader: &R,
    file: &SnapshotFile,
    threads: usize,
    progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<PageCheck, DecodeError> {
    let pages_total = file.blocks.iter().map(Block::pages).sum();
    let mut ranges = Vec::new();
    for (index, block) in file.blocks.iter().enumerate() {
        for first in (0..block.pages()).step_by(RANGE_PAGES as usize) {
            ranges.push((index, first..(first + RANGE_PAGES).min(block.pages())));
        }
    }
    let next = AtomicUsize::new(0);
    let pages_done = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let total: Mutex<Result<PageCheck, DecodeError>> = Mutex::new(Ok(PageCheck::default()));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some((block, range)) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            let pages = range.end - range.start;
            let checked = verify_pages(reader, file, *block, range.clone());
            failed.fetch_or(checked.is_err(), Ordering::Relaxed);
            let mut total = total.lock();
            match (&mut *total, checked) {
                (Ok(total), Ok(checked)) => total.add(checked),
                (total @ Ok(_), Err(error)) => *total = Err(error),
                (Err(_), _) => {}
            }
            drop(total);
            let pages_done = pages_done.fetch_add(pages, Ordering::Relaxed) + pages;
            progress(VerifyProgress {
                pages_done,
                pages_total,
            });
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(ranges.len()) {
            // The host may have no more of them: those that there are do it, and this one.
            let named = std::thread::Builder::new().name("verify".to_owned());
            if named.spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    total.into_inner()
}
