//! Pages that are given back, and pages that never had content.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use paguro_dirty::{FreezeError, FreezeOptions};
use paguro_faults::ProtectedHandler;
use paguro_ram::{Backing, Discards, PageKind, RamBlock};
use paguro_sys::Advice;

use crate::rig::*;

#[test]
fn what_is_given_back_unannounced_before_it_was_saved_ends_the_freeze() {
    let _alone = alone();
    let Some(rig) = Rig::small(1024) else { return };
    (0..1024).for_each(|page| rig.put(0, page, 1));
    // No more room than for the granule before that page.
    let freeze = rig.held(FreezeOptions {
        buffer_bytes: 4 << 20,
        ..rig.options()
    });
    rig.drop_page(0, 700);
    // The event is read before the page goes; that it was heard of may take a moment.
    let failed = {
        let freeze = freeze.clone();
        run(move || {
            loop {
                match freeze.next() {
                    // Kept, so that the scan stands still when the buffer is full.
                    Ok(Some(copied)) => std::mem::forget(copied),
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        })
    };
    match ends(&failed) {
        Some(FreezeError::Discarded { first, end, block }) => {
            assert_eq!((first, end, &*block), (700, 701, "ram0"));
        }
        other => panic!("{other:?}"),
    }
    let writer = rig.write(0, 3, 2);
    freeze.end();
    ends(&writer);
}

#[test]
fn what_is_given_back_after_it_was_saved_harms_nobody() {
    let _alone = alone();
    let Some(rig) = Rig::small(1024) else { return };
    (0..1024).for_each(|page| rig.put(0, page, 1));
    let freeze = rig.held(rig.options());
    let (picture, _) = picture(&freeze, 2).unwrap();
    rig.drop_page(0, 700);
    assert!(freeze.next().unwrap().is_none());
    freeze.end();
    assert_eq!(picture.len(), 1024);
}

#[test]
fn what_is_given_back_while_arming_is_zero_and_held() {
    let _alone = alone();
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let Some(rig) = Rig::new(&[(1024, backing, PageKind::Small)]) else {
            return;
        };
        (0..1024).for_each(|page| rig.put(0, page, 1));
        let freeze = rig.freeze(rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        rig.drop_page(0, 700);
        rig.drop_page(0, 701);
        rig.put(0, 701, 5);
        hold(&freeze);
        ends(&rig.write(0, 700, 9));
        ends(&rig.write(0, 701, 9));
        let (picture, _) = picture(&freeze, 2).unwrap();
        freeze.end();
        // Shared memory keeps in its file what was given back here.
        let kept = u8::from(backing == Backing::Memfd);
        assert_eq!(values(&picture, 0, 699..702), [1, kept, 5], "{backing:?}");
    }
}

#[test]
fn a_page_that_goes_long_after_its_event_is_held_all_the_same() {
    let _alone = alone();
    let Some(rig) = Rig::small(1024) else { return };
    (0..1024).for_each(|page| rig.put(0, page, 1));
    let freeze = rig.freeze(rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    // The event is read, the range is armed again, and only then the kernel drops the page and
    // its protection: that is how late it may be.
    freeze.removed(0, 700..701);
    freeze.arm(|| true).unwrap();
    let range = rig.ram.blocks()[0].addresses_of(&(700..701));
    rig.faults.uffd().release(range).unwrap();
    rig.put(0, 700, 5);
    hold(&freeze);
    ends(&rig.write(0, 700, 9));
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert_eq!(value(&picture, 0, 700), 5);
}

#[test]
fn an_announced_discard_is_in_the_picture_as_it_was_at_the_pause() {
    let _alone = alone();
    let Some(rig) = Rig::small(1024) else { return };
    (0..1024).for_each(|page| rig.put(0, page, 1));
    let freeze = rig.freeze(rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    let give_back = |page: usize| {
        let mapping = rig.ram.blocks()[0].mapping().clone();
        let freeze = freeze.clone();
        ends(&run(move || {
            freeze
                .discard(0, page..page + 1, || {
                    mapping.advise(page * PAGE, PAGE, Advice::DontNeed).unwrap();
                })
                .unwrap();
        }));
    };
    give_back(10);
    hold(&freeze);
    give_back(20);
    give_back(1023);
    let scanned = rig.ram.blocks()[0].mapping().is_zero(20 * PAGE, PAGE);
    let (picture, _) = picture(&freeze, 2).unwrap();
    give_back(500);
    freeze.end();
    give_back(501);
    assert!(scanned, "it was to be given back at once");
    let found = [9, 10, 20, 500, 1023].map(|page| value(&picture, 0, page));
    assert_eq!(found, [1, 0, 1, 1, 1]);
}

#[test]
fn a_pause_and_a_discard_do_not_wait_for_each_other() {
    let _alone = alone();
    let Some(rig) = Rig::small(1024) else { return };
    (0..1024).for_each(|page| rig.put(0, page, 1));
    let freeze = rig.freeze(rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    let (inside, is_inside) = channel();
    let pauser = {
        let freeze = freeze.clone();
        run(move || {
            let me = rustix::thread::gettid();
            let ready: std::sync::mpsc::Sender<_> = ends(&is_inside);
            ready.send(me).unwrap();
            hold(&freeze);
        })
    };
    let giver = {
        let (freeze, mapping) = (freeze.clone(), rig.ram.blocks()[0].mapping().clone());
        run(move || {
            freeze.discard(0, 5..6, || {
                let (ready, pausing) = channel();
                inside.send(ready).unwrap();
                let thread = ends(&pausing);
                // Until the pause waits for us: it sleeps, in whatever lock.
                let path = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
                wait_until("the pause to wait", || {
                    std::fs::read_to_string(&path).unwrap().contains(") S ")
                });
                mapping.advise(5 * PAGE, PAGE, Advice::DontNeed).unwrap();
            })
        })
    };
    ends(&giver).unwrap();
    ends(&pauser);
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert_eq!(values(&picture, 0, 4..7), [1, 0, 1]);
}

/// One page that is unplugged at some time.
#[derive(Debug)]
struct Unplugged(usize, AtomicBool);

impl Discards for Unplugged {
    fn populated(&self, _: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
        let hole = self.1.load(Ordering::SeqCst) && range.contains(&self.0);
        let parts = if hole {
            [range.start..self.0, self.0 + 1..range.end]
        } else {
            [range.clone(), 0..0]
        };
        parts
            .into_iter()
            .filter(|range| !range.is_empty())
            .for_each(part);
    }
}

#[test]
fn a_write_to_an_unplugged_page_frees_none_of_its_neighbours() {
    let _alone = alone();
    for kind in [PageKind::Small, PageKind::Thp] {
        let unplugged = Arc::new(Unplugged(5, AtomicBool::new(false)));
        let blocks = [(1024, Backing::Anonymous, kind)];
        let Some(rig) = Rig::with(&blocks, 2, Some(unplugged.clone())) else {
            return;
        };
        (0..1024).for_each(|page| rig.put(0, page, 1));
        let freeze = rig.freeze(rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        // It is armed already.
        unplugged.1.store(true, Ordering::SeqCst);
        hold(&freeze);
        ends(&rig.write(0, 5, 9));
        ends(&rig.write(0, 6, 9));
        let (picture, zeros) = picture(&freeze, 1).unwrap();
        freeze.end();
        assert_eq!(values(&picture, 0, 4..8), [1, 0, 1, 1], "{kind:?}");
        // Not even its zeros are in the picture.
        assert_eq!((picture.len(), zeros), (1023, 0), "{kind:?}");
    }
}

/// The kernel protects such pages whole, so they are saved whole.
#[test]
fn a_huge_page_of_which_a_part_is_unplugged_is_saved_whole() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(4) else {
        return;
    };
    // Before it is armed, and after; the first page is the one by which a unit is claimed.
    for (backing, page, early) in [
        (Backing::Anonymous, 0, false),
        (Backing::Anonymous, 5, true),
        (Backing::Memfd, 0, false),
        (Backing::Memfd, 5, true),
    ] {
        let unplugged = Arc::new(Unplugged(page, AtomicBool::new(early)));
        let blocks = [(1024, backing, PageKind::Huge)];
        let Some(rig) = Rig::with(&blocks, 2, Some(unplugged.clone())) else {
            return;
        };
        (0..1024).for_each(|page| rig.put(0, page, 1));
        let freeze = rig.freeze(rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        unplugged.1.store(true, Ordering::SeqCst);
        hold(&freeze);
        ends(&rig.write(0, 7, 9));
        let (picture, zeros) = picture(&freeze, 1).unwrap();
        freeze.end();
        assert_eq!(values(&picture, 0, 0..1024), [1; 1024], "{backing:?}");
        assert_eq!((picture.len(), zeros), (1024, 0), "{backing:?}");
    }
}
