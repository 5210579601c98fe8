//! The directory of certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};

use super::{TlsError, TlsOptions};

/// What the listening side needs for all its connections.
#[derive(Debug)]
pub(crate) struct Server(Arc<ServerConfig>);

impl Server {
    pub(crate) fn new(options: &TlsOptions) -> Result<Self, TlsError> {
        server(options).map(|config| Self(Arc::new(config)))
    }

    /// The next connection, before its first byte.
    pub(crate) fn connection(&self) -> Result<Connection, TlsError> {
        Ok(ServerConnection::new(self.0.clone())?.into())
    }
}

fn server(options: &TlsOptions) -> Result<ServerConfig, TlsError> {
    let files = Files::read(options, "server")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(files.authorities, provider())
        .with_crls(files.revoked)
        .allow_unknown_revocation_status()
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| unusable(files.authorities_path, "certificate of an authority", error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(files.chain, files.key)
        .map_err(|error| unusable(files.key_path, "key of the certificate", error))?;
    // Each connection is checked in full, and the handshake ends with the client's last message.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A connection to somebody of that name, before its first byte.
pub(crate) fn client(options: &TlsOptions, host: &str) -> Result<Connection, TlsError> {
    let name = options.hostname.as_deref().unwrap_or(host);
    let server_name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::NoHostName {
        name: name.to_owned(),
    })?;
    let files = Files::read(options, "client")?;
    let verifier = WebPkiServerVerifier::builder_with_provider(files.authorities, provider())
        .with_crls(files.revoked)
        .allow_unknown_revocation_status()
        .enforce_revocation_expiration()
        .build()
        .map_err(|error| unusable(files.authorities_path, "certificate of an authority", error))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(files.chain, files.key)
        .map_err(|error| unusable(files.key_path, "key of the certificate", error))?;
    Ok(ClientConnection::new(Arc::new(config), server_name)?.into())
}

const VERSIONS: &[&SupportedProtocolVersion] = rustls::DEFAULT_VERSIONS;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

struct Files {
    authorities: Arc<RootCertStore>,
    authorities_path: PathBuf,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    key_path: PathBuf,
}

impl Files {
    fn read(options: &TlsOptions, side: &str) -> Result<Self, TlsError> {
        let at = |name: &str| options.directory.join(name);
        let authorities_path = at("ca-cert.pem");
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&authorities_path)? {
            authorities.add(certificate).map_err(|error| {
                unusable(
                    authorities_path.clone(),
                    "certificate of an authority",
                    error,
                )
            })?;
        }
        let crl_path = at("ca-crl.pem");
        let revoked = match read(&crl_path) {
            Ok(text) => all_of(&crl_path, &text, "revocation list")?,
            Err(TlsError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let chain = certificates(&at(&format!("{side}-cert.pem")))?;
        let key_path = at(&format!("{side}-key.pem"));
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|error| unusable(key_path.clone(), "private key", error))?;
        Ok(Self {
            authorities: Arc::new(authorities),
            authorities_path,
            revoked,
            chain,
            key,
            key_path,
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    all_of(path, &read(path)?, "certificate")
}

fn all_of<T: PemObject>(
    path: &Path,
    text: &[u8],
    wanted: &'static str,
) -> Result<Vec<T>, TlsError> {
    let all: Result<Vec<T>, _> = T::pem_slice_iter(text).collect();
    let all = all.map_err(|error| unusable(path.to_owned(), wanted, error))?;
    if all.is_empty() {
        Err(TlsError::Content {
            path: path.to_owned(),
            wanted,
            source: None,
        })
    } else {
        Ok(all)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

fn unusable(
    path: PathBuf,
    wanted: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> TlsError {
    TlsError::Content {
        path,
        wanted,
        source: Some(Box::new(source)),
    }
}
