//! The crate for real: stage-2 tables on (emulated) hardware, a guest at EL1 that writes known pages,
//! and a log that has to name exactly these.
//!
//! Every check is an assertion; the first that fails ends the program with exit code 1. `run` builds
//! it, starts it in QEMU, and hands the exit code on.
#![no_std]
#![no_main]

mod boot;
#[macro_use]
mod console;
mod cores;
mod features;
mod memory;
mod rounds;
mod runtime;
mod shared;
mod vcpu;

use core::sync::atomic::AtomicU64;
use paguro_stage2::{BlockChange, Config, InitialLog, LogMode, LogOptions, SplitPolicy, Stage2};

pub type Vm<C> = Stage2<memory::PoolMemory, C, &'static [AtomicU64]>;

#[unsafe(no_mangle)]
extern "C" fn rust_start(core: usize) -> ! {
    if core != 0 {
        cores::serve(core);
    }
    memory::init();
    let features = features::read();
    println!("{features:?}");
    let mut scenarios = 0;

    // Every input size lazily and eagerly; block changes and ways of logging take turns.
    let changes = [
        BlockChange::BreakBeforeMake,
        BlockChange::NoTranslate,
        BlockChange::Direct,
    ];
    let changes = &changes[..=usize::from(features.block_change)];
    for ipa_bits in [32, 36, 40, 44, 48]
        .into_iter()
        .filter(|bits| *bits <= features.pa_bits)
    {
        for split in [SplitPolicy::Lazy, SplitPolicy::Eager] {
            let block_change = changes[scenarios % changes.len()];
            let hardware_dirty = features.hardware_dirty && scenarios % 4 < 2;
            let config = Config {
                ipa_bits,
                block_change,
                hardware_dirty,
            };
            let mode = if hardware_dirty {
                LogMode::Hardware
            } else {
                LogMode::Fault
            };
            let initial = if scenarios % 5 == 4 {
                InitialLog::AllDirty
            } else {
                InitialLog::Clean
            };
            rounds::run(
                &features,
                config,
                LogOptions {
                    mode,
                    split,
                    initial,
                },
            );
            scenarios += 1;
        }
    }

    // Not before: idle cores spin, and QEMU needs the host's cores for the one that works.
    cores::start_all();
    shared::a_stale_entry_loses_nothing(&features);
    shared::a_stale_entry_would_lose_a_write(&features);
    scenarios += 2;
    for stops_walks in [false, true] {
        shared::registers_of_another_vm_are_put_back(&features, stops_walks);
        scenarios += 1;
    }
    for split in [SplitPolicy::Lazy, SplitPolicy::Eager] {
        for hardware_dirty in [false, true]
            .into_iter()
            .take(1 + usize::from(features.hardware_dirty))
        {
            let mode = if hardware_dirty {
                LogMode::Hardware
            } else {
                LogMode::Fault
            };
            let options = LogOptions {
                mode,
                split,
                ..LogOptions::default()
            };
            shared::two_guests_write_while_a_third_core_protects(&features, options);
            scenarios += 1;
        }
    }
    println!("ok: {scenarios} scenarios");
    console::exit(0)
}
