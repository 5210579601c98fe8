//! What can go wrong with faults.

use paguro_sys::{MapError, UffdError};

/// Watching, protecting or placing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultsError {
    /// The host gives us no userfaultfd.
    #[error("no userfaultfd on this host for this process")]
    Open(#[source] UffdError),
    /// The host gives us no thread or descriptor.
    #[error("cannot start the threads that read faults")]
    Thread(#[source] std::io::Error),
    /// The host gives us no addresses for a page of zeros.
    #[error("no zeros to answer faults with")]
    Zeros(#[source] MapError),
    /// The caller's: it is memory of another process, into which pages can only be placed, once it is
    /// served.
    #[error("RAM block {block} is not mapped here, and nobody serves it yet")]
    Elsewhere {
        /// The block.
        block: String,
    },
    /// A block cannot be watched.
    #[error("cannot register RAM block {block} with userfaultfd")]
    Register {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: UffdError,
    },
    /// The caller's: this RAM is served already.
    #[error("guest RAM is served already")]
    Served,
    /// A range cannot be protected or released.
    #[error("cannot change the protection of {count} pages of RAM block {block} at page {first}")]
    Protect {
        /// The block.
        block: String,
        /// First page.
        first: usize,
        /// Pages.
        count: usize,
        /// Why.
        #[source]
        source: UffdError,
    },
    /// A page cannot be placed, for a reason that is not a changed mapping.
    #[error("cannot place {count} pages of RAM block {block} at page {first}")]
    Place {
        /// The block.
        block: String,
        /// First page.
        first: usize,
        /// Pages.
        count: usize,
        /// Why.
        #[source]
        source: UffdError,
    },
}
