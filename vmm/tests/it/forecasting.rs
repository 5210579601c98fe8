//! What is expected of the moment in which a machine stands still.

use std::time::Duration;

use paguro_migration::channel::{self, Stop};
use paguro_migration::destination::ReceiveMode;
use paguro_migration::multifd::{Compression, Multifd};
use paguro_migration::source::{AtTimeout, MigrateOptions, Migration, Mode, Pages, migrate};
use paguro_vmm::{Accel, Config};

use crate::common::*;
use crate::migrating::{Name, assert_moved, relocate_over};

/// A large machine of which so little is ever written that no chunk of it says much.
fn sparse() -> Config {
    Config {
        memory_bytes: 256 << 20,
        workload: "set=256K,rate=25000".parse().unwrap(),
        ..config(accels()[0], 1)
    }
}

/// Passes go on only while there is something to gain; that next to nothing is sent in them is no
/// reason for another.
#[test]
fn a_guest_of_which_little_was_ever_touched_is_moved_in_a_few_passes() {
    let _turn = turn();
    let cache_bytes = 1 << 20;
    let ways = [
        Pages::Plain,
        Pages::Xbzrle { cache_bytes },
        Pages::Multifd(Multifd::new(2)),
        Pages::Multifd(Multifd {
            compression: Compression::Zstd { level: 1 },
            ..Multifd::new(2)
        }),
    ];
    for (index, way) in ways.into_iter().enumerate() {
        let vm = start(&sparse());
        wait_writes(&vm, 1000);
        let name = Name::new();
        let moved = relocate_over(&vm, &name.address(), |options, receiving| {
            options.mode = Mode::Precopy(way);
            receiving.mode = ReceiveMode::Precopy {
                multifd: options.mode.multifd(),
            };
            options.convergence.timeout = Some(Duration::from_secs(20));
            options.convergence.at_timeout = AtTimeout::Switchover;
        });
        assert_moved(&moved);
        let report = moved.sent.unwrap();
        let seen = format!("way {index}: {report:#?}");
        assert!(!report.forced && report.dirty_sync_count <= 20, "{seen}");
        // 10 Mbit/s is less than any host does, and 1 Tbit/s more.
        assert!(
            (1_250_000..125_000_000_000).contains(&report.bandwidth),
            "{seen}"
        );
        assert!((1..300_000).contains(&report.forecast_us), "{seen}");
        take(&moved.vm).assert_right();
    }
}

/// One way nobody answers: only what is written tells of the channel.
#[test]
fn a_guest_of_which_little_was_ever_touched_goes_to_a_file_in_a_few_passes() {
    let _turn = turn();
    let vm = start(&sparse());
    wait_writes(&vm, 1000);
    let dir = tempfile::tempdir().unwrap();
    let address = format!("file:{}", dir.path().join("stream").display());
    let channel = channel::Options::new(Stop::new().unwrap());
    let mut options = MigrateOptions::new(address.parse().unwrap(), channel);
    options.convergence.timeout = Some(Duration::from_secs(10));
    options.convergence.at_timeout = AtTimeout::Switchover;
    let migration = Migration::new(&options, None).unwrap();
    let report = migrate(&*vm, &options, &migration).unwrap();
    assert!(
        !report.forced && report.dirty_sync_count <= 20,
        "{report:#?}"
    );
    assert!((1..300_000).contains(&report.forecast_us), "{report:#?}");
}

/// As many vCPUs as are cheap: what it takes to save and load them is most of the stop.
#[test]
fn a_machine_of_many_vcpus_is_stopped_for_about_as_long_as_it_was_expected() {
    let _turn = turn();
    if !kvm() {
        return;
    }
    let mut vm = start(&Config {
        workload: "set=4M,rate=1000".parse().unwrap(),
        ..config(Accel::Kvm, 32)
    });
    // Neither saved nor loaded before it is assumed to cost something, then it is known.
    let mut seen = Vec::new();
    for _ in 0..6 {
        wait_unless_failed(&vm, "the guest writes", || writes(&vm)[0] > 100).unwrap();
        let name = Name::new();
        let moved = relocate_over(&vm, &name.address(), |options, _| {
            options.downtime_limit = Duration::from_secs(10);
        });
        assert_moved(&moved);
        let report = moved.sent.unwrap();
        seen.push((report.forecast_us, report.downtime_us));
        vm = moved.vm;
    }
    // A busy host adds to each of them, and nothing takes from the fastest: without what its vCPUs cost a
    // tenth of that would be expected.
    let fastest = seen.iter().map(|(_, was)| *was).min().unwrap();
    let slowest = seen.iter().map(|(_, was)| *was).max().unwrap();
    let is_near = |&(expected, _): &(u64, u64)| expected * 4 >= fastest && expected <= slowest * 4;
    assert!(
        seen[1..].iter().all(is_near),
        "expected, and came: {seen:?}"
    );
    take(&vm).assert_right();
}
