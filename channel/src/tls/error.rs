//! What can go wrong with TLS.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// TLS failed: because of a file here, or because of the peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
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
    #[error("the peer {check}")]
    Check {
        /// What is wrong with it.
        check: &'static str,
        /// In detail.
        #[source]
        source: Error,
    },
    /// The caller's, or the peer's: it is somebody else, or is known by a name that was not given.
    #[error("the peer has a certificate for other names")]
    OtherNames(#[source] Error),
    /// The peer's: its certificate has no names (no subjectAltName); a common name is none.
    #[error("the peer has a certificate without names")]
    NoNames(#[source] Error),
    /// This side failed a check of the peer's.
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

impl From<Error> for TlsError {
    fn from(source: Error) -> Self {
        match &source {
            Error::AlertReceived(alert) => Self::Refused {
                reason: refusal(*alert),
                source,
            },
            Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented,
                ..
            }) if presented.is_empty() => Self::NoNames(source),
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Self::OtherNames(source),
            other => Self::Check {
                check: failed_check(other),
                source,
            },
        }
    }
}

fn refusal(alert: AlertDescription) -> &'static str {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => "it wants a certificate, and got none",
        Alert::CertificateExpired => "the certificate of this side has expired",
        Alert::CertificateRevoked => "the certificate of this side is revoked",
        Alert::UnknownCA => "the certificate of this side is not signed by its authority",
        Alert::DecryptError => "the certificate of this side is not signed by its authority",
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown => {
            "it does not accept the certificate of this side"
        }
        Alert::HandshakeFailure | Alert::ProtocolVersion => "no protocol or cipher is common",
        _ => "it sent an alert",
    }
}

fn failed_check(error: &Error) -> &'static str {
    use CertificateError as Certificate;
    match error {
        Error::NoCertificatesPresented => "has no certificate",
        Error::InvalidCertificate(certificate) => match certificate {
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "has a certificate that has expired"
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "has a certificate that is not valid yet"
            }
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "has a certificate that nobody in ca-cert.pem has signed"
            }
            Certificate::Revoked => "has a certificate that ca-crl.pem revokes",
            Certificate::ExpiredRevocationList
            | Certificate::ExpiredRevocationListContext { .. } => {
                "cannot be checked: ca-crl.pem is out of date"
            }
            Certificate::InvalidPurpose | Certificate::InvalidPurposeContext { .. } => {
                "has a certificate that is not for this side of a connection"
            }
            _ => "has a certificate that cannot be accepted",
        },
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => "does not speak TLS",
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "does not keep to TLS"
        }
        Error::InvalidMessage(_) | Error::PeerMisbehaved(_) | Error::DecryptError => {
            "does not keep to TLS"
        }
        Error::PeerIncompatible(_) => "has no protocol or cipher in common",
        _ => "cannot be talked to",
    }
}
