//! Whatever blocks ends when it is told to, without the peer's help.

use std::io::Read;
use std::time::Duration;

use paguro_channel::{Channel, ChannelError, Options, Outgoing};
use paguro_testkit::must_end;

use crate::tls::Certificates;
use crate::tools::{address, blocked, inside, listen, options, pair, write_until_error};

/// No limits: what ends is ended by the stop.
fn endless() -> Options {
    Options {
        silence: None,
        connect_timeout: Duration::from_secs(3600),
        ..options()
    }
}

fn sockets() -> Vec<(Channel, Channel)> {
    let certificates = Certificates::new();
    let tls = Options {
        tls: Some(certificates.options()),
        ..endless()
    };
    vec![
        pair("tcp:127.0.0.1:0", &endless(), &endless()),
        pair("tcp:127.0.0.1:0", &tls, &tls),
    ]
}

#[test]
fn a_shutdown_ends_reads_and_writes_and_the_peer_sees_it() {
    let _ends = must_end();
    for (channel, peer) in sockets() {
        let handle = channel.handle();
        let (mut reader, writer) = channel.split();
        let reading = blocked(move || reader.read(&mut [0]).unwrap_err());
        let writing = blocked(move || write_until_error(writer));
        handle.shutdown();
        for error in [reading.join().unwrap(), writing.join().unwrap()] {
            assert!(inside(&error).is_stop(), "{error:?}");
        }
        let (mut peer_reader, _) = peer.split();
        let mut all = Vec::new();
        let _ = peer_reader.read_to_end(&mut all);
    }
}

#[test]
fn the_stop_of_a_migration_ends_all_its_channels() {
    let _ends = must_end();
    let limits = endless();
    let (source, _peer) = pair("tcp:127.0.0.1:0", &limits, &endless());
    let command = Outgoing::connect(&address("exec:exec sleep 1000"), &limits).unwrap();
    let incoming = listen("exec:exec sleep 1000", &limits)
        .accept(None)
        .unwrap();
    let unending =
        Outgoing::connect(&address("exec:cat > /dev/null; sleep 1000"), &limits).unwrap();
    let threads = [
        blocked(move || source.split().0.read(&mut [0]).unwrap_err()),
        blocked(move || write_until_error(command.split().1)),
        blocked(move || incoming.split().0.read(&mut [0]).unwrap_err()),
        blocked(move || unending.split().1.finish().unwrap_err()),
    ];
    limits.stop.stop();
    for thread in threads {
        let error = thread.join().unwrap();
        assert!(inside(&error).is_stop(), "{error:?}");
    }
    let error = Outgoing::connect(&address("tcp:localhost:1"), &limits).unwrap_err();
    assert!(error.is_stop(), "{error:?}");
}

#[test]
fn an_accept_can_be_stopped() {
    let _ends = must_end();
    let listener = listen("tcp:127.0.0.1:0", &endless());
    let stop = listener.stop_handle();
    let accepting = blocked(move || listener.accept(None).unwrap_err());
    stop.stop();
    assert!(accepting.join().unwrap().is_stop());
}

/// Somebody connects and says nothing where TLS is expected.
#[test]
fn a_handshake_can_be_stopped() {
    let _ends = must_end();
    let certificates = Certificates::new();
    let limits = Options {
        tls: Some(certificates.options()),
        ..endless()
    };
    let listener = listen("tcp:127.0.0.1:0", &limits);
    let to = listener.local_address().to_string();
    let _mute = std::net::TcpStream::connect(&to["tcp:".len()..]).unwrap();
    let stop = listener.stop_handle();
    let accepting = blocked(move || listener.accept(None).unwrap_err());
    stop.stop();
    let error = accepting.join().unwrap();
    assert!(error.is_stop(), "{error:?}");
}

/// Listeners with so short a queue that the next connect must wait.
#[test]
fn a_connect_can_be_stopped_and_ends_in_time() {
    let _ends = must_end();
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let unix = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&unix, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&unix, 0).unwrap();
    let tcp = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&tcp, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&tcp, 0).unwrap();
    let port = rustix::net::getsockname(&tcp).unwrap();
    let port = std::net::SocketAddr::try_from(port).unwrap();
    for to in [format!("unix:{}", path.display()), format!("tcp:{port}")] {
        let to = address(&to);
        let limits = Options {
            connect_timeout: Duration::from_millis(200),
            ..endless()
        };
        let mut queue = Vec::new();
        let error = loop {
            match Outgoing::connect(&to, &limits) {
                Ok(channel) => queue.push(channel),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ChannelError::Timeout { .. }), "{error:?}");
        let limits = endless();
        let stop = limits.stop.clone();
        let connecting = blocked(move || Outgoing::connect(&to, &limits).unwrap_err());
        stop.stop();
        assert!(connecting.join().unwrap().is_stop());
    }
}
