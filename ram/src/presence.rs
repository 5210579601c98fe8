//! Which pages of a block are present: asked of the kernel in the way that suits its memory.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use paguro_sys::presence::{Pagemap, Which, hugetlb, shared};
use paguro_sys::{Mapping, page_size};

use crate::block::Others;
use crate::{Backing, RamBlock};

/// Calls `found` with the runs of pages of `pages` that may have content. All others are absent:
/// zero, and not to be read.
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
            match block.others() {
                Others::None => hugetlb(mapping, None, bytes, runs),
                Others::Before(mapped) => {
                    if mapped.get().is_none() {
                        map_all(mapping, file)?;
                        let _ = mapped.set(());
                    }
                    hugetlb(mapping, None, bytes, runs)
                }
                Others::Always => hugetlb(mapping, Some(file), bytes, runs),
            }
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

/// Has pages that others left in a file mapped here, so that the page tables tell of them from now on.
/// They are there: reading a byte of each takes no memory.
fn map_all(mapping: &Mapping, file: (BorrowedFd<'_>, u64)) -> io::Result<()> {
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
