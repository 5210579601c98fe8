//! RAM that a VMM made is filled from a file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paguro_migration::Memory;
use paguro_migration::restore::{Filler, RestoreError, RestoreFile, RestoreMode, fill};
use paguro_ram::{Backing, GuestRam, RamBlock};
use paguro_sys::{Advice, Host};
use paguro_testkit::alone;

use crate::files::{
    IN_VAIN, PAGE, PAGES, away, comes, ear, host, layout, options, run, saved, two, until, value,
};

/// RAM as a VMM makes it: the engine is told of it, and is not asked for it.
fn made(host: Host, backing: Backing) -> Arc<Memory> {
    let mut layout = layout();
    layout[0].backing = backing;
    let blocks = layout.into_iter().map(|it| RamBlock::new(it).unwrap());
    Memory::new(host, GuestRam::new(blocks.collect()))
}

fn filled(
    path: &Path,
    memory: &Arc<Memory>,
    mode: RestoreMode,
) -> Result<Option<Arc<Filler>>, RestoreError> {
    let file = Arc::new(RestoreFile::open(path).unwrap());
    fill(&file, memory, &options(mode, Duration::ZERO))
}

fn write_page(memory: &Memory, page: usize, value: u8) {
    let mapping = memory.ram().blocks()[0].mapping();
    mapping.copy_in(page * PAGE, &[value; PAGE]);
}

#[test]
fn ram_that_the_vmm_made_is_filled_at_once_or_as_it_is_touched() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let (_dir, path, _) = two(host, true);
    for backing in [Backing::Anonymous, Backing::Memfd] {
        for mode in [RestoreMode::Eager, RestoreMode::Lazy] {
            let memory = made(host, backing);
            let filler = filled(&path, &memory, mode).unwrap();
            assert_eq!(filler.is_some(), mode == RestoreMode::Lazy);
            // Nobody needs to keep it.
            drop(filler);
            assert!((0..PAGES).all(|page| value(memory.ram(), page) == 1));
        }
    }
}

#[test]
fn ram_that_is_not_fresh_is_refused_by_name() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let (_dir, path, _) = two(host, true);
    for backing in [Backing::Anonymous, Backing::Memfd] {
        for mode in [RestoreMode::Eager, RestoreMode::Lazy] {
            let memory = made(host, backing);
            write_page(&memory, 300, 7);
            match filled(&path, &memory, mode) {
                Err(RestoreError::NotFresh { block, page: 300 }) => assert_eq!(block, "paguro.ram"),
                other => panic!("{backing:?}, {mode:?}: {other:?}"),
            }
            assert_eq!(value(memory.ram(), 300), 7, "nothing was touched");
        }
    }
}

#[test]
fn ram_may_be_populated_where_nothing_asks_for_pages() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let (_dir, path, _) = two(host, true);
    for mode in [RestoreMode::Eager, RestoreMode::Lazy] {
        let memory = made(host, Backing::Anonymous);
        let mapping = memory.ram().blocks()[0].mapping();
        mapping
            .advise(0, PAGES * PAGE, Advice::PopulateWrite)
            .unwrap();
        match (mode, filled(&path, &memory, mode)) {
            (RestoreMode::Eager, Ok(None)) => assert_eq!(value(memory.ram(), 300), 1),
            (RestoreMode::Lazy, Err(RestoreError::NotFresh { page: 0, .. })) => {}
            (mode, other) => panic!("{mode:?}: {other:?}"),
        }
    }
}

#[test]
fn ram_of_another_shape_and_a_mapping_are_refused_before_anything_is_touched() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let (_dir, path, _) = two(host, true);
    let memory = made(host, Backing::Anonymous);
    memory.ram().blocks()[0].resize((PAGES - 1) * PAGE).unwrap();
    let other = filled(&path, &memory, RestoreMode::Lazy);
    assert!(
        matches!(other, Err(RestoreError::Blocks { .. })),
        "{other:?}"
    );
    let memory = made(host, Backing::Anonymous);
    let mapped = filled(&path, &memory, RestoreMode::Map);
    assert!(
        matches!(mapped, Err(RestoreError::NotMappable { .. })),
        "{mapped:?}"
    );
    assert_eq!(value(memory.ram(), 5), 0);
}

#[test]
fn ram_is_filled_by_one_at_a_time() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let (_dir, path, _) = two(host, true);
    let memory = made(host, Backing::Anonymous);
    let _filler = filled(&path, &memory, RestoreMode::Lazy).unwrap();
    let again = filled(&path, &memory, RestoreMode::Lazy);
    assert!(matches!(again, Err(RestoreError::Busy)), "{again:?}");
}

#[test]
fn whoever_waits_before_there_is_a_machine_is_let_go_and_told_of_later() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let Some((_dir, _, flaky)) = away(host, true) else {
        return;
    };
    let memory = made(host, Backing::Anonymous);
    let file = Arc::new(RestoreFile::open(&flaky.path()).unwrap());
    let lazy = options(RestoreMode::Lazy, Duration::ZERO);
    let filler = fill(&file, &memory, &lazy).unwrap().unwrap();
    flaky.fail();
    let ram = memory.ram().clone();
    // As whoever loads devices does; he must not wait for ever.
    assert_eq!(comes(&run(move || value(&ram, 100))), 0);
    assert!(filler.has_failed());
    let (failure, told) = ear();
    filler.on_failure(failure);
    let said = told.recv_timeout(IN_VAIN).unwrap();
    assert!(said.starts_with("another: 1 pages of"), "{said}");
    // Before the file system goes, so does whoever has a file of it open.
    drop((filler, memory));
    until(|| Arc::strong_count(&file) == 1);
}

#[test]
fn what_stays_is_told_as_it_is_however_late() {
    let _alone = alone();
    let Some(host) = host() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    saved(host, &path, 1, true);
    let memory = made(host, Backing::Anonymous);
    let filler = filled(&path, &memory, RestoreMode::Lazy).unwrap().unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(1 << 20))
        .unwrap();
    assert_eq!(value(memory.ram(), 100), 0);
    let (failure, told) = ear();
    filler.on_failure(failure);
    let said = told.recv_timeout(IN_VAIN).unwrap();
    assert!(said.starts_with("changed"), "{said}");
}
