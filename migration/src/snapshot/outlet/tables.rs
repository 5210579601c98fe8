//! What is kept of each page until its file has all of them.

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use paguro_dirty::Copied;
use paguro_ram::PageSet;
use paguro_wire::snapshot::Layout;
use paguro_wire::snapshot::extension::crc32c;

/// Which pages are in the file, and their checksums. Threads note pages side by side.
#[derive(Default)]
pub(super) struct Tables {
    present: Vec<PageSet>,
    /// Checksum of each page, by block; empty without checksums.
    crcs: Vec<Box<[AtomicU32]>>,
}

impl Tables {
    pub(super) fn new(layout: &Layout, checksums: bool) -> Result<Self, TryReserveError> {
        let pages = || layout.blocks.iter().map(|block| block.pages() as usize);
        let crcs = if checksums {
            pages().map(unset_crcs).collect::<Result<_, _>>()?
        } else {
            Vec::new()
        };
        Ok(Self {
            present: pages().map(PageSet::try_new).collect::<Result<_, _>>()?,
            crcs,
        })
    }

    /// Bytes of them.
    pub(super) fn size_bytes(&self) -> usize {
        self.crcs.iter().map(|table| table.len() * 4).sum::<usize>()
            + self.present.iter().map(PageSet::size_bytes).sum::<usize>()
    }

    /// Notes the checksums of some of the pages that were copied.
    pub(super) fn note(&self, copied: &Copied, slots: Range<usize>) {
        if let Some(table) = self.crcs.get(copied.block()) {
            for slot in slots {
                let crc = crc32c(copied.content(slot));
                table[copied.pages()[slot]].store(crc, Ordering::Relaxed);
            }
        }
    }

    /// These pages of a block are in the file.
    pub(super) fn insert(&self, block: usize, pages: Range<usize>) {
        self.present[block].insert_range(pages);
    }

    /// For each block a bit for each page in the file.
    pub(super) fn bitmaps(&self) -> Vec<Vec<u64>> {
        self.present.iter().map(PageSet::to_words).collect()
    }

    /// The checksums of each block.
    pub(super) fn crcs(&self) -> &[Box<[AtomicU32]>] {
        &self.crcs
    }
}

/// A table of checksums, four bytes a page: 256 MiB for 256 GiB of RAM, which there may not be.
fn unset_crcs(pages: usize) -> Result<Box<[AtomicU32]>, TryReserveError> {
    let mut crcs = Vec::new();
    crcs.try_reserve_exact(pages)?;
    crcs.extend((0..pages).map(|_| AtomicU32::new(0)));
    Ok(crcs.into())
}
