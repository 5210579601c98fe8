//! Machines that move while they run, and are checked by the oracle where they arrive.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use paguro_migration::channel::{self, Address, Incoming, Stop};
use paguro_migration::destination::{Arrival, ReceiveError, ReceiveMode, ReceiveOptions, receive};
use paguro_migration::handover;
use paguro_migration::machine::{Machine, Stay};
use paguro_migration::multifd::Multifd;
use paguro_migration::source::{
    AtTimeout, DirtyLimit, MigrateError, MigrateOptions, MigrateReport, Migration, Mode, Pages,
    SourceSabotage, Throttle, migrate,
};
use paguro_migration::switchover::{Choice, MigrationId, MigrationStatus};
use paguro_migration::{Control, SnapshotOptions, snapshot_to_stream};
use paguro_ram::{Backing, PageKind};
use paguro_vmm::{Accel, Config, RunState, Stage2Sabotage, StateError, Vm};

use crate::common::*;

/// A socket's name that goes with its owner.
pub struct Name(PathBuf);

impl Name {
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "paguro-vmm-{}-{}.sock",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }

    pub fn address(&self) -> Address {
        Address::Unix(self.0.clone())
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What becomes of a move.
pub struct Moved {
    pub vm: Arc<Vm>,
    pub sent: Result<MigrateReport, MigrateError>,
    pub received: Result<(), ReceiveError>,
    pub migration: Arc<Migration>,
}

fn options(address: Address) -> MigrateOptions {
    MigrateOptions::new(address, channel::Options::new(Stop::new().unwrap()))
}

/// Moves a machine into a new one, which runs on.
fn relocate(source: &Arc<Vm>, change: impl FnOnce(&mut MigrateOptions)) -> Moved {
    relocate_over(source, &Name::new().address(), |options, _| change(options))
}

/// Moves a machine into a new one, which runs on or stays as it arrived.
fn relocate_and(source: &Arc<Vm>, runs: bool, change: impl FnOnce(&mut MigrateOptions)) -> Moved {
    relocate_over(source, &Name::new().address(), |options, receiving| {
        receiving.paused = !runs;
        change(options);
    })
}

/// Moves a machine into a new one that listens there; what is said of TLS is of both sides.
pub fn relocate_over(
    source: &Arc<Vm>,
    address: &Address,
    change: impl FnOnce(&mut MigrateOptions, &mut ReceiveOptions),
) -> Moved {
    relocate_while(source, address, change, |_| {})
}

/// The same while somebody watches, and changes what may be changed.
pub fn relocate_while(
    source: &Arc<Vm>,
    address: &Address,
    change: impl FnOnce(&mut MigrateOptions, &mut ReceiveOptions),
    watch: impl FnOnce(&Migration) + Send + 'static,
) -> Moved {
    let destination = create(source.config());
    let mut options = options(address.clone());
    let mut receiving = ReceiveOptions::new(true, false);
    receiving.linger = Duration::from_millis(200);
    options.linger = receiving.linger;
    change(&mut options, &mut receiving);
    if options.convergence.timeout.is_none() {
        // A slow host would never send what a guest writes at full rate.
        options.convergence.timeout = Some(Duration::from_secs(3));
        options.convergence.at_timeout = AtTimeout::Switchover;
    }
    let listening = channel::Options {
        stop: Stop::new().unwrap(),
        ..options.channel.clone()
    };
    let listener = Incoming::listen(address, &listening).unwrap();
    options.address = listener.local_address().clone();
    let migration = Arc::new(Migration::new(&options, None).unwrap());
    let received = {
        let vm = destination.clone();
        run(move || {
            let arrival = Arrival::new(receiving, None);
            receive(&*vm, listener, &arrival)
        })
    };
    let watched = migration.clone();
    let watcher = run(move || watch(&watched));
    let sent = migrate(&**source, &options, &migration);
    ends(&watcher);
    Moved {
        vm: destination,
        sent,
        received: ends(&received),
        migration,
    }
}

#[track_caller]
pub fn assert_moved(moved: &Moved) {
    assert_arrived(moved, RunState::Running);
}

/// It moved, and is in that state there.
#[track_caller]
fn assert_arrived(moved: &Moved, state: RunState) {
    let report = moved.sent.as_ref().unwrap();
    moved.received.as_ref().unwrap();
    assert_eq!(moved.migration.status(), MigrationStatus::Completed);
    assert!(report.downtime_us > 0 && report.transferred_bytes > 0);
    assert_eq!(moved.vm.run_state(), state);
}

/// What is sent in a moment may be more than the limit lets through in many: the destination hears
/// from its source all the same.
#[test]
fn a_source_that_may_send_little_is_not_taken_for_a_silent_one() {
    let _turn = turn();
    let vm = start(&Config {
        workload: "set=2M,rate=5000".parse().unwrap(),
        ..config(accels()[0], 1)
    });
    wait_writes(&vm, 1000);
    let name = Name::new();
    let moved = relocate_over(&vm, &name.address(), |source, destination| {
        source.max_bandwidth = 64 << 10;
        source.convergence.timeout = Some(Duration::from_secs(8));
        source.convergence.at_timeout = AtTimeout::Switchover;
        destination.silence = Some(Duration::from_secs(5));
    });
    assert_moved(&moved);
}

fn machines() -> Vec<Config> {
    let mut configs = Vec::new();
    for accel in accels() {
        for cpus in [1, 2] {
            let plain = config(accel, cpus);
            configs.push(match cpus {
                1 => plain,
                _ => hurried(plain),
            });
            configs.push(with_dma(config(accel, cpus), cpus == 2));
        }
    }
    if kvm() {
        configs.push(Config {
            dirty_ring_entries: Some(1024),
            ..config(Accel::Kvm, 2)
        });
    }
    configs
}

#[test]
fn a_guest_that_writes_all_the_time_arrives_whole_and_runs_on() {
    let _turn = turn();
    for config in machines() {
        let mut vm = start(&config);
        for _ in 0..3 {
            wait_writes(&vm, 1000);
            let moved = relocate(&vm, |_| {});
            assert_moved(&moved);
            assert_eq!(vm.run_state(), RunState::PostMigrate, "{config:?}");
            let before = writes(&vm);
            let picture = take(&moved.vm);
            picture.assert_right();
            wait_writes(&moved.vm, 1000);
            take(&moved.vm).assert_right();
            assert_eq!(writes(&vm), before, "the source ran on");
            vm = moved.vm;
        }
    }
}

#[test]
fn threads_behind_stage_2_tables_arrive_whole_and_run_on() {
    let _turn = turn();
    for (name, way) in stage2_ways() {
        for cpus in [1, 2] {
            for rate in ["rate=20000", "rate=unlimited"] {
                let config = Config {
                    cpus,
                    // A block above 4 GiB, and one that is no whole 2 MiB.
                    ram_split: Some((9 << 20) + 4096),
                    workload: rate.parse().unwrap(),
                    ..way.clone()
                };
                let mut vm = match cpus {
                    1 => start(&config),
                    _ => start(&with_dma(config, false)),
                };
                // At full rate one move says it; there each waits for the timeout.
                for _ in 0..if rate == "rate=unlimited" { 1 } else { 2 } {
                    wait_writes(&vm, 1000);
                    let moved = relocate(&vm, |_| {});
                    assert_moved(&moved);
                    let right = take(&moved.vm).check();
                    assert!(right.is_right(), "{name}, {:?}: {right:#?}", vm.config());
                    wait_writes(&moved.vm, 1000);
                    take(&moved.vm).assert_right();
                    vm = moved.vm;
                }
            }
        }
    }
}

#[test]
fn a_tlb_that_is_invalidated_late_or_never_is_noticed_where_the_machine_arrives() {
    let _turn = turn();
    for sabotage in [
        Stage2Sabotage::NoInvalidation,
        Stage2Sabotage::LateInvalidation,
    ] {
        let rates = ["rate=20000", "rate=100000", "rate=unlimited"];
        let caught = (0..21).any(|index| {
            let vm = start(&Config {
                workload: format!("pattern=random,set=2M,{}", rates[index % 3])
                    .parse()
                    .unwrap(),
                ..broken_stage2(sabotage)
            });
            wait_writes(&vm, 1000);
            // If it ran on, it would write once more what it has forgotten that it wrote.
            let moved = relocate_and(&vm, false, |_| {});
            assert_arrived(&moved, RunState::Paused);
            !take(&moved.vm).check().is_right()
        });
        assert!(caught, "{sabotage:?} went unnoticed");
    }
}

#[test]
fn what_is_broken_on_purpose_is_noticed() {
    let _turn = turn();
    let accels = accels();
    for (name, sabotage) in SourceSabotage::NAMES {
        if sabotage == SourceSabotage::SilentSender {
            // No page is wrong by that: `a_sender_that_ends_without_a_word_leaves_nobody_waiting`.
            continue;
        }
        if sabotage == SourceSabotage::ClearAfterRead && accels[0] == Accel::Threads {
            println!("skipped without KVM: {name}, for only KVM's log is cleared");
            continue;
        }
        // A lost write hides behind the next one to its page: a guest in less of a hurry shows it.
        let rates = ["rate=20000", "rate=50000", "rate=100000", "rate=unlimited"];
        let caught = (0..20).any(|index| {
            let vm = start(&Config {
                workload: format!("pattern=random,{}", rates[index % 4])
                    .parse()
                    .unwrap(),
                ..config(accels[0], 2)
            });
            wait_writes(&vm, 2000);
            let name = Name::new();
            let moved = relocate_over(&vm, &name.address(), |options, receiving| {
                options.sabotage = sabotage;
                // A guest that runs on writes over what it lost.
                receiving.paused = true;
                if sabotage == SourceSabotage::StaleDelta {
                    options.mode = Mode::Precopy(Pages::Xbzrle {
                        cache_bytes: MigrateOptions::XBZRLE_CACHE_BYTES,
                    });
                    options.downtime_limit = Duration::ZERO;
                    // Differences begin with the third pass; the guest needs time for that.
                    options.max_bandwidth = 50 << 20;
                    options.convergence.timeout = Some(Duration::from_secs(1));
                    options.convergence.at_timeout = AtTimeout::Switchover;
                }
                if sabotage == SourceSabotage::SkipMultifdSync {
                    options.mode = Mode::Precopy(Pages::Multifd(Multifd::new(2)));
                    receiving.mode = ReceiveMode::Precopy {
                        multifd: options.mode.multifd(),
                    };
                }
            });
            assert_arrived(&moved, RunState::Paused);
            !take(&moved.vm).check().is_right()
        });
        assert!(caught, "{name} went unnoticed");
    }
}

#[test]
fn a_machine_of_another_size_is_refused_before_it_is_touched_and_the_source_runs_on() {
    let _turn = turn();
    let vm = start(&config(accels()[0], 1));
    wait_writes(&vm, 100);
    let name = Name::new();
    let other = create(&Config {
        memory_bytes: 32 << 20,
        ..config(accels()[0], 1)
    });
    let stop = Stop::new().unwrap();
    let listener = Incoming::listen(&name.address(), &channel::Options::new(stop)).unwrap();
    let received = std::thread::spawn(move || {
        let arrival = Arrival::new(ReceiveOptions::new(true, false), None);
        receive(&*other, listener, &arrival)
    });
    let options = options(name.address());
    let migration = Migration::new(&options, None).unwrap();
    let sent = migrate(&*vm, &options, &migration).unwrap_err();
    let received = chain(&received.join().unwrap().unwrap_err());
    assert!(
        received.contains("0x1000000") && received.contains("0x2000000"),
        "{received}"
    );
    assert!(sent.to_string().contains("destination"), "{sent}");
    assert_eq!(vm.run_state(), RunState::Running);
    wait_writes(&vm, 100);
    take(&vm).assert_right();
}

/// The channel is made so slow, and is said to be so much slower yet, that even a guest which gets
/// next to no time on a busy host is not caught up with.
fn narrow(options: &mut MigrateOptions) {
    options.max_bandwidth = 64 << 20;
    options.avail_switchover_bandwidth = 2 << 20;
    options.downtime_limit = Duration::from_millis(20);
    options.convergence.timeout = Some(Duration::from_secs(20));
}

/// It arrives, slowed down by at least so much, and is not any more where it is then. On a busy host
/// a guest may get so little done that nothing need be done about it: then it is moved on.
#[track_caller]
fn assert_slowed_down(mut vm: Arc<Vm>, percent: u64, how: impl Fn(&mut MigrateOptions)) {
    let slowed = (0..5).any(|_| {
        let most = Arc::new(AtomicU64::new(0));
        let seen = most.clone();
        let change = |options: &mut MigrateOptions, _: &mut ReceiveOptions| {
            narrow(options);
            how(options);
        };
        // Near the end, when little is left to write, it may be let go again.
        let watch = move |migration: &Migration| {
            while !matches!(
                migration.status(),
                MigrationStatus::Completed | MigrationStatus::Failed
            ) {
                let now = migration.progress().throttle_percent.load(Relaxed);
                seen.fetch_max(now, Relaxed);
                // The pace of looking: all that is seen is wanted, and nothing is waited for.
                std::thread::sleep(Duration::from_micros(500));
            }
        };
        let moved = relocate_while(&vm, &Name::new().address(), change, watch);
        assert_moved(&moved);
        take(&moved.vm).assert_right();
        wait_writes(&moved.vm, 10_000);
        vm = moved.vm;
        most.load(Relaxed) >= percent
    });
    assert!(slowed, "never by {percent} %");
}

#[test]
fn a_guest_that_writes_too_much_is_slowed_down_until_it_converges() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&hurried(config(accel, 2)));
        wait_writes(&vm, 5000);
        assert_slowed_down(vm, 60, |options| {
            options.convergence.throttle = Some(Throttle {
                initial: 60,
                increment: 20,
                trigger_threshold: 1,
                ..Throttle::default()
            });
        });
    }
}

/// Only KVM's ring knows what each vCPU writes.
#[test]
fn vcpus_that_write_too_much_are_limited_until_it_converges() {
    let _turn = turn();
    if !accels().contains(&Accel::Kvm) {
        return;
    }
    let mut config = config(Accel::Kvm, 2);
    config.dirty_ring_entries = Some(4096);
    // So many writes to so little memory, over so slow a channel: not to be caught up with, however
    // little time the guest gets.
    config.workload = "set=2M,rate=unlimited".parse().unwrap();
    let slow = |options: &mut MigrateOptions| options.max_bandwidth = 4 << 20;
    let vm = start(&config);
    wait_writes(&vm, 5000);
    let moved = relocate(&vm, |options| {
        narrow(options);
        slow(options);
        options.convergence.timeout = Some(Duration::from_secs(2));
    });
    let error = chain(&moved.sent.unwrap_err());
    assert!(error.contains("did not converge"), "{error}");
    assert_slowed_down(vm, 50, |options| {
        slow(options);
        options.convergence.dirty_limit = Some(DirtyLimit {
            bytes_per_s: 256 << 10,
            trigger_threshold: 1,
            period: Duration::from_millis(5),
        });
    });
}

#[test]
fn what_does_not_converge_ends_as_it_was_told_to() {
    let _turn = turn();
    // As slow a channel, and as much to send, as let no guest be caught up with by chance.
    let vm = start(&Config {
        workload: "set=2M,rate=unlimited".parse().unwrap(),
        ..config(accels()[0], 2)
    });
    wait_writes(&vm, 5000);
    let slow = |options: &mut MigrateOptions| {
        options.max_bandwidth = 4 << 20;
        options.avail_switchover_bandwidth = 4 << 20;
        options.downtime_limit = Duration::ZERO;
        options.convergence.timeout = Some(Duration::from_millis(700));
    };
    let moved = relocate(&vm, slow);
    let error = chain(&moved.sent.unwrap_err());
    assert!(error.contains("did not converge"), "{error}");
    assert!(moved.received.is_err());
    assert_eq!(vm.run_state(), RunState::Running);
    wait_writes(&vm, 1000);
    let moved = relocate(&vm, |options| {
        slow(options);
        options.convergence.at_timeout = AtTimeout::Switchover;
    });
    assert_moved(&moved);
    take(&moved.vm).assert_right();
}

/// In the midst of the first pass most of what counts as dirty was never touched.
#[test]
fn a_forced_stop_says_so_and_expects_what_is_left_by_its_content() {
    let _turn = turn();
    const BYTES: u64 = 64 << 20;
    let vm = start(&Config {
        memory_bytes: BYTES,
        workload: "pattern=random,rate=2000".parse().unwrap(),
        ..config(accels()[0], 1)
    });
    wait_writes(&vm, 1000);
    let moved = relocate(&vm, |options| {
        options.max_bandwidth = 1 << 20;
        options.downtime_limit = Duration::ZERO;
        options.convergence.timeout = Some(Duration::from_millis(700));
        options.convergence.at_timeout = AtTimeout::Switchover;
    });
    assert_moved(&moved);
    let report = moved.sent.unwrap();
    assert!(report.forced && report.forecast_us > 0, "{report:?}");
    assert!(report.last_dirty_bytes < BYTES / 2, "{report:?}");
    take(&moved.vm).assert_right();
    let moved = relocate(&moved.vm, |_| {});
    assert!(!moved.sent.unwrap().forced);
}

/// A background snapshot that goes out as a stream is a machine of its own.
#[test]
fn a_background_snapshot_over_a_channel_is_the_machine_at_the_pause() {
    let _turn = turn();
    for accel in accels_with_faults() {
        let vm = start(&config(accel, 2));
        wait_writes(&vm, 5000);
        let name = Name::new();
        let copy = create(vm.config());
        let stop = Stop::new().unwrap();
        let listener = Incoming::listen(&name.address(), &channel::Options::new(stop)).unwrap();
        let received = {
            let copy = copy.clone();
            std::thread::spawn(move || {
                let arrival = Arrival::new(ReceiveOptions::new(true, true), None);
                receive(&*copy, listener, &arrival)
            })
        };
        let mut options = SnapshotOptions::new();
        options.for_tests.check_freeze = true;
        let channel = channel::Options::new(Stop::new().unwrap());
        let control = Control::new(None);
        snapshot_to_stream(&*vm, &name.address(), &channel, &options, &control).unwrap();
        received.join().unwrap().unwrap();
        assert_eq!(vm.run_state(), RunState::Running);
        wait_writes(&vm, 100);
        take(&copy).assert_right();
        copy.start().unwrap();
        wait_writes(&copy, 1000);
        take(&copy).assert_right();
        take(&vm).assert_right();
    }
}

/// For live update: the new process has the RAM of the old one, and only devices move.
#[test]
fn shared_ram_is_handed_over_by_descriptor() {
    let _turn = turn();
    for accel in accels() {
        for pages in [PageKind::Small, PageKind::Thp] {
            let config = Config {
                backing: Backing::Memfd,
                pages,
                ..config(accel, 2)
            };
            let mut vm = start(&config);
            for _ in 0..3 {
                wait_writes(&vm, 1000);
                let name = Name::new();
                let stop = Stop::new().unwrap();
                let channel = channel::Options::new(stop);
                let listener = Incoming::listen(&name.address(), &channel).unwrap();
                let received = {
                    let config = config.clone();
                    std::thread::spawn(move || {
                        let taken = handover::take(listener.accept(None).unwrap()).unwrap();
                        let vm = Vm::create(config, memory(taken.ram().clone())).unwrap();
                        let whose = taken.id();
                        let way = taken.confirm().unwrap();
                        let mut options = ReceiveOptions::new(true, false);
                        options.mode = ReceiveMode::HandOver { migration: whose };
                        options.linger = Duration::from_millis(200);
                        let arrival = Arrival::new(options, None);
                        std::thread::scope(|scope| {
                            scope.spawn(|| arrival.watch(way));
                            receive(&*vm, listener, &arrival).unwrap();
                        });
                        vm
                    })
                };
                let mut options = options(name.address());
                options.mode = Mode::HandOver { address: None };
                let migration = Migration::new(&options, None).unwrap();
                let report = migrate(&*vm, &options, &migration).unwrap();
                let moved = received.join().unwrap();
                assert!(report.transferred_bytes < 1 << 20, "{report:?}");
                assert_eq!((report.normal_pages, report.zero_pages), (0, 0));
                assert_eq!(vm.run_state(), RunState::PostMigrate);
                assert_eq!(moved.run_state(), RunState::Running);
                // There is one RAM, and another process's guest writes it.
                assert_eq!(vm.cont(), Err(StateError::Gone));
                assert_eq!(vm.stays(), Some(Stay::HandedOver));
                assert_eq!(moved.stays(), None);
                assert_eq!(vm.run_state(), RunState::PostMigrate);
                assert_eq!(migration.advice().may, [Choice::Quit]);
                assert!(vm.pause().is_err(), "what it holds can be saved");
                take(&moved).assert_right();
                wait_writes(&moved, 1000);
                take(&moved).assert_right();
                vm = moved;
            }
        }
    }
}

/// Two machines are handed over at once, and their streams come to each other's door.
#[test]
fn devices_of_one_machine_do_not_come_into_ram_of_another() {
    let _turn = turn();
    let config = Config {
        backing: Backing::Memfd,
        workload: "rate=10000".parse().unwrap(),
        ..config(accels()[0], 1)
    };
    let vm = start(&config);
    wait_writes(&vm, 100);
    let name = Name::new();
    let channel = channel::Options::new(Stop::new().unwrap());
    let listener = Incoming::listen(&name.address(), &channel).unwrap();
    let received = std::thread::spawn(move || {
        let taken = handover::take(listener.accept(None).unwrap()).unwrap();
        let vm = Vm::create(config, memory(taken.ram().clone())).unwrap();
        let _way = taken.confirm().unwrap();
        let mut options = ReceiveOptions::new(true, false);
        options.mode = ReceiveMode::HandOver {
            migration: MigrationId::new([7; 16]),
        };
        let arrival = Arrival::new(options, None);
        chain(&receive(&*vm, listener, &arrival).unwrap_err())
    });
    let mut options = options(name.address());
    options.mode = Mode::HandOver { address: None };
    options.linger = Duration::from_millis(200);
    let migration = Migration::new(&options, None).unwrap();
    migrate(&*vm, &options, &migration).unwrap_err();
    let error = received.join().unwrap();
    assert!(error.contains("another one handed over"), "{error}");
    assert_eq!(vm.run_state(), RunState::Running);
    wait_writes(&vm, 100);
    take(&vm).assert_right();
}

#[test]
fn ram_of_its_own_is_not_handed_over_and_the_guest_runs_on() {
    let _turn = turn();
    let vm = start(&config(accels()[0], 1));
    let name = Name::new();
    let channel = channel::Options::new(Stop::new().unwrap());
    let _listener = Incoming::listen(&name.address(), &channel).unwrap();
    let mut options = options(name.address());
    options.mode = Mode::HandOver { address: None };
    let migration = Migration::new(&options, None).unwrap();
    let error = migrate(&*vm, &options, &migration).unwrap_err();
    let error = chain(&error);
    assert!(error.contains("not shared memory"), "{error}");
    wait_writes(&vm, 100);
}
