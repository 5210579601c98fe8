//! What can be wrong with bytes that come from a file or a peer.

use std::io;

use thiserror::Error;

/// Bytes could not be decoded. Offsets are absolute, in bytes from the start of the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The file has no bytes at all.
    #[error("not a snapshot: the file is empty")]
    Empty,

    /// The file does not begin with the magic of a migration stream.
    #[error("not a snapshot: it begins with {found:02x?}, not with \"QEVM\"")]
    NotASnapshot {
        /// The first bytes of the file, at most four.
        found: Vec<u8>,
    },

    /// The file ends before something that must be there.
    #[error(
        "truncated: {what} at {offset:#x} needs {needed_bytes} bytes, but the file ends at {end:#x}"
    )]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        needed_bytes: u64,
        /// Where the file ends.
        end: u64,
    },

    /// Nothing that closes a snapshot file stands at its end.
    #[error(
        "truncated or damaged at its end: neither a paguro trailer nor a VMDESCRIPTION ends at {end:#x}"
    )]
    NoDescription {
        /// Where the file ends.
        end: u64,
    },

    /// A value contradicts the format or the rest of the file.
    #[error("corrupt: {what} at {offset:#x}: expected {expected}, found {found}")]
    Corrupt {
        /// What was read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },

    /// A number is above the bound that keeps the decoder's memory small.
    #[error("corrupt: {what} at {offset:#x}: {found} is above the limit of {limit}")]
    Limit {
        /// What was read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// Its value.
        found: u64,
        /// The greatest value that is accepted.
        limit: u64,
    },

    /// A description is not the JSON that it should be.
    #[error("corrupt: {what} at {offset:#x} cannot be understood as JSON")]
    Json {
        /// What was read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// What the JSON parser says.
        #[source]
        source: serde_json::Error,
    },

    /// Well-formed as far as it was read, but nothing that this version can load.
    #[error("unsupported: {what} at {offset:#x}: {found}; supported: {supported}")]
    Unsupported {
        /// What was read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// What it is.
        found: String,
        /// What it could be.
        supported: &'static str,
    },

    /// The file could not be read: the host's fault, not the file's.
    #[error("cannot read {what} at {offset:#x}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

/// Whose fault a [`DecodeError`] is, for callers that act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The file is something else altogether.
    NotASnapshot,
    /// The file is a snapshot whose end is missing.
    Truncated,
    /// The file is a snapshot that was damaged, or was never right.
    Corrupt,
    /// The file is a snapshot that this version cannot load.
    Unsupported,
    /// The host could not read the file.
    Host,
}

impl DecodeError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Empty | Self::NotASnapshot { .. } => Fault::NotASnapshot,
            Self::Truncated { .. } | Self::NoDescription { .. } => Fault::Truncated,
            Self::Corrupt { .. } | Self::Limit { .. } | Self::Json { .. } => Fault::Corrupt,
            Self::Unsupported { .. } => Fault::Unsupported,
            Self::Read { .. } => Fault::Host,
        }
    }

    pub(crate) fn corrupt(
        what: &'static str,
        offset: u64,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Corrupt {
            what,
            offset,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn unsupported(
        what: &'static str,
        offset: u64,
        found: impl ToString,
        supported: &'static str,
    ) -> Self {
        Self::Unsupported {
            what,
            offset,
            found: found.to_string(),
            supported,
        }
    }
}
