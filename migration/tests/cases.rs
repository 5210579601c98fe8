//! What a picture holds, on every kind of memory.

use std::sync::Arc;
use std::time::Duration;

use paguro_migration::restore::{Prefetch, RestoreFile, RestoreMode, RestoreOptions, restore_ram};
use paguro_migration::{
    Control, HugePolicy, Memory, SnapshotError, SnapshotOptions, Status, snapshot,
};
use paguro_ram::{Backing, Discards, PageKind, RamBlock};
use paguro_sys::{Fallbacks, Host};
use paguro_testkit::{alone, wait_until};

use crate::machine::ThreadMachine;

use crate::rig::*;

#[test]
fn every_page_is_that_of_the_pause_on_every_kind_of_memory() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    for (backing, kind) in [
        (Backing::Anonymous, PageKind::Small),
        (Backing::Anonymous, PageKind::Thp),
        (Backing::Memfd, PageKind::Small),
        (Backing::Memfd, PageKind::Thp),
    ] {
        if !can_freeze(&host, backing) {
            continue;
        }
        // Two blocks; the second ends in the middle of a chunk, and half of it is never touched.
        let layout = [
            config(0, 4096, backing, kind),
            config(1, 2048 + 77, backing, kind),
        ];
        assert_eq!(
            several(&layout, host, &small(), 4, 3000),
            0,
            "{backing:?} {kind:?}"
        );
    }
}

#[test]
fn absurd_sizes_are_saved_too() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    for pages in [1, 3, 511, 513] {
        let layout = [config(0, pages, Backing::Anonymous, PageKind::Small)];
        assert_eq!(
            several(&layout, host, &small(), 3, pages),
            0,
            "{pages} pages"
        );
    }
}

#[test]
fn every_fallback_gives_the_same_picture() {
    let _alone = alone();
    for (name, _) in Fallbacks::NAMES {
        let mut forced = Fallbacks::default();
        assert!(forced.force(name));
        let Some(host) = host(&forced) else { continue };
        let layout = [config(0, 3000, Backing::Anonymous, PageKind::Small)];
        assert_eq!(several(&layout, host, &small(), 3, 2000), 0, "{name}");
    }
}

#[test]
fn chunks_of_every_size_and_a_tiny_buffer_give_the_same_picture() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let layout = [config(0, 3000, Backing::Anonymous, PageKind::Thp)];
    for chunk_bytes in [4096, 64 << 10, 2 << 20] {
        for huge in [HugePolicy::Keep, HugePolicy::Split] {
            let options = SnapshotOptions {
                chunk_bytes,
                huge,
                page_buffer_bytes: 4 << 20,
                ..small()
            };
            assert_eq!(
                several(&layout, host, &options, 2, 3000),
                0,
                "{chunk_bytes} {huge:?}"
            );
        }
    }
}

#[test]
fn the_default_page_buffer_is_what_the_cgroups_leave() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let layout = [config(0, 3000, Backing::Anonymous, PageKind::Small)];
    let memory = Memory::new(host, ram(&layout));
    let machine = ThreadMachine::start(memory, 2, 3000);
    machine.run_on(1000);
    // Version 2: no limit here, one above. The guest has touched all of its RAM, or nothing.
    let root = dir.path().join("root");
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("proc/self/cgroup", "0::/vms/one\n");
    write(
        "proc/self/mountinfo",
        "35 31 0:32 / /cg rw - cgroup2 cgroup2 rw\n",
    );
    write("cg/vms/one/memory.max", "max\n");
    write("cg/vms/memory.max", "104857600\n");
    const MIB: u64 = 1 << 20;
    // Used of these 100 MiB, what of it is RAM, and the buffer of 16 MiB wanted.
    for (used, touched, buffer) in [
        (20, 12, 16),
        (80, 12, 10),
        (80, 8, 8),
        (99, 12, 4),
        (200, 0, 4),
    ] {
        write("cg/vms/memory.current", &(used * MIB).to_string());
        let status = format!("RssAnon: {} kB\n", touched * 1024);
        write("proc/self/status", &status);
        let options = SnapshotOptions {
            page_buffer_bytes: 0,
            limits: paguro_sys::Limits::under(&root),
            ..small()
        };
        let path = dir.path().join("a");
        let report = take(&machine, &path, &options).unwrap();
        assert_eq!(report.page_buffer_wanted_bytes, 16 * MIB);
        // Less what is kept of each page, which is not much.
        let bytes = report.page_buffer_bytes;
        assert_eq!((bytes + MIB / 4) / MIB, buffer, "{used} {touched}");
        assert!(report.peak_buffer_bytes <= report.page_buffer_bytes);
        let bound = (buffer < 16).then(|| "the 100 MiB of cgroup /cg/vms".to_owned());
        assert_eq!(report.page_buffer_bound, bound);
        let restored = back(&path, &layout, host, RestoreMode::Eager);
        assert_eq!(wrong(&machine, restored.memory.ram()), 0);
    }
}

#[test]
fn a_stopped_machine_needs_no_userfaultfd() {
    let _alone = alone();
    let host = Host::probe(&Fallbacks {
        no_userfaultfd: true,
        ..Default::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let layout = [config(0, 3000, Backing::Anonymous, PageKind::Small)];
    let memory = Memory::new(host, ram(&layout));
    let machine = ThreadMachine::start(memory, 2, 3000);
    machine.run_on(1000);
    let path = dir.path().join("stopped");
    let options = SnapshotOptions {
        background: false,
        ..small()
    };
    take(&machine, &path, &options).unwrap();
    let before = machine.writes();
    assert_eq!(
        wrong(
            &machine,
            back(&path, &layout, host, RestoreMode::Eager).memory.ram()
        ),
        0
    );
    assert_eq!(machine.writes(), before, "it was to stay stopped");
    let refused = take(&machine, &path, &small()).unwrap_err();
    assert!(
        matches!(refused, SnapshotError::CannotFreeze(_)),
        "{refused}"
    );
}

#[test]
fn absent_pages_stay_absent() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    for backing in [Backing::Anonymous, Backing::Memfd] {
        if !can_freeze(&host, backing) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let layout = [config(0, 64 * 512, backing, PageKind::Small)];
        let ram = ram(&layout);
        // Pages here and there: chunks that are half there, chunks that are not there at all.
        for page in [0, 1, 700, 9 * 512 + 5] {
            ram.blocks()[0].mapping().copy_in(page * 4096, &[7]);
        }
        let memory = Memory::new(host, ram.clone());
        let machine = ThreadMachine::start(memory, 0, 0);
        let before = resident_kib();
        take(&machine, &dir.path().join("f"), &small()).unwrap();
        let grown = resident_kib().saturating_sub(before);
        // 128 MiB of RAM; the page buffer is gone again.
        assert!(
            grown < 4 << 10,
            "{grown} KiB more are resident ({backing:?})"
        );
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Every third chunk of 100 pages is discarded.
#[derive(Debug)]
struct Thirds;

impl Discards for Thirds {
    fn populated(
        &self,
        _: &RamBlock,
        range: std::ops::Range<usize>,
        part: &mut dyn FnMut(std::ops::Range<usize>),
    ) {
        let mut at = range.start;
        while at < range.end {
            let end = ((at / 100 + 1) * 100).min(range.end);
            if at / 100 % 3 != 1 {
                part(at..end);
            }
            at = end;
        }
    }
}

#[test]
fn discarded_pages_are_neither_read_nor_saved() {
    let _alone = alone();
    for name in ["", "no-wp-unpopulated"] {
        let mut forced = Fallbacks::default();
        forced.force(name);
        let Some(host) = host(&forced) else { return };
        let dir = tempfile::tempdir().unwrap();
        let layout = [config(0, 2000, Backing::Anonymous, PageKind::Small)];
        let ram = ram(&layout).with_discards(Arc::new(Thirds));
        let memory = Memory::new(host, ram.clone());
        // The guest writes all of it, discarded or not.
        let machine = ThreadMachine::start(memory, 1, 2000);
        machine.run_on(20_000);
        let path = dir.path().join("f");
        let report = take(&machine, &path, &small()).unwrap();
        let file = RestoreFile::open(&path).unwrap();
        for page in 0..2000 {
            assert!(
                page / 100 % 3 != 1 || !file.present(0).contains(page),
                "page {page}"
            );
        }
        assert!(
            report.normal_pages > 0 && report.normal_pages <= 1400,
            "{report:?}"
        );
    }
}

#[test]
fn a_restored_machine_is_snapshotted_while_it_is_still_filling() {
    let _alone = alone();
    for (backing, forced) in [
        (Backing::Anonymous, ""),
        (Backing::Anonymous, "no-wp-unpopulated"),
        (Backing::Memfd, ""),
    ] {
        let kind = PageKind::Small;
        let mut fallbacks = Fallbacks::default();
        fallbacks.force(forced);
        let Some(host) = host(&fallbacks) else {
            return;
        };
        if !can_freeze(&host, backing) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let layout = [config(0, 2048, backing, kind)];
        let first = dir.path().join("first");
        let memory = Memory::new(host, ram(&layout));
        let origin = ThreadMachine::start(memory, 2, 2000);
        origin.run_on(20_000);
        take(&origin, &first, &small()).unwrap();
        let file = Arc::new(RestoreFile::open(&first).unwrap());
        let options = RestoreOptions {
            mode: RestoreMode::Lazy,
            prefetch: if forced.is_empty() {
                Prefetch::Limited(256 << 10)
            } else {
                Prefetch::Off
            },
            threads: 2,
            retry: Duration::ZERO,
            faults_in_kernel: false,
        };
        let restored = restore_ram(&file, layout.to_vec(), host, &options).unwrap();
        restored.on_failure(Box::new(|e| panic!("{e}")));
        let filler = restored.filler.clone().unwrap();
        let idle = ThreadMachine::start(restored.memory.clone(), 0, 0);
        let second = dir.path().join("second");
        // One page is here, so that its granule is armed with all that is not.
        restored.memory.ram().blocks()[0].mapping().touch(0, 4096);
        // All of the arming in the pause: there nobody answers faults, so nothing may be touched.
        let mut options = small();
        options.for_tests.arm_in_pause = !forced.is_empty();
        take(&idle, &second, &options).unwrap();
        assert!(!filler.is_done(), "too fast for the test to mean anything");
        assert_eq!(
            wrong(
                &origin,
                back(&second, &layout, host, RestoreMode::Eager)
                    .memory
                    .ram()
            ),
            0
        );
        // And what is placed later is right, writable, and not protected any more.
        assert_eq!(wrong(&origin, restored.memory.ram()), 0);
        for page in 0..2048 {
            restored.memory.ram().blocks()[0]
                .mapping()
                .copy_in(page * 4096 + 8, &[1]);
        }
        assert!(filler.wait_done(std::time::Duration::from_secs(60)));
    }
}

#[test]
fn what_is_given_back_meanwhile_is_still_in_the_picture() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    for (backing, advice) in [
        (Backing::Anonymous, paguro_sys::Advice::DontNeed),
        (Backing::Memfd, paguro_sys::Advice::Remove),
    ] {
        if !can_freeze(&host, backing) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let layout = [config(0, 8192, backing, PageKind::Small)];
        let memory = Memory::new(host, ram(&layout));
        // The guest keeps to the first half, the balloon to the second.
        let machine = ThreadMachine::start(memory.clone(), 1, 4096);
        machine.run_on(20_000);
        let block = &memory.ram().blocks()[0];
        let fill = |page: usize| {
            block
                .mapping()
                .copy_in(page * 4096, &(page as u64).to_le_bytes())
        };
        (4096..8192).for_each(fill);
        let path = dir.path().join("f");
        let options = SnapshotOptions {
            max_bandwidth: 100 << 20,
            ..small()
        };
        let control = Control::default();
        std::thread::scope(|scope| {
            let saving = scope.spawn(|| snapshot(&machine, &path, &options, &control));
            wait_until("RAM to be saved", || {
                !matches!(control.status(), Status::None | Status::Setup)
            });
            for first in (4096..8192).step_by(64) {
                memory
                    .discard(0, first..first + 64, || {
                        block
                            .mapping()
                            .advise(first * 4096, 64 * 4096, advice)
                            .unwrap();
                    })
                    .unwrap();
            }
            saving.join().unwrap().unwrap();
        });
        let restored = back(&path, &layout, host, RestoreMode::Eager);
        let mut content = [0; 8];
        for page in 4096..8192 {
            restored.memory.ram().blocks()[0]
                .mapping()
                .copy_out(page * 4096, &mut content);
            assert_eq!(u64::from_le_bytes(content), page as u64, "{backing:?}");
            block.mapping().copy_out(page * 4096, &mut content);
            assert_eq!(content, [0; 8], "given back, so it reads as zeros");
        }
    }
}
