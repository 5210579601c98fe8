//! The bitmap, the lock and the fault path under shuttle's scheduler, which chooses who runs at every
//! atomic operation. A failure prints a schedule that `shuttle::replay` repeats.
//!
//!     cargo test -p paguro-stage2 --features shuttle --test interleavings

mod common;

use common::*;
use paguro_stage2::sim::SoftCpu;
use paguro_stage2::*;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::Arc;
use shuttle::thread;
use std::sync::atomic::{AtomicU64 as Word, Ordering::SeqCst};

const ITERATIONS: usize = 400;

/// One block; two guests write pages of it, one in common; one thread collects and copies what the log
/// names. In the end the copy equals memory, and every page was logged by somebody.
fn guests_and_collector(config: Config, options: LogOptions) {
    let tables = Arc::new(machine(config, 4, 2));
    tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
    let id = tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
    let ram: Arc<Vec<Word>> = Arc::new((0..4).map(|_| Word::new(0)).collect());
    let guests: Vec<_> = (0..2u64)
        .map(|guest| {
            let (tables, ram) = (tables.clone(), ram.clone());
            thread::spawn(move || {
                let mut cpu = SoftCpu::new(&tables, guest as usize);
                for (turn, page) in [guest, 2, guest, 2].into_iter().enumerate() {
                    let value = 1 + turn as u64 * 2 + guest;
                    let write = |pa: u64| ram[(pa / PAGE) as usize].store(value, SeqCst);
                    cpu.access(page * PAGE, Access::Write, write).unwrap();
                }
            })
        })
        .collect();

    let mut copy = [0; 4];
    let collect = |copy: &mut [u64; 4]| {
        let mut word = [0];
        tables.collect(id, 0, None, &mut word).unwrap();
        for page in set_bits(&word) {
            assert!(page < 3, "page {page} was never written");
            copy[page as usize] = ram[page as usize].load(SeqCst);
        }
    };
    tables.start_logging(Scope::All, options).unwrap();
    (0..4).for_each(|page| copy[page] = ram[page].load(SeqCst));
    collect(&mut copy);
    collect(&mut copy);
    guests.into_iter().for_each(|guest| guest.join().unwrap());
    collect(&mut copy);
    (0..4).for_each(|page| assert_eq!(copy[page], ram[page].load(SeqCst), "page {page} was lost"));
    tables.stop_logging(Scope::All, true).unwrap();
    assert!(leaf(&tables, 0).is_some_and(|leaf| leaf.level == 2 && leaf.writable));
}

fn both_schedulers(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = shuttle::Config::new();
    // A table of shuttle's atomics is large, and is made on a stack.
    config.stack_size = 1 << 20;
    let random = RandomScheduler::new(ITERATIONS);
    shuttle::Runner::new(random, config.clone()).run(scenario.clone());
    // Few switches, at chosen depths: what a race needs that random schedules rarely give.
    shuttle::Runner::new(PctScheduler::new(3, ITERATIONS), config).run(scenario);
}

#[test]
fn faults_and_collecting_lose_nothing() {
    both_schedulers(|| guests_and_collector(Config::new(32), LogOptions::default()));
}

#[test]
fn hardware_dirty_state_and_collecting_lose_nothing() {
    let config = Config {
        hardware_dirty: true,
        block_change: BlockChange::NoTranslate,
        ipa_bits: 32,
    };
    let options = LogOptions {
        mode: LogMode::Hardware,
        split: SplitPolicy::Eager,
        ..LogOptions::default()
    };
    both_schedulers(move || guests_and_collector(config, options));
}

/// Guests set pages of one word by mapping them, while a reader takes the word again and again: each
/// bit is taken exactly once.
#[test]
fn each_bit_is_handed_out_once() {
    both_schedulers(|| {
        let tables = Arc::new(machine(Config::new(32), 4, 1));
        let id = tables.add_region(0..64 * PAGE, bitmap(64 * PAGE)).unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        let vcpus: Vec<_> = (0..2u64)
            .map(|vcpu| {
                let tables = tables.clone();
                thread::spawn(move || {
                    let mut cache = tables.table_cache();
                    for page in [vcpu, 10 + vcpu, 20 + vcpu] {
                        tables
                            .map_page(&mut cache, page * PAGE, page * PAGE, Attributes::RAM)
                            .unwrap();
                    }
                })
            })
            .collect();
        let (mut taken, mut all) = (0, 0);
        let mut collect = || {
            let mut word = [0];
            tables.collect(id, 0, None, &mut word).unwrap();
            taken += word[0].count_ones();
            all |= word[0];
        };
        collect();
        collect();
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        collect();
        assert_eq!((taken, all), (6, 0b11 << 20 | 0b11 << 10 | 0b11));
    });
}

/// Little but the race itself: pages that are split and protected already, faults on them, and a
/// collector that protects them again.
#[test]
fn a_fault_and_a_collect_of_the_same_page_agree_on_it() {
    both_schedulers(|| {
        let tables = Arc::new(machine(Config::new(32), 4, 2));
        tables.map(0..2 * PAGE, 0, Attributes::RAM).unwrap();
        let id = tables.add_region(0..2 * PAGE, bitmap(2 * PAGE)).unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        let ram: Arc<[Word; 2]> = Arc::new([Word::new(0), Word::new(0)]);
        let guests: Vec<_> = (0..2usize)
            .map(|guest| {
                let (tables, ram) = (tables.clone(), ram.clone());
                thread::spawn(move || {
                    let mut cpu = SoftCpu::new(&tables, guest);
                    for page in [0, 1, 0, 1] {
                        let write = |pa: u64| ram[(pa / PAGE) as usize].fetch_add(1, SeqCst);
                        cpu.access(page * PAGE, Access::Write, write).unwrap();
                    }
                })
            })
            .collect();
        let mut copy = [0; 2];
        let mut collect = || {
            let mut word = [0];
            tables.collect(id, 0, None, &mut word).unwrap();
            for page in set_bits(&word) {
                copy[page as usize] = ram[page as usize].load(SeqCst);
            }
        };
        collect();
        collect();
        guests.into_iter().for_each(|guest| guest.join().unwrap());
        collect();
        assert_eq!(copy, [4, 4]);
    });
}

/// Stopping, with its merge, under running guests: none meets a hole, or is left without permission.
#[test]
fn stopping_under_running_guests_leaves_them_running() {
    both_schedulers(|| {
        let tables = Arc::new(machine(Config::new(32), 4, 1));
        tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
        tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        let guest = {
            let tables = tables.clone();
            thread::spawn(move || {
                let mut cpu = SoftCpu::new(&tables, 0);
                for page in [0, 1, 0] {
                    assert_eq!(
                        cpu.access(page * PAGE, Access::Write, |pa| pa),
                        Ok(page * PAGE)
                    );
                }
            })
        };
        tables.stop_logging(Scope::All, true).unwrap();
        guest.join().unwrap();
        assert!(leaf(&tables, 0).is_some_and(|leaf| leaf.level == 2 && leaf.writable));
    });
}

/// A page is unmapped, and then all around it, while another CPU maps it elsewhere: it is there at its new
/// place, or was unmapped after that; nothing is left of the old one, and no table is lost.
#[test]
fn unmapping_beside_mapping_leaves_one_or_the_other() {
    both_schedulers(|| {
        let tables = Arc::new(machine(Config::new(36), 12, 2));
        let used = tables.memory().used();
        for mapped in [0..2 * PAGE, MIB_2..MIB_2 + PAGE] {
            tables
                .map(mapped.clone(), mapped.start + PAGE, Attributes::RAM)
                .unwrap();
        }
        let guest = {
            let tables = tables.clone();
            thread::spawn(move || {
                let mut cpu = SoftCpu::new(&tables, 0);
                let _ = cpu.access(0, Access::Read, |_| ());
                let page = Attributes::RAM;
                if tables.map_page(cpu.tables(), 0, 9 * PAGE, page).unwrap() {
                    let now = cpu.access(0, Access::Read, |pa| pa);
                    assert!(now.is_err() || now == Ok(9 * PAGE), "{now:x?}");
                }
            })
        };
        // The page beside it keeps the table.
        tables.unmap(0..PAGE).unwrap();
        tables.unmap(0..GIB).unwrap();
        guest.join().unwrap();
        tables.unmap(0..GIB).unwrap();
        assert_eq!(tables.memory().used(), used, "a table was lost");
    });
}
