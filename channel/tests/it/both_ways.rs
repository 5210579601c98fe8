//! Sockets: both directions at once, from two threads.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use paguro_channel::{
    Address, Channel, ChannelError, Incoming, Options, Outgoing, TlsOptions, Writer,
};
use paguro_testkit::must_end;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::tls::Certificates;
use crate::tools::{address, listen, options, pair, pattern, read_all};

/// All four ends busy at once, more than any buffer holds; then an orderly end.
pub fn exchange(source: Channel, destination: Channel) {
    assert!(source.can_return() && destination.can_return());
    let there = pattern(24 << 20);
    let back = pattern((5 << 20) + 77);
    let (source_reader, source_writer) = source.split();
    let (destination_reader, destination_writer) = destination.split();
    thread::scope(|scope| {
        scope.spawn(|| send(source_writer, &there));
        scope.spawn(|| send(destination_writer, &back));
        let came = scope.spawn(|| read_all(source_reader).unwrap());
        assert!(read_all(destination_reader).unwrap() == there);
        assert!(came.join().unwrap() == back);
    });
}

/// Small messages, then pieces of a page.
fn send(mut writer: Writer, bytes: &[u8]) {
    let (small, mut large) = bytes.split_at(1000);
    for part in small.chunks(17) {
        writer.write_all(part).unwrap();
    }
    while !large.is_empty() {
        let pages: Vec<_> = large.chunks(4096).take(100).map(IoSlice::new).collect();
        let written = writer.write_vectored(&pages).unwrap();
        large = &large[written..];
    }
    writer.finish().unwrap();
}

#[test]
fn tcp_goes_both_ways() {
    let _ends = must_end();
    let (source, destination) = pair("tcp:127.0.0.1:0", &options(), &options());
    assert_eq!(source.kind(), "tcp");
    assert!(
        destination.peer().starts_with("tcp:127.0.0.1:"),
        "{destination:?}"
    );
    exchange(source, destination);
    let (source, destination) = pair("tcp:localhost:0", &options(), &options());
    exchange(source, destination);
}

#[test]
fn ipv6_goes_both_ways() {
    let _ends = must_end();
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return println!("skipped: this host has no IPv6");
    }
    let (source, destination) = pair("tcp:[::1]:0", &options(), &options());
    exchange(source, destination);
}

/// A name of both families: whoever knows one address of it only comes in there.
#[test]
fn a_source_comes_in_at_each_address_of_a_name() {
    let _ends = must_end();
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return println!("skipped: this host has no IPv6");
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "::1 both.test\n127.0.0.1 both.test\n").unwrap();
    // Where a name has its addresses belongs to all of the host, but in mounts of our own.
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    let child = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&hosts)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "both_ways::at_a_name_of_both_families"])
        .args(["--ignored", "--nocapture"])
        .output();
    let child = match child {
        Ok(child) if child.status.code() != Some(1) => child,
        cannot => return println!("skipped: no mounts of our own: {cannot:?}"),
    };
    let said = String::from_utf8_lossy(&child.stdout);
    print!("{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"));
}

#[test]
#[ignore = "needs a host with a name of its own: another test makes one for it"]
fn at_a_name_of_both_families() {
    let _ends = must_end();
    let listener = listen("tcp:both.test:0", &options());
    let Address::Tcp { host, port } = listener.local_address().clone() else {
        panic!("{listener:?}");
    };
    assert_eq!(host, "both.test");
    for host in ["::1", "127.0.0.1", "both.test"] {
        let to = Address::Tcp {
            host: host.to_owned(),
            port,
        };
        let connecting = thread::spawn(move || Outgoing::connect(&to, &options()));
        let came = listener.accept(Some(Duration::from_secs(60))).unwrap();
        exchange(connecting.join().unwrap().unwrap(), came);
    }
}

#[test]
fn unix_goes_both_ways_and_leaves_no_name() {
    let _ends = must_end();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let text = format!("unix:{}", path.display());
    let (source, destination) = pair(&text, &options(), &options());
    assert!(!path.exists(), "the name goes with the listener");
    exchange(source, destination);
}

#[test]
fn vsock_goes_both_ways() {
    let _ends = must_end();
    let listener = match Incoming::listen(&address("vsock:1:0"), &options()) {
        Ok(listener) => listener,
        Err(error) => return println!("skipped: no vsock: {}", crate::tools::text(&error)),
    };
    let to = listener.local_address().clone();
    let limits = Options {
        connect_timeout: Duration::from_secs(2),
        ..options()
    };
    let connecting = thread::spawn(move || Outgoing::connect(&to, &limits));
    let accepted = listener.accept(Some(Duration::from_secs(2)));
    match (connecting.join().unwrap(), accepted) {
        (Ok(source), Ok(destination)) => exchange(source, destination),
        (Err(error), _) | (_, Err(error)) => {
            println!("skipped: no vsock loopback: {}", crate::tools::text(&error));
        }
    }
}

/// As if the parent had left it open; one at a time, as a command that another test starts
/// meanwhile would inherit it too.
pub fn inherited(fd: OwnedFd) -> Address {
    fcntl_setfd(&fd, FdFlags::empty()).unwrap();
    Address::Fd(fd.into_raw_fd())
}

#[test]
fn an_inherited_socket_goes_both_ways() {
    let _ends = must_end();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let (pipe, _) = std::io::pipe().unwrap();
    let (one, pipe) = (inherited(one.into()), inherited(pipe.into()));
    assert!(one.can_return() && !pipe.can_return());
    let source = Outgoing::connect(&one, &options()).unwrap();
    let listener = Incoming::listen(&inherited(other.into()), &options()).unwrap();
    let destination = listener.accept(None).unwrap();
    assert!(matches!(
        listener.accept(None),
        Err(ChannelError::Unsuitable { .. })
    ));
    exchange(source, destination);
}

#[test]
fn an_inherited_listening_socket_is_listened_at() {
    let _ends = must_end();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = address(&format!("tcp:{}", socket.local_addr().unwrap()));
    let listener = Incoming::listen(&inherited(socket.into()), &options()).unwrap();
    let source = Outgoing::connect(&to, &options()).unwrap();
    exchange(source, listener.accept(None).unwrap());
}

#[test]
fn a_descriptor_that_is_owned_is_not_taken() {
    let _ends = must_end();
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let fd = Address::Fd(one.as_raw_fd());
    let error = Outgoing::connect(&fd, &options()).unwrap_err();
    assert!(error.to_string().starts_with("cannot take fd:"), "{error}");
}

#[test]
fn several_connections_are_accepted_within_a_time() {
    let _ends = must_end();
    let listener = listen("tcp:127.0.0.1:0", &options());
    let all: Vec<_> = (0..5)
        .map(|_| Outgoing::connect(listener.local_address(), &options()).unwrap())
        .collect();
    let accepted: Vec<_> = (0..5)
        .map(|_| listener.accept(Some(Duration::from_secs(60))).unwrap())
        .collect();
    let error = listener
        .accept(Some(Duration::from_millis(30)))
        .unwrap_err();
    assert!(matches!(error, ChannelError::Timeout { .. }), "{error}");
    for (source, destination) in all.into_iter().zip(accepted) {
        exchange(source, destination);
    }
}

#[test]
fn tls_goes_both_ways() {
    let _ends = must_end();
    let certificates = Certificates::new();
    let limits = Options {
        tls: Some(certificates.options()),
        ..options()
    };
    let (source, destination) = pair("tcp:127.0.0.1:0", &limits, &limits);
    assert_eq!(source.kind(), "tcp with TLS");
    exchange(source, destination);
    let named = Options {
        tls: Some(TlsOptions {
            hostname: Some("paguro.test".into()),
            ..certificates.options()
        }),
        ..options()
    };
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/socket", dir.path().display());
    let (source, destination) = pair(&unix, &named, &limits);
    exchange(source, destination);
}

/// While one thread waits for the peer, another one writes.
#[test]
fn a_waiting_reader_does_not_keep_the_writer_from_writing() {
    let _ends = must_end();
    let certificates = Certificates::new();
    let limits = Options {
        tls: Some(certificates.options()),
        ..options()
    };
    for limits in [limits, options()] {
        let (source, destination) = pair("tcp:127.0.0.1:0", &limits, &limits);
        let (mut reader, mut writer) = source.split();
        let (mut peer_reader, mut peer_writer) = destination.split();
        let waiting = crate::tools::blocked(move || {
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            byte[0]
        });
        let sent = pattern(8 << 20);
        let copy = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&copy).map(|()| writer));
        let mut got = vec![0; sent.len()];
        peer_reader.read_exact(&mut got).unwrap();
        assert!(got == sent && !waiting.is_finished());
        peer_writer.write_all(&[9]).unwrap();
        assert_eq!(waiting.join().unwrap(), 9);
        drop(writing.join().unwrap().unwrap());
    }
}
