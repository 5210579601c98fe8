//! The simulator sees what is broken on purpose, at each level of FEAT_BBM, whether or not a guest CPU
//! happens to hold what it should not.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::{Arena, Cpus, SoftCpu};
use paguro_stage2::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

/// What a hypervisor's CPUs fail to do.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Broken {
    Nothing,
    InvalidateVm,
    InvalidateIpa,
    /// Another level than the leaf's is named.
    Level,
    Clean,
}

struct Hypervisor {
    cpus: Cpus,
    broken: Broken,
}

// SAFETY: it breaks the promises on purpose; no hardware walks these tables.
unsafe impl Cpu for Hypervisor {
    fn invalidate_vm(&self) {
        if self.broken != Broken::InvalidateVm {
            self.cpus.invalidate_vm();
        }
    }

    fn invalidate_ipa(&self, ipa: u64, level: Option<u8>) {
        match self.broken {
            Broken::InvalidateIpa => {}
            Broken::Level => self.cpus.invalidate_ipa(ipa, Some(3)),
            _ => self.cpus.invalidate_ipa(ipa, level),
        }
    }

    fn invalidate_ipa_here(&self, ipa: u64, level: Option<u8>) {
        self.cpus.invalidate_ipa_here(ipa, level);
    }

    fn publish(&self) {
        self.cpus.publish();
    }

    fn clean(&self, start: *const u8, bytes: usize) {
        // Whole tables are cleaned, or nothing that follows would be known.
        if self.broken != Broken::Clean || bytes == size_of::<Table>() {
            self.cpus.clean(start, bytes);
        }
    }
}

type Watched = Stage2<Arena, Hypervisor, Bits>;

/// What the simulator says of `run`, on tables whose CPUs are broken; nothing on ones that are not.
#[track_caller]
fn seen(block_change: BlockChange, broken: Broken, run: impl Fn(&Watched)) -> String {
    let said = |broken| {
        let config = Config {
            block_change,
            ..Config::new(36)
        };
        let arena = Arena::new(600);
        let cpus = Cpus::new(1).strict(&arena, &config);
        let tables = Stage2::new(config, arena, Hypervisor { cpus, broken }).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| run(&tables)));
        // What a test broke need not be fit to be taken apart.
        std::mem::forget(tables);
        result.map_err(|panic| {
            *panic
                .downcast::<String>()
                .expect("a message with an address")
        })
    };
    assert_eq!(said(Broken::Nothing), Ok(()), "{block_change:?}");
    said(broken).expect_err("it was not seen")
}

#[test]
fn another_output_without_an_invalidation() {
    for block_change in BLOCK_CHANGES {
        for (ipa, bytes) in [(GIB, GIB), (MIB_2, MIB_2), (PAGE, PAGE)] {
            let said = seen(block_change, Broken::InvalidateVm, |tables| {
                let range = ipa..ipa + bytes;
                // So that no table is left empty, which would be seen first.
                tables.map(0..PAGE, 0, Attributes::RAM).unwrap();
                tables.map(range.clone(), ipa, Attributes::RAM).unwrap();
                tables.unmap(range.clone()).unwrap();
                tables.map(range, ipa + 4 * GIB, Attributes::RAM).unwrap();
            });
            assert!(said.contains("another output"), "{said}");
        }
        let said = seen(block_change, Broken::InvalidateVm, |tables| {
            let device = Attributes {
                memory: MemoryType::DEVICE,
                ..Attributes::RAM
            };
            tables.map(0..2 * PAGE, 0, Attributes::RAM).unwrap();
            tables.unmap(0..PAGE).unwrap();
            tables.map(0..PAGE, 0, device).unwrap();
        });
        assert!(said.contains("another memory type"), "{said}");
    }
}

#[test]
fn a_table_given_back_without_an_invalidation() {
    for block_change in BLOCK_CHANGES {
        let said = seen(block_change, Broken::InvalidateVm, |tables| {
            tables.map(0..PAGE, 0, Attributes::RAM).unwrap();
            tables.unmap(0..GIB).unwrap();
        });
        assert!(said.contains("given back too early"), "{said}");
    }
    // With the other levels its entry is not even made.
    let said = seen(BlockChange::Direct, Broken::InvalidateVm, |tables| {
        tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
        tables.split(0..MIB_2).unwrap();
        tables.merge(0..MIB_2).unwrap();
    });
    assert!(said.contains("given back too early"), "{said}");
}

#[test]
fn another_size_without_a_break() {
    for block_change in [BlockChange::BreakBeforeMake, BlockChange::NoTranslate] {
        let said = seen(block_change, Broken::InvalidateVm, |tables| {
            tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
            tables.split(0..MIB_2).unwrap();
        });
        assert!(said.contains("another size"), "{said}");
        let hinted = Attributes {
            contiguous: true,
            ..Attributes::RAM
        };
        let said = seen(block_change, Broken::InvalidateVm, |tables| {
            tables.map(0..16 * PAGE, 0, hinted).unwrap();
            tables.unmap(5 * PAGE..6 * PAGE).unwrap();
        });
        assert!(said.contains("another size"), "{said}");
        for broken in [Broken::InvalidateIpa, Broken::Level] {
            let said = seen(block_change, broken, |tables| {
                tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
                tables.add_region(0..MIB_2, bitmap(MIB_2)).unwrap();
                let options = LogOptions::default();
                tables.start_logging(Scope::All, options).unwrap();
                let fault = Fault {
                    ipa: 0,
                    kind: FaultKind::Permission,
                    access: Access::Write,
                };
                tables.handle_fault(&fault, &mut tables.table_cache());
            });
            assert!(said.contains("another size"), "{said}");
        }
    }
}

#[test]
fn an_entry_that_was_not_cleaned() {
    let said = seen(BlockChange::BreakBeforeMake, Broken::Clean, |tables| {
        tables.map(0..MIB_2, 0, Attributes::RAM).unwrap();
        tables.cpu().cpus.assert_cleaned();
    });
    assert!(said.contains("was cleaned as"), "{said}");
}

/// At FEAT_BBM level 2 a split leaves the block in the TLBs until its pass ends. A vCPU whose TLB holds
/// the block, read-only, has to get rid of it all the same, although the tables say "page".
#[test]
fn a_write_through_a_block_that_is_being_split_faults_once() {
    for block_change in BLOCK_CHANGES {
        let config = Config {
            block_change,
            ..Config::new(40)
        };
        let end = 64 * MIB_2;
        let tables = machine(config, 80, 1);
        tables.map(0..end, 0, Attributes::RAM).unwrap();
        tables.add_region(0..end, bitmap(end)).unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        let mut cpu = SoftCpu::new(&tables, 0);
        cpu.access(0, Access::Read, |pa| pa).unwrap();
        tables.cpu().gate().close_after(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                tables.cpu().gate().reached();
                cpu.access(7 * PAGE, Access::Write, |pa| pa).unwrap();
            });
            tables.split(0..end).unwrap();
        });
        assert_eq!((cpu.faults, cpu.pages_logged), (1, 1), "{block_change:?}");
        assert!(leaf(&tables, 7 * PAGE).unwrap().writable);
    }
}
