//! Why a block could not be made.

use paguro_sys::{ForeignError, MapError};

/// A block could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// The host has no memory like that.
    #[error("no memory for RAM block {id}")]
    Map {
        /// The block.
        id: String,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The host makes no memfd.
    #[error("no memfd of {bytes} bytes for RAM block {id}")]
    Memfd {
        /// The block.
        id: String,
        /// Its length.
        bytes: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The caller's: memory that somebody else mapped cannot be taken.
    #[error("RAM block {id} cannot be made of memory that is there")]
    Foreign {
        /// The block.
        id: String,
        /// Why.
        #[source]
        source: ForeignError,
    },
    /// The host has no more descriptors for the file behind a region.
    #[error("cannot hold the file behind RAM block {id}")]
    File {
        /// The block.
        id: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The caller's: two blocks have the same name.
    #[error("there are two RAM blocks {id}")]
    Twice {
        /// The name.
        id: String,
    },
    /// The caller's: two blocks are at the same place, in the guest or here.
    #[error("RAM blocks {one} and {other} overlap")]
    Overlap {
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
    /// The caller asked for a length that no block can have.
    #[error("RAM block {id}: used length {used} is not within its maximum {max}")]
    Length {
        /// The block.
        id: String,
        /// Asked for, bytes.
        used: usize,
        /// Its maximum, bytes.
        max: usize,
    },
}
