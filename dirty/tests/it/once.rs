//! Each page once, as it was, whoever writes.

use paguro_dirty::{FreezeError, HugePolicy, Sabotage};
use paguro_ram::{Backing, PageKind};

use crate::rig::*;

const KINDS: [(Backing, PageKind); 4] = [
    (Backing::Anonymous, PageKind::Small),
    (Backing::Anonymous, PageKind::Thp),
    (Backing::Memfd, PageKind::Small),
    (Backing::Memfd, PageKind::Thp),
];

/// What a page is filled with; some are zero, some are never touched.
fn filling(block: usize, page: usize) -> u8 {
    match page % 11 {
        3 => 0,
        _ if page / 512 == 1 => 0,
        rest => (rest + 11 * block + 1) as u8,
    }
}

fn filled(rig: &Rig) {
    for (block, ram) in rig.ram.blocks().iter().enumerate() {
        for page in 0..ram.pages() {
            // The second granule is never touched at all, unless somebody has.
            if page / 512 != 1 || rig.is_there(block, page) {
                rig.put(block, page, filling(block, page));
            }
        }
    }
}

/// Pages that are not what they were at the pause, or `None` if it failed.
fn wrong(rig: &Rig, options: paguro_dirty::FreezeOptions) -> Result<usize, FreezeError> {
    filled(rig);
    let freeze = rig.held(options);
    let vandals = Vandals::start(&rig.ram, 4, 0xee);
    let result = picture(&freeze, 3);
    freeze.end();
    drop(vandals);
    let (picture, zeros) = result?;
    Ok(wrong_in(rig, &picture, zeros))
}

fn wrong_in(rig: &Rig, picture: &Picture, zeros: usize) -> usize {
    let mut wrong = 0;
    let mut total = 0;
    for (block, ram) in rig.ram.blocks().iter().enumerate() {
        total += ram.pages();
        for page in 0..ram.pages() {
            let zero = vec![0; PAGE];
            let content = picture.get(&(block, page)).unwrap_or(&zero);
            let expect = filling(block, page);
            wrong += usize::from(content.iter().any(|&byte| byte != expect));
        }
    }
    // Each once: with content, or as a zero.
    wrong + total.abs_diff(picture.len() + zeros)
}

#[test]
fn every_page_leaves_once_and_as_it_was_under_many_threads() {
    let _alone = alone();
    for (backing, kind) in KINDS {
        for huge in [HugePolicy::Keep, HugePolicy::Split] {
            for chunk_pages in [1, 16, 100, 512] {
                // Neither block is a multiple of 2 MiB.
                let blocks = [(1536 + 77, backing, kind), (700, backing, kind)];
                let Some(rig) = Rig::new(&blocks) else { return };
                let options = paguro_dirty::FreezeOptions {
                    huge,
                    chunk_pages,
                    ..rig.options()
                };
                let wrong = wrong(&rig, options).unwrap();
                assert_eq!(wrong, 0, "{backing:?} {kind:?} {huge:?} {chunk_pages}");
            }
        }
    }
}

#[test]
fn huge_pages_of_the_pool_leave_once_and_as_they_were() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(16) else {
        return;
    };
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let Some(rig) = Rig::new(&[(4 * 512, backing, PageKind::Huge)]) else {
            return;
        };
        assert_eq!(wrong(&rig, rig.options()).unwrap(), 0, "{backing:?}");
    }
}

/// What readers note of a write is taken word by word by who arms, so that he may see a part of it.
/// Pages of the pool cannot be protected in parts.
#[test]
fn a_part_of_a_huge_page_that_was_let_go_is_armed_as_a_whole() {
    let _alone = alone();
    let Some(_huge_pages) = HugePages::take(4) else {
        return;
    };
    let Some(rig) = Rig::new(&[(4 * 512, Backing::Memfd, PageKind::Huge)]) else {
        return;
    };
    filled(&rig);
    let freeze = rig.freeze(rig.options()).unwrap();
    freeze.arm(|| true).unwrap();
    freeze.discard(0, 3 * 512 + 448..4 * 512, || ()).unwrap();
    freeze.hold(freeze.barrier()).unwrap();
    ends(&rig.write(0, 4 * 512 - 1, 0xee));
    let (picture, _) = picture(&freeze, 1).unwrap();
    freeze.end();
    let last = value(&picture, 0, 4 * 512 - 1);
    assert_eq!(last, filling(0, 4 * 512 - 1));
}

#[test]
fn two_freezes_after_each_other_are_two_pictures() {
    let _alone = alone();
    let Some(rig) = Rig::small(1100) else { return };
    for _ in 0..3 {
        assert_eq!(wrong(&rig, rig.options()).unwrap(), 0);
    }
}

/// What is released before it is copied is seen where a test can write in between: in the crate itself.
#[test]
fn what_is_broken_on_purpose_is_seen() {
    let _alone = alone();
    for (sabotage, expect) in [
        (Sabotage::None, Some(0)),
        (Sabotage::SkipPage, Some(1)),
        // A page that leaves twice is a panic of the collector.
        (Sabotage::ClaimTwice, None),
    ] {
        let Some(rig) = Rig::small(1536) else { return };
        filled(&rig);
        let freeze = rig.held(paguro_dirty::FreezeOptions {
            sabotage,
            check: false,
            ..rig.options()
        });
        // Copied when he comes, and the scan comes to them afterwards.
        ends(&rig.write(0, 5, 0xee));
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (picture, zeros) = picture(&freeze, 3).unwrap();
            wrong_in(&rig, &picture, zeros)
        }));
        freeze.end();
        assert_eq!(tried.ok(), expect, "{sabotage:?}");
    }
}

#[test]
fn what_a_write_released_while_arming_is_armed_again() {
    let _alone = alone();
    for (sabotage, expect) in [(Sabotage::None, 7), (Sabotage::NoRearm, 8)] {
        let Some(rig) = Rig::small(1024) else { return };
        (0..1024).for_each(|page| rig.put(0, page, 1));
        let options = paguro_dirty::FreezeOptions {
            sabotage,
            ..rig.options()
        };
        let freeze = rig.freeze(options).unwrap();
        freeze.arm(|| true).unwrap();
        ends(&rig.write(0, 600, 7));
        hold(&freeze);
        // After the pause: not in the picture, if somebody hears of it.
        ends(&rig.write(0, 600, 8));
        let (picture, _) = picture(&freeze, 1).unwrap();
        freeze.end();
        assert_eq!(value(&picture, 0, 600), expect, "{sabotage:?}");
    }
}
