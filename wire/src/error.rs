//! What can be wrong with bytes that come from a file or a peer.

use std::fmt;
use std::io;

use thiserror::Error;

/// Bytes could not be decoded. Offsets are absolute, in bytes from the start of the file or of
/// the stream.
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

    /// What a peer sends does not begin with the magic of a migration stream.
    #[error("not a migration stream: it begins with {found:02x?}, not with {expected:02x?}")]
    NotAStream {
        /// The first bytes.
        found: [u8; 4],
        /// What they should be: `QEVM`, or the magic of a multifd channel.
        expected: [u8; 4],
    },

    /// The bytes end before something that must be there.
    #[error(
        "truncated: {what} at {offset:#x} needs {needed_bytes} bytes, but {medium} at {end:#x}"
    )]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// How long it is.
        needed_bytes: u64,
        /// Where the bytes end.
        end: u64,
        /// What they came from.
        medium: Medium,
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

    /// A migration stream in a file, and no snapshot: its pages stand where they came.
    #[error(
        "unsupported: CONFIGURATION at {offset:#x}: a stream whose pages have no fixed places; supported: \
         files written with the capability mapped-ram"
    )]
    NoFixedPlaces {
        /// Where its configuration begins.
        offset: u64,
    },

    /// The stream was written with other capabilities than are expected: both may be right.
    #[error(
        "the two sides differ: capabilities at {offset:#x}: here {here:?}, in the stream {there:?}"
    )]
    Capabilities {
        /// Where they stand in the stream.
        offset: u64,
        /// Those that this side expects, sorted.
        here: Vec<String>,
        /// Those of the stream, sorted.
        there: Vec<String>,
    },

    /// The stream is of a machine that this side is not: both may be right, each on its own.
    #[error("the two sides differ: {what} at {offset:#x}: here {here}, in the stream {there}")]
    Differs {
        /// What was compared.
        what: &'static str,
        /// Where it stands in the stream.
        offset: u64,
        /// What it is on this side.
        here: String,
        /// What it is in the stream.
        there: String,
    },

    /// The file or the channel could not be read: the host's fault (or a peer's that was silent
    /// for too long), not that of the bytes.
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

/// What bytes came from, and so what it means that they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Medium {
    /// A file: it was cut off.
    File,
    /// A channel: the peer closed it, or died.
    Channel,
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "the file ends",
            Self::Channel => "the peer closed the channel",
        })
    }
}

/// Whose fault a [`DecodeError`] is, for callers that act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The file is something else altogether.
    NotASnapshot,
    /// What the peer sends is no migration stream at all.
    NotAStream,
    /// The file is a snapshot whose end is missing; the peer closed the channel too early.
    Truncated,
    /// The bytes were damaged, or never right: the peer misbehaves.
    Corrupt,
    /// Sound, but nothing that this version can load.
    Unsupported,
    /// Sound, but of another machine: names, sizes or versions of the two sides differ.
    Differs,
    /// The host could not read the file or the channel.
    Host,
}

impl DecodeError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Empty | Self::NotASnapshot { .. } => Fault::NotASnapshot,
            Self::NotAStream { .. } => Fault::NotAStream,
            Self::Differs { .. } | Self::Capabilities { .. } => Fault::Differs,
            Self::Truncated { .. } | Self::NoDescription { .. } => Fault::Truncated,
            Self::Corrupt { .. } | Self::Limit { .. } | Self::Json { .. } => Fault::Corrupt,
            Self::Unsupported { .. } | Self::NoFixedPlaces { .. } => Fault::Unsupported,
            Self::Read { .. } => Fault::Host,
        }
    }

    /// The two sides differ in `what`, which stands at `offset` in the stream.
    pub fn differs(
        what: &'static str,
        offset: u64,
        here: impl ToString,
        there: impl ToString,
    ) -> Self {
        Self::Differs {
            what,
            offset,
            here: here.to_string(),
            there: there.to_string(),
        }
    }

    pub(crate) fn check_limit(
        what: &'static str,
        offset: u64,
        found: u64,
        limit: u64,
    ) -> Result<(), Self> {
        if found > limit {
            Err(Self::Limit {
                what,
                offset,
                found,
                limit,
            })
        } else {
            Ok(())
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
