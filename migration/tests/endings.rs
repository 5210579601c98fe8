//! Snapshots that are refused, cancelled or fail, and what becomes of the guest then.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use paguro_migration::machine::Stay;
use paguro_migration::machine::{Writer, WriterClass};
use paguro_migration::restore::RestoreMode;
use paguro_migration::{
    Control, Memory, Sabotage, SnapshotError, SnapshotOptions, Status, check_can_freeze, snapshot,
};
use paguro_ram::{Backing, PageKind};
use paguro_sys::{Fallbacks, Host};
use paguro_testkit::{alone, skipped, wait_until};

use crate::machine::ThreadMachine;

use crate::rig::*;

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
    let control = Control::default();
    let report = snapshot(&machine, &path, &small(), &control).unwrap();
    let why = "the machine failed to go on: it was told not to";
    assert_eq!(report.not_resumed.as_deref(), Some(why));
    assert_eq!(control.not_resumed().as_deref(), Some(why));
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
