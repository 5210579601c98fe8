//! Which pages of a block are present: asked of the kernel in the way that suits its memory.

use std::io;
use std::ops::Range;

use paguro_sys::page_size;
use paguro_sys::presence::{Pagemap, Which, file_bytes, hugetlb, shared};

use crate::{Backing, RamBlock};

/// Calls `found` with the runs of pages of `pages` that may have content. All others are absent:
/// zero, and not to be read.
///
/// Of huge pages of a file that exists which is mapped here, or others may write: see [`map_rest`].
///
/// Where the kernel does not tell markers of protected absent pages ([`Pagemap::tells_markers`]), they
/// count as content in anonymous memory: there it is to be asked *before* the range is protected.
///
/// # Errors
///
/// The kernel's.
pub fn present(
    block: &RamBlock,
    pages: Range<usize>,
    pagemap: &Pagemap,
    mut found: impl FnMut(Range<usize>),
) -> io::Result<()> {
    let page = page_size();
    let bytes = block.bytes_of(&pages);
    let mapping = block.mapping();
    let mut runs = |bytes: Range<usize>| found(bytes.start / page..bytes.end.div_ceil(page));
    let huge = block.unit_pages() > 1;
    match (block.backing(), block.file()) {
        (Backing::Anonymous, _) if huge => hugetlb(mapping, None, bytes, runs),
        (Backing::Memfd, Some(file)) if huge => {
            let file = (file, block.file_offset());
            hugetlb(mapping, block.others_write().then_some(file), bytes, runs)
        }
        (Backing::Memfd, Some(file)) => shared(mapping, file, block.file_offset(), bytes, runs),
        // A private file mapping reads the file where nothing was written: all of it has content. So may
        // all of shared memory, which others may have written, where its file is not known.
        (Backing::PrivateFile, _) | (Backing::Memfd, None) => {
            runs(bytes);
            Ok(())
        }
        (Backing::Anonymous, _) => pagemap.scan(mapping, bytes, Which::Existing, runs),
    }
}

/// Has pages that are in the file of a block and not mapped here mapped, so that from now on what is
/// mapped is what exists. For 2 MiB pages of a block to whose file nobody else writes: others may
/// have, before they handed it over, and what was mapped here may have been unmapped, by a caller or by
/// the kernel (page tables that two processes share are given up when one of them registers). To be called
/// by whoever is about to look at which pages exist, before anything hangs on how long it takes:
/// where pages are not mapped, the holes of the file are read, some 100 us each.
///
/// # Errors
///
/// The kernel's.
pub fn map_rest(block: &RamBlock) -> io::Result<()> {
    let (mapping, huge) = (block.mapping(), block.unit_pages() > 1);
    let Some(file) = block.file().filter(|_| huge && !block.others_write()) else {
        return Ok(());
    };
    let in_file = file_bytes(file)?;
    let mut mapped = 0;
    hugetlb(mapping, None, 0..mapping.len(), |bytes| {
        mapped += bytes.len() as u64
    })?;
    if mapped >= in_file {
        return Ok(());
    }
    // They are there: reading a byte of each takes no memory.
    let file = (file, block.file_offset());
    hugetlb(mapping, Some(file), 0..mapping.len(), |bytes| {
        mapping.touch(bytes.start, bytes.len());
    })
}

/// Calls `found` with the runs of pages that exist and are not protected by a userfaultfd, where the
/// host can tell.
///
/// # Errors
///
/// The kernel's.
pub fn unprotected(
    block: &RamBlock,
    pages: Range<usize>,
    pagemap: &Pagemap,
    mut found: impl FnMut(Range<usize>),
) -> io::Result<()> {
    let (page, bytes) = (page_size(), block.bytes_of(&pages));
    pagemap.scan(block.mapping(), bytes, Which::Unprotected, |bytes| {
        found(bytes.start / page..bytes.end / page);
    })
}

/// Calls `found` with the runs of pages that are mapped by huge pages, where the host can tell.
///
/// # Errors
///
/// The kernel's.
pub fn huge(
    block: &RamBlock,
    pages: Range<usize>,
    pagemap: &Pagemap,
    mut found: impl FnMut(Range<usize>),
) -> io::Result<()> {
    let page = page_size();
    pagemap.scan(
        block.mapping(),
        block.bytes_of(&pages),
        Which::Huge,
        |bytes| {
            found(bytes.start / page..bytes.end / page);
        },
    )
}
