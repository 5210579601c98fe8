//! `protect` as a freeze: what it took nobody but `unprotect` gives back, whatever logs do meanwhile.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::SoftCpu;
use paguro_stage2::*;
use std::thread;

const PAGES: u64 = 512;

/// Logs of all kinds, on blocks and on pages.
fn each(run: impl Fn(Tables, LogOptions)) {
    for pa in [0, PAGE] {
        for mode in [LogMode::Fault, LogMode::Hardware] {
            for split in [SplitPolicy::Lazy, SplitPolicy::Eager] {
                for initial in [InitialLog::Clean, InitialLog::AllDirty] {
                    let config = Config {
                        hardware_dirty: mode == LogMode::Hardware,
                        ..Config::new(40)
                    };
                    let tables = machine(config, 64, 1);
                    tables.map(0..MIB_2, pa, Attributes::RAM).unwrap();
                    let options = LogOptions {
                        mode,
                        split,
                        initial,
                    };
                    run(tables, options);
                }
            }
        }
    }
}

fn write(tables: &Tables, ipa: u64) -> Result<(), Resolution> {
    let mut cpu = SoftCpu::new(tables, 0);
    let done = cpu.access(ipa, Access::Write, |_| ());
    done.map_err(|stopped| stopped.resolution)
}

fn collect(tables: &Tables, id: RegionId) -> Vec<u64> {
    let mut bits = [0; 8];
    tables.collect(id, 0, None, &mut bits).unwrap();
    set_bits(&bits)
}

#[test]
fn a_log_over_a_protected_range_lets_no_write_through() {
    each(|tables, options| {
        tables.protect(0..MIB_2).unwrap();
        assert_eq!(write(&tables, 0), Err(Resolution::Protected));
        let id = tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
        tables.start_logging(Scope::All, options).unwrap();
        for _ in 0..2 {
            assert_eq!(write(&tables, 0), Err(Resolution::Protected), "{options:?}");
            let all = options.initial == InitialLog::AllDirty;
            let dirty = collect(&tables, id);
            assert!(all || dirty.is_empty(), "what was refused is in the log");
        }
        tables.stop_logging(Scope::All, true).unwrap();
        assert_eq!(write(&tables, 5 * PAGE), Err(Resolution::Protected));
        let all = leaves(&tables, 0..MIB_2);
        assert!(all.iter().all(|leaf| leaf.protected && !leaf.writable));
        tables.unprotect(0..MIB_2).unwrap();
        assert_eq!(write(&tables, 5 * PAGE), Ok(()));
    });
}

#[test]
fn a_range_that_is_logged_can_be_protected_and_let_go() {
    each(|tables, options| {
        let id = tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
        tables.start_logging(Scope::All, options).unwrap();
        collect(&tables, id);
        write(&tables, 3 * PAGE).unwrap();
        tables.protect(0..8 * PAGE).unwrap();
        assert_eq!(write(&tables, 3 * PAGE), Err(Resolution::Protected));
        assert_eq!(write(&tables, 4 * PAGE), Err(Resolution::Protected));
        write(&tables, 8 * PAGE).unwrap();
        assert_eq!(collect(&tables, id), [3, 8], "{options:?}");
        tables.unprotect(0..8 * PAGE).unwrap();
        // Let go, and still logged: nothing is written without being noted.
        for page in [3, 5, 9] {
            write(&tables, page * PAGE).unwrap();
        }
        assert_eq!(collect(&tables, id), [3, 5, 9], "{options:?}");
        assert_eq!(collect(&tables, id), []);
        tables.stop_logging(Scope::All, true).unwrap();
        let left = leaves(&tables, 0..MIB_2);
        assert!(left.iter().all(|leaf| leaf.writable && !leaf.protected));
    });
}

#[test]
fn what_the_mapper_did_not_grant_is_not_granted_by_letting_go() {
    let tables = machine(Config::new(40), 64, 1);
    tables.map(0..MIB_2, 0, Attributes::ROM).unwrap();
    assert_eq!(tables.protect(0..MIB_2).unwrap().entries_changed, 0);
    assert_eq!(tables.unprotect(0..MIB_2).unwrap().entries_changed, 0);
    assert_eq!(write(&tables, 0), Err(Resolution::Denied));
}

/// Mapped across the edge while the pass, which cuts what reaches out of the range, is under way.
#[test]
fn exactly_the_range_is_protected_whatever_is_mapped_meanwhile() {
    let hinted = Attributes {
        contiguous: true,
        ..Attributes::RAM
    };
    for (bytes, attributes) in [(16 * PAGE, hinted), (MIB_2, Attributes::RAM)] {
        let tables = machine(Config::new(40), 64, 1);
        tables
            .map(3 * MIB_2..4 * MIB_2, PAGE, Attributes::RAM)
            .unwrap();
        let gate = tables.cpu().gate();
        // The pass that cuts is behind the edge when it comes to the first thing that is mapped.
        gate.close_after(0);
        let frozen = 5 * PAGE..4 * MIB_2;
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.reached();
                tables.map(0..bytes, GIB, attributes).unwrap();
            });
            tables.protect(frozen.clone()).unwrap();
        });
        for page in 0..bytes / PAGE {
            let leaf = leaf(&tables, page * PAGE).unwrap();
            let within = frozen.contains(&(page * PAGE));
            assert_eq!(leaf.protected, within, "page {page}");
            assert_eq!(leaf.writable, !within, "page {page}");
            assert!(!leaf.attributes.contiguous);
        }
    }
}

#[test]
fn protecting_page_by_page_and_merging_keeps_the_reason() {
    let tables = machine(Config::new(40), 64, 1);
    tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
    for page in 0..PAGES {
        tables.protect(page * PAGE..(page + 1) * PAGE).unwrap();
    }
    tables.merge(0..MIB_2).unwrap();
    let block = leaf(&tables, 0).unwrap();
    assert!(block.level == 2 && block.protected && !block.writable);
    tables.unprotect(0..MIB_2).unwrap();
    assert!(leaf(&tables, 0).unwrap().writable);
}
