//! Unmapping while other CPUs map: the gate lets them in between two chunks of the pass, and the strict
//! simulator sees an entry that is made before the old one is gone from the TLBs.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::SoftCpu;
use paguro_stage2::*;
use std::thread;

/// The pass is in the middle of these.
const BLOCKS: u64 = 16;

const HINTED: Attributes = Attributes {
    contiguous: true,
    ..Attributes::RAM
};

fn changed(block_change: BlockChange, cpus: usize) -> Tables {
    let config = Config {
        block_change,
        ..Config::new(40)
    };
    machine(config, 100, cpus)
}

/// Runs `others` when `unmap` of the range has gone through `chunks` chunks.
fn beside_unmap(
    tables: &Tables,
    range: std::ops::Range<u64>,
    chunks: u64,
    others: impl FnOnce() + Send,
) {
    let gate = tables.cpu().gate();
    gate.close_after(chunks);
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            gate.reached();
            others();
        });
        tables.unmap(range).unwrap();
        others.join().unwrap();
    });
}

#[test]
fn a_page_mapped_again_is_seen_by_every_cpu_and_stays() {
    for block_change in BLOCK_CHANGES {
        // Blocks, and pages: these outputs fit no block.
        for pa in [GIB, GIB + PAGE] {
            for chunks in 1..=BLOCKS {
                let tables = changed(block_change, 2);
                let arena = tables.memory().clone();
                tables.map(0..BLOCKS * MIB_2, pa, Attributes::RAM).unwrap();
                let mut old = SoftCpu::new(&tables, 0);
                let mut new = SoftCpu::new(&tables, 1);
                assert_eq!(old.access(0, Access::Read, |pa| pa), Ok(pa));
                let made = 7 * PAGE;
                beside_unmap(&tables, 0..GIB, chunks, || {
                    let mapped = tables.map_page(new.tables(), 0, made, Attributes::RAM);
                    assert_eq!(mapped, Ok(true));
                    assert_eq!(new.access(0, Access::Read, |pa| pa), Ok(made));
                    assert_eq!(old.access(0, Access::Read, |pa| pa), Ok(made));
                });
                assert_eq!(leaves(&tables, 0..GIB).len(), 1, "{chunks} chunks");
                assert_eq!(leaf(&tables, 0).unwrap().pa, made);
                drop((old, new));
                drop(tables);
                assert_eq!(arena.used(), 0, "a table leaked");
            }
        }
    }
}

#[test]
fn a_contiguous_set_goes_as_a_whole() {
    for block_change in BLOCK_CHANGES {
        let tables = changed(block_change, 1);
        tables.map(0..32 * MIB_2, 0, HINTED).unwrap();
        // After each edge was looked at, and the first chunk was unmapped.
        beside_unmap(&tables, 0..32 * MIB_2, 2, || {
            let mut cache = tables.table_cache();
            let mapped = tables.map_page(&mut cache, 9 * MIB_2, GIB, Attributes::RAM);
            assert_eq!(mapped, Ok(true), "the first set is there in part");
        });
        // It was ahead of the pass.
        assert_eq!(leaves(&tables, 0..GIB), []);
    }
}

/// What reaches out of the range is cut before the pass; here it is mapped after that was looked for.
#[test]
fn what_is_mapped_across_the_edge_meanwhile_is_cut() {
    for block_change in BLOCK_CHANGES {
        for (bytes, attributes) in [(16 * PAGE, HINTED), (MIB_2, Attributes::RAM)] {
            for at_end in [false, true] {
                let tables = changed(block_change, 1);
                // The pass looks at both edges; the gate is where it finds something: at the other one.
                let (range, found, crossing) = if at_end {
                    (0..3 * MIB_2 + 5 * PAGE, 0, 3 * MIB_2)
                } else {
                    (5 * PAGE..4 * MIB_2, 3 * MIB_2, 0)
                };
                tables
                    .map(found..found + MIB_2, PAGE, Attributes::RAM)
                    .unwrap();
                beside_unmap(&tables, range.clone(), 0, || {
                    let crossing = crossing..crossing + bytes;
                    tables.map(crossing, GIB, attributes).unwrap();
                });
                let left = leaves(&tables, 0..4 * MIB_2);
                assert!(!left.is_empty());
                for leaf in left {
                    assert!(!leaf.attributes.contiguous, "{leaf:x?}");
                    assert!(!range.contains(&leaf.range.start), "{leaf:x?}");
                    assert!(!range.contains(&(leaf.range.end - 1)), "{leaf:x?}");
                }
            }
        }
    }
}

#[test]
fn unmapping_alone_costs_one_invalidation() {
    for pa in [GIB, GIB + PAGE] {
        let tables = changed(BlockChange::BreakBeforeMake, 1);
        tables.map(0..BLOCKS * MIB_2, pa, Attributes::RAM).unwrap();
        let report = tables.unmap(0..BLOCKS * MIB_2).unwrap();
        assert_eq!(report.invalidations, 1);
        // Nothing is left, so nothing is invalidated.
        assert_eq!(tables.unmap(0..GIB).unwrap().entries_changed, 0);
    }
}
