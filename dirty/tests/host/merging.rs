//! The kernel merges a protected page with an equal one and drops its protection without an event.

use paguro_dirty::{Freeze, FreezeError};
use paguro_faults::Faults;
use paguro_ram::{GuestRam, PageKind};
use paguro_testkit::{Merging, host_wide};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::rig::*;

const PAGES: usize = 512 + 77;

/// All memory of this process is to be merged, or not; false if this kernel cannot.
fn merge_all(on: bool) -> bool {
    // SAFETY: prctl(PR_SET_MEMORY_MERGE) takes numbers only.
    unsafe { libc::prctl(67, libc::c_ulong::from(on), 0, 0, 0) == 0 }
}

fn advise(address: *mut u8, bytes: usize, advice: i32) -> bool {
    // SAFETY: merging changes no content.
    unsafe { libc::madvise(address.cast(), bytes, advice) == 0 }
}

/// Two blocks of the same content.
fn twins() -> Option<Rig> {
    let block = (PAGES, paguro_ram::Backing::Anonymous, PageKind::Small);
    let rig = Rig::new(&[block, block])?;
    for page in 0..PAGES {
        (0..2).for_each(|block| rig.put(block, page, (page % 3) as u8 + 1));
    }
    Some(rig)
}

#[test]
fn guest_ram_is_not_merged_whatever_the_process_asked_for() {
    let Some(_turn) = host_wide() else { return };
    let Some(merging) = Merging::on() else { return };
    // Before it is mapped, and after.
    for early in [true, false] {
        if early && !merge_all(true) {
            return skipped("this kernel merges no whole process");
        }
        let Some(rig) = twins() else { return };
        if !early {
            assert!(merge_all(true));
            merging.wait_scans(3);
        }
        let freeze = rig.held(rig.options());
        merging.wait_scans(3);
        let vandals = Vandals::start(&rig.ram, 2, 0xee);
        let taken = picture(&freeze, 2);
        freeze.end();
        drop(vandals);
        merge_all(false);
        let (taken, _) = taken.unwrap();
        for page in 0..PAGES {
            let expect = (page % 3) as u8 + 1;
            assert_eq!(
                value(&taken, 0, page),
                expect,
                "page {page}, early: {early}"
            );
        }
    }
}

/// Memory of a VMM that wants it merged is its own affair.
#[test]
fn memory_that_its_owner_wants_merged_is_refused_by_name() {
    let Some(_turn) = host_wide() else { return };
    let Some(host) = host(&paguro_sys::Fallbacks::default()) else {
        return;
    };
    let ranges = [
        (GuestAddress(0), PAGES * PAGE),
        (GuestAddress(1 << 32), PAGES * PAGE),
    ];
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    let second = memory.iter().nth(1).unwrap().get_mmap();
    if !advise(second.as_ptr(), second.size(), libc::MADV_MERGEABLE) {
        return skipped("this kernel merges nothing");
    }
    let ram = GuestRam::of_guest_memory("pc.ram", &memory).unwrap();
    let faults = Faults::open(&host, ram.clone(), 2).unwrap();
    let try_it = || Freeze::new(Some(faults.clone()), ram.clone(), None, &[], options(host));
    match try_it() {
        Err(FreezeError::Mergeable { block }) => assert_eq!(block, "pc.ram1"),
        other => panic!("{other:?}"),
    }
    assert!(advise(
        second.as_ptr(),
        second.size(),
        libc::MADV_UNMERGEABLE
    ));
    try_it().unwrap().end();
}

/// Whatever takes protection away: here somebody in this process, after the freeze began.
#[test]
fn protection_that_is_lost_is_noticed() {
    let Some(_turn) = host_wide() else { return };
    let Some(merging) = Merging::on() else { return };
    let Some(rig) = twins() else { return };
    let mut options = rig.options();
    // This is always looked at.
    options.check = false;
    let freeze = rig.held(options);
    for block in rig.ram.blocks() {
        let mapping = block.mapping();
        if !advise(mapping.as_ptr(), mapping.len(), libc::MADV_MERGEABLE) {
            freeze.end();
            return skipped("this kernel merges nothing");
        }
    }
    merging.wait_scans(4);
    let taken = picture(&freeze, 2);
    freeze.end();
    match taken {
        Err(FreezeError::ProtectionLost { block, .. }) => assert!(block.starts_with("ram")),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("nobody noticed"),
    }
    // The guest runs on.
    ends(&rig.write(0, 3, 0xee));
}
