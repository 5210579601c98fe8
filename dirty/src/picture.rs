//! What the freeze knows of one RAM block.

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use paguro_ram::{Backing, PageKind, PageSet, RamBlock};

use crate::sizes::CHUNK;
use crate::{FreezeOptions, HugePolicy};

/// One block. All sets are made for its maximum length.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) ram: Arc<RamBlock>,
    /// Pages that do not exist: zero, never read. Everything is absent until it was seen.
    pub(crate) absent: PageSet,
    /// Pages whose copy is somebody's task, or done.
    pub(crate) claimed: PageSet,
    /// Pages whose content is safe.
    pub(crate) saved: PageSet,
    /// Pages that a write released while arming, to be armed again.
    pub(crate) released: PageSet,
    /// Pages that somebody gave back while arming: their protection went with them, at a moment
    /// that is known only to be before the pause.
    pub(crate) removed: PageSet,
    /// Granules that are armed (but for what is in `released`).
    pub(crate) armed: PageSet,
    /// Granules that are not registered any more.
    pub(crate) gone: PageSet,
    /// Granules that were written while arming: saved first, for they are written again soon.
    pub(crate) hot: PageSet,
    /// Granules of shared memory that were mapped by huge pages: arming splits the mapping.
    pub(crate) split: PageSet,
    /// Pages that are protected and released together at least.
    pub(crate) unit: usize,
    /// Whether it was registered for missing pages too when the freeze began; it stays so until
    /// the end. Then every page that comes is placed, and placed protected.
    pub(crate) placed: AtomicBool,
    /// The used length at the last look of arming, in pages.
    pub(crate) looked: AtomicUsize,
    /// The used length at the pause, in pages: where the picture ends, whatever becomes of the
    /// block.
    pub(crate) held: AtomicUsize,
    /// What each page held in the pause, if that is to be checked.
    pub(crate) digests: OnceLock<Vec<u32>>,
}

impl Picture {
    pub(crate) fn new(
        ram: Arc<RamBlock>,
        options: &FreezeOptions,
    ) -> Result<Self, TryReserveError> {
        let pages = ram.max_pages();
        let granules = pages.div_ceil(CHUNK);
        let absent = PageSet::try_new(pages)?;
        absent.insert_range(0..pages);
        let whole = options.huge == HugePolicy::Keep
            && ram.page_kind() == PageKind::Thp
            && ram.backing() == Backing::Anonymous;
        let unit = if whole { CHUNK } else { ram.unit_pages() };
        Ok(Self {
            absent,
            claimed: PageSet::try_new(pages)?,
            saved: PageSet::try_new(pages)?,
            released: PageSet::try_new(pages)?,
            removed: PageSet::try_new(pages)?,
            armed: PageSet::try_new(granules)?,
            gone: PageSet::try_new(granules)?,
            split: PageSet::try_new(granules)?,
            hot: PageSet::try_new(granules)?,
            unit,
            placed: AtomicBool::new(false),
            looked: AtomicUsize::new(ram.pages()),
            held: AtomicUsize::new(0),
            digests: OnceLock::new(),
            ram,
        })
    }

    /// Pages of the picture; none before the pause.
    pub(crate) fn pages(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// What of a range belongs to the picture.
    pub(crate) fn inside(&self, range: &Range<usize>) -> Range<usize> {
        let end = range.end.min(self.pages());
        range.start.min(end)..end
    }

    /// Whether anything of it is ever protected.
    pub(crate) fn is_protected(&self) -> bool {
        !self.ram.is_read_only()
    }

    /// What is still registered at the end, in steps: a granule where something is, with those
    /// behind it where nothing was when the guest was paused.
    pub(crate) fn rest(&self) -> Vec<Range<usize>> {
        const EMPTY_STEP: usize = 8;
        let mut rest = Vec::new();
        self.gone.gaps(0..self.gone.pages(), |gap| {
            let mut at = gap.start;
            while at < gap.end {
                let empty = (at + 1..gap.end.min(at + EMPTY_STEP))
                    .take_while(|&granule| !self.armed.contains(granule))
                    .count();
                let end = at + 1 + empty;
                rest.push(at * CHUNK..(end * CHUNK).min(self.ram.max_pages()));
                at = end;
            }
        });
        rest
    }

    /// Claims what of a range nobody has claimed: those pages, and only those, are the caller's to
    /// copy and release. Pages of the huge-page pool are released 512 at a time.
    pub(crate) fn claim(&self, range: Range<usize>, mine: impl FnMut(Range<usize>)) {
        match self.ram.unit_pages() {
            1 => self.claimed.claim(range, mine),
            unit => self.claimed.claim_units(range, unit, mine),
        }
    }

    /// The pages that can only be protected together with some of a range: of the huge-page pool 512
    /// at a time, of others the range.
    pub(crate) fn units_around(&self, range: &Range<usize>) -> Range<usize> {
        let unit = self.ram.unit_pages();
        range.start / unit * unit..range.end.next_multiple_of(unit)
    }

    /// What of a range can be left out of what is claimed: units that lie in it whole.
    pub(crate) fn units_within(&self, range: &Range<usize>) -> Range<usize> {
        let unit = self.ram.unit_pages();
        let first = range.start.next_multiple_of(unit);
        first..(range.end / unit * unit).max(first)
    }

    /// Bytes that its sets occupy.
    pub(crate) fn size_bytes(&self) -> usize {
        [
            &self.absent,
            &self.claimed,
            &self.saved,
            &self.released,
            &self.removed,
            &self.armed,
            &self.gone,
            &self.hot,
        ]
        .iter()
        .map(|set| set.size_bytes())
        .sum()
    }
}
