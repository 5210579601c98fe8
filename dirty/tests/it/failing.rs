//! Ends that were not planned: nobody waits, nothing stays protected.

use std::os::fd::AsFd;

use paguro_dirty::{Freeze, FreezeError};
use paguro_faults::Use;
use paguro_ram::{Backing, GuestRam, PageKind, RamBlock};

use crate::rig::*;

/// He writes once, right after the pause, long before anybody copies: what is compared is what was
/// there in the pause.
#[test]
fn an_unseen_writer_is_named_by_the_page_he_wrote() {
    let _alone = alone();
    for (written, check) in [(77, true), (900, true), (77, false)] {
        let Some(rig) = Rig::new(&[(1024, Backing::Memfd, PageKind::Small)]) else {
            return;
        };
        // The last ones do not exist, beside some that do.
        (0..800).for_each(|page| rig.put(0, page, 1));
        let options = paguro_dirty::FreezeOptions {
            check,
            ..rig.options()
        };
        let freeze = rig.held(options);
        let file = rig.ram.blocks()[0].file().unwrap();
        rustix::io::pwrite(file.as_fd(), &[9], (written * PAGE) as u64).unwrap();
        let result = picture(&freeze, 1);
        freeze.end();
        match result {
            Err(FreezeError::UnseenWriter { page, block }) if check => {
                assert_eq!((page, &*block), (written, "ram0"));
            }
            // Nobody looked.
            Ok(_) if !check => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn only_one_freeze_at_a_time_and_a_late_end_is_none_of_the_next() {
    let _alone = alone();
    let Some(rig) = Rig::small(600) else { return };
    (0..600).for_each(|page| rig.put(0, page, 1));
    let first = rig.held(rig.options());
    let refused = rig.freeze(rig.options()).map(drop);
    assert!(matches!(refused, Err(FreezeError::Busy)), "{refused:?}");
    // The first has lost nothing by it.
    ends(&rig.write(0, 10, 2));
    assert_eq!(value(&picture(&first, 1).unwrap().0, 0, 10), 1);
    first.end();
    first.end();
    let second = rig.held(rig.options());
    first.end();
    ends(&rig.write(0, 10, 3));
    let (picture, _) = picture(&second, 1).unwrap();
    second.end();
    assert_eq!(value(&picture, 0, 10), 2);
    assert!(!rig.faults.is_registered(0, Use::WriteProtect));
}

#[test]
fn ending_at_any_moment_lets_every_writer_go() {
    let _alone = alone();
    for moment in 0..5 {
        let Some(rig) = Rig::small(2048) else { return };
        (0..2048).for_each(|page| rig.put(0, page, 1));
        let vandals = Vandals::start(&rig.ram, 3, 9);
        let freeze = rig.freeze(rig.options()).unwrap();
        if moment > 0 {
            freeze.arm(|| true).unwrap();
        }
        if moment > 1 {
            // Not at rest, but this is not about the picture.
            hold(&freeze);
        }
        if moment > 2 {
            drop(freeze.next());
        }
        if moment > 3 {
            freeze.abandon();
        }
        freeze.end();
        drop(vandals);
        ends(&run(move || (0..2048).for_each(|page| rig.put(0, page, 3))));
    }
}

#[test]
fn what_was_over_before_the_pause_stays_over() {
    let _alone = alone();
    let Some(rig) = Rig::small(600) else { return };
    (0..600).for_each(|page| rig.put(0, page, 1));
    let freeze = rig.freeze(rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    freeze.abandon();
    hold(&freeze);
    ends(&rig.write(0, 10, 2));
    assert!(matches!(freeze.next(), Err(FreezeError::Ended)));
    freeze.end();
}

#[test]
fn an_arming_that_is_called_off_leaves_nothing() {
    let _alone = alone();
    let Some(rig) = Rig::small(600) else { return };
    (0..600).for_each(|page| rig.put(0, page, 1));
    let freeze = rig.freeze(rig.options()).unwrap();
    let error = freeze.arm(|| false).unwrap_err();
    assert!(matches!(error, FreezeError::Ended), "{error}");
    freeze.end();
    assert!(!rig.faults.is_registered(0, Use::WriteProtect));
    ends(&rig.write(0, 10, 2));
}

#[test]
fn a_block_that_cannot_be_protected_is_named_and_the_others_are_free() {
    let _alone = alone();
    let Some(host) = host(&Default::default()) else {
        return;
    };
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    rustix::io::pwrite(&file, &vec![7; 600 * PAGE], 0).unwrap();
    let blocks = || {
        let ordinary = RamBlock::new(paguro_ram::BlockConfig {
            id: "ram".into(),
            guest_address: 0,
            bytes: 600 * PAGE,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        let mapped = RamBlock::of_file("rom", 1 << 32, file.as_fd(), 0, 600 * PAGE).unwrap();
        (ordinary.unwrap(), mapped)
    };
    let (ordinary, mapped) = blocks();
    let ram = GuestRam::new(vec![ordinary, mapped]);
    let faults = paguro_faults::Faults::open(&host, ram.clone(), 1).unwrap();
    let freeze = Freeze::new(Some(faults.clone()), ram, None, &[], options(host));
    match freeze.map(drop) {
        Err(FreezeError::Unprotectable { block, .. }) => assert_eq!(block, "rom"),
        // On tmpfs the kernel can: see below.
        Ok(()) => return println!("SKIPPED: the target directory is in memory"),
        other => panic!("{other:?}"),
    }
    assert!(!faults.is_registered(0, Use::WriteProtect));

    // Where nobody can write it, it need not be protected: it is simply read.
    let (ordinary, mapped) = blocks();
    let ram = GuestRam::new(vec![ordinary, mapped.read_only()]);
    let faults = paguro_faults::Faults::open(&host, ram.clone(), 1).unwrap();
    let freeze = Freeze::new(Some(faults), ram, None, &[], options(host)).unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    let (picture, zeros) = picture(&freeze, 2).unwrap();
    freeze.end();
    assert_eq!((picture.len(), zeros), (600, 600));
    assert!((0..600).all(|page| value(&picture, 1, page) == 7));
}

#[test]
fn a_private_mapping_of_a_file_in_memory_is_held_like_any_other() {
    let _alone = alone();
    let Some(host) = host(&Default::default()) else {
        return;
    };
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&file, &vec![7; 600 * PAGE], 0).unwrap();
    let block = RamBlock::of_file("image", 0, file.as_fd(), 0, 600 * PAGE).unwrap();
    // Some pages are ours already, some are read, some were never touched.
    (0..100).for_each(|page| block.mapping().copy_in(page * PAGE, &[3; PAGE]));
    block.mapping().touch(100 * PAGE, 100 * PAGE);
    let ram = GuestRam::new(vec![block]);
    let faults = paguro_faults::Faults::open(&host, ram.clone(), 2).unwrap();
    let freeze = Freeze::new(Some(faults), ram.clone(), None, &[], options(host)).unwrap();
    freeze.arm(|| true).unwrap();
    hold(&freeze);
    let vandals = Vandals::start(&ram, 3, 9);
    let result = picture(&freeze, 2);
    freeze.end();
    drop(vandals);
    let (picture, _) = result.unwrap();
    assert_eq!(values(&picture, 0, 0..100), [3; 100]);
    assert_eq!(values(&picture, 0, 100..600), [7; 500]);
}
