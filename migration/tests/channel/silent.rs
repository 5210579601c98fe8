//! A peer that neither sends nor takes bytes is noticed.

use std::io::{Read, Write};
use std::time::Duration;

use paguro_migration::channel::{Channel, ChannelError, Options};

use crate::tls::Certificates;
use crate::tools::{inside, options, pair, write_until_error};

fn short() -> Options {
    Options {
        silence: Some(Duration::from_millis(250)),
        ..options()
    }
}

/// Pairs of every kind of socket; the first end has a short silence.
fn all() -> Vec<(Channel, Channel)> {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let tls = |options| Options {
        tls: Some(certificates.options()),
        ..options
    };
    let unix = format!("unix:{}/socket", dir.path().display());
    vec![
        pair("tcp:127.0.0.1:0", &short(), &options()),
        pair(&unix, &short(), &options()),
        pair("tcp:127.0.0.1:0", &tls(short()), &tls(options())),
    ]
}

#[test]
fn a_peer_that_never_sends_is_noticed() {
    for (channel, _peer) in all() {
        let (mut reader, _writer) = channel.split();
        let error = reader.read(&mut [0]).unwrap_err();
        assert!(
            matches!(inside(&error), ChannelError::Silent { .. }),
            "{error}"
        );
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}

#[test]
fn a_peer_that_stops_reading_is_noticed() {
    for (channel, _peer) in all() {
        let (_reader, writer) = channel.split();
        let error = write_until_error(writer);
        assert!(
            matches!(inside(&error), ChannelError::Silent { .. }),
            "{error}"
        );
    }
}

/// A source whose return path is quiet for longer than the silence, because it sends itself.
#[test]
fn a_peer_that_takes_bytes_is_not_silent() {
    for (channel, peer) in all() {
        let (mut reader, mut writer) = channel.split();
        let (mut peer_reader, mut peer_writer) = peer.split();
        let waiting = std::thread::spawn(move || reader.read_exact(&mut [0]).map(|()| reader));
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(900) {
            writer.write_all(&[1]).unwrap();
            peer_reader.read_exact(&mut [0]).unwrap();
        }
        peer_writer.write_all(&[1]).unwrap();
        waiting.join().unwrap().unwrap();
    }
}

/// While an operator decides nobody need speak.
#[test]
fn the_silence_can_be_lifted() {
    for (channel, peer) in all() {
        channel.handle().set_silence(None);
        let (mut reader, _writer) = channel.split();
        let waiting = std::thread::spawn(move || reader.read_exact(&mut [0]));
        std::thread::sleep(Duration::from_millis(600));
        let (_peer_reader, mut peer_writer) = peer.split();
        peer_writer.write_all(&[1]).unwrap();
        waiting.join().unwrap().unwrap();
    }
}
