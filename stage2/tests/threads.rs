//! Several guest CPUs fault while one thread protects, collects, maps and merges.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::SoftCpu;
use paguro_stage2::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64 as Word, Ordering::SeqCst};
use std::thread;

const GUESTS: usize = 2;
const PAGES: u64 = 3 * 512;
/// The region begins inside of a block.
const FIRST: u64 = 5;

/// Lets the guests end whatever happens to the thread that they wait for.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// One word stands for the content of a page; the copy is what a reader of the log makes of it.
fn migrate(config: Config, options: LogOptions, seed: u64) {
    let tables = machine(config, 64, GUESTS);
    let base = (1 << config.ipa_bits) - PAGES * PAGE;
    tables
        .map(base..base + PAGES * PAGE, 0, Attributes::RAM)
        .unwrap();
    let region = base + FIRST * PAGE..base + PAGES * PAGE;
    let pages = PAGES - FIRST;
    let id = tables
        .add_region(region.clone(), bitmap(pages * PAGE))
        .unwrap();
    let ram: Vec<Word> = (0..PAGES).map(|_| Word::new(0)).collect();
    let stop = AtomicBool::new(false);
    let mut copy = vec![0; pages as usize];
    let mut collected = BTreeSet::new();

    let written = thread::scope(|scope| {
        let guests: Vec<_> = (0..GUESTS as u64)
            .map(|guest| {
                let (tables, ram, stop) = (&tables, &ram, &stop);
                scope.spawn(move || {
                    let mut cpu = SoftCpu::new(tables, guest as usize);
                    let mut random = Random(seed * 31 + guest);
                    let mut written = BTreeSet::new();
                    let mut value = 0;
                    while !stop.load(SeqCst) || value < 1000 {
                        value += 1;
                        // Each guest has its own pages, and shares every block with the others. A few
                        // are hot, so that their entries sit in the TLB; a third are never written.
                        let range = if random.below(4) == 0 { PAGES / 3 } else { 7 };
                        let page = random.below(range) * GUESTS as u64 + guest;
                        let access = if random.below(3) == 0 {
                            Access::Read
                        } else {
                            Access::Write
                        };
                        let write = |pa: u64| match access {
                            Access::Write => {
                                ram[(pa / PAGE) as usize].store(guest << 56 | value, SeqCst)
                            }
                            _ => drop(ram[(pa / PAGE) as usize].load(SeqCst)),
                        };
                        cpu.access(base + page * PAGE, access, write).unwrap();
                        if access == Access::Write {
                            written.insert(page);
                        }
                    }
                    written
                })
            })
            .collect();

        let running = StopOnDrop(&stop);
        tables.start_logging(Scope::All, options).unwrap();
        let everything = vec![u64::MAX; words_for(pages)];
        read(&ram, &everything, 0, &mut copy, &mut BTreeSet::new());
        let mut random = Random(seed);
        for _ in 0..25 {
            let first = random.below(words_for(pages) as u64) as usize;
            let mut bits = vec![0; 1 + random.below(9) as usize];
            bits.truncate(words_for(pages) - first);
            let mask: Vec<u64> = bits
                .iter()
                .map(|_| random.below(u64::MAX) | random.below(u64::MAX) << 32)
                .collect();
            tables.collect(id, first, Some(&mask), &mut bits).unwrap();
            read(&ram, &bits, first, &mut copy, &mut collected);
            thread::yield_now();
        }
        drop(running);
        let mut written = BTreeSet::new();
        guests
            .into_iter()
            .for_each(|guest| written.extend(guest.join().unwrap()));
        written
    });

    let mut bits = vec![0; words_for(pages)];
    tables.collect(id, 0, None, &mut bits).unwrap();
    read(&ram, &bits, 0, &mut copy, &mut collected);
    for page in 0..pages {
        assert_eq!(
            copy[page as usize],
            ram[(FIRST + page) as usize].load(SeqCst),
            "page {page} was lost"
        );
    }
    if options.initial == InitialLog::Clean {
        let never_written: Vec<_> = collected.difference(&written).collect();
        assert!(
            never_written.is_empty(),
            "logged but not written: {never_written:?}"
        );
    }
    tables.stop_logging(Scope::All, true).unwrap();
    tables.merge(base..base + PAGES * PAGE).unwrap();
    assert_eq!(
        leaves(&tables, base..base + PAGES * PAGE).len(),
        3,
        "all three blocks are back"
    );
}

fn read(
    ram: &[Word],
    bits: &[u64],
    first_word: usize,
    copy: &mut [u64],
    collected: &mut BTreeSet<u64>,
) {
    for bit in set_bits(bits) {
        let page = first_word as u64 * 64 + bit;
        if let Some(copied) = copy.get_mut(page as usize) {
            *copied = ram[(FIRST + page) as usize].load(SeqCst);
            collected.insert(FIRST + page);
        }
    }
}

#[test]
fn a_copy_made_from_the_log_equals_memory() {
    let mut seed = 0;
    for block_change in BLOCK_CHANGES {
        for hardware_dirty in [false, true] {
            for split in [SplitPolicy::Lazy, SplitPolicy::Eager] {
                for initial in [InitialLog::Clean, InitialLog::AllDirty] {
                    seed += 1;
                    let mode = if hardware_dirty {
                        LogMode::Hardware
                    } else {
                        LogMode::Fault
                    };
                    let config = Config {
                        ipa_bits: 40,
                        block_change,
                        hardware_dirty,
                    };
                    migrate(
                        config,
                        LogOptions {
                            mode,
                            split,
                            initial,
                        },
                        seed,
                    );
                }
            }
        }
    }
}

/// Guests write all the while; logs start and stop, blocks are split, merged, unmapped and mapped.
#[test]
fn shape_changes_under_running_guests_never_lose_a_translation() {
    for block_change in BLOCK_CHANGES {
        let tables = machine(
            Config {
                block_change,
                ..Config::new(36)
            },
            64,
            GUESTS,
        );
        let hinted = Attributes {
            contiguous: true,
            ..Attributes::RAM
        };
        let (end, moving) = (4 * MIB_2, 4 * MIB_2..5 * MIB_2);
        tables.map(0..end, 0, hinted).unwrap();
        tables
            .add_region(MIB_2 + PAGE..3 * MIB_2, bitmap(2 * MIB_2))
            .unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for guest in 0..GUESTS {
                let (tables, stop, moving) = (&tables, &stop, moving.clone());
                scope.spawn(move || {
                    let mut cpu = SoftCpu::new(tables, guest);
                    let mut random = Random(guest as u64);
                    while !stop.load(SeqCst) {
                        let ipa = random.below(5 * 512) * PAGE;
                        let access = if random.below(2) == 0 {
                            Access::Read
                        } else {
                            Access::Write
                        };
                        match cpu.access(ipa, access, |pa| pa) {
                            Ok(pa) if moving.contains(&ipa) => assert_eq!(pa % GIB, ipa),
                            Ok(pa) => assert_eq!(pa, ipa),
                            Err(stopped) => {
                                assert_eq!(stopped.resolution, Resolution::Unmapped);
                                assert!(moving.contains(&ipa), "{stopped:x?}");
                                // Another place each time.
                                let pa = ipa + random.below(4) * GIB;
                                let page = Attributes::RAM;
                                tables.map_page(cpu.tables(), ipa, pa, page).unwrap();
                            }
                        }
                    }
                });
            }
            let _running = StopOnDrop(&stop);
            for round in 0..10 {
                let split = if round % 2 == 0 {
                    SplitPolicy::Lazy
                } else {
                    SplitPolicy::Eager
                };
                let options = LogOptions {
                    split,
                    ..LogOptions::default()
                };
                tables.start_logging(Scope::All, options).unwrap();
                tables.unmap(moving.clone()).unwrap();
                tables.stop_logging(Scope::All, true).unwrap();
                tables.split(round * 64 * PAGE..end).unwrap();
                tables.merge(0..end).unwrap();
                thread::yield_now();
            }
        });
    }
}

/// A vCPU that faults all the while wants the lock after each block, and every time that it gets it an
/// invalidation has to come before: a batch is filled first.
#[test]
fn an_eager_split_under_faults_shares_its_invalidations() {
    const BLOCKS: u64 = 2;
    for block_change in BLOCK_CHANGES {
        let config = Config {
            block_change,
            ..Config::new(40)
        };
        let tables = machine(config, BLOCKS as usize * 513 + 64, 1);
        let end = BLOCKS * GIB;
        tables.map(0..end, 0, Attributes::RAM).unwrap();
        tables.add_region(0..end, bitmap(end)).unwrap();
        let stop = AtomicBool::new(false);
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                let fault = Fault {
                    ipa: end - PAGE,
                    kind: FaultKind::Translation,
                    access: Access::Read,
                };
                let mut cache = tables.table_cache();
                while !stop.load(SeqCst) {
                    let resolution = tables.handle_fault(&fault, &mut cache);
                    assert_eq!(resolution, Resolution::Retry);
                }
            });
            let _running = StopOnDrop(&stop);
            let options = LogOptions {
                split: SplitPolicy::Eager,
                ..LogOptions::default()
            };
            tables.start_logging(Scope::All, options).unwrap()
        });
        assert_eq!(report.splits, BLOCKS * 513);
        println!("{block_change:?}: {report:?}");
        let limit = match block_change {
            BlockChange::Direct => 1,
            // Both 1 GiB blocks, then 32 smaller ones each time, and what protects.
            _ => 1 + report.splits.div_ceil(32) + 1,
        };
        assert!(report.invalidations <= limit, "{report:?}");
    }
}
