//! RAM of which little exists, here and there.

use paguro_dirty::FreezeOptions;
use paguro_ram::{Backing, PageKind};
use paguro_sys::Fallbacks;

use crate::rig::*;

/// Pages in 2 MiB.
const GRANULE: usize = 512;

/// Every other granule was touched. The most mappings that guest RAM was while it was saved, and
/// what it was before.
fn every_other(rig: &Rig, granules: usize, options: FreezeOptions) -> (usize, usize) {
    let touched = || {
        (0..granules)
            .step_by(2)
            .map(|granule| granule * GRANULE + 7)
    };
    touched().for_each(|page| rig.put(0, page, 5));
    let pieces = || mappings(rig.ram.blocks()[0].addresses_of(&(0..granules * GRANULE)));
    let before = pieces();
    let freeze = rig.held(options);
    let vandals = Vandals::start(&rig.ram, 1, 9);
    let (mut most, mut pages, mut left) = (before, 0, 0);
    while let Some(copied) = freeze.next().unwrap() {
        for slot in 0..copied.pages().len() {
            assert_eq!(copied.content(slot)[0], 5, "page {}", copied.pages()[slot]);
        }
        pages += copied.pages().len();
        left += copied.pages().len() + copied.zero_pages();
        // Reading the list costs more the longer it is.
        if left % (granules * GRANULE / 64) < GRANULE {
            most = most.max(pieces());
        }
    }
    most = most.max(pieces());
    drop(vandals);
    freeze.end();
    assert_eq!((pages, left), (granules / 2, granules * GRANULE));
    assert_eq!(pieces(), before, "stays in pieces");
    (most, before)
}

#[test]
fn a_sparse_guest_takes_a_share_of_the_mappings_only() {
    const GRANULES: usize = 256;
    let _alone = alone();
    let forced = Fallbacks {
        few_mappings: true,
        ..Fallbacks::default()
    };
    let Some(host) = host(&forced) else { return };
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let block = (GRANULES * GRANULE, backing, PageKind::Small);
        let rig = Rig::on(host, &[block]);
        let (most, before) = every_other(&rig, GRANULES, rig.options());
        let share = host.most_mappings() / 4;
        assert!(most <= before + share, "{backing:?}: {most} of {before}");
        // It is used, too: what can go ahead of the rest does.
        assert!(
            most >= before + share / 2,
            "{backing:?}: {most} of {before}"
        );
    }
}

/// 65,536 pieces that exist and as many that do not: twice what a process may have of mappings.
#[test]
#[ignore = "takes a gigabyte of memory: .ci/run starts it"]
fn a_sparse_guest_of_256_gib_is_saved() {
    const GRANULES: usize = 128 << 10;
    let _alone = alone();
    let block = (GRANULES * GRANULE, Backing::Anonymous, PageKind::Small);
    let Some(rig) = Rig::new(&[block]) else {
        return;
    };
    let (most, before) = every_other(&rig, GRANULES, rig.options());
    println!("{most} mappings at most, {before} before");
    assert!(most <= before + rig.host.most_mappings() / 4);
}
