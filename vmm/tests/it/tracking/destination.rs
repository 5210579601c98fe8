//! The other side of a migration, in this process: a copy of RAM that is kept up by a tracker.

use std::ops::Range;

use paguro_dirty::tracker::Tracker;
use paguro_ram::{GuestRam, PageSet};

pub const PAGE: usize = 4096;

/// Pages that are cleared together.
const CHUNK: usize = 128;

/// When a chunk is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    ClearThenRead,
    /// Broken on purpose.
    ReadThenClear,
}

pub struct Destination {
    ram: GuestRam,
    order: Order,
    dirty: Vec<PageSet>,
    copies: Vec<Vec<u8>>,
    /// What was reported since somebody last asked.
    pub reported: Vec<PageSet>,
}

pub fn sets(ram: &GuestRam) -> Vec<PageSet> {
    let blocks = ram.blocks().iter();
    blocks
        .map(|block| PageSet::new(block.max_pages()))
        .collect()
}

impl Destination {
    /// Nothing is there yet, so all that has content is dirty.
    pub fn new(ram: GuestRam, order: Order) -> Self {
        let dirty = sets(&ram);
        for (block, dirty) in ram.blocks().iter().zip(&dirty) {
            ram.discards()
                .populated(block, 0..block.pages(), &mut |part| {
                    dirty.insert_range(part);
                });
        }
        Self {
            order,
            dirty,
            copies: ram
                .blocks()
                .iter()
                .map(|b| vec![0; b.max_bytes()])
                .collect(),
            reported: sets(&ram),
            ram,
        }
    }

    /// Asks what was written; how many pages that are.
    pub fn sync(&mut self, tracker: &dyn Tracker) -> usize {
        let count = |sets: &[PageSet]| sets.iter().map(PageSet::count).sum::<usize>();
        let found = sets(&self.ram);
        let reported = tracker.sync(&found).unwrap();
        assert_eq!(reported, count(&found), "the number of pages is wrong");
        for ((found, dirty), all) in found.iter().zip(&self.dirty).zip(&self.reported) {
            found.runs(0..found.pages(), |run| {
                dirty.insert_range(run.clone());
                all.insert_range(run);
            });
        }
        reported
    }

    /// Brings over all that is dirty.
    pub fn send(&mut self, tracker: &dyn Tracker) {
        for (index, block) in self.ram.blocks().iter().enumerate() {
            for start in (0..block.pages()).step_by(CHUNK) {
                let chunk = start..block.pages().min(start + CHUNK);
                let mut runs: Vec<Range<usize>> = Vec::new();
                self.dirty[index].take(chunk.clone(), |run| runs.push(run));
                if runs.is_empty() {
                    continue;
                }
                if self.order == Order::ClearThenRead {
                    tracker.clear(index, chunk.clone()).unwrap();
                }
                for run in runs {
                    let bytes = block.bytes_of(&run);
                    let copy = &mut self.copies[index][bytes.clone()];
                    block.mapping().copy_out(bytes.start, copy);
                }
                if self.order == Order::ReadThenClear {
                    tracker.clear(index, chunk).unwrap();
                }
            }
        }
    }

    /// Pages with content that are not what they are in RAM. The machine is at rest.
    pub fn stale(&self) -> usize {
        let mut stale = 0;
        for (block, copy) in self.ram.blocks().iter().zip(&self.copies) {
            self.ram
                .discards()
                .populated(block, 0..block.pages(), &mut |part| {
                    let differs = |page: &usize| {
                        let at = page * PAGE;
                        !block.mapping().is_equal(at, &copy[at..at + PAGE])
                    };
                    stale += part.filter(differs).count();
                });
        }
        stale
    }

    pub fn forget_reported(&mut self) {
        self.reported = sets(&self.ram);
    }
}
