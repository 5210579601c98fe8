//! Bitmaps in which a VMM's own devices mark what they wrote, as those of `vm-memory`.
//!
//! A VMM whose devices write through `vm-memory` has such a bitmap a region, and marks without a word of
//! ours; here it is asked. A device marks *after* it has written (`vm-memory` does where it copies itself;
//! who writes through a pointer marks when he is done), and a mark is taken *before* the page is read. So a
//! write either is in the page that is read, or leaves a mark behind that the next sync finds. The sync
//! takes marks for good, and [`Tracker::clear`] has nothing left to do.
//!
//! Marks are taken page by page, and only where a page has content. `AtomicBitmap` can give all at once
//! (`get_and_reset`), but makes a vector for that each time, in the last pause too, and forgets what
//! nobody wanted to know yet. So each page costs a look, in all some 10 ms for 16 GiB where all at once takes 1.
//! A bitmap that gives whole words ([`WrittenBits::take`]) has neither cost.
//!
//! A VMM that needs the marks itself (for a snapshot of what changed) is told of each that is taken:
//! [`Bitmaps::shared`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use paguro_ram::{GuestRam, PageSet};

use super::report::{check, report};
use super::{Tracker, TrackerError, WrittenBits};

/// Is told of the block of this index: its pages of this word.
type OnDirty = Box<dyn Fn(usize, usize, u64) + Send + Sync>;

/// Tracks by such bitmaps, one a RAM block. Two over the same bitmaps take each other's marks.
pub struct Bitmaps {
    ram: GuestRam,
    bits: Vec<Box<dyn WrittenBits>>,
    owner: Option<OnDirty>,
    started: AtomicBool,
}

impl std::fmt::Debug for Bitmaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitmaps of {} blocks", self.bits.len())
    }
}

impl Bitmaps {
    /// A tracker that takes its marks out of `bits`: those of each block, in the order of
    /// [`GuestRam::blocks`], for its maximum length.
    ///
    /// # Errors
    ///
    /// [`TrackerError::Bitmap`].
    pub fn new(ram: GuestRam, bits: Vec<Box<dyn WrittenBits>>) -> Result<Self, TrackerError> {
        Self::owned_by(None, ram, bits)
    }

    /// The same for a VMM that needs the marks itself: each that is taken is handed to `on_dirty`, as the
    /// index of a block, the number of a word of 64 pages, and bits of it. Called by the sync, in its thread,
    /// never for a word without marks. It must not call the tracker.
    ///
    /// # Errors
    ///
    /// [`TrackerError::Bitmap`].
    pub fn shared(
        ram: GuestRam,
        bits: Vec<Box<dyn WrittenBits>>,
        on_dirty: impl Fn(usize, usize, u64) + Send + Sync + 'static,
    ) -> Result<Self, TrackerError> {
        Self::owned_by(Some(Box::new(on_dirty)), ram, bits)
    }

    fn owned_by(
        owner: Option<OnDirty>,
        ram: GuestRam,
        bits: Vec<Box<dyn WrittenBits>>,
    ) -> Result<Self, TrackerError> {
        for (index, block) in ram.blocks().iter().enumerate() {
            let pages = bits.get(index).map_or(0, |bits| bits.pages());
            if pages != block.max_pages() {
                return Err(TrackerError::Bitmap {
                    block: block.id().to_owned(),
                    pages,
                    of: block.max_pages(),
                });
            }
        }
        let blocks = ram.blocks().len();
        if bits.len() != blocks {
            return Err(TrackerError::Bitmaps {
                bitmaps: bits.len(),
                blocks,
            });
        }
        Ok(Self {
            ram,
            bits,
            owner,
            started: AtomicBool::new(false),
        })
    }

    fn check_started(&self) -> Result<(), TrackerError> {
        if self.started.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(TrackerError::NotStarted)
        }
    }

    fn take(&self, block: usize, word: usize, mask: u64) -> u64 {
        let taken = self.bits[block].take(word, mask);
        if let Some(owner) = &self.owner
            && taken != 0
        {
            owner(block, word, taken);
        }
        taken
    }
}

impl Tracker for Bitmaps {
    /// Devices mark all the time: what was marked before is reported too.
    fn start(&self) -> Result<(), TrackerError> {
        if self.started.swap(true, Ordering::AcqRel) {
            Err(TrackerError::Busy)
        } else {
            Ok(())
        }
    }

    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError> {
        check(&self.ram, dirty)?;
        self.check_started()?;
        // Marks of pages without content stay: a device may be marking at this moment.
        let new = dirty.iter().enumerate().map(|(block, dirty)| {
            let take = |word, mask| self.take(block, word, mask);
            report(&self.ram, block, 0..dirty.pages(), dirty, take)
        });
        Ok(new.sum())
    }

    /// Nothing is left to be done: the sync has taken the marks.
    fn clear(&self, _: usize, _: Range<usize>) -> Result<(), TrackerError> {
        self.check_started()
    }

    fn stop(&self) {
        self.started.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use paguro_ram::{Backing, BlockConfig, Discards, PageKind, RamBlock};
    use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap};

    use super::*;
    use crate::tracker::report::sets;

    const PAGE: usize = 4096;
    const PAGES: usize = 300;

    fn ram() -> GuestRam {
        let block = RamBlock::new(BlockConfig {
            id: "ram".into(),
            guest_address: 0,
            bytes: PAGES * PAGE,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        GuestRam::new(vec![block.unwrap()])
    }

    fn bitmap() -> Arc<AtomicBitmap> {
        Arc::new(AtomicBitmap::with_len(PAGES * PAGE))
    }

    fn pages(set: &PageSet) -> Vec<usize> {
        let mut pages = Vec::new();
        set.runs(0..set.pages(), |run| pages.extend(run));
        pages
    }

    #[test]
    fn what_is_marked_is_reported_once_and_its_vmm_is_told() {
        let (ram, bits, told) = (ram(), bitmap(), Arc::new(PageSet::new(PAGES)));
        let telling = told.clone();
        let on_dirty = move |block, word, bits| {
            assert!(block == 0 && bits != 0);
            telling.insert_word(word, bits);
        };
        let tracker = Bitmaps::shared(ram.clone(), vec![Box::new(bits.clone())], on_dirty).unwrap();
        let dirty = sets(&ram);
        assert!(matches!(
            tracker.sync(&dirty),
            Err(TrackerError::NotStarted)
        ));
        tracker.start().unwrap();
        assert!(matches!(tracker.start(), Err(TrackerError::Busy)));
        bits.mark_dirty(63 * PAGE + 1, PAGE);
        bits.mark_dirty((PAGES - 1) * PAGE, PAGE);
        assert_eq!(tracker.sync(&dirty).unwrap(), 3);
        assert_eq!(pages(&dirty[0]), [63, 64, PAGES - 1]);
        assert_eq!(pages(&told), [63, 64, PAGES - 1]);
        dirty[0].remove_range(0..PAGES);
        assert_eq!(tracker.sync(&dirty).unwrap(), 0);
        tracker.clear(0, 0..64).unwrap();
        bits.mark_dirty(64 * PAGE, 1);
        assert_eq!(tracker.sync(&dirty).unwrap(), 1);
        tracker.stop();
        assert!(tracker.clear(0, 0..64).is_err());
    }

    /// All but the pages from 100 on.
    #[derive(Debug)]
    struct Unplugged;

    impl Discards for Unplugged {
        fn populated(&self, _: &RamBlock, range: Range<usize>, part: &mut dyn FnMut(Range<usize>)) {
            part(range.start..range.end.min(100));
        }
    }

    #[test]
    fn marks_of_what_has_no_content_stay_where_they_are() {
        let ram = ram().with_discards(Arc::new(Unplugged));
        let bits = bitmap();
        let tracker = Bitmaps::new(ram.clone(), vec![Box::new(bits.clone())]).unwrap();
        tracker.start().unwrap();
        bits.mark_dirty(98 * PAGE, 4 * PAGE);
        let dirty = sets(&ram);
        assert_eq!(tracker.sync(&dirty).unwrap(), 2);
        assert_eq!(pages(&dirty[0]), [98, 99]);
        assert!(!bits.is_bit_set(99) && bits.is_bit_set(100) && bits.is_bit_set(101));
    }

    #[test]
    fn bitmaps_of_other_ram_are_refused() {
        let refused = |bits: Vec<Box<dyn WrittenBits>>| match Bitmaps::new(ram(), bits) {
            Err(TrackerError::Bitmap { block, of, .. }) => block == "ram" && of == PAGES,
            _ => false,
        };
        assert!(refused(vec![]));
        assert!(refused(vec![Box::new(AtomicBitmap::with_len(PAGE))]));
        // As many bits, but for pages of another size.
        let large = NonZeroUsize::new(2 * PAGE).unwrap();
        let bits = AtomicBitmap::new(2 * PAGES * PAGE, large);
        assert_eq!(bits.len(), PAGES);
        assert!(refused(vec![Box::new(bits)]));
        // One too many: the order of all may be another one than is thought.
        let two: Vec<Box<dyn WrittenBits>> = vec![Box::new(bitmap()), Box::new(bitmap())];
        let error = Bitmaps::new(ram(), two).unwrap_err();
        assert!(matches!(
            error,
            TrackerError::Bitmaps {
                bitmaps: 2,
                blocks: 1
            }
        ));
    }

    /// A page is written once, and then looked at: a later mark would hide that one was lost.
    #[test]
    fn a_device_that_marks_meanwhile_loses_nothing() {
        const ROUNDS: usize = 2000;
        let (ram, bits) = (ram(), bitmap());
        let tracker = Bitmaps::new(ram.clone(), vec![Box::new(bits.clone())]).unwrap();
        tracker.start().unwrap();
        let contents: Vec<AtomicUsize> = (0..PAGES).map(|_| AtomicUsize::new(0)).collect();
        let (written, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let device = || {
            for round in 1..=ROUNDS {
                for (page, content) in contents.iter().enumerate() {
                    content.store(round, Ordering::Relaxed);
                    bits.mark_dirty(page * PAGE, 1);
                }
                written.store(round, Ordering::Release);
                while seen.load(Ordering::Acquire) < round {
                    std::thread::yield_now();
                }
            }
        };
        let mut copies = vec![0; PAGES];
        let dirty = sets(&ram);
        let mut bring = || {
            tracker.sync(&dirty).unwrap();
            dirty[0].take(0..PAGES, |run| {
                for page in run {
                    copies[page] = contents[page].load(Ordering::Relaxed);
                }
            });
            copies.iter().min().copied()
        };
        std::thread::scope(|scope| {
            scope.spawn(device);
            for round in 1..=ROUNDS {
                while written.load(Ordering::Acquire) < round {
                    bring();
                }
                let oldest = bring();
                // Before anything fails, or it would wait for ever.
                seen.store(
                    if oldest == Some(round) { round } else { ROUNDS },
                    Ordering::Release,
                );
                assert_eq!(oldest, Some(round));
            }
        });
    }
}
