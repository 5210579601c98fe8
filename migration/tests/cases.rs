//! What must hold, each on its own small machine.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use paguro_migration::machine::Stay;
use paguro_migration::machine::{Writer, WriterClass};
use paguro_migration::restore::{
    Prefetch, RestoreError, RestoreFile, RestoreMode, RestoreOptions, Restored, restore_ram,
};
use paguro_migration::{
    Control, ForTests, HugePolicy, Memory, Sabotage, SnapshotError, SnapshotOptions,
    SnapshotReport, Status, check_can_freeze, snapshot,
};
use paguro_ram::{Backing, BlockConfig, Discards, GuestRam, PageKind, RamBlock};
use paguro_sys::{Fallbacks, Host};
use paguro_testkit::{alone, skipped, wait_until};

use crate::machine::ThreadMachine;

/// The host, or a printed reason why there is nothing to be tested here.
fn host(forced: &Fallbacks) -> Option<Host> {
    let host = Host::probe(forced);
    if host.can_freeze() {
        return Some(host);
    }
    skipped("userfaultfd with write-protection is not available to this process");
    None
}

/// Whether this kernel can protect such memory, or a printed reason.
fn can_freeze(host: &Host, backing: Backing) -> bool {
    let can = backing != Backing::Memfd || host.can_freeze_shared();
    if !can {
        skipped("this kernel cannot write-protect shared memory");
    }
    can
}

fn config(index: usize, pages: usize, backing: Backing, kind: PageKind) -> BlockConfig {
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

fn ram(layout: &[BlockConfig]) -> GuestRam {
    GuestRam::new(
        layout
            .iter()
            .map(|c| RamBlock::new(c.clone()).unwrap())
            .collect(),
    )
}

fn small() -> SnapshotOptions {
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

fn take(
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

fn back(path: &Path, layout: &[BlockConfig], host: Host, mode: RestoreMode) -> Restored {
    try_back(path, layout, host, mode).unwrap()
}

fn try_back(
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
fn wrong(machine: &ThreadMachine, restored: &GuestRam) -> usize {
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
fn several(
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
fn a_machine_without_ram_is_refused() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let machine = ThreadMachine::start(Memory::new(host, ram(&[])), 0, 0);
    let path = dir.path().join("empty");
    // The format has no place for a machine without RAM: refused, and nothing is left.
    let error = take(&machine, &path, &small()).unwrap_err();
    assert!(matches!(error, SnapshotError::Layout(_)), "{error}");
    assert!(!path.exists());
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
fn what_this_host_cannot_freeze_is_known_before_a_snapshot_begins() {
    let _alone = alone();
    let Some(able) = host(&Fallbacks::default()) else {
        return;
    };
    let none = Host::probe(&Fallbacks {
        no_userfaultfd: true,
        ..Default::default()
    });
    let user_mode = Host::probe(&Fallbacks {
        user_mode_only: true,
        ..Default::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("refused");
    for (what, host, faults_in_kernel, cannot) in [
        ("all", able, false, false),
        ("nothing", none, false, true),
        ("threads", user_mode, false, false),
        ("KVM", user_mode, true, true),
    ] {
        let ram = ram(&[config(0, 1024, Backing::Anonymous, PageKind::Small)]);
        let mut machine = ThreadMachine::start(Memory::new(host, ram), 0, 0);
        machine.faults_in_kernel = faults_in_kernel;
        let checked = check_can_freeze(&machine);
        let taken = take(&machine, &path, &small());
        assert_eq!(checked.is_err(), cannot, "{what}: {checked:?}");
        let kind = std::mem::discriminant;
        let (checked, taken) = (checked.err(), taken.err());
        assert_eq!(
            checked.as_ref().map(kind),
            taken.as_ref().map(kind),
            "{what}"
        );
    }
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
fn an_unseen_writer_is_refused_by_name() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let layout = [config(0, 16, Backing::Anonymous, PageKind::Small)];
    let memory = Memory::new(host, ram(&layout));
    let mut machine = ThreadMachine::start(memory, 1, 16);
    machine.writers.push(Writer {
        name: "vhost-user-net0".into(),
        class: WriterClass::Unseen,
    });
    let path = dir.path().join("f");
    let error = take(&machine, &path, &small()).unwrap_err();
    assert!(error.to_string().contains("vhost-user-net0"), "{error}");
    assert!(!path.exists());
    let stopped = SnapshotOptions {
        background: false,
        ..small()
    };
    take(&machine, &path, &stopped).unwrap();
}

#[test]
fn a_full_disk_costs_neither_the_guest_nor_the_old_file() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "paguro-test"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        skipped("cannot mount a small tmpfs here");
        return;
    }
    let layout = [config(0, 8192, Backing::Anonymous, PageKind::Small)];
    let memory = Memory::new(host, ram(&layout));
    let machine = ThreadMachine::start(memory, 1, 8000);
    let path = dir.path().join("snapshot");
    std::fs::write(&path, "the old one").unwrap();
    machine.run_on(100_000);
    let error = take(&machine, &path, &small()).unwrap_err();
    machine.run_on(100_000);
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    let old = std::fs::read_to_string(&path).unwrap();
    std::process::Command::new("umount")
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(matches!(error, SnapshotError::File { .. }), "{error}");
    assert_eq!(old, "the old one");
    assert_eq!(names, ["snapshot"]);
}

/// When somebody cancels.
#[derive(Clone, Copy, Debug)]
enum When {
    Before,
    /// When it comes to a status.
    At(Status),
    /// When pages were saved, and most were not.
    Saving,
    /// So many microseconds after it began, which may be too late.
    After(u64),
}

#[test]
fn a_cancel_at_any_moment_leaves_a_free_guest_and_no_file() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let layout = [config(0, 16384, Backing::Anonymous, PageKind::Small)];
    let memory = Memory::new(host, ram(&layout));
    let machine = ThreadMachine::start(memory, 1, 16000);
    machine.run_on(100_000);
    let path = dir.path().join("snapshot");
    let staged = [
        When::Before,
        When::At(Status::Setup),
        When::At(Status::Active),
        When::Saving,
        When::At(Status::Device),
    ];
    let some_time = [0, 300, 1000, 3000, 6000, 10_000, 20_000, 40_000];
    for when in staged.into_iter().chain(some_time.map(When::After)) {
        let control = Arc::new_cyclic(|control: &Weak<Control>| {
            let control = control.clone();
            Control::new(Some(Box::new(move |status| match when {
                When::At(at) if at == status => control.upgrade().unwrap().cancel(),
                _ => {}
            })))
        });
        let options = SnapshotOptions {
            max_bandwidth: match when {
                // To the end it would take half a minute.
                When::Saving => 2 << 20,
                _ => 500 << 20,
            },
            ..small()
        };
        if let When::Before = when {
            control.cancel();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                match when {
                    When::Saving => wait_until("pages to be saved", || {
                        control.counters.done_pages.load(Ordering::Relaxed) > 0
                    }),
                    // The moment is the case.
                    When::After(us) => std::thread::sleep(Duration::from_micros(us)),
                    When::Before | When::At(_) => return,
                }
                control.cancel();
                control.cancel();
            });
            let result = snapshot(&machine, &path, &options, &control);
            match (result, when) {
                (Ok(_), When::After(_)) => assert_eq!(control.status(), Status::Completed),
                (Err(SnapshotError::Cancelled), _) => {
                    assert_eq!(control.status(), Status::Cancelled, "{when:?}");
                    let left = std::fs::read_dir(dir.path()).unwrap().count();
                    assert_eq!(left, 0, "{when:?}");
                    // It did not go on to the end first.
                    let done = control.counters.done_pages.load(Ordering::Relaxed);
                    let may_be_all = matches!(when, When::At(Status::Device) | When::After(_));
                    assert!(done < 16384 || may_be_all, "{when:?}");
                }
                (result, _) => panic!("{when:?}: {:?}", result.map(|_| "it was saved")),
            }
        });
        let _ = std::fs::remove_file(&path);
        machine.run_on(50_000);
    }
}

#[test]
fn what_is_broken_on_purpose_is_noticed() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let layout = [config(0, 8192, Backing::Anonymous, PageKind::Small)];
    for sabotage in [
        Sabotage::ReleaseBeforeCopy,
        Sabotage::ClaimTwice,
        // Not `RearmBeforeBarrier`: these vCPUs stop between two writes, never inside a fault, so
        // no release is under way when they rest. It is tried on a machine that stops at once.
        Sabotage::NoRearm,
        Sabotage::SkipPage,
    ] {
        let mut options = small();
        options.for_tests.sabotage = sabotage;
        options.for_tests.check_freeze = false;
        // One at a time, so that it can end at the first.
        let noticed = (0..20).any(|_| several(&layout, host, &options, 1, 8192) > 0);
        assert!(noticed, "{sabotage:?} went unnoticed");
    }
}

#[test]
fn the_picture_of_a_guest_that_does_not_run_on_is_completed() {
    let _alone = alone();
    let Some(host) = host(&Fallbacks::default()) else {
        return;
    };
    let layout = [config(0, 4096, Backing::Anonymous, PageKind::Small)];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let machine = ThreadMachine::start(Memory::new(host, ram(&layout)), 2, 4096);
    machine.run_on(2_000);
    machine.resumes.store(false, Ordering::Release);
    let report = take(&machine, &path, &small()).unwrap();
    let why = "the machine failed to go on: it was told not to";
    assert_eq!(report.not_resumed.as_deref(), Some(why));
    assert_eq!(*machine.stays.lock().unwrap(), None);
    let back = back(&path, &layout, host, RestoreMode::Eager);
    assert_eq!(wrong(&machine, back.memory.ram()), 0);
}

#[test]
fn a_guest_that_is_saved_standing_is_told_why_it_stays() {
    let _alone = alone();
    let layout = [config(0, 512, Backing::Anonymous, PageKind::Small)];
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new(Host::probe(&Fallbacks::default()), ram(&layout));
    let machine = ThreadMachine::start(memory, 1, 512);
    let options = SnapshotOptions {
        background: false,
        ..small()
    };
    let report = take(&machine, &dir.path().join("a"), &options).unwrap();
    assert_eq!(report.not_resumed, None);
    assert_eq!(*machine.stays.lock().unwrap(), Some(Stay::Stopped));
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
