//! A write to a protected page.

use std::ops::Range;
use std::sync::atomic::Ordering;

use paguro_faults::Faults;
use paguro_ram::Located;

use super::ahead::Ahead;
use super::arming::Arming;
use super::context::Context;
use super::copying;
use super::life::Epoch;
use super::sizing::Sizing;
use super::tally::Tally;
use crate::moments::Moment;
use crate::sizes::{GRANULE, UNIT_PAGES, span};
use crate::{Copied, FreezeError};

/// How writes are answered. All of this is called by readers of faults.
#[derive(Debug)]
pub(super) struct Writes {
    sizing: Sizing,
}

impl Writes {
    /// For chunks of at most so many pages.
    pub(super) fn new(most: usize) -> Self {
        Self {
            sizing: Sizing::new(most),
        }
    }

    /// Somebody waits to write a page, and is let go. With the gate held, so the epoch cannot change
    /// from *arming* to *frozen* in here.
    pub(super) fn answer(
        &self,
        context: &Context,
        arming: &Arming,
        tally: &Tally,
        faults: &Faults,
        at: Located,
    ) {
        let done = match context.life.now() {
            Epoch::Arming => while_arming(context, arming, faults, at),
            Epoch::Frozen => self.while_frozen(context, tally, faults, at),
            Epoch::Over => release_unit(context, faults, at),
        };
        if let Err(error) = done {
            give_up(context, faults, at, error);
        }
    }

    fn while_frozen(
        &self,
        context: &Context,
        tally: &Tally,
        faults: &Faults,
        at: Located,
    ) -> Result<(), FreezeError> {
        let block = &context.blocks[at.block];
        block.hot.insert(at.page / GRANULE);
        if context.hooks.needs_no_copy(block.saved.contains(at.page)) {
            // Safe already: an old event, or a page that was placed protected afterwards. Of its
            // unit the rest may be unsafe still, where a part of it is discarded.
            let whole = block.unit_around(at.page);
            let safe = if block.saved.contains_all(whole.clone()) {
                whole
            } else {
                faults.unit_of(at)
            };
            return Ok(faults.release(at.block, safe)?);
        }
        if at.page >= block.pages() {
            // Beyond the picture: armed before the block shrank, or grown since the pause.
            return Ok(faults.release(at.block, faults.unit_of(at))?);
        }
        let pages = self.sizing.span(at.page, block.unit, block.pages());
        let units = pages.len().div_ceil(UNIT_PAGES);
        let Some(units) = context.buffer.take(units) else {
            // Over. Nothing has to be copied any more.
            return release_unit(context, faults, at);
        };
        let mut copied = Copied::new(at.block, units, &context.buffer);
        let mine = claim(context, at, pages.clone());
        let mine = context.hooks.claimed(&pages, mine);
        if mine.is_empty() {
            // Somebody is at it and will release it, which wakes the writer; or has done so
            // between the event and now, and the release that came after the event woke him.
            return Ok(());
        }
        let stats = &context.stats;
        stats.faults.fetch_add(1, Ordering::Relaxed);
        let ahead = Ahead::default();
        let content = copying::copy_and_release(context, at.block, &mine, &ahead, &mut copied)?;
        let content = content as u64;
        stats.fault_pages.fetch_add(content, Ordering::Relaxed);
        copying::queue(context, tally, copied, &mine);
        Ok(())
    }
}

/// Nothing needs to be copied yet. Released *before* it is noted: noted first, it could be
/// taken, armed, and only then released, and nobody would know.
fn while_arming(
    context: &Context,
    arming: &Arming,
    faults: &Faults,
    at: Located,
) -> Result<(), FreezeError> {
    let block = &context.blocks[at.block];
    let size = arming.released_pages().max(block.unit);
    let pages = span(at.page, size, block.ram.max_pages());
    faults.release(at.block, pages.clone())?;
    context.moments.at(Moment::Released);
    block.hot.insert(at.page / GRANULE);
    block.released.insert_range(pages);
    let arming_faults = &context.stats.arming_faults;
    arming_faults.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Claims what is to be copied for a fault. Pages that have not arrived would have to be read
/// from their source, one by one, while the writer waits, and one that cannot be read would cost
/// the picture: they are left to the scan, but for the one that he wants, which is here.
fn claim(context: &Context, at: Located, pages: Range<usize>) -> Vec<Range<usize>> {
    let block = &context.blocks[at.block];
    let mut mine: Vec<Range<usize>> = Vec::new();
    let mut add = |run: Range<usize>| match mine.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => mine.push(run),
    };
    let Some(source) = &context.source else {
        block.claim(pages, add);
        return mine;
    };
    let is_pending = |page: usize| source.is_to_come(at.block, page);
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

fn release_unit(context: &Context, faults: &Faults, at: Located) -> Result<(), FreezeError> {
    let unit = context.blocks[at.block].unit_around(at.page);
    Ok(faults.release(at.block, unit)?)
}

/// A fault cannot be answered as it should. The waiter comes first: it may run on, the picture is
/// lost.
pub(super) fn give_up(context: &Context, faults: &Faults, at: Located, error: FreezeError) {
    // Once: who cannot be released comes again and again.
    if !context.life.is_over() {
        tracing::error!(%error, "a fault on frozen memory could not be answered");
    }
    context.life.fail(error);
    let unit = context.blocks[at.block].unit_around(at.page);
    if let Err(error) = faults.release(at.block, unit) {
        faults.again(at, &error);
    }
}

/// Somebody else gave pages of a block back: their content is gone already.
pub(super) fn note_removed(context: &Context, index: usize, pages: Range<usize>) {
    let block = &context.blocks[index];
    let pages = pages.start..pages.end.min(block.ram.max_pages());
    match context.life.now() {
        // The protection is gone with the pages.
        Epoch::Arming => {
            block.removed.insert_range(pages.clone());
            block.released.insert_range(pages);
        }
        Epoch::Frozen if !block.saved.contains_all(block.inside(&pages)) => {
            context.life.fail(FreezeError::Discarded {
                block: block.ram.id().to_owned(),
                first: pages.start,
                end: pages.end,
            });
        }
        _ => {}
    }
}
