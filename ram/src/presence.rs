//! Which pages of a block are present: asked of the kernel in the way that suits its memory.

use std::io;
use std::ops::Range;

use paguro_sys::page_size;
use paguro_sys::presence::{Pagemap, Which, file_data, hugetlb};

use crate::{Backing, RamBlock};

/// Calls `found` with the runs of pages of `pages` that may have content. All others are absent:
/// zero, and not to be read. To be asked *before* the range is protected, or as
/// [`present_now`] afterwards.
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
    let mut runs = |bytes: Range<usize>| found(bytes.start / page..bytes.end.div_ceil(page));
    match (block.backing(), block.file()) {
        _ if block.unit_pages() > 1 => hugetlb(block.mapping(), bytes, runs),
        (Backing::Memfd, Some(file)) => {
            let base = block.file_offset();
            let part = base + bytes.start as u64..base + bytes.end as u64;
            file_data(file, part, |data| {
                runs((data.start - base) as usize..(data.end - base) as usize)
            })
        }
        // A private file mapping reads the file where nothing was written: all of it has content.
        (Backing::PrivateFile, _) | (Backing::Memfd, None) => {
            runs(bytes);
            Ok(())
        }
        (Backing::Anonymous, _) => {
            pagemap.scan(block.mapping(), bytes, Which::PresentOrSwapped, runs)
        }
    }
}

/// As [`present`], for a range that is protected already: markers of absent pages do not count.
/// A page that was swapped out is missed: only for pages that were absent a moment before.
///
/// # Errors
///
/// The kernel's.
pub fn present_now(
    block: &RamBlock,
    pages: Range<usize>,
    pagemap: &Pagemap,
    mut found: impl FnMut(Range<usize>),
) -> io::Result<()> {
    if block.backing() == Backing::Anonymous && block.unit_pages() == 1 {
        let page = page_size();
        let bytes = block.bytes_of(&pages);
        pagemap.scan(block.mapping(), bytes, Which::Present, |bytes| {
            found(bytes.start / page..bytes.end.div_ceil(page));
        })
    } else {
        // Shared memory is asked about the file, which markers do not change.
        present(block, pages, pagemap, found)
    }
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
