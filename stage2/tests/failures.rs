//! What is answered where something is wrong: ranges, moments, and no memory for a table.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::SoftCpu;
use paguro_stage2::*;

#[test]
fn every_operation_refuses_the_same_ranges() {
    for ipa_bits in [32, 36, 40, 44, 48] {
        let tables = machine(Config::new(ipa_bits), 10, 1);
        let limit = 1u64 << ipa_bits;
        #[allow(clippy::reversed_empty_ranges)]
        let refused = [
            (
                1..PAGE,
                RangeError::Unaligned {
                    start: 1,
                    end: PAGE,
                },
            ),
            (
                0..PAGE + 8,
                RangeError::Unaligned {
                    start: 0,
                    end: PAGE + 8,
                },
            ),
            (
                2 * PAGE..PAGE,
                RangeError::Reversed {
                    start: 2 * PAGE,
                    end: PAGE,
                },
            ),
            (
                0..limit + PAGE,
                RangeError::BeyondInputSize {
                    end: limit + PAGE,
                    ipa_bits,
                },
            ),
            (
                limit - PAGE..!0xfff,
                RangeError::BeyondInputSize {
                    end: !0xfff,
                    ipa_bits,
                },
            ),
        ];
        for (range, source) in refused {
            let error = Some(TableError::Range { source });
            assert_eq!(tables.map(range.clone(), 0, Attributes::RAM).err(), error);
            assert_eq!(tables.unmap(range.clone()).err(), error);
            assert_eq!(tables.protect(range.clone()).err(), error);
            assert_eq!(tables.unprotect(range.clone()).err(), error);
            assert_eq!(tables.split(range.clone()).err(), error);
            assert_eq!(tables.merge(range.clone()).err(), error);
            assert_eq!(
                tables.add_region(range, bitmap(PAGE)).err(),
                Some(LogError::Range { source })
            );
        }
        assert_eq!(tables.lookup(limit), None);
        assert_eq!(tables.lookup(u64::MAX), None);
    }
}

#[test]
fn an_empty_range_is_nothing_to_do() {
    let tables = machine(Config::new(40), 10, 1);
    for at in [0, PAGE, 1 << 40] {
        tables.map(at..at, 0, Attributes::RAM).unwrap();
        let nothing = PassReport::default();
        assert_eq!(tables.unmap(at..at), Ok(nothing));
        assert_eq!(tables.protect(at..at), Ok(nothing));
        assert_eq!(tables.unprotect(at..at), Ok(nothing));
        assert_eq!(tables.split(at..at), Ok(nothing));
        assert_eq!(tables.merge(at..at), Ok(nothing));
        assert_eq!(
            tables.add_region(at..at, bitmap(PAGE)),
            Err(LogError::Empty)
        );
    }
}

#[test]
fn output_addresses_are_checked() {
    let tables = machine(Config::new(40), 10, 1);
    for pa in [8, 1 << 48, (1 << 48) - PAGE, !0xfff] {
        let error = Err(TableError::OutputAddress { pa });
        assert_eq!(tables.map(0..2 * PAGE, pa, Attributes::RAM), error);
    }
    tables
        .map(0..2 * PAGE, (1 << 48) - 2 * PAGE, Attributes::RAM)
        .unwrap();
}

#[test]
fn mapping_over_something_undoes_itself() {
    let tables = machine(Config::new(40), 10, 1);
    let used = tables.memory().used();
    tables
        .map(3 * MIB_2..4 * MIB_2, 0, Attributes::RAM)
        .unwrap();
    let error = Err(TableError::AlreadyMapped { ipa: 3 * MIB_2 });
    assert_eq!(tables.map(PAGE..8 * MIB_2, GIB, Attributes::RAM), error);
    assert_eq!(leaves(&tables, 0..GIB).len(), 1);
    tables.unmap(0..1 << 40).unwrap();
    assert_eq!(tables.memory().used(), used);
}

#[test]
fn regions_and_moments_are_checked() {
    let tables = machine(Config::new(40), 10, 1);
    tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
    assert_eq!(
        tables.add_region(0..65 * PAGE, bitmap(PAGE)),
        Err(LogError::TooShort { words_needed: 2 })
    );
    let id = tables
        .add_region(0..128 * PAGE, bitmap(128 * PAGE))
        .unwrap();
    assert_eq!(
        tables.add_region(127 * PAGE..MIB_2, bitmap(MIB_2)),
        Err(LogError::Overlap)
    );
    let mut word = [0];
    assert_eq!(
        tables.collect(id, 0, None, &mut word),
        Err(LogError::NotLogging)
    );
    assert_eq!(
        tables.stop_logging(Scope::Region(id), true),
        Err(LogError::NotLogging)
    );
    let hardware = LogOptions {
        mode: LogMode::Hardware,
        ..LogOptions::default()
    };
    assert_eq!(
        tables.start_logging(Scope::All, hardware),
        Err(LogError::NoHardwareDirty)
    );
    tables
        .start_logging(Scope::All, LogOptions::default())
        .unwrap();
    assert_eq!(
        tables.start_logging(Scope::All, LogOptions::default()),
        Err(LogError::AlreadyLogging)
    );
    assert_eq!(
        tables.collect(id, 2, None, &mut word),
        Err(LogError::BeyondRegion { words: 2 })
    );
    assert_eq!(
        tables.collect(id, usize::MAX, None, &mut word),
        Err(LogError::BeyondRegion { words: 2 })
    );
    assert_eq!(
        tables.collect(id, 0, Some(&[]), &mut word),
        Err(LogError::TooShort { words_needed: 1 })
    );
    assert_eq!(tables.merge(0..GIB), Err(TableError::Logged));
    assert_eq!(
        tables.remove_region(id).err(),
        Some(LogError::AlreadyLogging)
    );
    tables.stop_logging(Scope::All, false).unwrap();
    tables.remove_region(id).unwrap();
    assert_eq!(tables.remove_region(id).err(), Some(LogError::NoRegion));
    assert_eq!(
        tables.start_logging(Scope::Region(id), LogOptions::default()),
        Err(LogError::NoRegion)
    );
    for at in 0..MAX_REGIONS as u64 {
        tables
            .add_region(at * PAGE..(at + 1) * PAGE, bitmap(PAGE))
            .unwrap();
    }
    assert_eq!(
        tables.add_region(GIB..2 * GIB, bitmap(GIB)),
        Err(LogError::TooManyRegions)
    );
}

#[test]
fn a_root_that_cannot_be_had_is_an_error() {
    for ipa_bits in [36, 40] {
        let memory = sim::Arena::new(1);
        memory.set_budget(0);
        let tables: Result<Tables, _> =
            Stage2::new(Config::new(ipa_bits), memory, sim::Cpus::new(1));
        assert_eq!(tables.err(), Some(ConfigError::NoRoot));
    }
    let tables: Result<Tables, _> =
        Stage2::new(Config::new(49), sim::Arena::new(1), sim::Cpus::new(1));
    assert_eq!(tables.err(), Some(ConfigError::InputSize { ipa_bits: 49 }));
}

/// Maps 1 GiB and three 2 MiB blocks; the region begins and ends inside of blocks.
fn prepared(ipa_bits: u8) -> (Tables, RegionId, std::ops::Range<u64>) {
    let tables = machine(Config::new(ipa_bits), 2000, 1);
    tables.map(GIB..2 * GIB, GIB, Attributes::RAM).unwrap();
    tables
        .map(2 * GIB..2 * GIB + 3 * MIB_2, 0, Attributes::RAM)
        .unwrap();
    let region = 2 * GIB - 5 * MIB_2 - PAGE..2 * GIB + 2 * MIB_2 + PAGE;
    let id = tables
        .add_region(region.clone(), bitmap(region.end - region.start))
        .unwrap();
    (tables, id, region)
}

#[test]
fn a_start_that_runs_out_of_tables_anywhere_protects_nothing() {
    for ipa_bits in [32, 36, 40, 44, 48] {
        for split in [SplitPolicy::Lazy, SplitPolicy::Eager] {
            let options = LogOptions {
                split,
                ..LogOptions::default()
            };
            let mut succeeded = false;
            for budget in 0.. {
                let (tables, _, region) = prepared(ipa_bits);
                tables.memory().set_budget(budget);
                match tables.start_logging(Scope::All, options) {
                    Ok(_) => {
                        assert!(leaves(&tables, region).iter().all(|leaf| !leaf.writable));
                        succeeded = true;
                    }
                    Err(error) => {
                        assert_eq!(error, LogError::OutOfTables);
                        let found = leaves(&tables, GIB..2 * GIB + 3 * MIB_2);
                        assert!(found.iter().all(|leaf| leaf.writable), "budget {budget}");
                        // Logging is off: blocks may be mapped, and the guest writes without a fault.
                        tables.memory().set_budget(u64::MAX);
                        let mut cpu = SoftCpu::new(&tables, 0);
                        cpu.access(region.start, Access::Write, |_| ()).unwrap();
                        assert_eq!(cpu.faults, 0);
                        tables.merge(GIB..2 * GIB + 3 * MIB_2).unwrap();
                        let blocks = if ipa_bits <= 34 { 515 } else { 4 };
                        assert_eq!(leaves(&tables, GIB..2 * GIB + 3 * MIB_2).len(), blocks);
                        // And a second try, with memory, goes through.
                        tables.start_logging(Scope::All, options).unwrap();
                    }
                }
                if succeeded {
                    assert!(budget >= 2, "the region's edges need tables");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_write_that_finds_no_table_for_its_split_is_logged_as_a_whole_block() {
    let (tables, id, region) = prepared(40);
    tables
        .start_logging(Scope::All, LogOptions::default())
        .unwrap();
    tables.memory().set_budget(0);
    let mut cpu = SoftCpu::new(&tables, 0);
    let block = 2 * GIB - 2 * MIB_2;
    cpu.access(block + 9 * PAGE, Access::Write, |_| ()).unwrap();
    assert_eq!((cpu.faults, cpu.pages_logged), (1, 512));
    let mut bits = vec![0; words_for((region.end - region.start) / PAGE)];
    tables.collect(id, 0, None, &mut bits).unwrap();
    let first = (block - region.start) / PAGE;
    assert_eq!(set_bits(&bits), (first..first + 512).collect::<Vec<_>>());
    // Protected again, and now there is a table.
    tables.memory().set_budget(1);
    cpu.access(block + 9 * PAGE, Access::Write, |_| ()).unwrap();
    assert_eq!(cpu.pages_logged, 513);
    tables.collect(id, 0, None, &mut bits).unwrap();
    assert_eq!(set_bits(&bits), [first + 9]);
    tables.stop_logging(Scope::All, true).unwrap();
}

#[test]
fn a_1_gib_block_needs_both_tables_or_none() {
    for budget in 0..=2 {
        let tables = machine(Config::new(40), 10, 1);
        tables.map(GIB..2 * GIB, GIB, Attributes::RAM).unwrap();
        let id = tables.add_region(GIB..2 * GIB, bitmap(GIB)).unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        tables.memory().set_budget(budget);
        let mut cpu = SoftCpu::new(&tables, 0);
        cpu.access(GIB + PAGE, Access::Write, |_| ()).unwrap();
        let whole = cpu.pages_logged == 512 * 512;
        assert_eq!(
            whole,
            budget < 2,
            "budget {budget}: {} pages",
            cpu.pages_logged
        );
        assert_eq!(leaf(&tables, GIB).unwrap().level, if whole { 1 } else { 3 });
        let mut bits = vec![0; 4096];
        tables.collect(id, 0, None, &mut bits).unwrap();
        let count: u32 = bits.iter().map(|word| word.count_ones()).sum();
        assert_eq!(u64::from(count), cpu.pages_logged);
    }
}

#[test]
fn map_unmap_protect_and_split_survive_every_allocation_failure() {
    let used = prepared(40).0.memory().used();
    for budget in 0..8 {
        let (tables, _, _) = prepared(40);
        let before = leaves(&tables, 0..1 << 40);
        tables.memory().set_budget(budget);
        let hole = 5 * GIB + PAGE..6 * GIB + MIB_2 + PAGE;
        if tables.map(hole.clone(), PAGE, Attributes::RAM).is_err() {
            tables.memory().set_budget(u64::MAX);
            assert_eq!(leaves(&tables, 0..1 << 40), before);
            let _ = tables.unmap(4 * GIB..7 * GIB);
            assert_eq!(tables.memory().used(), used);
        }

        tables.memory().set_budget(budget);
        let part = GIB + PAGE..2 * GIB - PAGE;
        let mapped = |tables: &Tables| {
            leaves(tables, 0..4 * GIB)
                .iter()
                .map(|leaf| leaf.range.end - leaf.range.start)
                .sum::<u64>()
        };
        let all = mapped(&tables);
        match tables.unmap(part.clone()) {
            Ok(_) => assert_eq!(mapped(&tables), all - (part.end - part.start)),
            Err(error) => {
                assert_eq!((error, mapped(&tables)), (TableError::OutOfTables, all));
                let protected = tables.protect(part.clone());
                assert_eq!(protected, Err(TableError::OutOfTables));
                assert!(leaves(&tables, 0..4 * GIB).iter().all(|leaf| leaf.writable));
                assert_eq!(tables.split(0..4 * GIB), Err(TableError::OutOfTables));
                assert_eq!(mapped(&tables), all);
            }
        }
    }
}
