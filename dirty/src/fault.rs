//! A write to a protected page.

use std::ops::Range;
use std::sync::atomic::Ordering;

use paguro_faults::{Faults, ProtectedHandler};
use paguro_ram::Located;

use crate::ahead::Ahead;
use crate::freeze::{ARMING, FROZEN};
use crate::moments::Moment;
use crate::sizes::{CHUNK, span};
use crate::{Copied, Freeze, FreezeError, UNIT_PAGES};

impl ProtectedHandler for Freeze {
    /// Called with the gate held, so the epoch cannot change from *arming* to *frozen* in here.
    fn protected(&self, faults: &Faults, at: Located) {
        let done = match self.epoch.load(Ordering::Acquire) {
            ARMING => self.write_while_arming(faults, at),
            FROZEN => self.write_while_frozen(at),
            _ => faults
                .release(at.block, self.unit_around(at))
                .map_err(FreezeError::from),
        };
        if let Err(error) = done {
            self.give_up(faults, at, error);
        }
    }

    fn removed(&self, block: usize, pages: Range<usize>) {
        let picture = &self.blocks[block];
        let pages = pages.start..pages.end.min(picture.ram.max_pages());
        match self.epoch.load(Ordering::Acquire) {
            // The protection is gone with the pages.
            ARMING => {
                picture.removed.insert_range(pages.clone());
                picture.released.insert_range(pages);
            }
            FROZEN if !picture.saved.contains_all(picture.inside(&pages)) => {
                self.fail(FreezeError::Discarded {
                    block: picture.ram.id().to_owned(),
                    first: pages.start,
                    end: pages.end,
                });
            }
            _ => {}
        }
    }

    /// What it had claimed is released with all the rest when the freeze is ended, which its failure
    /// brings about.
    fn broken(&self, faults: &Faults, at: Located) {
        self.give_up(faults, at, FreezeError::Bug);
    }
}

impl Freeze {
    /// The waiter comes first: it may run on, the picture is lost.
    fn give_up(&self, faults: &Faults, at: Located, error: FreezeError) {
        // Once: who cannot be released comes again and again.
        if !self.is_over() {
            tracing::error!(%error, "a fault on frozen memory could not be answered");
        }
        self.fail(error);
        if let Err(error) = faults.release(at.block, self.unit_around(at)) {
            faults.again(at, &error);
        }
    }

    /// Nothing needs to be copied yet. Released *before* it is noted: noted first, it could be
    /// taken, armed, and only then released, and nobody would know.
    fn write_while_arming(&self, faults: &Faults, at: Located) -> Result<(), FreezeError> {
        let block = &self.blocks[at.block];
        let size = self.arming_pages.load(Ordering::Acquire).max(block.unit);
        let pages = span(at.page, size, block.ram.max_pages());
        faults.release(at.block, pages.clone())?;
        self.moments.at(Moment::Released);
        block.hot.insert(at.page / CHUNK);
        block.released.insert_range(pages);
        self.stats().arming_faults.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn write_while_frozen(&self, at: Located) -> Result<(), FreezeError> {
        let block = &self.blocks[at.block];
        block.hot.insert(at.page / CHUNK);
        if self.hooks.needs_no_copy(block.saved.contains(at.page)) {
            // Safe already: an old event, or a page that was placed protected afterwards. Of its
            // unit the rest may be unsafe still, where a part of it is discarded.
            let whole = self.unit_around(at);
            let safe = if block.saved.contains_all(whole.clone()) {
                whole
            } else {
                self.faults_of().unit_of(at)
            };
            return Ok(self.faults_of().release(at.block, safe)?);
        }
        if at.page >= block.pages() {
            // Beyond the picture: armed before the block shrank, or grown since the pause.
            return Ok(self
                .faults_of()
                .release(at.block, self.faults_of().unit_of(at))?);
        }
        let pages = self.sizing.span(at.page, block.unit, block.pages());
        let units = pages.len().div_ceil(UNIT_PAGES);
        let Some(units) = self.buffer.take(units) else {
            // Over. Nothing has to be copied any more.
            return Ok(self.faults_of().release(at.block, self.unit_around(at))?);
        };
        let mut copied = Copied::new(at.block, units, &self.buffer);
        let mine = self.claim_for_fault(at, pages.clone());
        let mine = self.hooks.claimed(&pages, mine);
        if mine.is_empty() {
            // Somebody is at it and will release it, which wakes the writer; or has done so
            // between the event and now, and the release that came after the event woke him.
            return Ok(());
        }
        self.stats().faults.fetch_add(1, Ordering::Relaxed);
        let copied_pages =
            self.copy_and_release(at.block, &mine, &Ahead::default(), &mut copied)?;
        self.stats()
            .fault_pages
            .fetch_add(copied_pages as u64, Ordering::Relaxed);
        copied.shrink();
        // Settled only after it is queued: whoever finds nothing left and nothing queued is done.
        self.buffer.push(copied);
        self.moments.at(Moment::Queued);
        self.settle(mine.iter().map(Range::len).sum());
        Ok(())
    }

    /// Claims what is to be copied for a fault. Pages that have not arrived would have to be read
    /// from their source, one by one, while the writer waits, and one that cannot be read would cost
    /// the picture: they are left to the scan, but for the one that he wants, which is here.
    fn claim_for_fault(&self, at: Located, pages: Range<usize>) -> Vec<Range<usize>> {
        let block = &self.blocks[at.block];
        let mut mine: Vec<Range<usize>> = Vec::new();
        let mut add = |run: Range<usize>| match mine.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => mine.push(run),
        };
        let Some(source) = &self.source else {
            block.claim(pages, add);
            return mine;
        };
        let (has, arrived) = (source.has(at.block), source.arrived(at.block));
        let is_pending = |page: usize| has.contains(page) && !arrived.contains(page);
        for unit in pages.step_by(block.unit) {
            let unit = unit..(unit + block.unit).min(block.pages());
            if !unit.clone().any(is_pending) {
                block.claim(unit, &mut add);
            } else if unit.contains(&at.page) {
                // It is not mapped as one huge page, so less than it can be released; what comes
                // later comes protected. Of the huge-page pool a page claims its whole unit, which is
                // here, and only not counted yet.
                for page in unit.filter(|&page| page == at.page || !is_pending(page)) {
                    block.claim(page..page + 1, &mut add);
                }
            }
        }
        mine
    }

    /// The pages that can only be released together with the one that faulted.
    pub(crate) fn unit_around(&self, at: Located) -> Range<usize> {
        let block = &self.blocks[at.block];
        span(at.page, block.unit, block.ram.max_pages())
    }

    pub(crate) fn faults_of(&self) -> &Faults {
        self.faults
            .as_ref()
            .expect("protection faults come from a userfaultfd")
    }
}
