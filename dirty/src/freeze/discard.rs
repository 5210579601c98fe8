//! Giving pages back while a freeze is on.
//!
//! `MADV_DONTNEED` on protected anonymous memory drops the protection with the pages, and an event
//! about it (`UFFD_EVENT_REMOVE`) comes when it is too late to copy. So whoever gives guest RAM
//! back (a balloon, virtio-mem) does it through here from the start of arming on.

use std::ops::Range;

use parking_lot::{RwLock, RwLockWriteGuard};

use super::ahead::Ahead;
use super::context::Context;
use super::copying;
use super::life::Epoch;
use super::tally::Tally;
use crate::moments::Moment;
use crate::sizes::UNIT_PAGES;
use crate::{Copied, FreezeError};

/// Pages that are being given back.
#[derive(Debug, Default)]
pub(super) struct Discarding {
    /// Held (shared) while pages are given back in the arming epoch. Who gives back and comes here once more
    /// in the middle of it would wait for a pause, which waits for him.
    going_on: RwLock<()>,
}

impl Discarding {
    /// Waits until nobody gives pages back while arming, and keeps everybody from it.
    pub(super) fn stand_still(&self) -> RwLockWriteGuard<'_, ()> {
        self.going_on.write()
    }

    /// Gives pages back by calling `give_back`: while arming they count as released, while frozen they
    /// are copied first.
    ///
    /// # Errors
    ///
    /// What copying ran into; `give_back` was not called then, and the freeze has failed.
    pub(super) fn discard<T>(
        &self,
        context: &Context,
        tally: &Tally,
        index: usize,
        pages: Range<usize>,
        give_back: impl FnOnce() -> T,
    ) -> Result<T, FreezeError> {
        // A pause waits for this before its barrier: the epoch cannot become *frozen* between the
        // look and the note, and the readers still take the event that giving back waits for.
        if context.life.now() == Epoch::Arming {
            let _going_on = self.going_on.read();
            if context.life.now() == Epoch::Arming {
                let given = give_back();
                context.blocks[index].released.insert_range(pages);
                return Ok(given);
            }
        }
        if context.life.now() == Epoch::Frozen {
            copy_first(context, tally, index, pages)?;
        }
        Ok(give_back())
    }
}

fn copy_first(
    context: &Context,
    tally: &Tally,
    index: usize,
    pages: Range<usize>,
) -> Result<(), FreezeError> {
    let block = &context.blocks[index];
    let size = context.options.chunk_pages.max(block.unit);
    let first = pages.start / block.unit * block.unit;
    let end = pages.end.next_multiple_of(block.unit).min(block.pages());
    for start in (first..end).step_by(size) {
        let part = start..(start + size).min(end);
        let ahead = Ahead::read(context, index, part.clone())
            .map_err(|error| context.life.fail_with(error))?;
        let Some(units) = context.buffer.take(part.len().div_ceil(UNIT_PAGES)) else {
            // Over: there is no picture to be harmed.
            return Ok(());
        };
        let mut copied = Copied::new(index, units, &context.buffer);
        let mut mine = Vec::new();
        block.claim(part, |run| mine.push(run));
        if mine.is_empty() {
            continue;
        }
        copying::copy_and_release(context, index, &mine, &ahead, &mut copied)
            .map_err(|error| context.life.fail_with(error))?;
        copying::queue(context, tally, copied, &mine);
    }
    // What others have claimed is theirs to copy; it takes them a fraction of a millisecond.
    while !block.saved.contains_all(first..end) && context.life.now() == Epoch::Frozen {
        context.moments.at(Moment::AwaitsCopies);
        std::thread::yield_now();
    }
    Ok(())
}
