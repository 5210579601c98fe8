//! Blocks that grow and shrink meanwhile.

use paguro_ram::{Backing, PageKind};

use crate::rig::*;

const KINDS: [Backing; 2] = [Backing::Anonymous, Backing::Memfd];

/// A block of 1500 pages of which 100 are used, all of them ones.
fn rig(backing: Backing) -> Option<Rig> {
    let rig = Rig::new(&[(1500, backing, PageKind::Small)])?;
    rig.ram.blocks()[0].resize(100 * PAGE).unwrap();
    (0..100).for_each(|page| rig.put(0, page, 1));
    Some(rig)
}

#[test]
fn what_a_block_grew_by_since_it_was_armed_is_in_the_picture() {
    let _alone = alone();
    for backing in KINDS {
        let Some(rig) = rig(backing) else { return };
        let freeze = rig.freeze(rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        // Into the granule that is armed, then beyond it.
        rig.ram.blocks()[0].resize(300 * PAGE).unwrap();
        rig.put(0, 200, 2);
        rig.ram.blocks()[0].resize(1500 * PAGE).unwrap();
        rig.put(0, 400, 3);
        rig.put(0, 1400, 4);
        hold(&freeze);
        assert_eq!(freeze.total_pages(), 1500);
        // And it is held: what comes now is not in it.
        for page in [99, 200, 201, 400, 1400, 1401] {
            ends(&rig.write(0, page, 9));
        }
        let (picture, zeros) = picture(&freeze, 2).unwrap();
        freeze.end();
        let found = [99, 200, 201, 400, 1400, 1401].map(|page| value(&picture, 0, page));
        assert_eq!(found, [1, 2, 0, 3, 4, 0], "{backing:?}");
        assert_eq!(picture.len() + zeros, 1500);
    }
}

#[test]
fn a_block_may_grow_between_two_rounds_of_arming() {
    let _alone = alone();
    for backing in KINDS {
        let Some(rig) = rig(backing) else { return };
        let freeze = rig.freeze(rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        for (pages, page) in [(300, 250), (900, 800), (1500, 1499)] {
            rig.ram.blocks()[0].resize(pages * PAGE).unwrap();
            rig.put(0, page, 5);
            freeze.arm(|| true).unwrap();
        }
        hold(&freeze);
        let at = [50, 250, 800, 1499];
        at.into_iter().for_each(|page| ends(&rig.write(0, page, 9)));
        let (picture, _) = picture(&freeze, 2).unwrap();
        freeze.end();
        assert_eq!(at.map(|page| value(&picture, 0, page)), [1, 5, 5, 5]);
    }
}

#[test]
fn the_picture_ends_where_the_block_ended_at_the_pause() {
    let _alone = alone();
    for backing in KINDS {
        for after in [0, 10, 700, 1500] {
            let Some(rig) = rig(backing) else { return };
            rig.ram.blocks()[0].resize(600 * PAGE).unwrap();
            let freeze = rig.held(rig.options());
            rig.ram.blocks()[0].resize(after * PAGE).unwrap();
            let writers = [5, 99, 550, 1200].map(|page| rig.write(0, page, 9));
            let (picture, zeros) = picture(&freeze, 2).unwrap();
            writers.iter().for_each(ends);
            freeze.end();
            assert_eq!(picture.len() + zeros, 600, "{backing:?} {after}");
            assert_eq!(values(&picture, 0, 0..100), [1; 100]);
        }
    }
}

#[test]
fn a_write_behind_the_end_of_a_block_that_shrank_waits_for_nobody() {
    let _alone = alone();
    for backing in KINDS {
        let Some(rig) = rig(backing) else { return };
        rig.ram.blocks()[0].resize(1500 * PAGE).unwrap();
        (0..1500).for_each(|page| rig.put(0, page, 1));
        let freeze = rig.freeze(rig.options()).unwrap();
        freeze.arm(|| true).unwrap();
        rig.ram.blocks()[0].resize(50 * PAGE).unwrap();
        hold(&freeze);
        // Armed all of them, none in the picture; nobody scans.
        for page in [50, 55, 400, 600, 1499] {
            ends(&rig.write(0, page, 9));
        }
        let (picture, _) = picture(&freeze, 1).unwrap();
        freeze.end();
        assert_eq!(picture.len(), 50);
    }
}

#[test]
fn what_shrank_and_grew_again_is_looked_at_again() {
    let _alone = alone();
    let Some(rig) = rig(Backing::Anonymous) else {
        return;
    };
    rig.ram.blocks()[0].resize(1500 * PAGE).unwrap();
    (0..1500).for_each(|page| rig.put(0, page, 1));
    let freeze = rig.freeze(rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    rig.ram.blocks()[0].resize(512 * PAGE).unwrap();
    freeze.arm(|| true).unwrap();
    // Whatever became of its protection meanwhile.
    let tail = rig.ram.blocks()[0].addresses_of(&(512..1500));
    rig.faults.uffd().release(tail).unwrap();
    rig.put(0, 1000, 2);
    rig.ram.blocks()[0].resize(1500 * PAGE).unwrap();
    hold(&freeze);
    ends(&rig.write(0, 1000, 9));
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    assert_eq!(value(&picture, 0, 1000), 2);
}
