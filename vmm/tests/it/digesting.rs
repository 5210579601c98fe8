//! Destinations that take in less than is written for them: the rest lies in buffers, and a guest that
//! is stopped would wait for it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::time::Duration;

use paguro_migration::channel::{self, Incoming, Stop};
use paguro_migration::destination::{Arrival, ReceiveMode, ReceiveOptions, receive};
use paguro_migration::multifd::Multifd;
use paguro_migration::source::{MigrateOptions, MigrateReport, Migration, Mode, Pages, migrate};
use paguro_migration::switchover::MigrationStatus;
use paguro_vmm::{Config, RunState};

use crate::common::*;

/// What a [`buffer`] has taken and not passed on.
type Held = Arc<AtomicU64>;

/// A buffer of any size before a slow destination: whatever comes is taken at once, and passed on a few
/// megabytes a second, on each of so many connections.
fn buffer(to: String, connections: usize) -> (String, Held) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let held = Held::default();
    let counted = held.clone();
    std::thread::spawn(move || {
        for _ in 0..connections {
            let (source, _) = listener.accept().unwrap();
            let destination = TcpStream::connect(&to).unwrap();
            pass(source, destination, counted.clone());
        }
    });
    (format!("tcp:{at}"), held)
}

fn pass(source: TcpStream, destination: TcpStream, held: Held) {
    let (pieces, passed) = channel::<Vec<u8>>();
    let (mut from, counted) = (source.try_clone().unwrap(), held.clone());
    std::thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            counted.fetch_add(count as u64, SeqCst);
            if pieces.send(piece[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut to = destination.try_clone().unwrap();
    std::thread::spawn(move || {
        for piece in passed {
            // A link of 32 bytes a microsecond.
            std::thread::sleep(Duration::from_micros(piece.len() as u64 / 32));
            if to.write_all(&piece).is_err() {
                break;
            }
            held.fetch_sub(piece.len() as u64, SeqCst);
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (destination, source);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Moves a guest of some megabytes through such a buffer; also says what that held when the guest
/// was stopped.
fn move_slowly(change: impl Fn(&mut MigrateOptions)) -> (MigrateReport, u64) {
    let source = start(&Config {
        workload: "rate=2000".parse().unwrap(),
        ..config(accels()[0], 1)
    });
    wait_writes(&source, 3000);
    let destination = create(source.config());
    let channel = channel::Options::new(Stop::new().unwrap());
    let listener = Incoming::listen(&"tcp:127.0.0.1:0".parse().unwrap(), &channel).unwrap();
    let local = listener.local_address().to_string();
    let mut options = MigrateOptions::new(listener.local_address().clone(), channel);
    options.downtime_limit = Duration::from_secs(1);
    change(&mut options);
    let connections = 1 + options
        .mode
        .multifd()
        .map_or(0, |multifd| multifd.channels.into());
    let (address, held) = buffer(local["tcp:".len()..].to_owned(), connections);
    options.address = address.parse().unwrap();
    let mut receiving = ReceiveOptions::new(true, false);
    receiving.linger = Duration::from_millis(200);
    receiving.mode = ReceiveMode::Precopy {
        multifd: options.mode.multifd(),
    };
    let received = {
        let vm = destination.clone();
        run(move || receive(&*vm, listener, &Arrival::new(receiving, None)))
    };
    let at_stop = Arc::new(AtomicU64::new(u64::MAX));
    let seen = at_stop.clone();
    let hook = move |status| {
        if status == MigrationStatus::Device {
            seen.store(held.load(SeqCst), SeqCst);
        }
    };
    let migration = Migration::new(&options, Some(Box::new(hook))).unwrap();
    let report = migrate(&*source, &options, &migration).unwrap();
    ends(&received).unwrap();
    assert_eq!(destination.run_state(), RunState::Running);
    take(&destination).assert_right();
    (report, at_stop.load(SeqCst))
}

#[test]
fn a_guest_is_not_stopped_while_what_was_sent_lies_in_buffers() {
    let _turn = turn();
    for channels in [0, 2] {
        let (report, held) = move_slowly(|options| {
            options.mode = Mode::Precopy(match channels {
                0 => Pages::Plain,
                channels => Pages::Multifd(Multifd::new(channels)),
            });
        });
        assert!(report.precopy_bytes > 8 << 20, "{report:?}");
        assert!(
            held < 1 << 20,
            "{held} bytes with {channels} multifd channels: {report:?}"
        );
    }
}
