//! Certificates for machines of the lab, made anew for whoever needs some.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// A directory laid out as QEMU's `tls-creds-x509`, for both sides, of 127.0.0.1. It goes when it is
/// dropped.
///
/// # Errors
///
/// The host's.
pub fn make() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("paguro-tls-").tempdir();
    let made = dir.map_err(anyhow::Error::from);
    let made = made.and_then(|dir| fill(dir.path()).map(|()| dir));
    made.context("no certificates can be made")
}

fn fill(dir: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca-cert.pem"), authority.pem())?;
    for (side, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &authority)?;
        std::fs::write(dir.join(format!("{side}-cert.pem")), certificate.pem())?;
        std::fs::write(dir.join(format!("{side}-key.pem")), key.serialize_pem())?;
    }
    Ok(())
}
