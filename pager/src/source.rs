//! Where pages come from.

use std::ops::Range;

use paguro_ram::PageSet;

/// A page cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Reading failed.
    #[error("cannot read pages {first}..{end} of RAM block {block}")]
    Read {
        /// The block.
        block: String,
        /// First page.
        first: usize,
        /// The one after the last.
        end: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What was read is not what was saved.
    #[error(
        "page {page} of RAM block {block} is damaged: its checksum is {found:#010x}, not {expected:#010x}"
    )]
    Damaged {
        /// The block.
        block: String,
        /// The page.
        page: usize,
        /// The checksum that was saved.
        expected: u32,
        /// The checksum of what was read.
        found: u32,
    },
    /// The host's: there is no room for what was read.
    #[error("a page was read but cannot be put in its place")]
    Place(#[source] paguro_faults::FaultsError),
    /// Ours: a thread that fetches pages panicked.
    #[error("a thread that fetches pages panicked: this is a bug in paguro")]
    Bug,
}

/// Where a pager gets pages.
pub trait PageSource: Send + Sync {
    /// The pages of a block that it has content for.
    fn has(&self, block: usize) -> &PageSet;

    /// Reads a range of pages, all of which it has.
    ///
    /// # Errors
    ///
    /// [`SourceError`]: nothing of the range is to be used then.
    fn read(&self, block: usize, pages: Range<usize>, to: &mut [u8]) -> Result<(), SourceError>;
}
