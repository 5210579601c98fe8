//! Small machines, saved and brought back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use paguro_migration::restore::{
    Prefetch, RestoreError, RestoreFile, RestoreMode, RestoreOptions, Restored, restore_ram,
};
use paguro_migration::{
    Control, ForTests, Memory, SnapshotError, SnapshotOptions, SnapshotReport, Status, snapshot,
};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::{Fallbacks, Host};
use paguro_testkit::skipped;

use crate::machine::ThreadMachine;

/// The host, or a printed reason why there is nothing to be tested here.
pub fn host(forced: &Fallbacks) -> Option<Host> {
    let host = Host::probe(forced);
    if host.can_freeze() {
        return Some(host);
    }
    skipped("userfaultfd with write-protection is not available to this process");
    None
}

/// Whether this kernel can protect such memory, or a printed reason.
pub fn can_freeze(host: &Host, backing: Backing) -> bool {
    let can = backing != Backing::Memfd || host.can_freeze_shared();
    if !can {
        skipped("this kernel cannot write-protect shared memory");
    }
    can
}

pub fn config(index: usize, pages: usize, backing: Backing, kind: PageKind) -> BlockConfig {
    BlockConfig {
        id: if index == 0 {
            "paguro.ram".into()
        } else {
            format!("paguro.ram{index}")
        },
        guest_address: (index as u64) << 32,
        bytes: pages * 4096,
        backing,
        pages: kind,
    }
}

pub fn ram(layout: &[BlockConfig]) -> GuestRam {
    GuestRam::new(
        layout
            .iter()
            .map(|c| RamBlock::new(c.clone()).unwrap())
            .collect(),
    )
}

pub fn small() -> SnapshotOptions {
    SnapshotOptions {
        page_buffer_bytes: 8 << 20,
        for_tests: ForTests {
            unsynced: true,
            check_freeze: true,
            ..ForTests::default()
        },
        ..SnapshotOptions::new()
    }
}

pub fn take(
    machine: &ThreadMachine,
    path: &Path,
    options: &SnapshotOptions,
) -> Result<SnapshotReport, SnapshotError> {
    let control = Control::default();
    let result = snapshot(machine, path, options, &control);
    let status = if result.is_ok() {
        Status::Completed
    } else {
        Status::Failed
    };
    assert_eq!(control.status(), status, "{:?}", control.error());
    result
}

pub fn back(path: &Path, layout: &[BlockConfig], host: Host, mode: RestoreMode) -> Restored {
    try_back(path, layout, host, mode).unwrap()
}

pub fn try_back(
    path: &Path,
    layout: &[BlockConfig],
    host: Host,
    mode: RestoreMode,
) -> Result<Restored, RestoreError> {
    let file = Arc::new(RestoreFile::open(path).unwrap());
    let options = RestoreOptions {
        mode,
        prefetch: Prefetch::Unlimited,
        threads: 2,
        retry: Duration::ZERO,
        faults_in_kernel: false,
    };
    let restored = restore_ram(&file, layout.to_vec(), host, &options)?;
    restored.on_failure(Box::new(|error| panic!("{error}")));
    Ok(restored)
}

/// Pages that differ from the picture of the pause.
pub fn wrong(machine: &ThreadMachine, restored: &GuestRam) -> usize {
    let picture = machine.picture.lock().unwrap();
    let mut wrong = 0;
    let mut page_bytes = [0; 4096];
    for (block, values) in restored.blocks().iter().zip(picture.iter()) {
        for (page, value) in values.iter().enumerate() {
            block.mapping().copy_out(page * 4096, &mut page_bytes);
            let (head, rest) = page_bytes.split_at(8);
            wrong += usize::from(head != value.to_le_bytes() || rest.iter().any(|&b| b != 0));
        }
    }
    wrong
}

/// Snapshots one after the other while the machine runs; the pages that were wrong in all.
pub fn several(
    layout: &[BlockConfig],
    host: Host,
    options: &SnapshotOptions,
    rounds: usize,
    span: usize,
) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let machine = ThreadMachine::start(Memory::new(host, ram(layout)), 2, span);
    let mut bad = 0;
    for round in 0..rounds {
        machine.run_on(2_000);
        let path = dir.path().join("snapshot.pgr");
        let report = take(&machine, &path, options).unwrap();
        let once = report.total_pages == report.normal_pages + report.zero_pages;
        bad += usize::from(!once);
        machine.run_on(100);
        let modes = [RestoreMode::Eager, RestoreMode::Map, RestoreMode::Lazy];
        let mappable = layout
            .iter()
            .all(|c| c.backing == Backing::Anonymous && c.pages != PageKind::Huge);
        let mode = modes[round % 3];
        let mode = if mode == RestoreMode::Map && !mappable {
            RestoreMode::Eager
        } else {
            mode
        };
        bad += match try_back(&path, layout, host, mode) {
            Ok(restored) => wrong(&machine, restored.memory.ram()),
            Err(error) => {
                println!("{error}");
                1
            }
        };
    }
    bad
}
