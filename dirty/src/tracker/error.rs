//! What can go wrong with a tracker.

use std::collections::TryReserveError;

use paguro_sys::UffdError;

/// A tracker failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// The host's: it lacks what this tracker needs.
    #[error("this host cannot track writes to guest RAM: {0}")]
    Unsupported(&'static str),
    /// The host's: KVM refused to switch its log on.
    #[error("KVM does not log writes to RAM block {block}")]
    Log {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's: KVM refused something else.
    #[error("KVM does not {doing}")]
    Kvm {
        /// What it was asked to, as a verb.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's: no memory for what is kept of each page.
    #[error("no memory for the log of written pages")]
    Tables(#[from] TryReserveError),
    /// The host's: memory could not be protected.
    #[error("RAM block {block} cannot be write-protected")]
    Protect {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: UffdError,
    },
    /// The caller's: a snapshot or a pager holds the memory, and a mapping has one userfaultfd.
    #[error(
        "writes to RAM block {block} cannot be tracked while a snapshot is taken of it, or while \
         it is still being filled"
    )]
    Watched {
        /// The block.
        block: String,
    },
    /// The caller's: the kernel cannot protect this kind of memory.
    #[error("writes to RAM block {block} cannot be tracked: {why}")]
    Unprotectable {
        /// The block.
        block: String,
        /// What is in the way.
        why: &'static str,
    },
    /// The host's: it does not tell which pages were written.
    #[error("cannot find out which pages of RAM block {block} were written")]
    Written {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The caller's: somebody tracks already, through this tracker or another.
    #[error("writes to guest RAM are tracked already")]
    Busy,
    /// The caller's: it was not started, or was stopped.
    #[error("the tracker was not started")]
    NotStarted,
    /// The caller's: there must be one set for each RAM block, of its maximum length.
    #[error("the sets of dirty pages are not those of the RAM blocks")]
    Sets,
    /// The caller's: a memory slot of KVM's is not in a RAM block, or not at a multiple of 64 pages.
    #[error("memory slot {slot} is not a part of guest RAM that can be tracked")]
    Slot {
        /// Its number.
        slot: u32,
    },
    /// The caller's: there must be a bitmap for each RAM block, with a bit for each of its pages.
    #[error("there is no bitmap of RAM block {block}: {pages} pages instead of {of}")]
    Bitmap {
        /// The block.
        block: String,
        /// Pages of the bitmap that was given; 0 for none, and for one whose pages have another size.
        pages: usize,
        /// Pages of the block.
        of: usize,
    },
    /// The caller's: there must be a bitmap for each RAM block, and no more.
    #[error("there are {bitmaps} bitmaps for {blocks} RAM blocks")]
    Bitmaps {
        /// Bitmaps that were given.
        bitmaps: usize,
        /// Blocks that there are.
        blocks: usize,
    },
    /// A tracker that is not of this crate failed; its source says whose fault it is.
    #[error("{tracker} cannot {doing}")]
    Other {
        /// Which one.
        tracker: &'static str,
        /// What it was asked to, as a verb.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
