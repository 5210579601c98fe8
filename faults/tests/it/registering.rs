//! Who is registered for what, and what becomes of waiters when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;

use paguro_faults::{Faults, Use};
use paguro_ram::{Backing, Located};

use crate::common::*;

const KINDS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

#[test]
fn unregistering_wakes_who_waits_to_write() {
    let _alone = alone();
    for kind in KINDS {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        let (heard, asked) = channel();
        faults.register(0, Use::WriteProtect).unwrap();
        faults.barrier().protected = Some(Arc::new(Does(move |_: &Faults, at: Located| {
            heard.send(at.page).unwrap();
        })));
        ends(&write(&faults, 3, 1));
        faults.protect(0, 0..8).unwrap();
        let writer = write(&faults, 3, 2);
        assert_eq!(ends(&asked), 3);
        assert!(writer.try_recv().is_err());
        faults
            .unregister(0, Use::WriteProtect, &[0..2, 2..8], || ())
            .unwrap();
        ends(&writer);
        assert_eq!(ends(&read(&faults, 3)), 2, "{kind:?}");
    }
}

#[test]
fn two_users_share_a_block_and_leave_one_by_one() {
    let _alone = alone();
    for kind in KINDS {
        for order in [
            [Use::Missing, Use::WriteProtect],
            [Use::WriteProtect, Use::Missing],
        ] {
            let Some(faults) = faults(8, kind, 2) else {
                return;
            };
            let catcher = Arc::new(Catcher::default());
            for used in order {
                faults.register(0, used).unwrap();
            }
            let mut handlers = faults.barrier();
            handlers.protected = Some(catcher.clone());
            handlers.missing = Some(Arc::new(Does(|faults: &Faults, at: Located| {
                faults.place(0, at.page, &[5; PAGE]).unwrap();
            })));
            drop(handlers);
            // Both modes are on, whoever came first.
            assert_eq!(ends(&read(&faults, 0)), 5, "{kind:?} {order:?}");
            faults.protect(0, 0..1).unwrap();
            ends(&write(&faults, 0, 1));
            assert_eq!(catcher.caught.load(Ordering::SeqCst), 1);
            // One goes: the other notices nothing.
            assert!(!faults.unregister_part(0, Use::WriteProtect, 0..8).unwrap());
            faults
                .unregister(0, Use::WriteProtect, &[0..4, 4..8], || ())
                .unwrap();
            assert!(!faults.is_registered(0, Use::WriteProtect));
            assert_eq!(ends(&read(&faults, 1)), 5, "{kind:?} {order:?}");
            // The other goes: what is absent is zero from now on.
            faults
                .unregister(0, Use::Missing, &[0..4, 4..8], || ())
                .unwrap();
            assert_eq!(ends(&read(&faults, 2)), 0, "{kind:?} {order:?}");
        }
    }
}

#[test]
fn who_registers_while_another_leaves_keeps_his_registration() {
    let _alone = alone();
    for kind in KINDS {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        let catcher = Arc::new(Catcher::default());
        faults.barrier().protected = Some(catcher.clone());
        (0..8).for_each(|page| ends(&write(&faults, page, 1)));
        faults.register(0, Use::Missing).unwrap();
        let mut come = false;
        let parts: Vec<_> = (0..8).map(|page| page..page + 1).collect();
        faults
            .unregister(0, Use::Missing, &parts, || {
                if !std::mem::replace(&mut come, true) {
                    faults.register(0, Use::WriteProtect).unwrap();
                    faults.protect(0, 0..8).unwrap();
                }
            })
            .unwrap();
        for page in 0..8 {
            ends(&write(&faults, page, 2));
            let caught = catcher.caught.load(Ordering::SeqCst);
            assert_eq!(caught, page + 1, "{kind:?}: lost its protection");
        }
    }
}

#[test]
fn without_handlers_faults_are_answered_all_the_same() {
    let _alone = alone();
    for kind in KINDS {
        let Some(faults) = faults(8, kind, 1) else {
            return;
        };
        faults.register(0, Use::Missing).unwrap();
        faults.register(0, Use::WriteProtect).unwrap();
        faults.protect(0, 0..8).unwrap();
        assert_eq!(ends(&read(&faults, 0)), 0);
        ends(&write(&faults, 0, 1));
        ends(&write(&faults, 1, 1));
        faults.protect_placements();
        assert_eq!(ends(&read(&faults, 2)), 0);
        ends(&write(&faults, 2, 1));
        ends(&write(&faults, 3, 1));
    }
}

#[test]
fn what_is_gone_is_unregistered_without_complaint() {
    let _alone = alone();
    let Some(faults) = faults(1024, Backing::Anonymous, 1) else {
        return;
    };
    faults.register(0, Use::WriteProtect).unwrap();
    let range = faults
        .block(0)
        .mapping()
        .unwrap()
        .range(512 * PAGE, 512 * PAGE);
    // SAFETY: nobody touches this part any more; unmapping it again at the end is harmless.
    unsafe { rustix::mm::munmap(range.start as *mut _, range.len()) }.unwrap();
    faults
        .unregister(0, Use::WriteProtect, &[0..512, 512..1024], || ())
        .unwrap();
    ends(&write(&faults, 511, 1));
}
