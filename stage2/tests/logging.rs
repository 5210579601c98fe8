//! The life of a log, step by step: what each step changes, how often TLBs are invalidated, what is
//! left at the end. For every input size.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::SoftCpu;
use paguro_stage2::*;

const SIZES: [u8; 8] = [32, 34, 35, 36, 40, 43, 44, 48];

/// Two 2 MiB blocks at the very end of the input, and one at its beginning.
fn mapped(config: Config) -> (Tables, std::ops::Range<u64>) {
    let tables = machine(config, 100, 2);
    let limit = 1 << config.ipa_bits;
    let top = limit - 2 * MIB_2..limit;
    tables.map(top.clone(), 4 * MIB_2, Attributes::RAM).unwrap();
    tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
    (tables, top)
}

fn write(cpu: &mut SoftCpu<'_, sim::Arena, Bits>, ipa: u64) -> Result<u64, Resolution> {
    cpu.access(ipa, Access::Write, |pa| pa)
        .map_err(|stopped| stopped.resolution)
}

#[test]
fn the_last_page_of_every_input_size_is_logged_and_blocks_come_back() {
    for ipa_bits in SIZES {
        for block_change in BLOCK_CHANGES {
            for split in [SplitPolicy::Lazy, SplitPolicy::Eager] {
                let config = Config {
                    block_change,
                    ..Config::new(ipa_bits)
                };
                let (tables, top) = mapped(config);
                let used = tables.memory().used();
                let id = tables.add_region(top.clone(), bitmap(2 * MIB_2)).unwrap();
                let options = LogOptions {
                    split,
                    ..LogOptions::default()
                };
                let report = tables.start_logging(Scope::All, options).unwrap();
                let split_at_once = split == SplitPolicy::Eager;
                assert_eq!(report.splits, if split_at_once { 2 } else { 0 });
                assert_eq!(report.entries_changed, if split_at_once { 1024 } else { 2 });

                let mut cpu = SoftCpu::new(&tables, 0);
                assert_eq!(write(&mut cpu, top.end - PAGE), Ok(6 * MIB_2 - PAGE));
                assert_eq!(write(&mut cpu, top.end - PAGE), Ok(6 * MIB_2 - PAGE));
                assert_eq!(write(&mut cpu, 0), Ok(0));
                assert_eq!((cpu.faults, cpu.pages_logged), (1, 1), "{ipa_bits}");

                let mut bits = [0; 16];
                tables.collect(id, 0, None, &mut bits).unwrap();
                assert_eq!(set_bits(&bits), [1023]);
                write(&mut cpu, top.start).unwrap();
                tables.collect(id, 0, None, &mut bits).unwrap();
                assert_eq!(set_bits(&bits), [0]);

                let report = tables.stop_logging(Scope::All, true).unwrap();
                assert_eq!(report.merges, 2);
                drop(cpu);
                let found = leaves(&tables, top.clone());
                assert_eq!(found.len(), 2);
                assert!(found.iter().all(|leaf| leaf.level == 2 && leaf.writable));
                assert_eq!(found[1].pa, 5 * MIB_2);
                assert_eq!(tables.memory().used(), used, "tables leaked");
            }
        }
    }
}

#[test]
fn protecting_many_blocks_costs_one_invalidation() {
    let tables = machine(Config::new(40), 8, 1);
    tables.map(0..64 * GIB, 0, Attributes::RAM).unwrap();
    let report = tables.protect(0..64 * GIB).unwrap();
    assert_eq!((report.entries_changed, report.invalidations), (64, 1));
    // The same range twice: nothing is left to do, nothing is invalidated.
    let report = tables.protect(0..64 * GIB).unwrap();
    assert_eq!((report.entries_changed, report.invalidations), (0, 0));
    assert_eq!(tables.unprotect(0..64 * GIB).unwrap().entries_changed, 64);
}

#[test]
fn blocks_of_1_gib_share_an_invalidation_too() {
    let tables = machine(Config::new(40), 4 * 513 + 64, 1);
    tables.map(0..4 * GIB, 0, Attributes::RAM).unwrap();
    let report = tables.split(0..4 * GIB).unwrap();
    assert_eq!(report.splits, 4 * 513);
    // One for all four, and the first of the others find their tables used up by these.
    assert_eq!(report.invalidations, 1 + (4 * 512_u64).div_ceil(32) + 1);
}

#[test]
fn a_split_that_is_interrupted_between_blocks_of_1_gib_leaves_none_behind() {
    for chunks in 0..3 {
        let tables = machine(Config::new(40), 2 * 513 + 64, 1);
        tables.map(0..2 * GIB, 0, Attributes::RAM).unwrap();
        let gate = tables.cpu().gate();
        gate.close_after(chunks);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                gate.reached();
                tables.lookup(0).unwrap();
            });
            tables.split(0..2 * GIB).unwrap();
        });
        assert_eq!(leaves(&tables, 0..2 * GIB).len(), 2 * 512 * 512);
    }
}

#[test]
fn every_attribute_survives_protect_split_and_merge() {
    let all = Attributes {
        memory: MemoryType::NON_CACHEABLE,
        shareability: Shareability::Outer,
        read: true,
        write: true,
        execute: Execute::PrivilegedOnly,
        accessed: true,
        contiguous: false,
        software: 0b10,
    };
    let tables = machine(Config::new(36), 10, 1);
    tables.map(GIB..2 * GIB, GIB, all).unwrap();
    tables.protect(GIB..2 * GIB).unwrap();
    let protected = leaf(&tables, GIB).unwrap();
    assert_eq!(
        (protected.level, protected.attributes, protected.writable),
        (1, all, false)
    );
    // Unprotecting one page of it splits a path down to it, and leaves the rest protected.
    tables.unprotect(GIB + MIB_2..GIB + MIB_2 + PAGE).unwrap();
    let page = leaf(&tables, GIB + MIB_2).unwrap();
    assert_eq!((page.level, page.attributes, page.writable), (3, all, true));
    let neighbour = leaf(&tables, GIB + MIB_2 + PAGE).unwrap();
    assert_eq!(
        (neighbour.level, neighbour.attributes, neighbour.writable),
        (3, all, false)
    );
    let block = leaf(&tables, GIB).unwrap();
    assert_eq!(
        (block.level, block.attributes, block.writable),
        (2, all, false)
    );
    // Unlike each other they do not merge; made alike, they do, into the block that they were.
    assert_eq!(tables.merge(GIB..2 * GIB).unwrap().merges, 0);
    tables.protect(GIB..2 * GIB).unwrap();
    assert_eq!(tables.merge(GIB..2 * GIB).unwrap().merges, 2);
    assert_eq!(leaf(&tables, GIB).unwrap(), protected);
}

#[test]
fn read_only_mappings_stay_read_only() {
    let tables = machine(Config::new(36), 10, 1);
    tables.map(0..MIB_2, 0, Attributes::ROM).unwrap();
    let id = tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
    assert_eq!(
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap()
            .entries_changed,
        0
    );
    let mut cpu = SoftCpu::new(&tables, 0);
    assert_eq!(write(&mut cpu, 0), Err(Resolution::Denied));
    let mut bits = [0; 8];
    tables.collect(id, 0, None, &mut bits).unwrap();
    assert_eq!(bits, [0; 8]);
    tables.stop_logging(Scope::All, true).unwrap();
    assert!(!leaf(&tables, 0).unwrap().writable);
}

#[test]
fn contiguous_sets_are_dropped_whole_before_entries_differ() {
    for block_change in BLOCK_CHANGES {
        let tables = machine(
            Config {
                block_change,
                ..Config::new(36)
            },
            40,
            1,
        );
        let hinted = Attributes {
            contiguous: true,
            ..Attributes::RAM
        };
        tables.map(0..64 * PAGE, 0, hinted).unwrap();
        let hint = |ipa| leaf(&tables, ipa).unwrap().attributes.contiguous;
        assert!((0..64).all(|page| hint(page * PAGE)));
        // Pages 20 to 39 are protected: sets 1 and 2 come to differ, 0 and 3 do not.
        tables.protect(20 * PAGE..40 * PAGE).unwrap();
        for page in 0..64 {
            assert_eq!(hint(page * PAGE), !(16..48).contains(&page), "{page}");
            assert_eq!(
                leaf(&tables, page * PAGE).unwrap().writable,
                !(20..40).contains(&page)
            );
        }
        // Inside of a region, too: or the write to page 3 would make its whole set writable.
        let set = GIB - MIB_2..GIB - MIB_2 + 16 * PAGE;
        tables.map(set.clone(), MIB_2, hinted).unwrap();
        assert!(hint(set.start));
        let id = tables.add_region(set.clone(), bitmap(16 * PAGE)).unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        let mut cpu = SoftCpu::new(&tables, 0);
        write(&mut cpu, set.start + 3 * PAGE).unwrap();
        write(&mut cpu, set.start + 4 * PAGE).unwrap();
        let mut word = [0];
        tables.collect(id, 0, None, &mut word).unwrap();
        assert_eq!(word, [0b11000]);
        tables.stop_logging(Scope::All, true).unwrap();
        tables.remove_region(id).unwrap();
        drop(cpu);
        // Sixteen 2 MiB blocks, one of which is logged.
        let base = GIB;
        tables.map(base..base + 16 * MIB_2, base, hinted).unwrap();
        assert!(hint(base));
        let mut cpu = SoftCpu::new(&tables, 0);
        write(&mut cpu, base).unwrap();
        tables
            .add_region(base + 3 * MIB_2..base + 4 * MIB_2, bitmap(MIB_2))
            .unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        assert!((0..16).all(|block| !hint(base + block * MIB_2)));
        write(&mut cpu, base + 3 * MIB_2).unwrap();
        write(&mut cpu, base + 4 * MIB_2).unwrap();
        assert_eq!(cpu.pages_logged, 1);
    }
}

#[test]
fn while_a_log_is_on_pages_are_mapped_and_count_as_dirty() {
    let tables = machine(Config::new(40), 10, 1);
    let id = tables
        .add_region(4 * GIB..4 * GIB + 2 * MIB_2, bitmap(2 * MIB_2))
        .unwrap();
    tables
        .start_logging(Scope::All, LogOptions::default())
        .unwrap();
    tables
        .map(4 * GIB..4 * GIB + MIB_2, 0, Attributes::RAM)
        .unwrap();
    assert_eq!(leaf(&tables, 4 * GIB).unwrap().level, 3);
    let mut cpu = SoftCpu::new(&tables, 0);
    let absent = 4 * GIB + MIB_2 + 7 * PAGE;
    assert_eq!(write(&mut cpu, absent), Err(Resolution::Unmapped));
    assert_eq!(
        tables.map_page(cpu.tables(), absent, MIB_2, Attributes::RAM),
        Ok(true)
    );
    assert_eq!(
        tables.map_page(cpu.tables(), absent, MIB_2, Attributes::RAM),
        Ok(false)
    );
    assert_eq!(write(&mut cpu, absent), Ok(MIB_2));
    let mut bits = [0; 16];
    tables.collect(id, 0, None, &mut bits).unwrap();
    assert_eq!(
        set_bits(&bits),
        (0..512).chain([512 + 7]).collect::<Vec<_>>()
    );
    tables.stop_logging(Scope::All, true).unwrap();
    assert_eq!(leaf(&tables, 4 * GIB).unwrap().level, 2);
}

#[test]
fn all_dirty_protects_chunk_by_chunk_as_it_is_collected() {
    let tables = machine(Config::new(40), 10, 1);
    tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
    let id = tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
    let options = LogOptions {
        initial: InitialLog::AllDirty,
        split: SplitPolicy::Eager,
        ..LogOptions::default()
    };
    assert_eq!(
        tables
            .start_logging(Scope::All, options)
            .unwrap()
            .entries_changed,
        0
    );
    let mut cpu = SoftCpu::new(&tables, 0);
    let mut word = [0];
    tables.collect(id, 2, Some(&[0xff]), &mut word).unwrap();
    assert_eq!(word, [0xff]);
    write(&mut cpu, 0).unwrap();
    assert_eq!(cpu.faults, 0);
    write(&mut cpu, 130 * PAGE).unwrap();
    assert_eq!(cpu.faults, 1);
    tables.collect(id, 2, None, &mut word).unwrap();
    assert_eq!(word, [!0xff | 1 << 2]);
}

#[test]
fn hardware_logs_pages_without_a_fault_and_unmapping_keeps_what_it_noted() {
    let config = Config {
        hardware_dirty: true,
        ..Config::new(40)
    };
    let tables = machine(config, 10, 2);
    tables.map(0..2 * MIB_2, 0, Attributes::RAM).unwrap();
    let id = tables.add_region(0..2 * MIB_2, bitmap(2 * MIB_2)).unwrap();
    let options = LogOptions {
        mode: LogMode::Hardware,
        split: SplitPolicy::Eager,
        ..LogOptions::default()
    };
    tables.start_logging(Scope::All, options).unwrap();
    let mut cpu = SoftCpu::new(&tables, 0);
    for page in [3, 511, 512, 700] {
        write(&mut cpu, page * PAGE).unwrap();
    }
    assert_eq!(cpu.faults, 0);
    let mut bits = [0; 16];
    tables.peek(id, 0, &mut bits).unwrap();
    assert_eq!(set_bits(&bits), [3, 511, 512, 700]);
    tables.unmap(700 * PAGE..701 * PAGE).unwrap();
    tables.collect(id, 0, None, &mut bits).unwrap();
    assert_eq!(set_bits(&bits), [3, 511, 512, 700]);
    // Held in the TLB as writable: without the invalidation of the pass this one would be lost.
    write(&mut cpu, 3 * PAGE).unwrap();
    tables.collect(id, 0, None, &mut bits).unwrap();
    assert_eq!(set_bits(&bits), [3]);
    write(&mut cpu, 5 * PAGE).unwrap();
    tables.stop_logging(Scope::All, true).unwrap();
    let words: Vec<u64> = tables
        .remove_region(id)
        .unwrap()
        .iter()
        .map(|word| word.load(Ordering::Relaxed))
        .collect();
    assert_eq!(
        set_bits(&words),
        [5],
        "written after the last collect, kept in the storage"
    );
}

/// What is missing is not always what an access seems to need: the same fault would come for ever.
#[test]
fn a_permission_that_nobody_granted_is_denied() {
    let write_only = Attributes {
        read: false,
        ..Attributes::RAM
    };
    let no_execute = Attributes {
        execute: Execute::None,
        ..Attributes::RAM
    };
    let device = Attributes {
        memory: MemoryType::DEVICE,
        ..Attributes::RAM
    };
    let walk_or_maintenance = [
        0x24 << 26 | 1 << 7 | 0x0f,
        0x24 << 26 | 1 << 8 | 1 << 6 | 0x0f,
    ];
    for is_logged in [false, true] {
        let tables = machine(Config::new(40), 64, 1);
        for (page, attributes) in [write_only, no_execute, device, Attributes::RAM]
            .into_iter()
            .enumerate()
        {
            let start = page as u64 * PAGE;
            tables.map(start..start + PAGE, start, attributes).unwrap();
        }
        let id = tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
        if is_logged {
            tables
                .start_logging(Scope::All, LogOptions::default())
                .unwrap();
        }
        let resolved = |esr: u64, page: u64| {
            let ipa = page * PAGE;
            let decoded = Syndrome::decode(esr, ipa >> 8, ipa, Some);
            let Syndrome::Fault(fault) = decoded else {
                panic!("{decoded:?}")
            };
            tables.handle_fault(&fault, &mut tables.table_cache())
        };
        for esr in walk_or_maintenance {
            assert_eq!(resolved(esr, 0), Resolution::Denied, "{is_logged}");
            // HCR_EL2.PTW: a walk is refused in device memory, unless it was the log that was in the way.
            let in_device = resolved(esr, 2);
            assert_eq!(in_device == Resolution::Denied, !is_logged, "{in_device:?}");
            let in_ram = resolved(esr, 3);
            assert_ne!(in_ram, Resolution::Denied);
        }
        // As a guest CPU meets them.
        let mut cpu = SoftCpu::new(&tables, 0);
        let mut stopped = |page: u64, access| {
            let done = cpu.access(page * PAGE, access, |_| ());
            done.map_err(|stopped| stopped.resolution)
        };
        for (page, access) in [
            (0, Access::Read),
            (0, Access::ReadWrite),
            (1, Access::Execute),
        ] {
            assert_eq!(stopped(page, access), Err(Resolution::Denied), "{access:?}");
        }
        assert_eq!(stopped(0, Access::Write), Ok(()));
        assert_eq!(stopped(3, Access::ReadWrite), Ok(()));
        if is_logged {
            let mut bits = [0; 8];
            tables.collect(id, 0, None, &mut bits).unwrap();
            assert_eq!(set_bits(&bits), [0, 2, 3]);
        }
    }
}

/// CPU 0 has read the page while it was protected; CPU 1 wrote it; now CPU 0 writes.
#[test]
fn a_cpu_with_a_stale_read_only_entry_writes_in_the_end() {
    for block_change in BLOCK_CHANGES {
        // A block, and pages: this output fits no block.
        for pa in [0, PAGE] {
            let config = Config {
                block_change,
                ..Config::new(40)
            };
            let tables = machine(config, 64, 2);
            tables.map(0..MIB_2, pa, Attributes::RAM).unwrap();
            tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
            tables
                .start_logging(Scope::All, LogOptions::default())
                .unwrap();
            let mut cpus = [0, 1].map(|cpu| SoftCpu::new(&tables, cpu));
            cpus[0].access(0, Access::Read, |_| ()).unwrap();
            write(&mut cpus[1], 0).unwrap();
            write(&mut cpus[0], 0).unwrap();
            assert_eq!(cpus[1].faults, 1);
            // The one that splits a block drops it everywhere.
            assert!(cpus[0].faults <= 1, "{} faults", cpus[0].faults);
        }
    }
}

/// The counterpart of the above: with TLBs that are not invalidated the loss shows.
#[test]
fn a_stale_tlb_entry_loses_a_write_if_nothing_is_invalidated() {
    let lost = |cpus: sim::Cpus| {
        let tables: Tables = Stage2::new(Config::new(40), sim::Arena::new(10), cpus).unwrap();
        tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
        tables.split(0..MIB_2).unwrap();
        let id = tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        let mut cpu = SoftCpu::new(&tables, 0);
        let mut bits = [0; 8];
        write(&mut cpu, 9 * PAGE).unwrap();
        tables.collect(id, 0, None, &mut bits).unwrap();
        write(&mut cpu, 9 * PAGE).unwrap();
        tables.collect(id, 0, None, &mut bits).unwrap();
        bits == [0; 8]
    };
    assert!(!lost(sim::Cpus::new(1)));
    assert!(lost(sim::Cpus::without_invalidation(1)));
}

#[test]
fn a_syndrome_becomes_a_fault() {
    let hpfar = 0x0123_4567 << 4;
    let far = 0xffff_0000_0000_0abc;
    // What the guest's tables say of `far`; only a permission fault asks for it.
    let translate = |address| (address == far).then_some(0x89_abcd_eabc);
    let decode = |esr| Syndrome::decode(esr, hpfar, far, translate);
    let fault = |ipa, kind, access| Syndrome::Fault(Fault { ipa, kind, access });
    let data = 0x24 << 26;

    let write = fault(0x89_abcd_e000, FaultKind::Permission, Access::Write);
    assert_eq!(decode(data | 1 << 6 | 0x0f), write);
    assert_eq!(
        Syndrome::decode(data | 1 << 6 | 0x0f, hpfar, far, |_| None),
        Syndrome::Enter
    );
    let fetch = fault(0x12_3456_7000, FaultKind::Translation, Access::Execute);
    assert_eq!(decode(0x20 << 26 | 0x06), fetch);
    // A walk of stage 1 that is stopped by a permission may have been to set a flag; its address is known.
    let walk = fault(0x12_3456_7000, FaultKind::Permission, Access::ReadWrite);
    assert_eq!(decode(data | 1 << 7 | 0x0f), walk);
    let walk = fault(0x12_3456_7000, FaultKind::Translation, Access::Read);
    assert_eq!(decode(data | 1 << 7 | 1 << 6 | 0x06), walk);
    let maintenance = fault(0x89_abcd_e000, FaultKind::Permission, Access::ReadWrite);
    assert_eq!(decode(data | 1 << 8 | 1 << 6 | 0x0f), maintenance);
    assert_eq!(decode(data | 0x10), Syndrome::Other);
    assert_eq!(decode(0x16 << 26), Syndrome::Other);
}
