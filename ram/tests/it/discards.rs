use std::ops::Range;

use paguro_ram::{Backing, BlockConfig, Discards, NothingDiscarded, PageKind, RamBlock};
use proptest::prelude::*;

pub fn block(pages: usize, backing: Backing) -> RamBlock {
    RamBlock::new(BlockConfig {
        id: "ram".into(),
        guest_address: 0,
        bytes: pages * 4096,
        backing,
        pages: PageKind::Small,
    })
    .unwrap()
}

/// One flag a page: whether it has content.
#[derive(Debug)]
pub struct Plugged(pub Vec<bool>);

impl Discards for Plugged {
    fn populated(&self, _: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
        let mut at = range.start;
        while at < range.end {
            let plugged = self.0[at];
            let len = self.0[at..range.end]
                .iter()
                .take_while(|&&other| other == plugged)
                .count();
            if plugged {
                part(at..at + len);
            }
            at += len;
        }
    }
}

proptest! {
    #[test]
    fn discarded_is_what_populated_is_not(
        plugged in proptest::collection::vec(any::<bool>(), 1..200),
        a in 0usize..200,
        b in 0usize..200,
    ) {
        let pages = plugged.len();
        let block = block(pages, Backing::Anonymous);
        let range = a.min(b).min(pages)..a.max(b).min(pages);
        let discards = Plugged(plugged.clone());
        let mut seen = vec![None; pages];
        let mut last = None;
        discards.discarded(&block, range.clone(), &mut |part| {
            assert!(!part.is_empty() && last.is_none_or(|last| last < part.start));
            last = Some(part.end);
            part.for_each(|page| assert!(seen[page].replace(false).is_none()));
        });
        discards.populated(&block, range.clone(), &mut |part| {
            part.for_each(|page| assert!(seen[page].replace(true).is_none()));
        });
        for page in 0..pages {
            let expect = range.contains(&page).then_some(plugged[page]);
            prop_assert_eq!(seen[page], expect, "page {}", page);
        }
    }
}

#[test]
fn of_nothing_discarded_nothing_is_discarded() {
    let block = block(10, Backing::Anonymous);
    let mut parts = Vec::new();
    NothingDiscarded.discarded(&block, 0..10, &mut |part| parts.push(part));
    NothingDiscarded.populated(&block, 4..4, &mut |part| parts.push(part));
    assert!(parts.is_empty());
    NothingDiscarded.populated(&block, 2..9, &mut |part| parts.push(part));
    assert!(parts.len() == 1 && parts[0] == (2..9));
}
