use paguro_ram::{Backing, NothingDiscarded, RamBlock, populate, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Fallbacks, Host};

use crate::discards::{Plugged, block};

fn hosts() -> [Host; 2] {
    [false, true].map(|no_populate_read| {
        Host::probe(&Fallbacks {
            no_populate_read,
            ..Default::default()
        })
    })
}

fn present(block: &RamBlock) -> Vec<usize> {
    let pagemap = Pagemap::open(&hosts()[0]).unwrap();
    let mut found = Vec::new();
    presence::present(block, 0..block.max_pages(), &pagemap, |run| {
        found.extend(run)
    })
    .unwrap();
    found
}

#[test]
fn nothing_discarded_becomes_resident() {
    for host in hosts() {
        let block = block(1000, Backing::Anonymous);
        let plugged = (0..1000).map(|page| page / 7 % 3 != 1).collect();
        let plugged = Plugged(plugged);
        let visited = populate(&block, 20..900, &plugged, &host).unwrap();
        let expect: Vec<_> = (20..900).filter(|&page| plugged.0[page]).collect();
        assert_eq!(visited, expect.len());
        assert_eq!(present(&block), expect);
    }
}

#[test]
fn what_needs_no_populating_is_left_alone() {
    for host in hosts() {
        for block in [
            block(100, Backing::Anonymous).read_only(),
            block(100, Backing::Memfd),
        ] {
            assert_eq!(
                populate(&block, 0..100, &NothingDiscarded, &host).unwrap(),
                0
            );
            assert!(present(&block).is_empty(), "{block:?}");
        }
    }
}

#[test]
fn populating_changes_no_content() {
    for host in hosts() {
        let block = block(10, Backing::Anonymous);
        block.mapping().copy_in(5 * 4096, &[7; 4096]);
        populate(&block, 0..10, &NothingDiscarded, &host).unwrap();
        assert!(block.mapping().is_equal(5 * 4096, &[7; 4096]));
        assert_eq!(present(&block), (0..10).collect::<Vec<_>>());
    }
}
