//! What protecting, splitting and logging cost, as ratios within one run.
//!
//!     cargo run --release -p paguro-stage2 --example bench
//!
//! Runs on the host, on tables in ordinary memory, with TLB invalidation counted but free: what is
//! measured is the crate's own work. The yardstick is a plain walk, a loop written here that only reads
//! the same entries through the same tables. Every time is the best of seven; `spread` is how much
//! longer the median took.

use paguro_stage2::sim::{Arena, Cpus};
use paguro_stage2::*;
use std::hint::black_box;
use std::time::Instant;

const PAGE: u64 = 4096;
const MIB_2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const VM: u64 = 64 * GIB;
const REPEATS: usize = 7;

type Tables = Stage2<Arena, Cpus, Vec<AtomicU64>>;

struct Timing {
    best_ns: f64,
    spread_percent: f64,
}

/// Times `measured` only; `prepare` runs before each repeat.
fn time(mut prepare: impl FnMut(), mut measured: impl FnMut()) -> Timing {
    let mut samples_ns: Vec<f64> = (0..REPEATS)
        .map(|_| {
            prepare();
            let start = Instant::now();
            measured();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    samples_ns.sort_by(f64::total_cmp);
    let (best_ns, median) = (samples_ns[0], samples_ns[REPEATS / 2]);
    Timing {
        best_ns,
        spread_percent: (median / best_ns - 1.0) * 100.0,
    }
}

fn machine(tables: usize) -> Tables {
    Stage2::new(Config::new(40), Arena::new(tables), Cpus::new(1)).unwrap()
}

/// Reads every entry of the tree and counts the writable leaves: what any pass has to do at least.
fn plain_walk(tables: &Tables, table_pa: u64, level: u8) -> u64 {
    // SAFETY: nothing changes the tables meanwhile, and they live as long as `tables`.
    let table = unsafe { tables.memory().table(table_pa).as_ref() };
    let mut writable = 0;
    for entry in table.entries() {
        let entry = entry.load(Ordering::Relaxed);
        match entry & 0b11 {
            0b11 if level < 3 => {
                writable += plain_walk(tables, entry & 0xffff_ffff_f000, level + 1)
            }
            0b01 | 0b11 => writable += entry >> 7 & 1,
            _ => {}
        }
    }
    writable
}

fn root(tables: &Tables) -> u64 {
    tables.vttbr(0)
}

fn protect(name: &str, tables: &Tables) {
    let mut entries = 0;
    let walk = time(
        || (),
        || entries = black_box(plain_walk(tables, root(tables), 1)),
    );
    let mut report = PassReport::default();
    let unprotect = || {
        tables.unprotect(0..VM).unwrap();
    };
    let protected = time(unprotect, || report = tables.protect(0..VM).unwrap());
    let again = time(|| (), || _ = black_box(tables.protect(0..VM).unwrap()));
    assert_eq!(report.entries_changed, entries);
    let per_entry = |timing: &Timing| timing.best_ns / entries as f64;
    println!(
        "protect 64 GiB of {name}: {entries} entries written, {} invalidation(s), {:.3} ms (spread {:.0} %)",
        report.invalidations,
        protected.best_ns / 1e6,
        protected.spread_percent
    );
    println!(
        "  per entry {:.2} ns; plain walk {:.2} ns; ratio {:.2}; protecting again {:.2}",
        per_entry(&protected),
        per_entry(&walk),
        protected.best_ns / walk.best_ns,
        again.best_ns / walk.best_ns
    );
}

fn split_policies() {
    let start = |split| {
        let mut report = PassReport::default();
        let tables = machine(2 * 8192);
        tables.map(0..VM / 4, 0, Attributes::RAM).unwrap();
        let words = words_for(VM / 4 / PAGE);
        tables
            .add_region(0..VM / 4, (0..words).map(|_| AtomicU64::new(0)).collect())
            .unwrap();
        let stop = || {
            if tables.stop_logging(Scope::All, true).is_err() {
                tables.merge(0..VM / 4).unwrap();
            }
        };
        let options = LogOptions {
            split,
            ..LogOptions::default()
        };
        let timing = time(stop, || {
            report = tables.start_logging(Scope::All, options).unwrap()
        });
        (timing, report)
    };
    let (lazy, lazy_report) = start(SplitPolicy::Lazy);
    let (eager, eager_report) = start(SplitPolicy::Eager);
    println!("start the log of 16 GiB of 1 GiB blocks:");
    for (name, timing, report) in [
        ("lazy", &lazy, lazy_report),
        ("eager", &eager, eager_report),
    ] {
        println!(
            "  {name}: {:.3} ms (spread {:.0} %), {} splits, {} entries written, {} invalidation(s)",
            timing.best_ns / 1e6,
            timing.spread_percent,
            report.splits,
            report.entries_changed,
            report.invalidations
        );
    }
    println!("  eager/lazy {:.0}", eager.best_ns / lazy.best_ns);
}

/// Faults are handled directly, without a CPU in software: its TLB would be what is measured.
fn logged_writes() {
    const BLOCKS: u64 = 512;
    let tables = machine(1024);
    tables.map(0..GIB, MIB_2, Attributes::RAM).unwrap();
    let id = tables
        .add_region(0..GIB, (0..4096).map(|_| AtomicU64::new(0)).collect())
        .unwrap();
    let mut cache = tables.table_cache();
    let mut fault = |ipa| {
        let fault = Fault {
            ipa,
            kind: FaultKind::Permission,
            access: Access::Write,
        };
        assert_eq!(
            tables.handle_fault(&fault, &mut cache),
            Resolution::Logged { pages: 1 }
        );
    };
    let restart = |split| {
        let _ = tables.stop_logging(Scope::All, true);
        tables
            .start_logging(
                Scope::All,
                LogOptions {
                    split,
                    ..LogOptions::default()
                },
            )
            .unwrap();
    };
    let first_of_blocks =
        |fault: &mut dyn FnMut(u64)| (0..BLOCKS).for_each(|block| fault(block * MIB_2));
    let lazy = time(
        || restart(SplitPolicy::Lazy),
        || first_of_blocks(&mut fault),
    );
    let eager = time(
        || restart(SplitPolicy::Eager),
        || first_of_blocks(&mut fault),
    );
    let lookups = time(
        || (),
        || (0..BLOCKS).for_each(|block| _ = black_box(tables.lookup(block * MIB_2))),
    );
    let per_write = |timing: &Timing| timing.best_ns / BLOCKS as f64;
    println!(
        "a logged write (fault path without the trap; a look-up takes {:.0} ns):",
        per_write(&lookups)
    );
    println!(
        "  first to a page: {:.0} ns, {:.1} look-ups",
        per_write(&eager),
        eager.best_ns / lookups.best_ns
    );
    println!(
        "  first to a block, which is split: {:.0} ns, {:.1} times as much",
        per_write(&lazy),
        lazy.best_ns / eager.best_ns
    );
    let mut bits = vec![0; 4096];
    let mut collect = || {
        tables.collect(id, 0, None, &mut bits).unwrap();
    };
    let nothing = time(&mut collect, || ());
    let dirty = time(
        || {
            (0..GIB / PAGE)
                .step_by(8)
                .for_each(|page| touch(&tables, page))
        },
        &mut collect,
    );
    println!(
        "collect 1 GiB, every eighth page dirty: {:.1} ns a dirty page, {:.3} ms in all",
        (dirty.best_ns - nothing.best_ns) / (GIB / PAGE / 8) as f64,
        dirty.best_ns / 1e6
    );
}

fn touch(tables: &Tables, page: u64) {
    let fault = Fault {
        ipa: page * PAGE,
        kind: FaultKind::Permission,
        access: Access::Write,
    };
    tables.handle_fault(&fault, &mut tables.table_cache());
}

fn main() {
    let blocks = machine(100);
    // Output addresses that are aligned to 2 MiB but not to 1 GiB.
    (0..64).for_each(|gib| {
        blocks
            .map(
                gib * GIB..(gib + 1) * GIB,
                gib * GIB + MIB_2,
                Attributes::RAM,
            )
            .unwrap()
    });
    let tables = machine(33_000);
    tables.map(0..VM, PAGE, Attributes::RAM).unwrap();
    protect("2 MiB blocks", &blocks);
    protect("pages", &tables);
    drop((blocks, tables));
    split_policies();
    logged_writes();
}
