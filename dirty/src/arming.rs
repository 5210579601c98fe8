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
use std::time::Duration;

use paguro_faults::Use;
use paguro_ram::{Backing, PageKind, populate, presence};
use paguro_sys::Features;

use crate::freeze::{breathe, timed};
use crate::picture::Picture;
use crate::sizes::CHUNK;
use crate::{Freeze, FreezeError, HugePolicy, UNIT_PAGES};

/// What the last look may cost, in the pause.
const REST_NS: u64 = 300_000;
/// Rounds after which the pause comes anyway.
const MOST_ROUNDS: u64 = 12;
/// A call that takes longer is made smaller.
const LONG: Duration = Duration::from_micros(400);
/// A call that takes less may be made larger: half of what the guest may wait is a round trip to
/// all vCPUs, whatever the size.
const SHORT: Duration = Duration::from_micros(150);
/// Pages in the largest call.
const MOST_PAGES: usize = 64 * CHUNK;
/// Work after which there is a breath.
const BREATH_AFTER: Duration = Duration::from_micros(60);
/// A first pass over more than this is long: 512 MiB.
const LONG_PASS_PAGES: usize = 128 << 10;

/// How large a step is, and what a step costs.
#[derive(Debug)]
pub(crate) struct Pace {
    step: usize,
    calls: u64,
    pages: u64,
    spent_ns: u64,
    since_breath: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            step: CHUNK,
            calls: 0,
            pages: 0,
            spent_ns: 0,
            since_breath: Duration::ZERO,
        }
    }
}

impl Pace {
    /// Counts a call; whether it is time for a breath.
    fn count(&mut self, pages: usize, took: Duration) -> bool {
        self.calls += 1;
        self.pages += pages as u64;
        self.spent_ns += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if took > LONG {
            self.step = (self.step / 2).max(CHUNK);
        } else if took < SHORT && pages >= self.step {
            self.step = (self.step * 2).min(MOST_PAGES);
        }
        self.since_breath += took;
        let due = self.since_breath > BREATH_AFTER;
        if due {
            self.since_breath = Duration::ZERO;
        }
        due
    }

    /// What arming that many pages in that many calls will cost.
    fn forecast_ns(&self, calls: usize, pages: usize) -> u64 {
        let per_page = self.spent_ns / self.pages.max(1);
        calls as u64 * 5_000 + pages as u64 * per_page
    }
}

impl Freeze {
    /// Arms guest RAM while the guest runs: all that exists, then in rounds what was released or
    /// touched meanwhile, until little is left. `go_on` is asked between steps.
    ///
    /// # Errors
    ///
    /// Those of arming, and [`FreezeError::Ended`] when `go_on` says no; the freeze must be ended.
    pub fn arm(&self, go_on: impl Fn() -> bool) -> Result<(), FreezeError> {
        if self.faults.is_none() {
            return Ok(());
        }
        paguro_sys::boost_timer();
        self.make_room(&go_on)?;
        // Whoever faults in a range that is being protected waits for this thread.
        let _raised = paguro_sys::Raised::begin();
        let mut before = u64::MAX;
        if self.ram.pages() <= LONG_PASS_PAGES {
            self.arming_pages
                .store(UNIT_PAGES, std::sync::atomic::Ordering::Release);
        }
        loop {
            if !go_on() {
                return Err(FreezeError::Ended);
            }
            self.arm_again(true)?;
            let round = self
                .stats()
                .rounds
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            // From now on a fault releases little.
            self.arming_pages
                .store(UNIT_PAGES, std::sync::atomic::Ordering::Release);
            let (mut calls, mut pages) = (0, 0);
            for block in &self.blocks {
                block.released.runs(0..block.ram.max_pages(), |run| {
                    calls += 1;
                    pages += run.len();
                });
            }
            let cost = self.pace().forecast_ns(calls, pages);
            tracing::debug!(round, calls, pages, cost, "armed");
            if cost < REST_NS || round >= MOST_ROUNDS || (round > 4 && cost >= before) {
                return Ok(());
            }
            before = cost;
        }
    }

    /// One round: ranges that were touched since the last look, then what was released.
    pub(crate) fn arm_again(&self, running: bool) -> Result<(), FreezeError> {
        if self.faults.is_none() {
            return self.find_absent();
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let pages = block.ram.pages();
            if !block.is_protected() {
                self.find_present(block, 0..pages)?;
                continue;
            }
            self.note_growth(index, pages)?;
            for granules in self.touched(block, pages)? {
                let range = granules.start * CHUNK..(granules.end * CHUNK).min(pages);
                // Marked first: a fault on what this arms may come at once.
                block.armed.insert_range(granules);
                self.arm_range(index, range, running)?;
            }
            self.hooks
                .rearm(|| self.arm_released(index, pages, running))?;
        }
        Ok(())
    }

    /// Arms again what was released of the first `pages` of a block.
    fn arm_released(&self, index: usize, pages: usize, running: bool) -> Result<(), FreezeError> {
        let block = &self.blocks[index];
        if !running {
            // Whatever was given back is gone by now, and whoever did it is at rest.
            block.removed.take(0..block.ram.max_pages(), |run| {
                block.absent.insert_range(run.clone());
                block.released.insert_range(run);
            });
        }
        let mut released: Vec<Range<usize>> = Vec::new();
        block.released.take(0..pages, |run| {
            // A reader may be noting a range at this moment, word by word. What is seen of it
            // can be less than what can be protected: the rest comes in the next round.
            let run = run.start / block.unit * block.unit
                ..run.end.next_multiple_of(block.unit).min(pages);
            match released.last_mut() {
                Some(last) if last.end >= run.start => last.end = run.end,
                _ => released.push(run),
            }
        });
        for run in released {
            if self.source.is_some() {
                self.arm_released_while_filling(index, run, running)?;
            } else {
                self.arm_range(index, run, running)?;
            }
        }
        Ok(())
    }

    /// While a pager fills, an absent page must not be taken for a present one: a copier that
    /// touches it waits for a reader, and may be that reader. But armed absent pages have markers,
    /// which look like swapped pages. So what is armed already (it was noted late, or released
    /// before its granule was armed) loses its markers before it is looked at; and what was released
    /// in a granule that is not armed yet (pages are placed protected) is armed with all of it.
    fn arm_released_while_filling(
        &self,
        index: usize,
        run: Range<usize>,
        running: bool,
    ) -> Result<(), FreezeError> {
        let (Some(faults), block) = (&self.faults, &self.blocks[index]) else {
            return Ok(());
        };
        for granule in run.start / CHUNK..run.end.div_ceil(CHUNK) {
            let part = run.start.max(granule * CHUNK)..run.end.min((granule + 1) * CHUNK);
            if block.armed.contains(granule) {
                faults.release(index, part.clone())?;
                self.arm_range(index, part, running)?;
            }
        }
        Ok(())
    }

    /// A block that has grown is registered anew, and what it grew by inside a granule that is
    /// armed already counts as released: nobody would look at that granule again.
    fn note_growth(&self, index: usize, pages: usize) -> Result<(), FreezeError> {
        use std::sync::atomic::Ordering;
        let (Some(faults), block) = (&self.faults, &self.blocks[index]) else {
            return Ok(());
        };
        let before = block.looked.swap(pages, Ordering::AcqRel);
        if before >= pages {
            return Ok(());
        }
        faults.register(index, Use::WriteProtect)?;
        let end = before.next_multiple_of(CHUNK).min(pages);
        if before < end && block.armed.contains(before / CHUNK) {
            block.released.insert_range(before..end);
        }
        // What shrank first and grew again may be another mapping by now.
        let whole = end.div_ceil(CHUNK)..pages.div_ceil(CHUNK);
        block.armed.remove_range(whole);
        Ok(())
    }

    /// Runs of granules that are not armed and in which something exists.
    pub(crate) fn touched(
        &self,
        block: &Picture,
        pages: usize,
    ) -> Result<Vec<Range<usize>>, FreezeError> {
        let mut gaps = Vec::new();
        block
            .armed
            .gaps(0..pages.div_ceil(CHUNK), |gap| gaps.push(gap));
        let mut touched: Vec<Range<usize>> = Vec::new();
        for gap in gaps {
            let range = gap.start * CHUNK..(gap.end * CHUNK).min(pages);
            self.find(block, range, |run| {
                let run = run.start / CHUNK..run.end.div_ceil(CHUNK);
                match touched.last_mut() {
                    Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
                    _ => touched.push(run),
                }
            })?;
        }
        Ok(touched)
    }

    /// Arms a range in steps, and notes what of it exists.
    ///
    /// While the guest runs, a page that is absent at the first look may be written before it is
    /// protected. The second look, at the protected range, sees it: from then on nothing can
    /// appear without a fault. It may even have been *swapped out* between the two looks, so what
    /// looks swapped there and may be a marker counts as content ([`paguro_sys::presence`]).
    pub(crate) fn arm_range(
        &self,
        index: usize,
        range: Range<usize>,
        running: bool,
    ) -> Result<(), FreezeError> {
        let Some(faults) = &self.faults else {
            return Ok(());
        };
        let block = &self.blocks[index];
        let mut at = range.start;
        while at < range.end {
            // Steps end at multiples of their size, so that a huge page is never cut.
            let step = self.pace().step;
            let end = (at / CHUNK * CHUNK + step).min(range.end);
            let part = at..end;
            at = end;
            self.find_present(block, part.clone())?;
            self.note_huge(block, part.clone())?;
            if self.must_populate(block) {
                populate(
                    &block.ram,
                    part.clone(),
                    self.ram.discards(),
                    &self.options.host,
                )?;
            }
            let mut result = Ok(());
            let (mut pages, mut took) = (0, Duration::ZERO);
            self.ram
                .discards()
                .populated(&block.ram, part.clone(), &mut |part| {
                    let part = block.units_around(&part);
                    if result.is_ok() {
                        let (done, time) = timed(|| faults.protect(index, part.clone()));
                        result = done;
                        pages += part.len();
                        took += time;
                    }
                });
            result?;
            if running {
                let due = self.pace().count(pages, took);
                self.find_present(block, part)?;
                if due {
                    breathe();
                }
            } else {
                let rearmed = &self.stats().rearmed_pages;
                rearmed.fetch_add(pages as u64, std::sync::atomic::Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Anonymous memory on a kernel that ignores the protection of absent pages. Not where pages are
    /// placed: there they come protected, and reading an absent one would wait for whoever places
    /// it, who may be waiting for the pause to end.
    fn must_populate(&self, block: &Picture) -> bool {
        block.ram.backing() == Backing::Anonymous
            && !block.placed.load(std::sync::atomic::Ordering::Acquire)
            && !self.options.host.features.has(Features::WP_UNPOPULATED)
    }

    /// Notes which mappings of shared memory arming is about to split.
    fn note_huge(&self, block: &Picture, range: Range<usize>) -> Result<(), FreezeError> {
        let keeps = self.options.huge == HugePolicy::Keep && block.ram.page_kind() == PageKind::Thp;
        if !keeps || block.ram.backing() != Backing::Memfd {
            return Ok(());
        }
        presence::huge(&block.ram, range, &self.pagemap, |run| {
            block
                .split
                .insert_range(run.start.div_ceil(CHUNK)..run.end / CHUNK);
        })
        .map_err(|source| FreezeError::Presence {
            block: block.ram.id().to_owned(),
            source,
        })
    }

    /// Without protection there is one look, and nobody writes.
    fn find_absent(&self) -> Result<(), FreezeError> {
        for block in &self.blocks {
            self.find_present(block, 0..block.ram.pages())?;
        }
        Ok(())
    }

    /// Notes which pages of a range exist.
    fn find_present(&self, block: &Picture, range: Range<usize>) -> Result<(), FreezeError> {
        if block.absent.count_in(range.clone()) == 0 {
            return Ok(());
        }
        self.find(block, range, |run| block.absent.remove_range(run))
    }

    pub(crate) fn find(
        &self,
        block: &Picture,
        range: Range<usize>,
        found: impl FnMut(Range<usize>),
    ) -> Result<(), FreezeError> {
        presence::present(&block.ram, range, &self.pagemap, found).map_err(|source| {
            FreezeError::Presence {
                block: block.ram.id().to_owned(),
                source,
            }
        })
    }

    pub(crate) fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
