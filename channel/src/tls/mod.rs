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

mod error;
mod files;
mod session;

use std::path::PathBuf;

pub use error::TlsError;
pub(crate) use files::{client, server};
pub(crate) use session::{Inbox, Session};

/// How a channel is secured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Where the certificates are.
    pub directory: PathBuf,
    /// The name that the listening side's certificate must be for, if not that of the address.
    pub hostname: Option<String>,
}
