//! What can go wrong with a restore.

use std::path::PathBuf;

use paguro_faults::FaultsError;
use paguro_pager::SourceError;
use paguro_ram::RamError;
use paguro_wire::DecodeError;

/// A restore failed before the machine ran.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The file's: it cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file's: it is no snapshot, or a damaged one.
    #[error("cannot read {path} as a snapshot")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The file's: its metadata are damaged.
    #[error("{path} is damaged: {damage}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is.
        damage: String,
    },
    /// Somebody wrote to the file while it was being opened.
    #[error("{path} was changed while it was read: {how}")]
    Changed {
        /// The file.
        path: PathBuf,
        /// How that is known.
        how: String,
    },
    /// The caller's: the file is of a machine with other RAM.
    #[error("the file has {found}, this machine has {expected}")]
    Blocks {
        /// What the file has.
        found: String,
        /// What the machine has.
        expected: String,
    },
    /// The caller's: something stands in RAM that is to be filled, and would win over the file's page.
    #[error(
        "page {page} of RAM block {block} is there already: RAM that is to be filled must be fresh"
    )]
    NotFresh {
        /// The block.
        block: String,
        /// The first such page.
        page: usize,
    },
    /// The caller's: this RAM is being filled already, or is being saved or migrated.
    #[error("this RAM is in use: it is being filled, saved or migrated")]
    Busy,
    /// The host's: /proc is not there, so nobody can see whether RAM is fresh.
    #[error("cannot look at the page tables of this process")]
    Pagemap(#[source] std::io::Error),
    /// The host's: it does not say whether RAM is fresh.
    #[error("cannot see which pages of RAM block {block} exist")]
    Presence {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A page cannot be read or is damaged.
    #[error("a page cannot be restored")]
    Page(#[source] SourceError),
    /// The host's: no memory.
    #[error("no memory for the machine's RAM")]
    Ram(#[source] RamError),
    /// The host's: no userfaultfd.
    #[error("this host cannot restore page by page")]
    Faults(#[source] FaultsError),
    /// The host's: faults that are taken in the kernel are not delivered to this process.
    #[error("this process may not handle page faults that are taken in the kernel")]
    NoKernelFaults,
    /// The host's: nobody would notice a page of the mapped file that cannot be read, or a change of it.
    #[error("cannot watch the mapped file")]
    Watch(#[source] std::io::Error),
    /// The caller's: this memory cannot be a mapping of the file.
    #[error("a snapshot cannot be mapped as {memory}: restore it with mode lazy or eager")]
    NotMappable {
        /// Which memory: "memfd", "2 MiB pages", "RAM that is there already".
        memory: &'static str,
    },
}
