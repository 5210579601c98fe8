//! The ways that pages can take: one channel or many, compressed, secured.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use paguro_lab::certificates;
use paguro_migration::channel::{self, Address, Incoming, Listener, Stop, TlsOptions};
use paguro_migration::destination::{Arrival, ReceiveMode, ReceiveOptions, receive};
use paguro_migration::multifd::{Compression, Multifd};
use paguro_migration::source::{MigrateError, MigrateOptions, Migration, Mode, Pages, migrate};
use paguro_vmm::{Accel, Config, RunState, Vm};

use crate::common::*;
use crate::migrating::{Moved, Name, assert_moved, relocate_over, relocate_while};

/// How pages travel.
#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    Multifd(u8),
    Zstd(u8),
    /// With a cache of so many bytes.
    Xbzrle(u64),
}

const WAYS: [Way; 8] = [
    Way::Plain,
    Way::Multifd(1),
    Way::Multifd(2),
    Way::Multifd(4),
    Way::Zstd(1),
    Way::Zstd(3),
    Way::Xbzrle(1 << 20),
    Way::Xbzrle(64 << 20),
];

impl Way {
    fn set_up(self, source: &mut MigrateOptions, destination: &mut ReceiveOptions) {
        source.mode = Mode::Precopy(match self {
            Self::Plain => Pages::Plain,
            Self::Xbzrle(cache_bytes) => Pages::Xbzrle { cache_bytes },
            Self::Multifd(channels) => Pages::Multifd(Multifd::new(channels)),
            Self::Zstd(channels) => Pages::Multifd(Multifd {
                channels,
                compression: Compression::Zstd { level: 1 },
            }),
        });
        destination.mode = ReceiveMode::Precopy {
            multifd: source.mode.multifd(),
        };
    }
}

fn tcp() -> Address {
    "tcp:127.0.0.1:0".parse().unwrap()
}

/// Pages are written in no order.
fn random(accel: Accel, cpus: u32) -> Config {
    Config {
        workload: "pattern=random,rate=20000".parse().unwrap(),
        ..config(accel, cpus)
    }
}

/// There, and checked while it runs on.
fn assert_arrives(vm: &Arc<Vm>, what: &str, moved: &Moved) {
    assert_moved(moved);
    assert_eq!(vm.run_state(), RunState::PostMigrate, "{what}");
    take(&moved.vm).assert_right();
    wait_writes(&moved.vm, 500);
    take(&moved.vm).assert_right();
}

/// Each way with each accelerator; processors and TLS in turns.
#[test]
fn whatever_way_its_pages_take_a_guest_arrives_whole() {
    let _turn = turn();
    let certificates = certificates::make().unwrap();
    for (round, accel) in accels().into_iter().enumerate() {
        for (index, way) in WAYS.into_iter().enumerate() {
            let tls = (index + round) % 2 == 0;
            let cpus = 1 + (index / 2 + round) as u32 % 2;
            let what = format!("{way:?}, {accel:?}, {cpus} vCPUs, TLS: {tls}");
            println!("{what}");
            let vm = start(&with_dma(random(accel, cpus), cpus == 2));
            wait_writes(&vm, 500);
            let name = Name::new();
            let address = if tls { tcp() } else { name.address() };
            let moved = relocate_over(&vm, &address, |source, destination| {
                way.set_up(source, destination);
                source.channel.tls = tls.then(|| tls_in(certificates.path()));
            });
            assert_arrives(&vm, &what, &moved);
            let report = moved.sent.as_ref().unwrap();
            let multifd = matches!(way, Way::Multifd(_) | Way::Zstd(_));
            assert_eq!(report.multifd_bytes > 0, multifd, "{what}: {report:?}");
        }
    }
}

fn tls_in(directory: &Path) -> TlsOptions {
    TlsOptions {
        directory: directory.to_owned(),
        hostname: None,
    }
}

/// Many passes: each page is sent again and again, on another channel each time.
#[test]
fn a_page_is_never_overtaken_by_an_older_one() {
    let _turn = turn();
    let small = Way::Xbzrle(1 << 20);
    let large = Way::Xbzrle(64 << 20);
    for way in [Way::Multifd(4), Way::Zstd(3), small, large] {
        let vm = start(&random(accels()[0], 2));
        wait_writes(&vm, 500);
        let name = Name::new();
        let set_up = |source: &mut MigrateOptions, destination: &mut ReceiveOptions| {
            way.set_up(source, destination);
            source.downtime_limit = Duration::ZERO;
            // So that the guest has time to write again what was sent.
            source.max_bandwidth = 50 << 20;
            source.convergence.timeout = Some(Duration::from_secs(60));
        };
        let passes = |migration: &Migration| {
            wait_syncs(migration, 4);
            migration.set_downtime_limit(Duration::from_secs(60));
        };
        let moved = relocate_while(&vm, &name.address(), set_up, passes);
        assert!(moved.sent.as_ref().unwrap().dirty_sync_count > 2);
        if matches!(way, Way::Xbzrle(_)) {
            let report = moved.sent.as_ref().unwrap();
            assert!(
                report.xbzrle_pages > 0 && report.xbzrle_cache_misses > 0,
                "{report:?}"
            );
        }
        assert_arrives(&vm, &format!("{way:?}"), &moved);
    }
}

/// What the channel takes is not measured by pages of which next to nothing is sent: a guest that
/// can be moved without differences can be moved with them.
#[test]
fn differences_do_not_make_the_channel_look_slow() {
    let _turn = turn();
    let mut bandwidths = Vec::new();
    for way in [Way::Plain, Way::Xbzrle(64 << 20)] {
        let vm = start(&Config {
            workload: "rate=50000".parse().unwrap(),
            ..config(accels()[0], 1)
        });
        wait_writes(&vm, 10_000);
        let set_up = |source: &mut MigrateOptions, destination: &mut ReceiveOptions| {
            way.set_up(source, destination);
            source.downtime_limit = Duration::ZERO;
            source.max_bandwidth = 50 << 20;
            source.convergence.timeout = Some(Duration::from_secs(600));
        };
        let after_many_passes = move |migration: &Migration| {
            wait_syncs(migration, 3);
            if matches!(way, Way::Xbzrle(_)) {
                // The guest has time to write all of it again while its differences are sent. That
                // is much work, each part of which may take its time on a busy host.
                migration.set_max_bandwidth(200 << 10);
                (4..=28).for_each(|count| wait_syncs(migration, count));
                migration.set_max_bandwidth(0);
            }
            migration.set_downtime_limit(Duration::from_millis(300));
        };
        let name = Name::new();
        let moved = relocate_while(&vm, &name.address(), set_up, after_many_passes);
        assert_arrives(&vm, &format!("{way:?}"), &moved);
        bandwidths.push(moved.sent.unwrap().bandwidth);
    }
    // It is the same channel, on a host that may be busy.
    assert!(bandwidths[1] > bandwidths[0] / 30, "{bandwidths:?}");
}

/// Waits for so many passes, or for the end.
fn wait_syncs(migration: &Migration, count: u64) {
    let syncs = || migration.progress().dirty_syncs.load(Ordering::Relaxed);
    wait_until("syncs", || syncs() >= count || is_over(migration));
}

fn is_over(migration: &Migration) -> bool {
    use paguro_migration::switchover::MigrationStatus::{Completed, Failed};
    matches!(migration.status(), Completed | Failed)
}

/// The connection stays, and nothing of it arrives.
const SWALLOW: usize = usize::MAX;

/// What becomes of a migration through a relay that cuts its `cut`th connection after so many
/// bytes, and takes its time `back`.
fn cut(
    vm: &Arc<Vm>,
    way: Way,
    cut: usize,
    after: usize,
    told: Option<Multifd>,
    back: Duration,
) -> (String, String) {
    let destination = create(vm.config());
    let listening = channel::Options::new(Stop::new().unwrap());
    let listener = Incoming::listen(&tcp(), &listening).unwrap();
    let address = relay(&listener, cut, after, back);
    let mut options = MigrateOptions::new(
        address.parse().unwrap(),
        channel::Options::new(Stop::new().unwrap()),
    );
    options.linger = Duration::from_millis(200);
    let mut receiving = ReceiveOptions::new(true, false);
    receiving.connect_timeout = Duration::from_secs(3);
    receiving.linger = options.linger;
    // So that all channels are met before it is over.
    options.max_bandwidth = 4 << 20;
    way.set_up(&mut options, &mut receiving);
    if told.is_some() {
        receiving.mode = ReceiveMode::Precopy { multifd: told };
    }
    both_fail(vm, &destination, listener, &options, receiving)
}

/// Passes on what comes to it until its `cut`th connection has brought so many bytes, and what goes back
/// only after a while. What breaks on one side it breaks on the other.
fn relay(listener: &Listener, cut: usize, after: usize, back: Duration) -> String {
    let to = listener.local_address().to_string()["tcp:".len()..].to_owned();
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", relay.local_addr().unwrap());
    std::thread::spawn(move || {
        let count = AtomicUsize::new(0);
        for source in relay.incoming() {
            let source = source.unwrap();
            let Ok(destination) = TcpStream::connect(&to) else {
                return;
            };
            let number = count.fetch_add(1, Ordering::Relaxed);
            if number == cut && after == SWALLOW {
                std::thread::spawn(move || std::io::copy(&mut &source, &mut std::io::sink()));
                continue;
            }
            let limit = if number == cut { after } else { usize::MAX };
            let (a, b) = (
                source.try_clone().unwrap(),
                destination.try_clone().unwrap(),
            );
            std::thread::spawn(move || pump(source, destination, limit, Duration::ZERO));
            std::thread::spawn(move || pump(b, a, usize::MAX, back));
        }
    });
    address
}

/// What the two sides say of a migration that comes to nothing.
fn both_fail(
    vm: &Arc<Vm>,
    destination: &Arc<Vm>,
    listener: Listener,
    options: &MigrateOptions,
    receiving: ReceiveOptions,
) -> (String, String) {
    let destination = destination.clone();
    let received = std::thread::spawn(move || {
        let arrival = Arrival::new(receiving, None);
        receive(&*destination, listener, &arrival).unwrap_err()
    });
    let migration = Migration::new(options, None).unwrap();
    let sent = migrate(&**vm, options, &migration).unwrap_err();
    assert_eq!(vm.run_state(), RunState::Running, "{sent}");
    (chain(&sent), chain(&received.join().unwrap()))
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut limit: usize, delay: Duration) {
    let mut bytes = [0; 16 << 10];
    while limit > 0 {
        let most = bytes.len().min(limit);
        let Ok(count @ 1..) = from.read(&mut bytes[..most]) else {
            break;
        };
        // A slow link.
        std::thread::sleep(delay);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
        limit -= count;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_channel_that_breaks_ends_the_migration_and_the_guest_runs_on() {
    let _turn = turn();
    let accel = accels()[0];
    let vm = start(&config(accel, 1));
    // Which channel gets which pages is chance; what is certain are two SYNCs on each, behind the
    // first 64 bytes. The main one has some 450 bytes where threads are all there is of a machine.
    let main = match accel {
        Accel::Kvm => 3000,
        Accel::Threads => 300,
    };
    for (number, after) in [(0, main), (1, 64), (1, 70), (2, 2000), (1, 2700)] {
        wait_writes(&vm, 100);
        let (sent, received) = cut(&vm, Way::Multifd(2), number, after, None, Duration::ZERO);
        println!("{number} after {after}: {sent}; {received}");
        if number > 0 {
            assert!(received.contains("multifd channel"), "{received}");
        }
    }
    wait_writes(&vm, 100);
    take(&vm).assert_right();
}

/// That a channel broke is known to a source so much sooner than what the destination says of it.
const SLOW: Duration = Duration::from_millis(700);

/// What a source says of a destination that gave up: not that a pipe broke, which comes of it.
const GAVE_UP: &str = "the destination failed: it gave up what had come";

#[test]
fn sides_that_were_told_different_things_do_not_wait_for_each_other() {
    let _turn = turn();
    let vm = start(&config(accels()[0], 1));
    let zstd = Multifd {
        channels: 2,
        compression: Compression::Zstd { level: 1 },
    };
    let wrong = [
        (
            Way::Multifd(2),
            Multifd::new(3),
            "2 of 3 multifd channels came",
        ),
        (Way::Multifd(3), Multifd::new(2), "more multifd channels"),
        (Way::Multifd(2), zstd, "compression"),
    ];
    for (way, told, says) in wrong {
        wait_writes(&vm, 500);
        let (sent, received) = cut(&vm, way, usize::MAX, 0, Some(told), SLOW);
        println!("{way:?} {told:?}: {sent}; {received}");
        assert!(received.contains(says), "{received}");
        assert!(sent.contains(GAVE_UP), "{way:?} {told:?}: {sent}");
    }
    take(&vm).assert_right();
}

/// The destination has much unread then, and a kernel resets a connection that is closed like that.
#[test]
fn a_source_hears_the_reason_in_the_middle_of_a_write() {
    let _turn = turn();
    let vm = start(&config(accels()[0], 1));
    wait_writes(&vm, 5000);
    let larger = create(&Config {
        memory_bytes: 32 << 20,
        ..vm.config().clone()
    });
    let certificates = certificates::make().unwrap();
    for round in 0..6 {
        let name = Name::new();
        let (address, tls) = match round % 3 {
            0 => (name.address(), None),
            1 => (tcp(), None),
            _ => (tcp(), Some(tls_in(certificates.path()))),
        };
        let channel = || channel::Options {
            tls: tls.clone(),
            ..channel::Options::new(Stop::new().unwrap())
        };
        let listener = Incoming::listen(&address, &channel()).unwrap();
        let at = match round % 3 {
            0 => listener.local_address().clone(),
            _ => relay(&listener, usize::MAX, 0, SLOW).parse().unwrap(),
        };
        let mut options = MigrateOptions::new(at, channel());
        let mut receiving = ReceiveOptions::new(true, false);
        options.linger = Duration::from_millis(200);
        receiving.linger = options.linger;
        if round % 2 == 0 {
            Way::Multifd(2).set_up(&mut options, &mut receiving);
        }
        let (sent, received) = both_fail(&vm, &larger, listener, &options, receiving);
        assert!(received.contains("the two sides differ"), "{received}");
        assert!(sent.contains(GAVE_UP), "{address}, {round}: {sent}");
    }
    take(&vm).assert_right();
}

/// A channel too many need not be met before all else is here; what went over it is missed.
#[test]
fn pages_on_a_channel_that_nobody_listens_to_are_missed() {
    let _turn = turn();
    let vm = start(&config(accels()[0], 1));
    wait_writes(&vm, 5000);
    let told = Some(Multifd::new(2));
    let (sent, received) = cut(&vm, Way::Multifd(3), 3, SWALLOW, told, Duration::ZERO);
    assert!(received.contains("multifd packets"), "{received}");
    assert!(sent.contains("destination"), "{sent}");
    take(&vm).assert_right();
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let cache_bytes = 100_000;
    for (address, pages) in [
        ("exec:cat", Pages::Multifd(Multifd::new(2))),
        ("unix:/nowhere", Pages::Multifd(Multifd::new(0))),
        ("unix:/nowhere", Pages::Xbzrle { cache_bytes }),
    ] {
        let channel = channel::Options::new(Stop::new().unwrap());
        let mut wrong = MigrateOptions::new(address.parse().unwrap(), channel);
        wrong.mode = Mode::Precopy(pages);
        assert!(matches!(wrong.check(), Err(MigrateError::Option { .. })));
    }
}
