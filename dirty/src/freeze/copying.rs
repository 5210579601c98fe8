//! Copies of claimed pages, made before anybody may write to them.

use std::ops::Range;
use std::sync::atomic::Ordering;

use paguro_ram::Located;
use paguro_sys::page_size;

use super::ahead::Ahead;
use super::check;
use super::context::Context;
use super::picture::Picture;
use super::tally::Tally;
use crate::moments::Moment;
use crate::{Copied, FreezeError};

/// Copies pages that the caller has claimed, then takes their protection away. The number of
/// pages with content.
pub(super) fn copy_and_release(
    context: &Context,
    index: usize,
    mine: &[Range<usize>],
    ahead: &Ahead,
    copied: &mut Copied,
) -> Result<usize, FreezeError> {
    let block = &context.blocks[index];
    context.moments.at(Moment::Claimed);
    context.hooks.before_copy(|| {
        mine.iter()
            .try_for_each(|run| context.let_go(index, run.clone()))
    })?;
    context.moments.at(Moment::Copies);
    let mut result = Ok(());
    for run in mine {
        result = result.and_then(|()| copy(context, index, run.clone(), ahead, copied));
    }
    for run in mine {
        // After the copy: what was still protected then had not been written.
        result = result.and_then(|()| check::check(context, index, run, copied));
    }
    for run in mine {
        block.saved.insert_range(run.clone());
        // Whatever happened: who waits for these pages must not wait for ever.
        let released = context.let_go(index, run.clone());
        result = result.and(released);
    }
    result.map(|()| copied.pages().len())
}

/// Hands a copy to the scan, ahead of what it copies itself. Settled only after it is queued: whoever
/// finds nothing left and nothing queued is done.
pub(super) fn queue(context: &Context, tally: &Tally, mut copied: Copied, mine: &[Range<usize>]) {
    copied.shrink();
    context.buffer.push(copied);
    context.moments.at(Moment::Queued);
    settle(context, tally, mine);
}

/// What the caller had claimed is on its way.
pub(super) fn settle(context: &Context, tally: &Tally, mine: &[Range<usize>]) {
    tally.settle(mine.iter().map(Range::len).sum(), &context.buffer);
}

fn copy(
    context: &Context,
    index: usize,
    run: Range<usize>,
    ahead: &Ahead,
    copied: &mut Copied,
) -> Result<(), FreezeError> {
    let block = &context.blocks[index];
    let page_bytes = page_size();
    let source = context.source.as_deref();
    for page in run {
        let elsewhere = source.is_some_and(|source| source.has(index).contains(page));
        if let Some(source) = source.filter(|source| elsewhere && source.is_to_come(index, page)) {
            match ahead.get(page) {
                Some(content) => copied.next_place().copy_from_slice(content),
                // Once: somebody may be waiting for what the caller has claimed.
                None => source
                    .read(index, page, copied.next_place(), &mut || false)
                    .map_err(|source| block.unarrived(page, source))?,
            }
            copied.keep(page);
        } else if block.absent.contains(page)
            && !(elsewhere && has_come_since(context, block, page)?)
        {
            copied.add_zeros(1);
        } else {
            if source.is_some() {
                make_sure(context, index, page)?;
            }
            let mapping = block.ram.mapping();
            if mapping.is_zero(page * page_bytes, page_bytes) || context.hooks.leaves_out(page) {
                copied.add_zeros(1);
                continue;
            }
            mapping.copy_out(page * page_bytes, copied.next_place());
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
fn has_come_since(context: &Context, block: &Picture, page: usize) -> Result<bool, FreezeError> {
    let is_frozen = context.faults.is_some() && block.is_protected();
    if is_frozen && !block.placed.load(Ordering::Acquire) {
        return Ok(false);
    }
    let mut present = false;
    block.find(&context.pagemap, page..page + 1, |_| present = true)?;
    Ok(present)
}

/// While RAM is filled, a page that is read must be there, for the same reason. Where a marker
/// of an absent page looks like a page that was swapped out, zeros are placed on whatever may be
/// one: what is there already stays as it is, and what is not is zero, as it did come once or
/// nobody has anything for it. On that page alone: its neighbours may be still to come.
fn make_sure(context: &Context, index: usize, page: usize) -> Result<(), FreezeError> {
    if let Some(faults) = &context.faults
        && !context.pagemap.tells_markers()
        && context.blocks[index].placed.load(Ordering::Acquire)
    {
        faults.place_zeros(index, faults.unit_of(Located { block: index, page }))?;
    }
    Ok(())
}
