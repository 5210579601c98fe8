//! What cannot be had is refused with its reason.

use std::os::unix::net::UnixListener;

use paguro_channel::{Incoming, Options, Outgoing, TlsOptions};
use paguro_testkit::must_end;

use crate::tools::{address, listen, options, text};

fn connect_error(to: &str) -> String {
    text(&Outgoing::connect(&address(to), &options()).unwrap_err())
}

fn listen_error(at: &str) -> String {
    text(&Incoming::listen(&address(at), &options()).unwrap_err())
}

#[test]
fn ports() {
    let _ends = must_end();
    let listener = listen("tcp:127.0.0.1:0", &options());
    let at = listener.local_address().to_string();
    let error = listen_error(&at);
    assert!(
        error.starts_with(&format!("cannot listen at {at}: Address already in use")),
        "{error}"
    );
    drop(listener);
    let error = connect_error(&at);
    assert!(
        error.starts_with(&format!("cannot connect to {at}: Connection refused")),
        "{error}"
    );
    assert!(connect_error("tcp::5").contains("a host and a port are needed"));
    assert!(listen_error("tcp:192.0.2.1:0").contains("Cannot assign requested address"));
}

#[test]
fn names() {
    let _ends = must_end();
    // Too long for a name, so that nobody need be asked.
    let host = "a".repeat(64);
    let error = connect_error(&format!("tcp:{host}:1"));
    assert!(
        error.starts_with(&format!("cannot find the host {host}: ")),
        "{error}"
    );
}

#[test]
fn unix_sockets() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let at = format!("unix:{}", path.display());
    assert!(
        connect_error(&at).contains("No such file"),
        "{}",
        connect_error(&at)
    );
    // What a process leaves behind that was killed.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert!(connect_error(&at).contains("refused"));
    let listener = listen(&at, &options());
    assert!(listen_error(&at).contains("Address already in use"));
    assert!(
        listener.accept(Some(std::time::Duration::ZERO)).is_err(),
        "looking is not connecting"
    );
    // Somebody else's by now.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    drop(listener);
    assert!(path.exists());
    assert!(listen_error(&at).contains("no socket stands there"));
}

#[test]
fn rights() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("not-a-directory");
    std::fs::write(&file, "").unwrap();
    assert!(connect_error(&format!("file:{}/x", file.display())).contains("Not a directory"));
    if rustix::process::geteuid().is_root() {
        return println!("skipped: root may do everything");
    }
    use std::os::unix::fs::PermissionsExt;
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o500)).unwrap();
    for transport in ["unix", "file"] {
        let at = format!("{transport}:{}/x", closed.display());
        let error = match transport {
            "unix" => listen_error(&at),
            _ => connect_error(&at),
        };
        assert!(error.contains("Permission denied"), "{error}");
    }
}

#[test]
fn tls_where_there_is_no_socket() {
    let _ends = must_end();
    let tls = Options {
        tls: Some(TlsOptions {
            directory: "/nowhere".into(),
            hostname: None,
        }),
        ..options()
    };
    let error = Outgoing::connect(&address("exec:cat"), &tls).unwrap_err();
    assert_eq!(error.to_string(), "exec:cat: TLS needs a socket");
    let error = Incoming::listen(&address("tcp:127.0.0.1:0"), &tls).unwrap_err();
    assert!(
        text(&error).contains("cannot read /nowhere/ca-cert.pem: No such file"),
        "{error}"
    );
}
