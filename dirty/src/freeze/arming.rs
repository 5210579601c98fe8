//! Protecting guest RAM while the guest runs.
//!
//! A protect call keeps every vCPU that faults in its range waiting until it returns, so a single
//! call over everything is a pause by another name. Here at most one small call is under way, its
//! size follows from how long the last one took, and there is a breath between two.
//!
//! A write to a page that is armed already releases it and some of its neighbours, which are armed
//! again in the next round. How many is a choice between two losses. A guest that writes everywhere
//! faults once for each release, so few large releases cost it less; but what is released must be
//! armed again, and drops out of KVM's page tables once more. While a long first pass goes on, a
//! whole granule is released. In a short one, and in all rounds after the first, 64 KiB are: the
//! guest can lose no more than the round lasts, each round is shorter than the one before, and
//! soon what is left costs the pause less than a third of a millisecond.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use paguro_faults::Use;
use paguro_sys::Raised;

use super::context::Context;
use super::picture::Picture;
use super::room;
use super::steps::Steps;
use crate::FreezeError;
use crate::sizes::{GRANULE, UNIT_PAGES, granules};

/// What the last look may cost, in the pause.
const REST_NS: u64 = 300_000;
/// Rounds after which the pause comes anyway.
const MOST_ROUNDS: u64 = 12;
/// A first pass over more than this is long: 512 MiB.
const LONG_PASS_PAGES: usize = 128 << 10;

/// How RAM comes to be protected, and what a write takes back of it meanwhile.
#[derive(Debug)]
pub(super) struct Arming {
    steps: Steps,
    /// Pages that a write releases.
    released_pages: AtomicUsize,
}

impl Default for Arming {
    fn default() -> Self {
        Self {
            steps: Steps::default(),
            released_pages: AtomicUsize::new(GRANULE),
        }
    }
}

impl Arming {
    /// Arms all that exists, then in rounds what was released or touched meanwhile, until little is
    /// left.
    ///
    /// # Errors
    ///
    /// What a step ran into, and [`FreezeError::Ended`] when `go_on` says no.
    pub(super) fn run(
        &self,
        context: &Context,
        go_on: &impl Fn() -> bool,
    ) -> Result<(), FreezeError> {
        if context.faults.is_none() {
            return Ok(());
        }
        paguro_sys::boost_timer();
        room::make(context, &self.steps, go_on)?;
        // Whoever faults in a range that is being protected waits for this thread.
        let _raised = Raised::begin();
        let mut before = u64::MAX;
        if context.ram.pages() <= LONG_PASS_PAGES {
            self.release_little();
        }
        loop {
            if !go_on() {
                return Err(FreezeError::Ended);
            }
            self.round(context, true)?;
            let round = context.stats.rounds.fetch_add(1, Ordering::Relaxed);
            // From now on a fault releases little.
            self.release_little();
            let (calls, pages) = released(&context.blocks);
            let cost = self.steps.forecast_ns(calls, pages);
            tracing::debug!(round, calls, pages, cost, "armed");
            if cost < REST_NS || round >= MOST_ROUNDS || (round > 4 && cost >= before) {
                return Ok(());
            }
            before = cost;
        }
    }

    /// The last look, in the pause.
    pub(super) fn last_look(&self, context: &Context) -> Result<(), FreezeError> {
        for (index, block) in context.blocks.iter().enumerate() {
            // The block may have grown since it was registered.
            if let Some(faults) = context.faults.as_ref().filter(|_| block.is_protected()) {
                faults.register(index, Use::WriteProtect)?;
            }
        }
        self.round(context, false)
    }

    /// Pages that a write releases now.
    pub(super) fn released_pages(&self) -> usize {
        self.released_pages.load(Ordering::Acquire)
    }

    fn release_little(&self) {
        self.released_pages.store(UNIT_PAGES, Ordering::Release);
    }

    /// One round: ranges that were touched since the last look, then what was released.
    pub(super) fn round(&self, context: &Context, running: bool) -> Result<(), FreezeError> {
        if context.faults.is_none() {
            return find_absent(context);
        }
        for (index, block) in context.blocks.iter().enumerate() {
            let pages = block.ram.pages();
            if !block.is_protected() {
                block.find_present(&context.pagemap, 0..pages)?;
                continue;
            }
            note_growth(context, index, pages)?;
            for granules in block.touched(&context.pagemap, pages)? {
                let range = granules.start * GRANULE..(granules.end * GRANULE).min(pages);
                // Marked first: a fault on what this arms may come at once.
                block.armed.insert_range(granules);
                self.steps.arm(context, index, range, running)?;
            }
            context
                .hooks
                .rearm(|| self.rearm(context, index, pages, running))?;
        }
        Ok(())
    }

    /// Arms again what was released of the first `pages` of a block.
    fn rearm(
        &self,
        context: &Context,
        index: usize,
        pages: usize,
        running: bool,
    ) -> Result<(), FreezeError> {
        let block = &context.blocks[index];
        if !running {
            // Whatever was given back is gone by now, and whoever did it is at rest.
            block.removed.take(0..block.ram.max_pages(), |run| {
                block.absent.insert_range(run.clone());
                block.released.insert_range(run);
            });
        }
        for run in take_released(block, pages) {
            if context.source.is_some() {
                self.rearm_while_filling(context, index, run, running)?;
            } else {
                self.steps.arm(context, index, run, running)?;
            }
        }
        Ok(())
    }

    /// While a pager fills, an absent page must not be taken for a present one: a copier that
    /// touches it waits for a reader, and may be that reader. But armed absent pages have markers,
    /// which look like swapped pages. So what is armed already (it was noted late, or released
    /// before its granule was armed) loses its markers before it is looked at; and what was released
    /// in a granule that is not armed yet (pages are placed protected) is armed with all of it.
    fn rearm_while_filling(
        &self,
        context: &Context,
        index: usize,
        run: Range<usize>,
        running: bool,
    ) -> Result<(), FreezeError> {
        let (Some(faults), block) = (&context.faults, &context.blocks[index]) else {
            return Ok(());
        };
        for (granule, part) in granules(run) {
            if block.armed.contains(granule) {
                faults.release(index, part.clone())?;
                self.steps.arm(context, index, part, running)?;
            }
        }
        Ok(())
    }
}

/// What is released now: in how many runs, and how many pages.
fn released(blocks: &[Picture]) -> (usize, usize) {
    let (mut calls, mut pages) = (0, 0);
    for block in blocks {
        block.released.runs(0..block.ram.max_pages(), |run| {
            calls += 1;
            pages += run.len();
        });
    }
    (calls, pages)
}

/// Takes what was released of the first `pages` of a block, in units of what can be protected.
fn take_released(block: &Picture, pages: usize) -> Vec<Range<usize>> {
    let mut released: Vec<Range<usize>> = Vec::new();
    block.released.take(0..pages, |run| {
        // A reader may be noting a range at this moment, word by word. What is seen of it
        // can be less than what can be protected: the rest comes in the next round.
        let run =
            run.start / block.unit * block.unit..run.end.next_multiple_of(block.unit).min(pages);
        match released.last_mut() {
            Some(last) if last.end >= run.start => last.end = run.end,
            _ => released.push(run),
        }
    });
    released
}

/// A block that has grown is registered anew, and what it grew by inside a granule that is
/// armed already counts as released: nobody would look at that granule again.
fn note_growth(context: &Context, index: usize, pages: usize) -> Result<(), FreezeError> {
    let (Some(faults), block) = (&context.faults, &context.blocks[index]) else {
        return Ok(());
    };
    let before = block.looked.swap(pages, Ordering::AcqRel);
    if before >= pages {
        return Ok(());
    }
    faults.register(index, Use::WriteProtect)?;
    let end = before.next_multiple_of(GRANULE).min(pages);
    if before < end && block.armed.contains(before / GRANULE) {
        block.released.insert_range(before..end);
    }
    // What shrank first and grew again may be another mapping by now.
    let whole = end.div_ceil(GRANULE)..pages.div_ceil(GRANULE);
    block.armed.remove_range(whole);
    Ok(())
}

/// Without protection there is one look, and nobody writes.
fn find_absent(context: &Context) -> Result<(), FreezeError> {
    (context.blocks.iter())
        .try_for_each(|block| block.find_present(&context.pagemap, 0..block.ram.pages()))
}
