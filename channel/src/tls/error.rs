//! What can go wrong with TLS.

use std::io;
use std::path::PathBuf;

#[cfg(feature = "tls")]
use rustls::Error;

/// TLS failed: because of a file here, or because of the peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The caller's: this program was built without TLS.
    #[error("TLS is not built in: it takes the feature `tls`")]
    NotBuiltIn,
    /// The caller's: a file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller's: a file has not in it what it should.
    #[error("{path} has no {wanted} in it that can be used")]
    Content {
        /// Which.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
        /// Why not, if there is something.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The caller's: no name to compare the certificate with.
    #[error("{name:?} is no host name: a 'tls-hostname' must be given")]
    NoHostName {
        /// What there was.
        name: String,
    },
    /// The peer's: it failed a check of this side.
    #[cfg(feature = "tls")]
    #[error("the peer {check}")]
    Check {
        /// What is wrong with it.
        check: &'static str,
        /// In detail.
        #[source]
        source: Error,
    },
    /// The caller's, or the peer's: it is somebody else, or is known by a name that was not given.
    #[cfg(feature = "tls")]
    #[error("the peer has a certificate for other names")]
    OtherNames(#[source] Error),
    /// The peer's: its certificate has no names (no subjectAltName); a common name is none.
    #[cfg(feature = "tls")]
    #[error("the peer has a certificate without names")]
    NoNames(#[source] Error),
    /// This side failed a check of the peer's.
    #[cfg(feature = "tls")]
    #[error("the peer refused: {reason}")]
    Refused {
        /// Why, as far as it said.
        reason: &'static str,
        /// In detail.
        #[source]
        source: Error,
    },
    /// The peer's or the network's: bytes are missing at the end.
    #[error("the stream was cut off before its end")]
    Truncated,
}
