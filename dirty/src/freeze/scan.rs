//! The background scan: claims, copies and releases what nobody has written yet.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use paguro_sys::Unit;

use super::ahead::Ahead;
use super::context::Context;
use super::copying;
use super::picture::Picture;
use super::tally::Tally;
use crate::buffer::{Room, SCAN_UNITS};
use crate::sizes::{self, GRANULE};
use crate::{Copied, FreezeError};

/// The order of the scan, and how far it is.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Granules with the number of their block; made at the first look.
    order: OnceLock<Vec<(usize, usize)>>,
    cursor: AtomicUsize,
}

impl Scan {
    /// The next pages to be written: those that a fault has copied come first, then the scan goes
    /// on. `None` when the picture is complete. Called by as many threads as shall copy.
    ///
    /// # Errors
    ///
    /// What failed in the freeze, told to the first who asks; [`FreezeError::Ended`] to the others.
    pub(super) fn next(
        &self,
        context: &Context,
        tally: &Tally,
    ) -> Result<Option<Copied>, FreezeError> {
        let order = self.order.get_or_init(|| plan(context));
        let buffer = &context.buffer;
        loop {
            if self.cursor.load(Ordering::Acquire) >= order.len() {
                return match buffer.next_queued(|| tally.left_pages() > 0) {
                    Room::Queued(copied) => Ok(Some(copied)),
                    Room::Units(_) => Ok(None),
                    Room::Closed => Err(context.life.failure()),
                };
            }
            // Room first, then the claim: a claim that waits for room would keep a writer waiting.
            let units = match buffer.take_for_scan(SCAN_UNITS) {
                Room::Queued(copied) => return Ok(Some(copied)),
                Room::Units(units) => units,
                Room::Closed => return Err(context.life.failure()),
            };
            if let Some(copied) = self.copy_next(context, tally, order, units)? {
                return Ok(Some(copied));
            }
        }
    }

    /// Goes on until there is something to be written, which takes the room it needs of `units`.
    /// `None` if there is nothing more.
    fn copy_next(
        &self,
        context: &Context,
        tally: &Tally,
        order: &[(usize, usize)],
        units: Vec<Unit>,
    ) -> Result<Option<Copied>, FreezeError> {
        while let Some(&(index, granule)) = order.get(self.cursor.fetch_add(1, Ordering::AcqRel)) {
            let block = &context.blocks[index];
            let pages = sizes::granule(granule, block.pages());
            if is_nothing(context, index, &pages) {
                let zeros = settle_nothing(context, tally, index, pages)?;
                if zeros > 0 {
                    context.buffer.give_back(units);
                    return Ok(Some(Copied::zeros(index, zeros)));
                }
                continue;
            }
            let ahead = Ahead::read(context, index, pages.clone())
                .map_err(|error| context.life.fail_with(error))?;
            let mut mine = Vec::new();
            block.claim(pages.clone(), |run| mine.push(run));
            let mine = context.hooks.claimed(&pages, mine);
            if mine.is_empty() {
                continue;
            }
            let mut copied = Copied::new(index, units, &context.buffer);
            copying::copy_and_release(context, index, &mine, &ahead, &mut copied)
                .map_err(|error| context.life.fail_with(error))?;
            copied.shrink();
            copying::settle(context, tally, &mine);
            return Ok(Some(copied));
        }
        context.buffer.give_back(units);
        Ok(None)
    }
}

/// The scan begins with what was written last: it will be written again soon, and what is
/// saved before that costs no fault.
fn plan(context: &Context) -> Vec<(usize, usize)> {
    // As it is now: a granule that becomes hot between the two passes would be in neither.
    let hot_now: Vec<_> = context.blocks.iter().map(Picture::written).collect();
    let mut order = Vec::new();
    for hot in [true, false] {
        for (index, (block, set)) in context.blocks.iter().zip(&hot_now).enumerate() {
            let granules = 0..block.pages().div_ceil(GRANULE);
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
fn is_nothing(context: &Context, index: usize, pages: &Range<usize>) -> bool {
    let block = &context.blocks[index];
    !block.armed.contains(pages.start / GRANULE)
        && block.absent.contains_all(pages.clone())
        && context
            .source
            .as_ref()
            .is_none_or(|source| source.has(index).count_in(pages.clone()) == 0)
}

/// Saves a granule of which nothing exists: how many zeros are the caller's to write.
fn settle_nothing(
    context: &Context,
    tally: &Tally,
    index: usize,
    pages: Range<usize>,
) -> Result<usize, FreezeError> {
    let block = &context.blocks[index];
    let mut zeros = 0;
    block.claim(pages.clone(), |run| zeros += run.len());
    block.saved.insert_range(pages.clone());
    // Zeros that a pager placed here since are protected, and somebody may have
    // come to write them between the claim and now.
    if context.source.is_some() {
        context
            .let_go(index, pages)
            .map_err(|error| context.life.fail_with(error))?;
    }
    tally.settle(zeros, &context.buffer);
    Ok(zeros)
}
