//! What can go wrong with a freeze.

use std::collections::TryReserveError;

use paguro_faults::FaultsError;
use paguro_ram::PopulateError;
use paguro_sys::MapError;

/// A freeze failed. The guest runs on, and the freeze must be ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// The host's: protection or registration.
    #[error("cannot hold guest RAM at one moment")]
    Faults(#[from] FaultsError),
    /// The host's: this kernel cannot protect this kind of memory.
    #[error("RAM block {block} cannot be write-protected: {why}")]
    Unprotectable {
        /// The block.
        block: String,
        /// What is in the way.
        why: &'static str,
    },
    /// The host's: absent pages could not be made present.
    #[error("cannot prepare guest RAM")]
    Populate(#[from] PopulateError),
    /// The host's: it does not tell which pages exist.
    #[error("cannot find out which pages of RAM block {block} exist")]
    Presence {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's: the page tables of this process cannot be looked at.
    #[error("cannot find out which pages of guest RAM exist")]
    Pagemap(#[source] std::io::Error),
    /// The host's: no memory for the page buffer.
    #[error("no memory for a page buffer of {bytes} bytes")]
    Buffer {
        /// Its size.
        bytes: usize,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The host's: no memory for what is kept of each page of RAM.
    #[error("no memory for the tables of a freeze")]
    Tables(#[from] TryReserveError),
    /// The caller's: another freeze of this RAM is on.
    #[error("guest RAM is frozen already")]
    Busy,
    /// The caller's: the page buffer cannot hold a chunk of the scan and one of a fault.
    #[error("a page buffer of {bytes} bytes is too small: at least {least} are needed")]
    BufferTooSmall {
        /// Asked for.
        bytes: usize,
        /// Needed.
        least: usize,
    },
    /// The caller's: the kernel may merge pages of memory that it made with equal ones of others.
    #[error(
        "pages of RAM block {block} may be merged with others (KSM), which takes protection away"
    )]
    Mergeable {
        /// The block.
        block: String,
    },
    /// The host's: the kernel took the protection of a frozen page away, and nobody was told.
    #[error("page {page} of RAM block {block} lost its write-protection while it was frozen")]
    ProtectionLost {
        /// The block.
        block: String,
        /// The page.
        page: usize,
    },
    /// Somebody wrote to frozen memory without being seen.
    #[error("page {page} of RAM block {block} changed while it was frozen: an unseen writer")]
    UnseenWriter {
        /// The block.
        block: String,
        /// The page.
        page: usize,
    },
    /// Somebody gave frozen memory back before it was saved.
    #[error(
        "pages {first}..{end} of RAM block {block} were discarded by another process before they \
         were saved"
    )]
    Discarded {
        /// The block.
        block: String,
        /// First page.
        first: usize,
        /// The one after the last.
        end: usize,
    },
    /// A page that has not arrived yet could not be had from its source, or the file that RAM maps
    /// could not be read from this page on.
    #[error("cannot read page {page} of RAM block {block}, which has not arrived yet")]
    Unarrived {
        /// The block.
        block: String,
        /// The page.
        page: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Ours: a thread that copies pages panicked.
    #[error("a thread that copies pages panicked: this is a bug in paguro")]
    Bug,
    /// The caller ended it.
    #[error("the freeze was ended")]
    Ended,
}
