//! TLS: who is let in, who is not, and how the reason is told on both sides.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use paguro_channel::{ChannelError, Incoming, Options, Outgoing, TlsError, TlsOptions};
use paguro_testkit::must_end;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

use crate::tools::{address, inside, listen, options, pair, pattern, read_all, text};

/// A directory laid out as QEMU's `tls-creds-x509`.
pub struct Certificates {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

const CLIENT_SERIAL: u64 = 77;

impl Certificates {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca-cert.pem"), authority.pem()).unwrap();
        let all = Self { dir, authority };
        all.issue(
            "server",
            &["127.0.0.1", "::1", "paguro.test", "localhost"],
            2100,
        );
        all.issue("client", &[], 2100);
        all
    }

    pub fn options(&self) -> TlsOptions {
        TlsOptions {
            directory: self.path().to_owned(),
            hostname: None,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn issue(&self, side: &str, names: &[&str], until: i32) {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, side);
        params.not_after = date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![match side {
            "server" => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.serial_number = (side == "client").then(|| SerialNumber::from(CLIENT_SERIAL));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let at = |kind| self.path().join(format!("{side}-{kind}.pem"));
        std::fs::write(at("cert"), certificate.pem()).unwrap();
        std::fs::write(at("key"), key.serialize_pem()).unwrap();
    }

    fn revoke_client(&self, next_update: i32) {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(CLIENT_SERIAL),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(next_update, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.authority).unwrap();
        std::fs::write(self.path().join("ca-crl.pem"), list.pem().unwrap()).unwrap();
    }
}

fn with(tls: TlsOptions) -> Options {
    Options {
        tls: Some(tls),
        ..options()
    }
}

/// The errors of both sides, where no connection comes about.
fn fail(source: TlsOptions, destination: TlsOptions) -> (String, String) {
    let listener = listen("tcp:127.0.0.1:0", &with(destination));
    let to = listener.local_address().clone();
    let source = thread::spawn(move || {
        // The source learns by its first read what the destination holds against it.
        let channel = match Outgoing::connect(&to, &with(source)) {
            Ok(channel) => channel,
            Err(error) => return text(&error),
        };
        let (mut reader, _writer) = channel.split();
        let error = reader.read(&mut [0]).unwrap_err();
        text(inside(&error))
    });
    let destination = listener.accept(None).unwrap_err();
    assert!(
        matches!(destination, ChannelError::Tls { .. }),
        "{destination:?}"
    );
    (source.join().unwrap(), text(&destination))
}

#[track_caller]
fn assert_says(error: &str, part: &str) {
    assert!(error.contains(part), "{error:?} does not say {part:?}");
}

#[test]
fn a_server_of_another_authority_is_refused() {
    let _ends = must_end();
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let (source, destination) = fail(ours.options(), theirs.options());
    assert_says(
        &source,
        "the peer has a certificate that nobody in ca-cert.pem has signed",
    );
    assert_says(
        &destination,
        "the peer refused: the certificate of this side is not signed",
    );
}

#[test]
fn a_client_of_another_authority_is_refused() {
    let _ends = must_end();
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let foreign = Certificates::new();
    for kind in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(theirs.path().join(kind), foreign.path().join(kind)).unwrap();
    }
    std::fs::copy(
        ours.path().join("ca-cert.pem"),
        foreign.path().join("ca-cert.pem"),
    )
    .unwrap();
    let (source, destination) = fail(foreign.options(), ours.options());
    assert_says(&source, "the peer refused: ");
    assert_says(&destination, "nobody in ca-cert.pem has signed");
}

#[test]
fn expired_certificates_are_refused() {
    let _ends = must_end();
    let all = Certificates::new();
    all.issue("client", &[], 2020);
    let (source, destination) = fail(all.options(), all.options());
    assert_says(
        &source,
        "the peer refused: the certificate of this side has expired",
    );
    assert_says(&destination, "the peer has a certificate that has expired");
    all.issue("server", &["127.0.0.1"], 2020);
    let (source, destination) = fail(all.options(), all.options());
    assert_says(&source, "the peer has a certificate that has expired");
    assert_says(
        &destination,
        "the peer refused: the certificate of this side has expired",
    );
}

#[test]
fn a_revoked_certificate_is_refused_and_so_is_an_old_list() {
    let _ends = must_end();
    let all = Certificates::new();
    let source = Certificates::new();
    for entry in std::fs::read_dir(all.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), source.path().join(entry.file_name())).unwrap();
    }
    all.revoke_client(2100);
    let (_, destination) = fail(source.options(), all.options());
    assert_says(
        &destination,
        "the peer has a certificate that ca-crl.pem revokes",
    );
    all.revoke_client(2022);
    let (_, destination) = fail(source.options(), all.options());
    assert_says(&destination, "ca-crl.pem is out of date");
}

#[test]
fn a_server_by_another_name_is_refused_unless_that_is_expected() {
    let _ends = must_end();
    let all = Certificates::new();
    let named = |name: &str| TlsOptions {
        hostname: Some(name.into()),
        ..all.options()
    };
    let (source, _) = fail(named("other.test"), all.options());
    assert_says(&source, "the peer has a certificate for other names");
    pair(
        "tcp:127.0.0.1:0",
        &with(named("paguro.test")),
        &with(all.options()),
    );
    pair(
        "tcp:localhost:0",
        &with(all.options()),
        &with(all.options()),
    );
}

/// Its common name is the very one: that is not looked at.
#[test]
fn a_server_with_a_common_name_only_is_refused() {
    let _ends = must_end();
    let all = Certificates::new();
    all.issue("server", &[], 2100);
    let named = TlsOptions {
        hostname: Some("server".into()),
        ..all.options()
    };
    let (source, _) = fail(named, all.options());
    assert_says(&source, "the peer has a certificate without names");
}

/// One that speaks TLS well but has no certificate.
#[test]
fn a_client_without_a_certificate_is_refused() {
    let _ends = must_end();
    let all = Certificates::new();
    let listener = listen("tcp:127.0.0.1:0", &with(all.options()));
    let to = listener.local_address().to_string()["tcp:".len()..].to_owned();
    let authority = all.authority.der().clone();
    let client = thread::spawn(move || {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).unwrap();
        let provider = rustls::crypto::ring::default_provider().into();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "paguro.test".try_into().unwrap();
        let connection = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(to).unwrap());
        let _ = stream.write_all(b"let me in");
        stream.read(&mut [0]).unwrap_err().to_string()
    });
    let error = text(&listener.accept(None).unwrap_err());
    assert_says(&error, "the peer has no certificate");
    assert_says(&client.join().unwrap(), "CertificateRequired");
}

#[test]
fn who_does_not_speak_tls_is_refused_and_the_next_one_is_served() {
    let _ends = must_end();
    let all = Certificates::new();
    let limits = Options {
        connect_timeout: Duration::from_millis(300),
        ..with(all.options())
    };
    let listener = listen("tcp:127.0.0.1:0", &limits);
    let to = listener.local_address().clone();
    let plain = Outgoing::connect(&to, &options()).unwrap();
    let (_, mut writer) = plain.split();
    writer.write_all(&pattern(100_000)).unwrap();
    let error = text(&listener.accept(None).unwrap_err());
    assert_says(&error, "the peer does not speak TLS");
    let _mute = Outgoing::connect(&to, &options()).unwrap();
    let error = listener.accept(None).unwrap_err();
    assert!(matches!(error, ChannelError::Timeout { .. }), "{error:?}");
    drop(Outgoing::connect(&to, &options()).unwrap());
    let error = text(&listener.accept(None).unwrap_err());
    assert_says(&error, "cut off");
    // On a busy host even a good one may take longer.
    let served = (0..20).find_map(|_| {
        let (to, options) = (to.clone(), with(all.options()));
        let source = thread::spawn(move || Outgoing::connect(&to, &options));
        let accepted = listener.accept(None);
        let source = source.join().unwrap();
        match accepted {
            Err(ChannelError::Timeout { .. }) => None,
            accepted => Some((source.unwrap(), accepted.unwrap())),
        }
    });
    let (source, accepted) = served.expect("a good one is served");
    crate::both_ways::exchange(source, accepted);
}

#[test]
fn a_stream_that_is_cut_off_has_no_end() {
    let _ends = must_end();
    let all = Certificates::new();
    let (source, destination) = pair(
        "tcp:127.0.0.1:0",
        &with(all.options()),
        &with(all.options()),
    );
    let (_, mut writer) = source.split();
    writer.write_all(b"half").unwrap();
    drop(writer);
    let (mut reader, _) = destination.split();
    let mut half = [0; 4];
    reader.read_exact(&mut half).unwrap();
    let error = reader.read(&mut [0]).unwrap_err();
    let cut = |error: &ChannelError| {
        matches!(
            error,
            ChannelError::Tls {
                source: TlsError::Truncated,
                ..
            }
        )
    };
    assert!(cut(inside(&error)), "{error:?}");
    let (source, destination) = pair(
        "tcp:127.0.0.1:0",
        &with(all.options()),
        &with(all.options()),
    );
    let (_, mut writer) = source.split();
    writer.write_all(b"whole").unwrap();
    writer.finish().unwrap();
    assert_eq!(read_all(destination.split().0).unwrap(), b"whole");
}

/// Of which file, and what is wrong with it.
#[test]
fn files_that_cannot_be_used_are_named() {
    let _ends = must_end();
    let all = Certificates::new();
    let at = |name: &str| all.path().join(name);
    let error = || {
        let listened = Incoming::listen(&address("tcp:127.0.0.1:0"), &with(all.options()));
        text(&listened.unwrap_err())
    };
    std::fs::copy(at("client-key.pem"), at("server-key.pem")).unwrap();
    assert_says(
        &error(),
        "server-key.pem has no key of the certificate in it",
    );
    std::fs::write(at("server-key.pem"), "rubbish").unwrap();
    assert_says(&error(), "server-key.pem has no private key in it");
    std::fs::write(at("server-cert.pem"), "rubbish").unwrap();
    assert_says(&error(), "server-cert.pem has no certificate in it");
    std::fs::remove_file(at("server-cert.pem")).unwrap();
    assert_says(&error(), "server-cert.pem: No such file");
    std::fs::write(at("ca-crl.pem"), "rubbish").unwrap();
    assert_says(&error(), "ca-crl.pem has no revocation list in it");
}
