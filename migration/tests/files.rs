//! Files that are away for a while, or written to, while a machine runs from them.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use paguro_dirty::FreezeError;
use paguro_migration::restore::{
    Failure, Prefetch, RestoreError, RestoreFile, RestoreMode, RestoreOptions, Restored, Waiters,
    restore_ram,
};
use paguro_migration::{
    Control, ForTests, Memory, SnapshotError, SnapshotOptions, Status, snapshot,
};
use paguro_pager::SourceError;
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::{Fallbacks, Host};
use paguro_testkit::{Flaky, alone, skipped};

use crate::machine::ThreadMachine;

pub const PAGE: usize = 4096;
pub const PAGES: usize = 600;

/// Only a test that fails waits so long.
pub const IN_VAIN: Duration = Duration::from_secs(60);

pub fn host() -> Option<Host> {
    let host = Host::probe(&Fallbacks::default());
    if host.can_freeze() {
        return Some(host);
    }
    skipped("userfaultfd with write-protection is not available to this process");
    None
}

/// Nobody loses these files in a crash.
fn unsynced() -> ForTests {
    ForTests {
        unsynced: true,
        ..ForTests::default()
    }
}

pub fn layout() -> Vec<BlockConfig> {
    vec![BlockConfig {
        id: "paguro.ram".into(),
        guest_address: 0,
        bytes: PAGES * PAGE,
        backing: Backing::Anonymous,
        pages: PageKind::Small,
    }]
}

/// A snapshot of RAM whose every page is full of `value`.
pub fn saved(host: Host, path: &Path, value: u8, checksums: bool) {
    let blocks = layout().into_iter().map(|it| RamBlock::new(it).unwrap());
    let ram = GuestRam::new(blocks.collect());
    ram.blocks()[0]
        .mapping()
        .copy_in(0, &vec![value; PAGES * PAGE]);
    let machine = ThreadMachine::start(Memory::new(host, ram), 0, 0);
    let options = SnapshotOptions {
        background: false,
        checksums,
        for_tests: unsynced(),
        ..SnapshotOptions::new()
    };
    snapshot(&machine, path, &options, &Control::default()).unwrap();
}

/// Two of them, of which the first is full of ones.
pub fn two(host: Host, checksums: bool) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("a"), dir.path().join("b"));
    saved(host, &path, 1, checksums);
    saved(host, &other, 2, checksums);
    (dir, path, other)
}

/// What is told when pages cannot be had; whoever waits is let go only if that is for good.
pub fn ear() -> (Failure, Receiver<String>) {
    let (tell, told): (Sender<String>, _) = channel();
    let tell = Mutex::new(tell);
    let failure = Box::new(move |error: &SourceError| {
        let what = match error {
            SourceError::Changed { .. } => "changed",
            SourceError::Damaged { .. } => "damaged",
            SourceError::Read { .. } => "unreadable",
            _ => "another",
        };
        let _ = tell.lock().unwrap().send(format!("{what}: {error}"));
        Waiters::Keep
    });
    (failure, told)
}

pub fn options(mode: RestoreMode, retry: Duration) -> RestoreOptions {
    RestoreOptions {
        mode,
        prefetch: Prefetch::Off,
        threads: 2,
        retry,
        faults_in_kernel: false,
    }
}

fn restored(host: Host, path: &Path, options: &RestoreOptions) -> (Restored, Receiver<String>) {
    let (failure, told) = ear();
    let file = Arc::new(RestoreFile::open(path).unwrap());
    let restored = restore_ram(&file, layout(), host, options).unwrap();
    restored.on_failure(failure);
    (restored, told)
}

/// What a page is full of.
pub fn value(ram: &GuestRam, page: usize) -> u8 {
    let mut bytes = [0; PAGE];
    ram.blocks()[0].mapping().copy_out(page * PAGE, &mut bytes);
    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "{page}: mixed");
    bytes[0]
}

/// Writes a whole file over another one, in place.
fn overwrite(path: &Path, by: &Path) {
    let content = std::fs::read(by).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&content, 0).unwrap();
}

/// Runs `body` in a thread of its own; its result comes through the channel.
pub fn run<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(body()));
    receive
}

#[track_caller]
pub fn comes<T>(from: &Receiver<T>) -> T {
    match from.recv_timeout(IN_VAIN) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("it does not come"),
        Err(RecvTimeoutError::Disconnected) => panic!("a thread panicked"),
    }
}

#[track_caller]
pub fn until(so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < IN_VAIN, "it does not come");
        std::thread::yield_now();
    }
}

/// Does something to a file that is not to be done to one in use; there is another one to do it with.
type Change = fn(&Path, &Path);

/// The ways in which somebody may write to a file, and their names.
fn ways_to_change() -> [(&'static str, Change); 3] {
    [
        ("overwritten", |path, by| overwrite(path, by)),
        ("copied over, after it was cut to nothing", |path, by| {
            std::fs::write(path, std::fs::read(by).unwrap()).unwrap();
        }),
        ("cut short", |path, _| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(1 << 20).unwrap();
        }),
    ]
}

#[test]
fn no_page_of_another_file_is_taken_for_one_of_this() {
    let _alone = alone();
    let Some(host) = host() else { return };
    for checksums in [true, false] {
        for (how, change) in ways_to_change() {
            let (_dir, path, other) = two(host, checksums);
            let lazy = options(RestoreMode::Lazy, Duration::ZERO);
            let (restored, told) = restored(host, &path, &lazy);
            assert_eq!(value(restored.memory.ram(), 100), 1);
            change(&path, &other);
            let found: Vec<_> = (0..PAGES)
                .map(|page| value(restored.memory.ram(), page))
                .collect();
            let wrong = found.iter().filter(|&&value| value > 1).count();
            assert_eq!(
                wrong, 0,
                "{how}, checksums {checksums}: pages of the other file"
            );
            // Nobody is let go before it is told.
            let said = told.try_recv().unwrap();
            assert_eq!(found[100], 1);
            assert!(
                said.starts_with("changed"),
                "{how}, checksums {checksums}: {said}"
            );
            assert!(restored.filler.unwrap().has_failed());
        }
    }
}

/// What may be done to a file in use: each changes its other time (ctime), and not a byte of it.
fn harmless(path: &Path, dir: &Path) {
    let other = dir.join("other");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::hard_link(path, dir.join("link")).unwrap();
    std::fs::remove_file(dir.join("link")).unwrap();
    std::fs::write(&other, "another snapshot").unwrap();
    std::fs::rename(&other, path).unwrap();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_file_may_be_renamed_over_and_unlinked_and_change_its_mode() {
    let _alone = alone();
    let Some(host) = host() else { return };
    for mode in [RestoreMode::Lazy, RestoreMode::Map] {
        for checksums in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a");
            saved(host, &path, 1, checksums);
            let (restored, told) = restored(host, &path, &options(mode, Duration::ZERO));
            harmless(&path, dir.path());
            assert!((0..PAGES).all(|page| value(restored.memory.ram(), page) == 1));
            // Longer than it takes to look at a mapped file.
            let quiet = told.recv_timeout(Duration::from_millis(600));
            assert!(quiet.is_err(), "{mode:?}, checksums {checksums}: {quiet:?}");
        }
    }
}

#[test]
fn a_time_says_nothing_where_checksums_say_all() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    saved(host, &path, 1, true);
    let lazy = options(RestoreMode::Lazy, Duration::ZERO);
    let (restored, told) = restored(host, &path, &lazy);
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_modified(std::time::SystemTime::UNIX_EPOCH))
        .unwrap();
    assert!((0..PAGES).all(|page| value(restored.memory.ram(), page) == 1));
    assert!(told.try_recv().is_err());
}

#[test]
fn a_mapped_file_that_is_written_to_is_told_of() {
    let _alone = alone();
    let Some(host) = host() else { return };
    for checksums in [true, false] {
        for (how, change) in ways_to_change() {
            let (_dir, path, other) = two(host, checksums);
            let (restored, told) = restored(host, &path, &options(RestoreMode::Map, IN_VAIN));
            assert_eq!(value(restored.memory.ram(), 100), 1);
            change(&path, &other);
            let said = comes(&told);
            assert!(said.starts_with("changed"), "{how}: {said}");
            // Told once, and its thread ends with what it watches.
            drop(restored);
            assert_eq!(
                told.recv_timeout(IN_VAIN),
                Err(RecvTimeoutError::Disconnected)
            );
        }
    }
}

/// A snapshot on a file system that fails when it is to.
pub fn away(host: Host, checksums: bool) -> Option<(tempfile::TempDir, PathBuf, Flaky)> {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    saved(host, &below, 1, checksums);
    std::fs::create_dir(dir.path().join("there")).unwrap();
    let flaky = Flaky::mount(&dir.path().join("there"), &below)?;
    Some((dir, below, flaky))
}

/// Where pages are in these files.
const PAGES_AT: u64 = 1 << 20;

#[test]
fn a_file_that_comes_back_costs_nothing() {
    let _alone = alone();
    let Some(host) = host() else { return };
    for (mode, checksums) in [
        (RestoreMode::Lazy, true),
        (RestoreMode::Lazy, false),
        (RestoreMode::Map, true),
    ] {
        let Some((_dir, _, flaky)) = away(host, checksums) else {
            return;
        };
        let (restored, told) = restored(host, &flaky.path(), &options(mode, IN_VAIN));
        flaky.fail();
        let ram = restored.memory.ram().clone();
        let reader = run(move || (0..PAGES).all(|page| value(&ram, page) == 1));
        until(|| flaky.failed() > 8);
        flaky.mend();
        assert!(comes(&reader), "{mode:?}: it is not what was saved");
        assert!(told.try_recv().is_err());
        if let Some(filler) = &restored.filler {
            assert!(filler.failed_reads() > 0 && !filler.has_failed());
            assert!(filler.wait_done(IN_VAIN));
        }
        if let Some(watch) = &restored.watch {
            assert!(watch.failed_reads() > 0 && watch.lost_pages() == 0);
            until(|| watch.trouble().is_none());
        }
    }
}

#[test]
fn what_is_read_before_the_machine_runs_is_tried_again_too() {
    let _alone = alone();
    let Some(host) = host() else { return };
    for checksums in [true, false] {
        let Some((_dir, below, flaky)) = away(host, checksums) else {
            return;
        };
        let eager = options(RestoreMode::Eager, IN_VAIN);
        // What comes back is right; changed meanwhile, it is not taken; given up, it ends.
        for end in ["mended", "given up", "changed"] {
            let file = Arc::new(RestoreFile::open(&flaky.path()).unwrap());
            let before = flaky.failed();
            flaky.fail_some(PAGES_AT..u64::MAX, u64::MAX);
            let its = file.clone();
            let restoring = run(move || restore_ram(&its, layout(), host, &eager));
            until(|| flaky.failed() > before + 4);
            match end {
                "given up" => file.give_up(),
                "changed" => {
                    let page = vec![2; PAGE];
                    let file = File::options().write(true).open(&below).unwrap();
                    file.write_all_at(&page, PAGES_AT + 5 * PAGE as u64)
                        .unwrap();
                    flaky.mend();
                }
                _ => flaky.mend(),
            }
            match (end, comes(&restoring)) {
                ("mended", Ok(restored)) => {
                    assert!((0..PAGES).all(|page| value(restored.memory.ram(), page) == 1));
                }
                ("given up", Err(RestoreError::Page(SourceError::Read { .. }))) => {}
                ("changed", Err(RestoreError::Page(SourceError::Changed { .. }))) => {}
                (end, other) => panic!("{end}: {other:?}"),
            }
            flaky.mend();
        }
    }
}

#[test]
fn a_snapshot_of_what_is_still_in_a_file_waits_for_the_file() {
    let _alone = alone();
    let Some(host) = host() else { return };
    for cancelled in [false, true] {
        let Some((dir, _, flaky)) = away(host, true) else {
            return;
        };
        let lazy = options(RestoreMode::Lazy, IN_VAIN);
        let (restored, told) = restored(host, &flaky.path(), &lazy);
        // Something is here, so that it is frozen.
        assert_eq!(value(restored.memory.ram(), 0), 1);
        flaky.fail();
        let (second, control) = (dir.path().join("second"), Arc::new(Control::default()));
        let (its, path) = (control.clone(), second.clone());
        let memory = restored.memory.clone();
        let saving = run(move || {
            let machine = ThreadMachine::start(memory, 0, 0);
            // One thread, which is the one that waits.
            let options = SnapshotOptions {
                threads: 1,
                for_tests: unsynced(),
                ..SnapshotOptions::new()
            };
            snapshot(&machine, &path, &options, &its)
        });
        let before = flaky.failed();
        until(|| control.status() == Status::Active && flaky.failed() > before + 4);
        // Who writes what is here does not wait for what is not.
        let ram = restored.memory.ram().clone();
        comes(&run(move || ram.blocks()[0].mapping().copy_in(0, &[7])));
        if cancelled {
            control.cancel();
            assert!(matches!(comes(&saving), Err(SnapshotError::Cancelled)));
            assert!(!second.exists());
            flaky.mend();
            assert_eq!(value(restored.memory.ram(), 300), 1);
            continue;
        }
        flaky.mend();
        comes(&saving).unwrap();
        let eager = options(RestoreMode::Eager, Duration::ZERO);
        let (again, _) = self::restored(host, &second, &eager);
        assert!((0..PAGES).all(|page| value(again.memory.ram(), page) == 1));
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn a_snapshot_of_a_mapped_file_that_cannot_be_read_fails() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let Some((dir, _, flaky)) = away(host, true) else {
        return;
    };
    let map = options(RestoreMode::Map, Duration::from_millis(50));
    let (restored, _told) = restored(host, &flaky.path(), &map);
    flaky.fail();
    let machine = ThreadMachine::start(restored.memory.clone(), 0, 0);
    let second = dir.path().join("second");
    let stopped = SnapshotOptions {
        background: false,
        for_tests: unsynced(),
        ..SnapshotOptions::new()
    };
    let save = || {
        let control = Control::default();
        snapshot(&machine, &second, &stopped, &control)
    };
    assert!(matches!(save(), Err(SnapshotError::Freeze(_))));
    assert!(!second.exists());
    // And it cost nothing.
    flaky.mend();
    save().unwrap();
    let eager = options(RestoreMode::Eager, Duration::ZERO);
    let (again, _) = self::restored(host, &second, &eager);
    assert!((0..PAGES).all(|page| value(again.memory.ram(), page) == 1));
    assert_eq!(restored.watch.unwrap().lost_pages(), 0);
}

#[test]
fn a_machine_that_maps_its_file_is_saved_standing_and_not_while_it_runs() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let (dir, path, _) = two(host, true);
    let (restored, _told) = restored(host, &path, &options(RestoreMode::Map, IN_VAIN));
    let machine = ThreadMachine::start(restored.memory.clone(), 0, 0);
    let second = dir.path().join("second");
    let save = |background| {
        let options = SnapshotOptions {
            background,
            for_tests: unsynced(),
            ..SnapshotOptions::new()
        };
        snapshot(&machine, &second, &options, &Control::default())
    };
    match save(true) {
        Err(SnapshotError::Freeze(FreezeError::Unprotectable { block, .. })) => {
            assert_eq!(block, "paguro.ram");
        }
        Ok(_) => return skipped("files for tests are in a tmpfs, which can be protected"),
        other => panic!("{other:?}"),
    }
    // Nobody was paused for it, and nothing of it is left.
    assert!(machine.picture.lock().unwrap().is_empty() && !second.exists());
    save(false).unwrap();
    let eager = options(RestoreMode::Eager, Duration::ZERO);
    let (again, _) = self::restored(host, &second, &eager);
    assert!((0..PAGES).all(|page| value(again.memory.ram(), page) == 1));
}
