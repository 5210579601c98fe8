//! A peer that neither sends nor takes bytes is noticed.

use std::io::{Read, Write};
use std::sync::mpsc::channel as channel_of_threads;
use std::time::{Duration, Instant};

use paguro_channel::{Address, Channel, ChannelError, Options, Outgoing};
use paguro_testkit::must_end;

use crate::tls::Certificates;
use crate::tools::{inside, options, pair, write_until_error};

const SILENCE: Duration = Duration::from_millis(250);

fn short() -> Options {
    Options {
        silence: Some(SILENCE),
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
    let _ends = must_end();
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
    let _ends = must_end();
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
    let _ends = must_end();
    for number in 0..all().len() {
        // Where the host itself stood still for as long as a silence, nothing is said.
        let said = (0..20).any(|_| {
            let (channel, peer) = all().swap_remove(number);
            let (mut reader, mut writer) = channel.split();
            let (mut peer_reader, mut peer_writer) = peer.split();
            let waiting = std::thread::spawn(move || reader.read_exact(&mut [0]).map(|()| reader));
            let start = Instant::now();
            let (mut last, mut longest) = (start, Duration::ZERO);
            let mut exchange = || {
                writer.write_all(&[1])?;
                peer_reader.read_exact(&mut [0])
            };
            while start.elapsed() < Duration::from_millis(900) {
                let exchanged = exchange();
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if exchanged.is_err() {
                    break;
                }
            }
            let _ = peer_writer.write_all(&[1]);
            let read = waiting.join().unwrap();
            longest = longest.max(last.elapsed());
            if longest < SILENCE / 2 {
                read.map(|_| true).unwrap()
            } else {
                false
            }
        });
        assert!(said, "this host stands still all the time");
    }
}

/// While an operator decides nobody need speak.
#[test]
fn the_silence_can_be_lifted() {
    let _ends = must_end();
    for (channel, peer) in all() {
        channel.handle().set_silence(None);
        let (mut reader, _writer) = channel.split();
        let waiting = std::thread::spawn(move || reader.read_exact(&mut [0]));
        // Silence is what is tested, longer than any that counts.
        std::thread::sleep(Duration::from_millis(600));
        let (_peer_reader, mut peer_writer) = peer.split();
        peer_writer.write_all(&[1]).unwrap();
        waiting.join().unwrap().unwrap();
    }
}

/// A command may wait for as long as it likes, but for a guest.
#[test]
fn a_command_that_stops_reading_is_noticed_while_a_guest_waits_for_it() {
    let _ends = must_end();
    let address: Address = "exec:sleep 1000".parse().unwrap();
    let channel = Outgoing::connect(&address, &short()).unwrap();
    let handle = channel.handle();
    let (_reader, writer) = channel.split();
    let (told, noticed) = channel_of_threads();
    let writing = std::thread::spawn(move || {
        let error = write_until_error(writer);
        told.send(()).unwrap();
        error
    });
    let early = noticed.recv_timeout(3 * SILENCE);
    assert!(early.is_err(), "it waited for no guest");
    handle.set_guest_waits(true);
    let error = writing.join().unwrap();
    assert!(
        matches!(inside(&error), ChannelError::Silent { .. }),
        "{error}"
    );
}
