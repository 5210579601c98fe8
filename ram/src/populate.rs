//! Making pages present without writing to them.
//!
//! Needed in one case only: private anonymous memory on a kernel that silently ignores the
//! protection of absent pages (no `UFFD_FEATURE_WP_UNPOPULATED`). Memfd and hugetlbfs mark absent
//! pages wherever they can be protected at all, and reading a hole there would allocate it.

use std::ops::Range;

use paguro_sys::{Advice, Host, MapError};

use crate::{Backing, Discards, RamBlock};

/// Populating failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PopulateError {
    /// The host has no page to give, or refuses.
    #[error("cannot populate RAM block {block} at page {page}")]
    Host {
        /// The block.
        block: String,
        /// First page of the part that failed.
        page: usize,
        /// Why.
        #[source]
        source: MapError,
    },
}

/// Reads one word of each page of `pages`, in steps of the host's page size, skipping discarded
/// ranges; blocks that need none (read-only, shared, hugetlbfs) are left alone. Returns the pages
/// visited. Callers give ranges small enough for what a running guest may wait.
///
/// # Errors
///
/// [`PopulateError::Host`].
pub fn populate(
    block: &RamBlock,
    pages: Range<usize>,
    discards: &dyn Discards,
    host: &Host,
) -> Result<usize, PopulateError> {
    if block.is_read_only() || block.backing() != Backing::Anonymous || block.unit_pages() > 1 {
        return Ok(0);
    }
    let mut visited = 0;
    let mut failed = None;
    discards.populated(block, pages, &mut |part| {
        if failed.is_some() {
            return;
        }
        visited += part.len();
        let bytes = block.bytes_of(&part);
        if !host.populate_read {
            block.mapping().touch(bytes.start, bytes.len());
        } else if let Err(source) =
            block
                .mapping()
                .advise(bytes.start, bytes.len(), Advice::PopulateRead)
        {
            failed = Some(PopulateError::Host {
                block: block.id().to_owned(),
                page: part.start,
                source,
            });
        }
    });
    failed.map_or(Ok(visited), Err)
}
