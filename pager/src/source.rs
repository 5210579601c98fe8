//! Where pages come from.

use std::ops::Range;

use paguro_faults::FaultsError;
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
    /// Nothing comes of reading: the device or the server neither answers nor refuses.
    #[error("no answer came from {what} for {seconds} s")]
    Silent {
        /// What, for the operator.
        what: String,
        /// For how long.
        seconds: u64,
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
    /// Somebody wrote to what pages come from, or cut it short, while it was in use.
    #[error("{what} was changed while a machine runs from it: {how}")]
    Changed {
        /// What, for the operator.
        what: String,
        /// How that is known.
        how: String,
    },
    /// Zeros had to be given for a page whose reader could not be kept waiting.
    #[error("{pages} pages of {what} could not be read, and who needed them could not wait")]
    Lost {
        /// How many.
        pages: u64,
        /// What they are of, for the operator.
        what: String,
    },
    /// The host's: there is no room for what was read.
    #[error("a page was read but cannot be put in its place")]
    Place(#[source] FaultsError),
    /// Ours: a thread that fetches pages panicked.
    #[error("a thread that fetches pages panicked: this is a bug in paguro")]
    Bug,
}

impl SourceError {
    /// Whether it may go well when it is tried again: a device or a network may come back, and
    /// memory be free again. What is damaged or changed stays so.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Read { .. } | Self::Silent { .. } | Self::Place(_)
        )
    }
}

/// Where a pager gets pages.
pub trait PageSource: Send + Sync {
    /// The pages of a block that it has content for.
    fn has(&self, block: usize) -> &PageSet;

    /// Reads a range of pages, all of which it has. It does not try again by itself: whoever asks
    /// knows how long to wait, and what for.
    ///
    /// # Errors
    ///
    /// [`SourceError`]: nothing of the range is to be used then.
    fn read(&self, block: usize, pages: Range<usize>, to: &mut [u8]) -> Result<(), SourceError>;

    /// Whether whoever waits for it shall wait no longer: what fails now, fails.
    fn is_given_up(&self) -> bool {
        false
    }
}
