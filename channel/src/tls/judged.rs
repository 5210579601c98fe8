//! Whose fault it is that TLS failed, and in which words, by what rustls says.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::TlsError;

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
