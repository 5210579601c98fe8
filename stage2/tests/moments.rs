//! What may happen while the table lock is held, and while it is given up.
#![cfg(not(feature = "shuttle"))]

mod common;

use common::*;
use paguro_stage2::sim::{Arena, Cpus, SoftCpu};
use paguro_stage2::*;
use std::ptr::NonNull;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Somebody who takes the lock and gives it back, when asked to.
type Doorkeeper = (Sender<()>, Receiver<()>);

/// Hands out a table only if another thread gets the lock meanwhile.
struct Outside {
    arena: Arena,
    doorkeeper: Mutex<Option<Doorkeeper>>,
}

// SAFETY: all of it is the arena's.
unsafe impl TableMemory for Outside {
    fn allocate(&self, tables: usize) -> Option<u64> {
        let doorkeeper = self.doorkeeper.lock().unwrap();
        if let Some((ask, answer)) = doorkeeper.as_ref() {
            ask.send(()).unwrap();
            answer
                .recv_timeout(Duration::from_secs(60))
                .expect("a table is asked for with the lock held");
        }
        self.arena.allocate(tables)
    }

    fn free(&self, pa: u64, tables: usize) {
        self.arena.free(pa, tables);
    }

    fn table(&self, pa: u64) -> NonNull<Table> {
        self.arena.table(pa)
    }
}

/// Lets the other thread end, whatever happens to this one.
struct HangUp<'a>(&'a Outside);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        let doorkeeper = self.0.doorkeeper.lock();
        doorkeeper.unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[test]
fn no_table_is_asked_for_with_the_lock_held() {
    let config = Config::new(40);
    let arena = Arena::new(300);
    let cpus = Cpus::new(1).strict(&arena, &config);
    let memory = Outside {
        arena,
        doorkeeper: Mutex::new(None),
    };
    let tables: Stage2<Outside, Cpus, Bits> = Stage2::new(config, memory, cpus).unwrap();
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    *tables.memory().doorkeeper.lock().unwrap() = Some((ask, answered));
    thread::scope(|scope| {
        scope.spawn(|| {
            for () in asked {
                tables.lookup(0).unwrap();
                let _ = answer.send(());
            }
        });
        let _hangs_up = HangUp(tables.memory());
        let end = 64 * MIB_2;
        tables.map(0..end, 0, Attributes::RAM).unwrap();
        tables.map(GIB..2 * GIB, GIB, Attributes::RAM).unwrap();
        // No output fits a block: more tables than are set aside at first.
        let pages = 4 * GIB..4 * GIB + 8 * MIB_2;
        tables.map(pages, PAGE, Attributes::RAM).unwrap();
        tables.unmap(PAGE..2 * PAGE).unwrap();
        tables.protect(end - PAGE..end).unwrap();
        let mut cache = tables.table_cache();
        let absent = tables.map_page(&mut cache, PAGE, PAGE, Attributes::RAM);
        assert_eq!(absent, Ok(true));
        let region = GIB + PAGE..2 * GIB;
        tables
            .add_region(region.clone(), bitmap(region.end - region.start))
            .unwrap();
        tables
            .start_logging(Scope::All, LogOptions::default())
            .unwrap();
        // With nothing set aside yet.
        let mut cpu = SoftCpu::new(&tables, 0);
        cpu.access(GIB + 8 * MIB_2, Access::Write, |_| ()).unwrap();
        tables.split(0..end).unwrap();
        tables.stop_logging(Scope::All, true).unwrap();
    });
}

/// A start splits what is there, gives the lock up in between, and protects in the end: what is mapped
/// meanwhile has to be pages, or a block is left in a log that promised to have none.
#[test]
fn what_is_mapped_while_a_log_is_prepared_is_pages() {
    for block_change in BLOCK_CHANGES {
        let config = Config {
            block_change,
            ..Config::new(40)
        };
        let tables = machine(config, 64, 1);
        let end = 16 * MIB_2;
        // The first block is absent, and behind the pass when it is mapped.
        tables.map(MIB_2..end, MIB_2, Attributes::RAM).unwrap();
        let id = tables.add_region(0..end, bitmap(end)).unwrap();
        let gate = tables.cpu().gate();
        gate.close_after(3);
        let hinted = Attributes {
            contiguous: true,
            ..Attributes::RAM
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.reached();
                tables.map(0..MIB_2, 0, hinted).unwrap();
            });
            let options = LogOptions {
                split: SplitPolicy::Eager,
                ..LogOptions::default()
            };
            tables.start_logging(Scope::All, options).unwrap();
        });
        let found = leaves(&tables, 0..end);
        assert!(found.iter().all(|leaf| leaf.level == 3 && !leaf.writable));
        assert!(found.iter().all(|leaf| !leaf.attributes.contiguous));
        // It is new to whoever reads the log.
        let mut bits = vec![0; 16 * 8];
        tables.collect(id, 0, None, &mut bits).unwrap();
        assert_eq!(set_bits(&bits), (0..512).collect::<Vec<_>>());
    }
}
