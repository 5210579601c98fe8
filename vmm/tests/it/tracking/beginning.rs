//! How tracking begins and ends: wholly, or not at all.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_ioctls::Kvm;
use paguro_dirty::tracker::{
    AsyncProtect, KvmLog, MarkTracker, Marks, Tracker, TrackerError, Union,
};
use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
use paguro_sys::kvm::{DirtySlots, ManualProtect, Slot};
use paguro_sys::{Advice, Fallbacks, Host, RegisterMode};
use paguro_vmm::{Accel, Config, VmError};

use super::destination::{PAGE, sets};
use super::memory::{is_huge, is_watched};
use crate::common::*;

fn blocks(backing: Backing, pages: PageKind) -> GuestRam {
    let block = |index: u64| {
        RamBlock::new(BlockConfig {
            id: format!("ram{index}"),
            guest_address: index << 32,
            bytes: 4 << 20,
            backing,
            pages,
        })
        .unwrap()
    };
    GuestRam::new(vec![block(0), block(1)])
}

/// Slots of a VM without vCPUs; of the second block it knows nothing if `broken`.
fn slots(ram: &GuestRam, forced: &Fallbacks, broken: bool) -> Arc<DirtySlots> {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let mut slots = Vec::new();
    for (index, block) in ram.blocks().iter().enumerate() {
        let number = if index == 1 && broken {
            // More than KVM has.
            40_000
        } else {
            index as u32
        };
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: number,
            flags: 0,
            guest_phys_addr: block.guest_address(),
            memory_size: block.used_bytes() as u64,
            userspace_addr: block.mapping().addr() as u64,
        };
        // SAFETY: the mapping outlives the VM, in which nothing runs.
        let made = unsafe { vm.set_user_memory_region(region) };
        assert_eq!(made.is_err(), index == 1 && broken);
        slots.push(Slot {
            number,
            guest_address: block.guest_address(),
            mapping: block.mapping().clone(),
            bytes: block.used_bytes(),
        });
    }
    // SAFETY: the VM is open, and the slots were made above; the one that was not is refused.
    let slots = unsafe { DirtySlots::new(BorrowedFd::borrow_raw(vm.as_raw_fd()), slots, forced) };
    Arc::new(slots.unwrap())
}

#[test]
fn a_log_that_cannot_begin_wholly_does_not_begin() {
    if !kvm() {
        return;
    }
    for name in ["no-manual-protect", "no-initially-all-set", "no-wp-async"] {
        let mut forced = Fallbacks::default();
        assert!(forced.force(name));
        let ram = blocks(Backing::Anonymous, PageKind::Small);
        let slots = slots(&ram, &forced, true);
        let manual = slots.caps().manual;
        let expected = match name {
            "no-manual-protect" => ManualProtect::No,
            "no-initially-all-set" => ManualProtect::Yes,
            _ => manual,
        };
        assert_eq!(manual, expected);
        let tracker = KvmLog::new(ram.clone(), slots.clone()).unwrap();
        for _ in 0..2 {
            match tracker.start() {
                Err(TrackerError::Log { block, .. }) => assert_eq!(block, "ram1"),
                other => panic!("{other:?}"),
            }
            let mut words = vec![0; slots.words(0)];
            let read = slots.read(0, &mut words).unwrap_err();
            assert_eq!(read.raw_os_error(), Some(2), "the first log is on");
        }
        assert!(matches!(
            tracker.sync(&sets(&ram)),
            Err(TrackerError::NotStarted)
        ));
    }
}

#[test]
fn one_tracks_at_a_time_and_what_is_stopped_is_off() {
    if !kvm() {
        return;
    }
    let ram = blocks(Backing::Anonymous, PageKind::Small);
    let slots = slots(&ram, &Fallbacks::default(), false);
    let new = || KvmLog::new(ram.clone(), slots.clone()).unwrap();
    let (first, second) = (new(), new());
    first.start().unwrap();
    assert!(matches!(first.start(), Err(TrackerError::Busy)));
    assert!(matches!(second.start(), Err(TrackerError::Busy)));
    second.stop();
    first.sync(&sets(&ram)).unwrap();
    assert!(matches!(first.sync(&[]), Err(TrackerError::Sets)));
    first.stop();
    first.stop();
    let mut words = vec![0; slots.words(1)];
    assert!(slots.read(1, &mut words).is_err());
    second.start().unwrap();
    drop(second);
    assert!(slots.read(1, &mut words).is_err());
    first.start().unwrap();
}

#[test]
fn a_union_begins_wholly_or_not_at_all() {
    let ram = blocks(Backing::Anonymous, PageKind::Small);
    let (one, other) = (Marks::default(), Marks::default());
    let busy = MarkTracker::new(ram.clone(), other.clone());
    busy.start().unwrap();
    let tracker = |marks: &Marks| Arc::new(MarkTracker::new(ram.clone(), marks.clone()));
    let union = Union::new(vec![tracker(&one), tracker(&other)]);
    assert!(matches!(union.start(), Err(TrackerError::Busy)));
    tracker(&one).start().unwrap();
    busy.stop();
    union.start().unwrap();
    let dirty = sets(&ram);
    one.mark(0, 3..5);
    other.mark(1, 1000..5000);
    other.mark(7, 0..1);
    assert_eq!(union.sync(&dirty).unwrap(), 2 + 24);
    assert_eq!(union.sync(&dirty).unwrap(), 0);
    one.mark(0, 4..6);
    assert_eq!(union.sync(&dirty).unwrap(), 1);
    drop(union);
    one.mark(0, 9..10);
    let again = tracker(&one);
    again.start().unwrap();
    assert_eq!(again.sync(&dirty).unwrap(), 0);
}

#[test]
fn memory_that_somebody_watches_is_refused_and_left_alone() {
    let host = Host::probe(&Fallbacks::default());
    if !host.can_track() {
        println!("skipped: no asynchronous write-protection on this host");
        return;
    }
    let ram = blocks(Backing::Memfd, PageKind::Small);
    let [first, second] = [0, 1].map(|index| ram.blocks()[index].clone());
    let other = host.open_uffd().unwrap();
    let range = second.addresses_of(&(0..second.pages()));
    other.register(range, RegisterMode::WriteProtect).unwrap();
    let tracker = AsyncProtect::new(host, ram.clone());
    match tracker.start() {
        Err(TrackerError::Watched { block }) => assert_eq!(block, "ram1"),
        other => panic!("{other:?}"),
    }
    assert!(!is_watched(first.mapping().addr()));
    drop(other);
    tracker.start().unwrap();
    assert!(is_watched(first.mapping().addr()));
    let mut forced = Fallbacks::default();
    assert!(forced.force("no-wp-async"));
    let without = AsyncProtect::new(Host::probe(&forced), ram.clone());
    assert!(matches!(without.start(), Err(TrackerError::Unsupported(_))));
}

#[test]
fn what_was_protected_is_free_afterwards_and_may_be_huge() {
    let host = Host::probe(&Fallbacks::default());
    if !host.can_track() {
        println!("skipped: no asynchronous write-protection on this host");
        return;
    }
    let ram = blocks(Backing::Anonymous, PageKind::Thp);
    let block = &ram.blocks()[0];
    let mapping = block.mapping();
    mapping.advise(0, mapping.len(), Advice::NoHuge).unwrap();
    let tracker = AsyncProtect::new(host, ram.clone());
    mapping.copy_in(0, &vec![1; mapping.len()]);
    tracker.start().unwrap();
    let dirty = sets(&ram);
    mapping.copy_in(5 * PAGE, &[2]);
    assert_eq!(tracker.sync(&dirty).unwrap(), 1);
    assert!(dirty[0].contains(5));
    dirty[0].remove(5);
    assert_eq!(tracker.sync(&dirty).unwrap(), 0);
    mapping.copy_in(5 * PAGE, &[3]);
    assert_eq!(tracker.sync(&dirty).unwrap(), 1);
    tracker.stop();
    assert!(!is_watched(mapping.addr()));
    mapping.advise(0, mapping.len(), Advice::Huge).unwrap();
    // The kernel may be busy with one of the pages.
    let collapse = || mapping.advise(0, mapping.len(), Advice::Collapse);
    wait_until("a huge page", || collapse().is_ok());
    assert!(is_huge(mapping.addr()));
    assert!(matches!(
        tracker.sync(&dirty),
        Err(TrackerError::NotStarted)
    ));
}

#[test]
fn a_block_that_grows_is_tracked_and_one_that_shrinks_is_masked() {
    let host = Host::probe(&Fallbacks::default());
    if !host.can_track() {
        println!("skipped: no asynchronous write-protection on this host");
        return;
    }
    let ram = blocks(Backing::Anonymous, PageKind::Small);
    let block = &ram.blocks()[0];
    block.resize(1 << 20).unwrap();
    let tracker = AsyncProtect::new(host, ram.clone());
    tracker.start().unwrap();
    let dirty = sets(&ram);
    block.mapping().copy_in(300 * PAGE, &[1]);
    assert_eq!(tracker.sync(&dirty).unwrap(), 0);
    block.resize(2 << 20).unwrap();
    assert_eq!(tracker.sync(&dirty).unwrap(), 256);
    dirty[0].remove_range(0..1024);
    block.mapping().copy_in(300 * PAGE, &[2]);
    block.mapping().copy_in(600 * PAGE, &[2]);
    assert_eq!(tracker.sync(&dirty).unwrap(), 1);
    block.resize(1 << 20).unwrap();
    block.mapping().copy_in(300 * PAGE, &[3]);
    block.mapping().copy_in(200 * PAGE, &[3]);
    dirty[0].remove_range(0..1024);
    assert_eq!(tracker.sync(&dirty).unwrap(), 1);
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let refused = |accel, entries, fallback: &str| {
        let config = Config {
            dirty_ring_entries: Some(entries),
            ..config(accel, 1)
        };
        let mut forced = Fallbacks::default();
        if !fallback.is_empty() {
            assert!(forced.force(fallback));
        }
        let memory = memory_on(&forced, ram(&config));
        let made = paguro_vmm::Vm::create(config, memory);
        made.unwrap_err()
    };
    assert!(matches!(
        refused(Accel::Threads, 4096, ""),
        VmError::Config(_)
    ));
    assert!(matches!(refused(Accel::Kvm, 1000, ""), VmError::Config(_)));
    if kvm() {
        let most = refused(Accel::Kvm, 1 << 31, "");
        assert!(most.to_string().contains("at most"), "{most}");
        for error in [
            refused(Accel::Kvm, 1, ""),
            refused(Accel::Kvm, 4096, "no-dirty-ring"),
        ] {
            assert!(matches!(error, VmError::Kvm { .. }), "{error:?}");
        }
    }
}
