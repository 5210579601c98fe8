//! What every tracker promises, by that of stage-2 tables; threads are its guests in `vmm`'s tests.

use std::sync::Arc;

use paguro_dirty::tracker::{Tracker, TrackerError};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, PageSet, RamBlock};
use paguro_stage2::sim::{Cpus, SoftCpu};
use paguro_stage2::{
    Access, Config, InitialLog, Leaf, LogMode, LogOptions, Lookup, PAGE_SIZE, Scope, SplitPolicy,
};
use paguro_stage2_tracker::{RamLogError, Stage2Tracker, soft};

const GIB: u64 = 1 << 30;
const MIB_2: u64 = 2 << 20;

/// A block of each size: 1 GiB, 2 MiB, three pages; and one above 4 GiB.
fn ram() -> GuestRam {
    let block = |id: &str, guest_address, bytes: u64| {
        RamBlock::new(BlockConfig {
            id: id.to_owned(),
            guest_address,
            bytes: bytes as usize,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        })
        .unwrap()
    };
    GuestRam::new(vec![
        block("low", 0, GIB + MIB_2 + 3 * PAGE_SIZE),
        block("high", 4 * GIB, 2 * MIB_2),
    ])
}

fn all_options() -> Vec<LogOptions> {
    let mut all = Vec::new();
    for mode in [LogMode::Fault, LogMode::Hardware] {
        for split in [SplitPolicy::Lazy, SplitPolicy::Eager] {
            for initial in [InitialLog::Clean, InitialLog::AllDirty] {
                all.push(LogOptions {
                    mode,
                    split,
                    initial,
                });
            }
        }
    }
    all
}

struct Guest {
    log: Arc<soft::SoftLog>,
    ram: GuestRam,
}

impl Guest {
    fn new(mode: LogMode, cpus: Cpus) -> Self {
        let ram = ram();
        let config = Config {
            hardware_dirty: mode == LogMode::Hardware,
            ..Config::new(soft::ipa_bits(&ram))
        };
        let log = Arc::new(soft::log(&ram, config, cpus, 1).unwrap());
        Self { log, ram }
    }

    fn cpu(&self) -> SoftCpu<'_, paguro_stage2::sim::Arena, paguro_stage2_tracker::Bitmap> {
        SoftCpu::new(self.log.tables(), 0)
    }

    fn tracker(&self, options: LogOptions) -> impl Tracker + use<> {
        Stage2Tracker::new(self.log.clone(), options)
    }

    fn sets(&self) -> Vec<PageSet> {
        let blocks = self.ram.blocks().iter();
        blocks
            .map(|block| PageSet::new(block.max_pages()))
            .collect()
    }

    fn leaf(&self, ipa: u64) -> Leaf {
        match self.log.tables().lookup(ipa) {
            Some(Lookup::Leaf(leaf)) => leaf,
            other => panic!("{ipa:#x}: {other:?}"),
        }
    }

    #[track_caller]
    fn assert_whole_and_writable(&self) {
        let high = 4 * GIB + MIB_2;
        for (ipa, level) in [(0, 1), (GIB, 2), (GIB + MIB_2, 3), (high, 2)] {
            let leaf = self.leaf(ipa);
            assert_eq!((leaf.level, leaf.writable), (level, true), "{ipa:#x}");
            assert_eq!(leaf.pa, leaf.range.start + soft::OUTPUT);
        }
    }
}

fn write(
    cpu: &mut SoftCpu<'_, paguro_stage2::sim::Arena, paguro_stage2_tracker::Bitmap>,
    ipa: u64,
) {
    let right = |pa| assert_eq!(pa, ipa + soft::OUTPUT);
    cpu.access(ipa, Access::Write, right).unwrap();
}

/// What is in the sets, as guest addresses.
fn addresses(guest: &Guest, sets: &[PageSet]) -> Vec<u64> {
    let mut found = Vec::new();
    for (block, set) in guest.ram.blocks().iter().zip(sets) {
        set.runs(0..set.pages(), |run| {
            found.extend(run.map(|page| block.guest_address() + page as u64 * PAGE_SIZE));
        });
    }
    found
}

/// All chunks that have a page in the sets, as the engine does it before it reads them.
fn clear(tracker: &impl Tracker, sets: &[PageSet]) {
    for (index, set) in sets.iter().enumerate() {
        for first in (0..set.pages()).step_by(128) {
            let chunk = first..set.pages().min(first + 128);
            let mut any = false;
            set.take(chunk.clone(), |_| any = true);
            if any {
                tracker.clear(index, chunk).unwrap();
            }
        }
    }
}

#[test]
fn writes_to_blocks_of_every_size_are_reported_exactly_and_the_blocks_come_back() {
    let writes = [
        0,
        5 * PAGE_SIZE,
        GIB - PAGE_SIZE,
        GIB + 7 * PAGE_SIZE,
        GIB + MIB_2 + 2 * PAGE_SIZE,
        4 * GIB,
        4 * GIB + 2 * MIB_2 - PAGE_SIZE,
    ];
    for options in all_options() {
        let guest = Guest::new(options.mode, Cpus::new(1));
        let mut cpu = guest.cpu();
        guest.assert_whole_and_writable();
        // In the TLB, from before the start.
        writes.iter().for_each(|&ipa| write(&mut cpu, ipa));
        let tracker = guest.tracker(options);
        tracker.start().unwrap();
        let dirty = guest.sets();
        if options.initial == InitialLog::AllDirty {
            let pages: usize = dirty.iter().map(PageSet::pages).sum();
            assert_eq!(tracker.sync(&dirty).unwrap(), pages);
            clear(&tracker, &dirty);
        }
        for round in 0..3 {
            assert_eq!(tracker.sync(&dirty).unwrap(), 0, "{options:?} {round}");
            writes[round..].iter().for_each(|&ipa| write(&mut cpu, ipa));
            let count = writes.len() - round;
            assert_eq!(tracker.sync(&dirty).unwrap(), count, "{options:?} {round}");
            assert_eq!(addresses(&guest, &dirty), writes[round..]);
            // Reported again, as it was not cleared, but not new.
            assert_eq!(tracker.sync(&dirty).unwrap(), 0);
            clear(&tracker, &dirty);
        }
        tracker.stop();
        tracker.stop();
        guest.assert_whole_and_writable();
        assert!(matches!(
            tracker.sync(&dirty),
            Err(TrackerError::NotStarted)
        ));
        // Nothing of this run is left for the next.
        writes.iter().for_each(|&ipa| write(&mut cpu, ipa));
        tracker.start().unwrap();
        let all = options.initial == InitialLog::AllDirty;
        assert_eq!(tracker.sync(&dirty).unwrap() > 0, all);
        drop(tracker);
        guest.assert_whole_and_writable();
    }
}

#[test]
fn what_was_written_after_a_sync_is_not_cleared_with_what_it_reported() {
    for options in all_options() {
        let guest = Guest::new(options.mode, Cpus::new(1));
        let mut cpu = guest.cpu();
        let tracker = guest.tracker(options);
        tracker.start().unwrap();
        let dirty = guest.sets();
        tracker.sync(&dirty).unwrap();
        clear(&tracker, &dirty);
        write(&mut cpu, 3 * PAGE_SIZE);
        assert_eq!(tracker.sync(&dirty).unwrap(), 1);
        write(&mut cpu, 4 * PAGE_SIZE);
        write(&mut cpu, 3 * PAGE_SIZE);
        clear(&tracker, &dirty);
        assert_eq!(tracker.sync(&dirty).unwrap(), 1);
        assert_eq!(addresses(&guest, &dirty), [4 * PAGE_SIZE], "{options:?}");
    }
}

/// The entry that a TLB holds from before a page was cleared must be gone when `clear` returns.
#[test]
fn a_stale_tlb_entry_loses_a_write_only_if_it_is_not_invalidated_in_time() {
    let reported = |cpus| {
        let guest = Guest::new(LogMode::Fault, cpus);
        let mut cpu = guest.cpu();
        let tracker = guest.tracker(LogOptions {
            split: SplitPolicy::Eager,
            ..LogOptions::default()
        });
        tracker.start().unwrap();
        // More than any invalidation is late.
        (0..2000).for_each(|_| write(&mut cpu, 3 * PAGE_SIZE));
        let dirty = guest.sets();
        assert_eq!(tracker.sync(&dirty).unwrap(), 1);
        clear(&tracker, &dirty);
        // The engine has read the page.
        write(&mut cpu, 3 * PAGE_SIZE);
        tracker.sync(&dirty).unwrap()
    };
    assert_eq!(reported(Cpus::new(1)), 1);
    assert_eq!(reported(Cpus::without_invalidation(1)), 0);
    assert_eq!(reported(Cpus::with_late_invalidation(1)), 0);
}

#[test]
fn one_tracks_at_a_time_and_knows_its_sets() {
    let guest = Guest::new(LogMode::Fault, Cpus::new(1));
    let new = || guest.tracker(LogOptions::default());
    let (first, second) = (new(), new());
    assert!(matches!(
        first.clear(0, 0..64),
        Err(TrackerError::NotStarted)
    ));
    first.start().unwrap();
    assert!(matches!(first.start(), Err(TrackerError::Busy)));
    assert!(matches!(second.start(), Err(TrackerError::Busy)));
    second.stop();
    drop(second);
    assert!(matches!(first.sync(&[]), Err(TrackerError::Sets)));
    first.sync(&guest.sets()).unwrap();
    drop(first);
    // A log of the hypervisor's own.
    let tables = guest.log.tables();
    tables
        .start_logging(Scope::All, LogOptions::default())
        .unwrap();
    let third = new();
    assert!(matches!(third.start(), Err(TrackerError::Busy)));
    drop(third);
    tables.stop_logging(Scope::All, true).unwrap();
    new().start().unwrap();
}

#[test]
fn a_start_without_memory_for_tables_leaves_all_as_it_was() {
    let guest = Guest::new(LogMode::Fault, Cpus::new(1));
    let eager = LogOptions {
        split: SplitPolicy::Eager,
        ..LogOptions::default()
    };
    let tracker = guest.tracker(eager);
    for tables in 0..40 {
        guest.log.tables().memory().set_budget(tables);
        match tracker.start() {
            Err(TrackerError::Other { source, .. }) => {
                assert_eq!(source.to_string(), "no memory for a table");
            }
            other => panic!("{tables}: {other:?}"),
        }
        guest.assert_whole_and_writable();
    }
    guest.log.tables().memory().set_budget(u64::MAX);
    tracker.start().unwrap();
    assert_eq!(guest.leaf(0).level, 3);
}

#[test]
fn ram_that_does_not_fit_is_refused_by_name() {
    let ram = ram();
    let refused = soft::log(&ram, Config::new(32), Cpus::new(1), 1);
    match refused {
        Err(RamLogError::Map { block, .. }) => assert_eq!(block, "high"),
        other => panic!("{other:?}"),
    }
}
