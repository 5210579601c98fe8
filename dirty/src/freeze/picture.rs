//! What the freeze knows of one RAM block.

use std::collections::TryReserveError;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use paguro_ram::{Backing, PageKind, PageSet, RamBlock, presence};
use paguro_sys::presence::Pagemap;

use crate::sizes::{GRANULE, span};
use crate::{FreezeError, FreezeOptions, HugePolicy};

/// One block. All sets are made for its maximum length.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) ram: Arc<RamBlock>,
    /// Pages that do not exist: zero, never read. Everything is absent until it was seen.
    pub(super) absent: PageSet,
    /// Pages whose copy is somebody's task, or done.
    pub(super) claimed: PageSet,
    /// Pages whose content is safe.
    pub(super) saved: PageSet,
    /// Pages that a write released while arming, to be armed again.
    pub(super) released: PageSet,
    /// Pages that somebody gave back while arming: their protection went with them, at a moment
    /// that is known only to be before the pause.
    pub(super) removed: PageSet,
    /// Granules that are armed (but for what is in `released`).
    pub(super) armed: PageSet,
    /// Granules that are not registered any more.
    pub(super) gone: PageSet,
    /// Granules that were written while arming: saved first, for they are written again soon.
    pub(super) hot: PageSet,
    /// Granules of shared memory that were mapped by huge pages: arming splits the mapping.
    pub(super) split: PageSet,
    /// Pages that are protected and released together at least.
    pub(super) unit: usize,
    /// Whether it was registered for missing pages too when the freeze began; it stays so until
    /// the end. Then every page that comes is placed, and placed protected.
    pub(super) placed: AtomicBool,
    /// The used length at the last look of arming, in pages.
    pub(super) looked: AtomicUsize,
    /// The used length at the pause, in pages: where the picture ends, whatever becomes of the
    /// block.
    pub(super) held: AtomicUsize,
    /// What each page held in the pause, if that is to be checked.
    pub(super) digests: OnceLock<Vec<u32>>,
}

impl Picture {
    pub(super) fn new(
        ram: Arc<RamBlock>,
        options: &FreezeOptions,
    ) -> Result<Self, TryReserveError> {
        let pages = ram.max_pages();
        let granules = pages.div_ceil(GRANULE);
        let absent = PageSet::try_new(pages)?;
        absent.insert_range(0..pages);
        let whole = options.huge == HugePolicy::Keep
            && ram.page_kind() == PageKind::Thp
            && ram.backing() == Backing::Anonymous;
        let unit = if whole { GRANULE } else { ram.unit_pages() };
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
    pub(super) fn pages(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// What of a range belongs to the picture.
    pub(super) fn inside(&self, range: &Range<usize>) -> Range<usize> {
        let end = range.end.min(self.pages());
        range.start.min(end)..end
    }

    /// Whether anything of it is ever protected.
    pub(super) fn is_protected(&self) -> bool {
        !self.ram.is_read_only()
    }

    /// Calls `found` for pages of a range that exist now.
    pub(super) fn find(
        &self,
        pagemap: &Pagemap,
        range: Range<usize>,
        found: impl FnMut(Range<usize>),
    ) -> Result<(), FreezeError> {
        presence::present(&self.ram, range, pagemap, found)
            .map_err(|source| self.presence_error(source))
    }

    /// Notes which pages of a range exist.
    pub(super) fn find_present(
        &self,
        pagemap: &Pagemap,
        range: Range<usize>,
    ) -> Result<(), FreezeError> {
        if self.absent.count_in(range.clone()) == 0 {
            return Ok(());
        }
        self.find(pagemap, range, |run| self.absent.remove_range(run))
    }

    /// Runs of granules of the first `pages` that are not armed and in which something exists.
    pub(super) fn touched(
        &self,
        pagemap: &Pagemap,
        pages: usize,
    ) -> Result<Vec<Range<usize>>, FreezeError> {
        let mut gaps = Vec::new();
        self.armed
            .gaps(0..pages.div_ceil(GRANULE), |gap| gaps.push(gap));
        let mut touched: Vec<Range<usize>> = Vec::new();
        for gap in gaps {
            let range = gap.start * GRANULE..(gap.end * GRANULE).min(pages);
            self.find(pagemap, range, |run| {
                let run = run.start / GRANULE..run.end.div_ceil(GRANULE);
                match touched.last_mut() {
                    Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
                    _ => touched.push(run),
                }
            })?;
        }
        Ok(touched)
    }

    /// What is still registered at the end, in steps: a granule where something is, with those
    /// behind it where nothing was when the guest was paused.
    pub(super) fn rest(&self) -> Vec<Range<usize>> {
        const EMPTY_STEP: usize = 8;
        let mut rest = Vec::new();
        self.gone.gaps(0..self.gone.pages(), |gap| {
            let mut at = gap.start;
            while at < gap.end {
                let empty = (at + 1..gap.end.min(at + EMPTY_STEP))
                    .take_while(|&granule| !self.armed.contains(granule))
                    .count();
                let end = at + 1 + empty;
                rest.push(at * GRANULE..(end * GRANULE).min(self.ram.max_pages()));
                at = end;
            }
        });
        rest
    }

    /// Claims what of a range nobody has claimed: those pages, and only those, are the caller's to
    /// copy and release. Pages of the huge-page pool are released 512 at a time.
    pub(super) fn claim(&self, range: Range<usize>, mine: impl FnMut(Range<usize>)) {
        match self.ram.unit_pages() {
            1 => self.claimed.claim(range, mine),
            unit => self.claimed.claim_units(range, unit, mine),
        }
    }

    /// The pages that can only be protected together with some of a range: of the huge-page pool 512
    /// at a time, of others the range.
    pub(super) fn units_around(&self, range: &Range<usize>) -> Range<usize> {
        let unit = self.ram.unit_pages();
        range.start / unit * unit..range.end.next_multiple_of(unit)
    }

    /// What of a range can be left out of what is claimed: units that lie in it whole.
    pub(super) fn units_within(&self, range: &Range<usize>) -> Range<usize> {
        let unit = self.ram.unit_pages();
        let first = range.start.next_multiple_of(unit);
        first..(range.end / unit * unit).max(first)
    }

    /// The pages that can only be released together with one.
    pub(super) fn unit_around(&self, page: usize) -> Range<usize> {
        span(page, self.unit, self.ram.max_pages())
    }

    /// Granules that were seen written, as they are now.
    pub(super) fn written(&self) -> PageSet {
        PageSet::from_words(self.hot.pages(), &self.hot.to_words())
    }

    /// Bytes that its sets occupy.
    pub(super) fn size_bytes(&self) -> usize {
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

    /// The host does not tell which of its pages exist.
    pub(super) fn presence_error(&self, source: io::Error) -> FreezeError {
        FreezeError::Presence {
            block: self.ram.id().to_owned(),
            source,
        }
    }

    /// A page of it cannot be had from where it still is.
    pub(super) fn unarrived(&self, page: usize, source: io::Error) -> FreezeError {
        FreezeError::Unarrived {
            block: self.ram.id().to_owned(),
            page,
            source,
        }
    }
}
