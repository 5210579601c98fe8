//! Every page written after the start is reported.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use paguro_dirty::tracker::measure;
use paguro_ram::{Backing, Discards, GuestRam, PageKind, RamBlock};
use paguro_sys::{Advice, Fallbacks, Host};
use paguro_testkit::HugePages;
use paguro_vmm::{Accel, Config, Stage2Sabotage, Vm};

use super::destination::Order;
use super::memory::is_huge;
use super::walk::{Verdict, walk};
use crate::common::*;

/// Workloads, and how many writes of each vCPU make a round: a few pages, or more than a small
/// ring holds.
const RATES: [(&str, u64); 2] = [("rate=50000", 100), ("rate=unlimited", 1500)];

/// What the host of a way is not to use.
fn forced(way: &str) -> Fallbacks {
    let name = match way {
        "plain log" => "no-manual-protect",
        "manual protection" => "no-initially-all-set",
        "async protection, user mode only" => "user-mode-only",
        _ => return Fallbacks::default(),
    };
    let mut forced = Fallbacks::default();
    assert!(forced.force(name));
    forced
}

/// KVM's ways, each on a host with what it can lack.
fn kvm_ways() -> Vec<(&'static str, Config)> {
    if !kvm() {
        return Vec::new();
    }
    let log = config(Accel::Kvm, 1);
    let ring = |entries| Config {
        dirty_ring_entries: Some(entries),
        ..config(Accel::Kvm, 1)
    };
    vec![
        ("plain log", log.clone()),
        ("manual protection", log.clone()),
        ("manual protection, all set", log),
        ("small ring", ring(1024)),
        ("large ring", ring(65536)),
    ]
}

fn can_track() -> bool {
    let can = Host::probe(&Fallbacks::default()).can_track();
    if !can {
        println!("skipped: no asynchronous write-protection on this host");
    }
    can
}

/// Those of threads.
fn thread_ways() -> Vec<(&'static str, Config)> {
    let mut ways = stage2_ways();
    if can_track() {
        ways.push(("async protection", config(Accel::Threads, 1)));
    }
    ways
}

fn all_ways() -> Vec<(&'static str, Config)> {
    let mut ways = kvm_ways();
    ways.extend(thread_ways());
    ways
}

#[track_caller]
fn assert_right(name: &str, vm: &Vm, rounds: usize, writes: u64) {
    let tracker = vm.tracker().unwrap();
    let verdict = walk(vm, &*tracker, Order::ClearThenRead, rounds, writes);
    assert_eq!(verdict, Ok(Verdict::default()), "{name}, {:?}", vm.config());
}

/// With one vCPU and with two, at each rate, so many rounds; and `then`.
#[track_caller]
fn assert_right_at_all_rates(name: &str, way: &Config, rounds: usize, then: impl Fn(&str, &Vm)) {
    for cpus in [1, 2] {
        for (rate, writes) in RATES {
            let vm = start_on(
                &forced(name),
                &Config {
                    cpus,
                    workload: rate.parse().unwrap(),
                    ..way.clone()
                },
            );
            assert_right(name, &vm, rounds, writes);
            // And again, by a new one.
            assert_right(name, &vm, 3, writes);
            then(rate, &vm);
        }
    }
}

#[test]
fn every_write_of_a_guest_is_reported() {
    let _turn = turn();
    for (name, way) in kvm_ways() {
        assert_right_at_all_rates(name, &way, 6, |rate, vm| {
            if name == "small ring" && rate == "rate=unlimited" {
                assert!(vm.ring_full_exits() > 0, "the small ring was never full");
            }
        });
    }
}

#[test]
fn so_is_that_of_one_in_any_kind_of_memory() {
    let _turn = turn();
    let _pool = HugePages::take(8);
    let mut ways = kvm_ways();
    // The others do not differ in how pages are protected.
    ways.retain(|(name, _)| ["manual protection, all set", "small ring"].contains(name));
    if can_track() {
        ways.push(("async protection", config(Accel::Threads, 1)));
    }
    for (name, way) in ways {
        for (backing, pages) in [
            (Backing::Anonymous, PageKind::Small),
            (Backing::Anonymous, PageKind::Thp),
            (Backing::Anonymous, PageKind::Huge),
            (Backing::Memfd, PageKind::Small),
            (Backing::Memfd, PageKind::Thp),
            (Backing::Memfd, PageKind::Huge),
        ] {
            if pages == PageKind::Huge && _pool.is_none() {
                continue;
            }
            let config = Config {
                backing,
                pages,
                cpus: 2,
                ram_split: Some(8 << 20),
                workload: "rate=100000".parse().unwrap(),
                ..way.clone()
            };
            let ram = ram(&config);
            let vm = Vm::create(config.clone(), memory_on(&forced(name), ram.clone())).unwrap();
            vm.boot().unwrap();
            if pages == PageKind::Thp {
                join(&ram);
            }
            vm.start().unwrap();
            assert_right(name, &vm, 6, 300);
        }
    }
}

/// KVM looks for signals while it protects what was read from a ring, and forgets some of it if there
/// is one.
#[test]
fn signals_lose_no_write() {
    let _turn = turn();
    let ways = kvm_ways();
    let Some((name, way)) = ways.into_iter().find(|(name, _)| *name == "small ring") else {
        return;
    };
    let vm = start_on(
        &forced(name),
        &Config {
            cpus: 2,
            workload: "rate=unlimited".parse().unwrap(),
            ..way
        },
    );
    signalled(Duration::from_micros(20), move || {
        assert_right(name, &vm, 12, 1500)
    });
}

/// Has the memory in huge pages, or says that it is not.
fn join(ram: &GuestRam) {
    for block in ram.blocks() {
        let mapping = block.mapping();
        let joined = mapping
            .advise(0, mapping.len(), Advice::PopulateWrite)
            .and_then(|()| mapping.advise(0, mapping.len(), Advice::Collapse));
        if joined.is_err() || !is_huge(mapping.addr()) {
            println!("not in huge pages: {:?} {joined:?}", block.backing());
        }
    }
}

#[test]
fn every_write_of_threads_is_reported() {
    let _turn = turn();
    let mut ways = thread_ways();
    if can_track() {
        let threads = config(Accel::Threads, 1);
        ways.push(("async protection, user mode only", threads));
    }
    for (name, way) in ways {
        assert_right_at_all_rates(name, &way, 9, |_, _| ());
    }
}

#[test]
fn every_write_of_a_device_is_reported() {
    let _turn = turn();
    for (name, way) in all_ways() {
        let vm = start_on(&forced(name), &with_dma(way, true));
        assert_right(name, &vm, 12, 10);
    }
}

/// Half of the RAM from 8 MiB on, in pieces that are no whole words.
#[derive(Debug)]
struct Unplugged;

impl Discards for Unplugged {
    fn populated(&self, _: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
        const PIECE: usize = 100;
        let mut at = range.start;
        while at < range.end {
            let end = if at < 2048 {
                2048
            } else {
                (at / PIECE + 1) * PIECE
            };
            let end = end.min(range.end);
            if at < 2048 || (at / PIECE).is_multiple_of(2) {
                part(at..end);
            }
            at = end;
        }
    }
}

#[test]
fn nothing_discarded_is_reported() {
    let _turn = turn();
    for (name, way) in all_ways() {
        let slower = Config {
            workload: "rate=100000".parse().unwrap(),
            ..way
        };
        let config = with_dma(slower, false);
        let ram = ram(&config).with_discards(Arc::new(Unplugged));
        let vm = Vm::create(config, memory_on(&forced(name), ram.clone())).unwrap();
        vm.boot().unwrap();
        vm.start().unwrap();
        assert_right(name, &vm, 3, 500);
        // The guest writes to all, whoever says that it is not there.
        let tracker = vm.tracker().unwrap();
        tracker.start().unwrap();
        let dirty = super::destination::sets(&ram);
        wait_writes(&vm, 5000);
        tracker.sync(&dirty).unwrap();
        let block = &ram.blocks()[0];
        Unplugged.discarded(block, 0..block.pages(), &mut |part| {
            assert_eq!(dirty[0].count_in(part.clone()), 0, "{name}: {part:?}");
        });
        assert!(dirty[0].count() > 2048, "{name}");
    }
}

#[test]
fn clearing_after_reading_is_noticed() {
    let _turn = turn();
    let mut ways = kvm_ways();
    ways.retain(|(name, _)| name.starts_with("manual"));
    ways.extend(stage2_ways());
    for (name, way) in ways {
        // Long reads, so that writes fall into them.
        let vm = start_on(
            &forced(name),
            &Config {
                workload: "rate=unlimited,set=2M".parse().unwrap(),
                ..way
            },
        );
        let tracker = vm.tracker().unwrap();
        wait_until("a page is lost", || {
            let verdict = walk(&vm, &*tracker, Order::ReadThenClear, 3, 10).unwrap();
            verdict.stale + verdict.unreported > 0
        });
    }
}

#[test]
fn tlbs_that_are_not_invalidated_in_time_are_noticed() {
    let _turn = turn();
    for sabotage in [
        Stage2Sabotage::NoInvalidation,
        Stage2Sabotage::LateInvalidation,
    ] {
        // As many pages as a TLB has entries for, so that stale ones stay.
        let vm = start(&Config {
            workload: "rate=unlimited,set=128K".parse().unwrap(),
            ..broken_stage2(sabotage)
        });
        let tracker = vm.tracker().unwrap();
        wait_until("a page is lost", || {
            match walk(&vm, &*tracker, Order::ClearThenRead, 3, 10) {
                Ok(verdict) => verdict.stale + verdict.unreported > 0,
                // The software CPU may be the first to notice, and says why.
                Err(why) => {
                    println!("{sabotage:?}: {why}");
                    assert!(why.starts_with("vCPU "), "{why}");
                    true
                }
            }
        });
    }
}

#[test]
fn the_rate_is_that_of_the_guest() {
    let _turn = turn();
    for (name, way) in all_ways() {
        let vm = start_on(
            &forced(name),
            &Config {
                workload: "rate=20000".parse().unwrap(),
                ..way
            },
        );
        wait_writes(&vm, 4000);
        let tracker = vm.tracker().unwrap();
        for _ in 0..2 {
            let rate = measure(&*tracker, vm.guest_ram(), || wait_writes(&vm, 1000)).unwrap();
            // Each pass writes each page once, and a few pages are the guest's own.
            assert!((900..3600).contains(&rate.pages), "{name}: {rate:?}");
            assert!(rate.pages_per_s() > 0);
            assert_eq!(rate.vcpus.len(), usize::from(name.ends_with("ring")));
        }
    }
}

#[test]
fn rings_tell_who_writes() {
    let _turn = turn();
    for (name, way) in kvm_ways() {
        let vm = start_on(
            &forced(name),
            &Config {
                cpus: 2,
                workload: "rate=20000".parse().unwrap(),
                ..way
            },
        );
        let tracker = vm.tracker().unwrap();
        assert!(tracker.vcpu_rates().is_empty());
        tracker.start().unwrap();
        let dirty = super::destination::sets(vm.guest_ram());
        wait_writes(&vm, 500);
        tracker.sync(&dirty).unwrap();
        let rates = tracker.vcpu_rates();
        if name.ends_with("ring") {
            assert!(rates.len() == 2 && rates.iter().all(|&rate| rate > 0))
        } else {
            assert!(rates.is_empty(), "{rates:?}")
        }
    }
}
