//! Protecting a range, in steps.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use paguro_faults::Faults;
use paguro_ram::{Backing, PageKind, populate, presence};
use paguro_sys::Features;
use parking_lot::Mutex;

use super::context::Context;
use super::pace::{Pace, breathe, timed};
use super::picture::Picture;
use crate::sizes::GRANULE;
use crate::{FreezeError, HugePolicy};

/// Steps of which the next is as large as the last ones allow.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pace: Mutex<Pace>,
}

impl Steps {
    /// Arms a range in steps, and notes what of it exists.
    ///
    /// While the guest runs, a page that is absent at the first look may be written before it is
    /// protected. The second look, at the protected range, sees it: from then on nothing can
    /// appear without a fault. It may even have been *swapped out* between the two looks, so what
    /// looks swapped there and may be a marker counts as content ([`paguro_sys::presence`]).
    pub(super) fn arm(
        &self,
        context: &Context,
        index: usize,
        range: Range<usize>,
        running: bool,
    ) -> Result<(), FreezeError> {
        let Some(faults) = &context.faults else {
            return Ok(());
        };
        let block = &context.blocks[index];
        let mut at = range.start;
        while at < range.end {
            // Steps end at multiples of their size, so that a huge page is never cut.
            let step = self.pace.lock().step();
            let end = (at / GRANULE * GRANULE + step).min(range.end);
            let part = at..end;
            at = end;
            block.find_present(&context.pagemap, part.clone())?;
            note_huge(context, block, part.clone())?;
            if must_populate(context, block) {
                let discards = context.ram.discards();
                populate(&block.ram, part.clone(), discards, &context.options.host)?;
            }
            let (pages, took) = protect(context, faults, index, part.clone())?;
            if running {
                let due = self.pace.lock().count(pages, took);
                block.find_present(&context.pagemap, part)?;
                if due {
                    breathe();
                }
            } else {
                let rearmed = &context.stats.rearmed_pages;
                rearmed.fetch_add(pages as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// What arming that many pages in that many calls will cost.
    pub(super) fn forecast_ns(&self, calls: usize, pages: usize) -> u64 {
        self.pace.lock().forecast_ns(calls, pages)
    }
}

/// One step, of what is not discarded: how many pages, and how long it took.
fn protect(
    context: &Context,
    faults: &Faults,
    index: usize,
    part: Range<usize>,
) -> Result<(usize, Duration), FreezeError> {
    let block = &context.blocks[index];
    let mut result = Ok(());
    let (mut pages, mut took) = (0, Duration::ZERO);
    context
        .ram
        .discards()
        .populated(&block.ram, part, &mut |part| {
            let part = block.units_around(&part);
            if result.is_ok() {
                let (done, time) = timed(|| faults.protect(index, part.clone()));
                result = done;
                pages += part.len();
                took += time;
            }
        });
    result?;
    Ok((pages, took))
}

/// Anonymous memory on a kernel that ignores the protection of absent pages. Not where pages are
/// placed: there they come protected, and reading an absent one would wait for whoever places
/// it, who may be waiting for the pause to end.
fn must_populate(context: &Context, block: &Picture) -> bool {
    block.ram.backing() == Backing::Anonymous
        && !block.placed.load(Ordering::Acquire)
        && !context
            .options
            .host
            .features
            .contains(Features::WP_UNPOPULATED)
}

/// Notes which mappings of shared memory arming is about to split.
fn note_huge(context: &Context, block: &Picture, range: Range<usize>) -> Result<(), FreezeError> {
    let keeps = context.options.huge == HugePolicy::Keep && block.ram.page_kind() == PageKind::Thp;
    if !keeps || block.ram.backing() != Backing::Memfd {
        return Ok(());
    }
    presence::huge(&block.ram, range, &context.pagemap, |run| {
        block
            .split
            .insert_range(run.start.div_ceil(GRANULE)..run.end / GRANULE);
    })
    .map_err(|source| block.presence_error(source))
}
