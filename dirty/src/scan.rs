//! The background scan: claims, copies and releases what nobody has written yet.

use std::ops::Range;
use std::sync::atomic::Ordering;

use paguro_ram::Located;
use paguro_sys::page_size;

use crate::ahead::Ahead;
use crate::buffer::{Room, SCAN_UNITS};
use crate::moments::Moment;
use crate::picture::Picture;
use crate::sizes::{self, CHUNK};
use crate::{Copied, Freeze, FreezeError};

impl Freeze {
    /// The next pages to be written: those that a fault has copied come first, then the scan goes
    /// on. `None` when the picture is complete. Called by as many threads as shall copy; waits
    /// while the page buffer is full, or while a fault is still copying the last pages.
    ///
    /// # Errors
    ///
    /// What failed in the freeze, told to the first who asks; [`FreezeError::Ended`] to the others.
    pub fn next(&self) -> Result<Option<Copied>, FreezeError> {
        let order = self.order.get_or_init(|| self.plan());
        loop {
            if self.cursor.load(Ordering::Acquire) >= order.len() {
                return match self.buffer.next_queued(|| self.left_pages() > 0) {
                    Room::Queued(copied) => Ok(Some(copied)),
                    Room::Units(_) => Ok(None),
                    Room::Closed => Err(self.failure()),
                };
            }
            // Room first, then the claim: a claim that waits for room would keep a writer waiting.
            let units = match self.buffer.take_for_scan(SCAN_UNITS) {
                Room::Queued(copied) => return Ok(Some(copied)),
                Room::Units(units) => units,
                Room::Closed => return Err(self.failure()),
            };
            let mut units = Some(units);
            while let Some(&(index, granule)) =
                order.get(self.cursor.fetch_add(1, Ordering::AcqRel))
            {
                let block = &self.blocks[index];
                let pages = sizes::granule(granule, block.pages());
                if self.is_nothing(index, block, &pages) {
                    let mut zeros = 0;
                    block.claim(pages.clone(), |run| zeros += run.len());
                    block.saved.insert_range(pages.clone());
                    // Zeros that a pager placed here since are protected, and somebody may have
                    // come to write them between the claim and now.
                    if self.source.is_some()
                        && let Err(error) = self.let_go(index, pages)
                    {
                        self.fail(error);
                        return Err(self.failure());
                    }
                    self.settle(zeros);
                    if zeros > 0 {
                        self.buffer.give_back(units.take().into_iter().flatten());
                        return Ok(Some(Copied::zeros(index, zeros)));
                    }
                    continue;
                }
                let ahead = match self.read_ahead(index, pages.clone()) {
                    Ok(ahead) => ahead,
                    Err(error) => {
                        self.fail(error);
                        return Err(self.failure());
                    }
                };
                let mut mine = Vec::new();
                block.claim(pages.clone(), |run| mine.push(run));
                let mine = self.hooks.claimed(&pages, mine);
                if mine.is_empty() {
                    continue;
                }
                let units = units.take().unwrap_or_default();
                let mut copied = Copied::new(index, units, &self.buffer);
                let result = self.copy_and_release(index, &mine, &ahead, &mut copied);
                if let Err(error) = result {
                    self.fail(error);
                    return Err(self.failure());
                }
                copied.shrink();
                self.settle(mine.iter().map(Range::len).sum());
                return Ok(Some(copied));
            }
            self.buffer.give_back(units.take().into_iter().flatten());
        }
    }

    /// The scan begins with what was written last: it will be written again soon, and what is
    /// saved before that costs no fault.
    fn plan(&self) -> Vec<(usize, usize)> {
        // As it is now: a granule that becomes hot between the two passes would be in neither.
        let hot_now = self.written();
        let mut order = Vec::new();
        for hot in [true, false] {
            for (index, (block, set)) in self.blocks.iter().zip(&hot_now).enumerate() {
                let granules = 0..block.pages().div_ceil(CHUNK);
                let mut add = |run: Range<usize>| order.extend(run.map(|granule| (index, granule)));
                if hot {
                    set.runs(granules, &mut add);
                } else {
                    set.gaps(granules, &mut add);
                }
            }
        }
        order
    }

    /// Whether nothing of a granule exists, here or at the source. Nothing of it is protected then.
    fn is_nothing(&self, index: usize, block: &Picture, pages: &Range<usize>) -> bool {
        !block.armed.contains(pages.start / CHUNK)
            && block.absent.contains_all(pages.clone())
            && self
                .source
                .as_ref()
                .is_none_or(|source| source.has(index).count_in(pages.clone()) == 0)
    }

    /// Copies pages that the caller has claimed, then takes their protection away. The number of
    /// pages with content.
    pub(crate) fn copy_and_release(
        &self,
        index: usize,
        mine: &[Range<usize>],
        ahead: &Ahead,
        copied: &mut Copied,
    ) -> Result<usize, FreezeError> {
        let block = &self.blocks[index];
        self.moments.at(Moment::Claimed);
        self.hooks.before_copy(|| {
            mine.iter()
                .try_for_each(|run| self.let_go(index, run.clone()))
        })?;
        self.moments.at(Moment::Copies);
        let mut result = Ok(());
        for run in mine {
            result = result.and_then(|()| self.copy(index, run.clone(), ahead, copied));
        }
        for run in mine {
            // After the copy: what was still protected then had not been written.
            result = result.and_then(|()| self.check(index, run, copied));
        }
        for run in mine {
            block.saved.insert_range(run.clone());
            // Whatever happened: who waits for these pages must not wait for ever.
            let released = self.let_go(index, run.clone());
            result = result.and(released);
        }
        result.map(|()| copied.pages().len())
    }

    fn copy(
        &self,
        index: usize,
        run: Range<usize>,
        ahead: &Ahead,
        copied: &mut Copied,
    ) -> Result<(), FreezeError> {
        let block = &self.blocks[index];
        let page_bytes = page_size();
        let source = self.source.as_deref();
        for page in run {
            let elsewhere = source.is_some_and(|source| source.has(index).contains(page));
            if let Some(source) =
                source.filter(|source| elsewhere && !source.arrived(index).contains(page))
            {
                match ahead.get(page) {
                    Some(content) => copied.next_place().copy_from_slice(content),
                    // Once: somebody may be waiting for what the caller has claimed.
                    None => source
                        .read(index, page, copied.next_place(), &mut || false)
                        .map_err(|source| self.unarrived(index, page, source))?,
                }
                copied.keep(page);
            } else if block.absent.contains(page)
                && !(elsewhere && self.has_come_since(block, page)?)
            {
                copied.add_zeros(1);
            } else {
                if source.is_some() {
                    self.make_sure(index, page)?;
                }
                if block.ram.mapping().is_zero(page * page_bytes, page_bytes)
                    || self.hooks.leaves_out(page)
                {
                    copied.add_zeros(1);
                    continue;
                }
                block
                    .ram
                    .mapping()
                    .copy_out(page * page_bytes, copied.next_place());
                copied.keep(page);
            }
        }
        Ok(())
    }

    /// A page that was absent at the last look and has arrived: it came since, or it came before and
    /// was given back. Asked rather than touched: touching it might wait for the very readers
    /// who wait for the room that the caller holds.
    ///
    /// Of what is frozen it can have come since only where pages are placed, and then it came
    /// protected. Elsewhere (the pager has all and takes its registration away, block by block) it was
    /// zero in the pause, and what is there now may have been written since, unseen where nothing is
    /// armed.
    fn has_come_since(&self, block: &Picture, page: usize) -> Result<bool, FreezeError> {
        let is_frozen = self.faults.is_some() && block.is_protected();
        if is_frozen && !block.placed.load(Ordering::Acquire) {
            return Ok(false);
        }
        let mut present = false;
        self.find(block, page..page + 1, |_| present = true)?;
        Ok(present)
    }

    /// While RAM is filled, a page that is read must be there, for the same reason. Where a marker
    /// of an absent page looks like a page that was swapped out, zeros are placed on whatever may be
    /// one: what is there already stays as it is, and what is not is zero, as it did come once or
    /// nobody has anything for it. On that page alone: its neighbours may be still to come.
    fn make_sure(&self, index: usize, page: usize) -> Result<(), FreezeError> {
        if let Some(faults) = &self.faults
            && !self.pagemap.tells_markers()
            && self.blocks[index].placed.load(Ordering::Acquire)
        {
            faults.place_zeros(index, faults.unit_of(Located { block: index, page }))?;
        }
        Ok(())
    }

    pub(crate) fn settle(&self, pages: usize) {
        let mut left = self.left.load(Ordering::Acquire);
        while let Err(now) = self.left.compare_exchange_weak(
            left,
            left.saturating_sub(pages),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            left = now;
        }
        if left <= pages {
            self.buffer.nudge();
        }
    }
}
