//! Which pages are still to be sent.

use std::ops::Range;
use std::sync::Arc;

use paguro_dirty::tracker::{Tracker, TrackerError};
use paguro_faults::Supply;
use paguro_ram::{GuestRam, PageSet, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Host, page_size};

/// Pages looked at together: 2 MiB, and a multiple of what trackers clear.
pub const CHUNK: usize = 512;

/// Pages that were written since they were sent, or were never sent.
///
/// **What is absent is not sent.** A page that does not exist is zero, and so is that page at the
/// destination, whose RAM is fresh. So the first pass looks, chunk by chunk, which pages exist;
/// reading the others would make them exist here, and placing them would there (P4). A page that
/// was sent and has been given back since is sent as a zero page.
///
/// **In this order**: the chunk is taken from the set, the tracker clears it, then it is looked at
/// and read. Whatever is written after the clear is reported by the next sync; a page that was
/// touched before the clear exists when it is looked at. The other way round, what was written
/// between the look and the clear would be in neither.
pub struct Outstanding {
    ram: GuestRam,
    dirty: Vec<PageSet>,
    /// Pages of which the destination has some content.
    sent: Vec<PageSet>,
    /// Where pages are that have not arrived here yet: reading them brings them.
    supply: Option<Arc<dyn Supply>>,
    pagemap: Pagemap,
}

/// Pages of one chunk that are to be sent.
#[derive(Debug, Default)]
pub struct Due {
    /// Pages to be read, ascending.
    pub content: Vec<usize>,
    /// Pages that are gone and were sent before, ascending.
    pub gone: Vec<usize>,
}

impl Outstanding {
    /// All of `ram` but what is discarded.
    ///
    /// # Errors
    ///
    /// The host's: it does not say which pages exist, or has no memory for the sets.
    pub fn all(
        ram: GuestRam,
        supply: Option<Arc<dyn Supply>>,
        host: &Host,
    ) -> std::io::Result<Self> {
        let sets = || {
            let blocks = ram.blocks().iter();
            blocks
                .map(|block| PageSet::try_new(block.max_pages()))
                .collect::<Result<Vec<_>, _>>()
        };
        let dirty = sets()?;
        for (block, dirty) in ram.blocks().iter().zip(&dirty) {
            presence::map_rest(block)?;
            let mut add = |range: Range<usize>| dirty.insert_range(range);
            ram.discards().populated(block, 0..block.pages(), &mut add);
        }
        Ok(Self {
            dirty,
            sent: sets()?,
            supply,
            pagemap: Pagemap::open(host)?,
            ram,
        })
    }

    /// Pages that are still to be sent. In the first pass most of them may be absent.
    pub fn pages(&self) -> usize {
        self.dirty.iter().map(PageSet::count).sum()
    }

    /// Bytes of them.
    pub fn bytes(&self) -> u64 {
        (self.pages() * page_size()) as u64
    }

    /// Adds what the tracker knows; how many pages were new.
    ///
    /// # Errors
    ///
    /// The tracker's.
    pub fn sync(&self, tracker: &dyn Tracker) -> Result<usize, TrackerError> {
        tracker.sync(&self.dirty)
    }

    /// The chunks that have something to send, as ranges of pages of a block.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let blocks = self.ram.blocks().iter().zip(&self.dirty).enumerate();
        blocks.flat_map(|(index, (block, dirty))| {
            let pages = block.pages();
            (0..pages)
                .step_by(CHUNK)
                .map(move |first| first..(first + CHUNK).min(pages))
                .filter(|chunk| dirty.count_in(chunk.clone()) > 0)
                .map(move |chunk| (index, chunk))
        })
    }

    /// Has pages of a chunk come that are elsewhere: whoever reads them afterwards need not wait, and
    /// that they cannot be had is an error here. Before the chunk is taken.
    ///
    /// # Errors
    ///
    /// Those of whoever fills RAM.
    pub fn bring(
        &self,
        block: usize,
        chunk: &Range<usize>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> std::io::Result<()> {
        let Some(source) = &self.supply else {
            return Ok(());
        };
        let mut coming = self.coming(block, chunk);
        coming.retain(|&page| self.dirty[block].contains(page));
        coming
            .chunk_by(|page, next| page + 1 == *next)
            .try_for_each(|run| source.bring(block, run[0]..run[0] + run.len(), go_on))
    }

    /// Takes a chunk: its pages count as sent from here on.
    ///
    /// # Errors
    ///
    /// The tracker's, and the host's.
    pub fn take(
        &self,
        block: usize,
        chunk: Range<usize>,
        tracker: &dyn Tracker,
        due: &mut Due,
    ) -> Result<(), TakeError> {
        due.content.clear();
        due.gone.clear();
        let (ram, sent) = (&self.ram.blocks()[block], &self.sent[block]);
        let mut dirty: Vec<Range<usize>> = Vec::new();
        self.dirty[block].take(chunk.clone(), |run| dirty.push(run));
        tracker.clear(block, chunk).map_err(TakeError::Tracker)?;
        let (Some(first), Some(last)) = (dirty.first(), dirty.last()) else {
            return Ok(());
        };
        // One look for all runs: each is a system call, and a guest that writes here and there has
        // as many runs as pages.
        let span = first.start..last.end;
        // Before the look: what arrives in between is seen by one of the two.
        let coming = self.coming(block, &span);
        let mut there = [false; CHUNK];
        presence::present(ram, span.clone(), &self.pagemap, |found| {
            let found = found.start.max(span.start)..found.end.min(span.end);
            there[found.start - span.start..found.end - span.start].fill(true);
        })
        .map_err(|source| TakeError::Presence {
            block: ram.id().to_owned(),
            source,
        })?;
        for page in dirty.into_iter().flatten() {
            if there[page - span.start] || coming.binary_search(&page).is_ok() {
                due.content.push(page);
            } else if sent.contains(page) {
                due.gone.push(page);
            }
        }
        for run in due.content.chunk_by(|page, next| page + 1 == *next) {
            sent.insert_range(run[0]..run[0] + run.len());
        }
        Ok(())
    }

    /// Pages of a run that have content elsewhere and have not arrived, ascending.
    fn coming(&self, block: usize, run: &Range<usize>) -> Vec<usize> {
        let mut coming = Vec::new();
        if let Some(source) = &self.supply {
            source.to_come(block, run.clone(), &mut |part| coming.extend(part));
        }
        coming
    }
}

/// Pages cannot be sent.
#[derive(Debug)]
pub enum TakeError {
    /// The tracker's.
    Tracker(TrackerError),
    /// The host's.
    Presence {
        /// The block.
        block: String,
        /// Why.
        source: std::io::Error,
    },
}
