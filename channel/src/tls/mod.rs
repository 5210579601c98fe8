//! TLS around a channel, from its first byte, with certificates on both sides.
//!
//! The certificates are in a directory as QEMU's `tls-creds-x509` has it:
//!
//! | file | on which side | |
//! |---|---|---|
//! | `ca-cert.pem` | both | who may have signed the peer's certificate |
//! | `ca-crl.pem` | both | if it is there: which certificates were revoked |
//! | `server-cert.pem`, `server-key.pem` | listening | its certificate (chain) and key |
//! | `client-cert.pem`, `client-key.pem` | connecting | likewise |
//!
//! (`dh-params.pem` is not needed any more.) The listening side demands a certificate; the
//! connecting side wants the name it connects to, or `tls-hostname`, among the certificate's
//! alternative names. TLS 1.2 and 1.3 are spoken.

//!
//! Without the feature `tls` there is none: its options are refused, with
//! [`NotBuiltIn`](TlsError::NotBuiltIn), before anything is connected to or listened at.

#[cfg(not(feature = "tls"))]
mod absent;
mod error;
#[cfg(feature = "tls")]
mod files;
#[cfg(feature = "tls")]
mod judged;
#[cfg(feature = "tls")]
mod session;

use std::path::PathBuf;

#[cfg(not(feature = "tls"))]
pub(crate) use absent::{Connection, Inbox, Server, Session, client};
pub use error::TlsError;
#[cfg(feature = "tls")]
pub(crate) use files::{Server, client};
#[cfg(feature = "tls")]
pub(crate) use rustls::Connection;
#[cfg(feature = "tls")]
pub(crate) use session::{Inbox, Session};

/// Whether there can be TLS at all.
pub(crate) fn check_built_in() -> Result<(), TlsError> {
    if cfg!(feature = "tls") {
        Ok(())
    } else {
        Err(TlsError::NotBuiltIn)
    }
}

/// How a channel is secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Where the certificates are.
    pub directory: PathBuf,
    /// The name that the listening side's certificate must be for, if not that of the address.
    pub hostname: Option<String>,
}
