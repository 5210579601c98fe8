//! The walkers: one for each level, and the pass that drives them in chunks.
//!
//! A walker steps by what one of its entries maps, whatever the start of the range, so an absent entry
//! of 512 GiB costs one load. Addresses have at most 48 bits: one past the last byte of the largest
//! input size still fits, and no step wraps.
//!
//! A [`Visitor`] says what to do with blocks, pages and the way back up. Exchanging a table for a block
//! or a block for a table, dropping the contiguous hint and giving tables back all need an
//! invalidation between two steps; visitors put such changes into a [`Batch`](crate::batch::Batch), and
//! up to 32 of them share one invalidation. A walk ends early by naming the address to resume at:
//! because the batch is full, because tables ran out, or because somebody wants the lock. Whatever the
//! reason, it then starts again from the root, as the tables walked through may be gone.
//!
//! Whoever waits for the lock gets it after the chunk at hand, unless giving it up costs an invalidation:
//! each makes all vCPUs walk their tables anew, which is worse than some waiting. Then the batch is
//! filled first, for as many chunks as it has places.

use crate::batch::Work;
use crate::cpu::Cpu;
use crate::descriptor::{index, is_table, is_valid, span};
use crate::error::TableError;
use crate::stage2::Stage2;
use crate::sync::{AtomicU64, Ordering};
use crate::table::{Table, TableMemory};
use core::ops::{ControlFlow, Deref, Range};

/// `Break` carries the address to resume at.
pub(crate) type Flow = ControlFlow<u64>;

/// An entry, where it stands, and what it maps.
#[derive(Clone, Copy)]
pub(crate) struct Place<'t> {
    pub(crate) table: &'t Table,
    pub(crate) slot: usize,
    pub(crate) level: u8,
    /// As it was read.
    pub(crate) entry: u64,
    /// First address that it maps.
    pub(crate) start: u64,
    /// Address after the last one that it maps.
    pub(crate) end: u64,
}

impl Place<'_> {
    pub(crate) fn slot(&self) -> &AtomicU64 {
        &self.table.entries()[self.slot]
    }

    pub(crate) fn is_within(&self, range: &Range<u64>) -> bool {
        range.start <= self.start && self.end <= range.end
    }
}

/// Neighbouring entries of one level 3 table.
pub(crate) struct Pages<'t> {
    pub(crate) table: &'t Table,
    pub(crate) slots: Range<usize>,
    /// Address that the first of them maps.
    pub(crate) start: u64,
}

pub(crate) trait Visitor<B> {
    /// A valid block.
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow;

    /// Pages, absent ones among them.
    fn pages<M: TableMemory, C: Cpu>(
        &mut self,
        pages: &Pages<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow;

    /// The entry of a table, after what is below it.
    fn leave<M: TableMemory, C: Cpu>(
        &mut self,
        _: &Place<'_>,
        _: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        Flow::Continue(())
    }
}

macro_rules! walker {
    ($name:ident, $level:literal, below: $below:ident) => {
        fn $name<V: Visitor<B>>(
            &self,
            table: &Table,
            range: Range<u64>,
            visitor: &mut V,
            work: &mut Work<'_, '_, M, C, B>,
        ) -> Flow {
            let mut ipa = range.start;
            while ipa < range.end {
                let start = ipa & !(span($level) - 1);
                let end = start + span($level);
                let slot = index(ipa, $level);
                let entry = table.entries()[slot].load(Ordering::Acquire);
                let place = Place {
                    table,
                    slot,
                    level: $level,
                    entry,
                    start,
                    end,
                };
                if is_table(entry, $level) {
                    let below =
                        self.$below(self.below(entry), ipa..end.min(range.end), visitor, work);
                    if let Flow::Break(at) = below
                        && at < end.min(range.end)
                    {
                        return below;
                    }
                    visitor.leave(&place, work)?;
                    // Ended at the very end of what is below: this entry is done, the walk is not.
                    if below.is_break() || ($level == 2 && work.wants_yield()) {
                        return Flow::Break(end);
                    }
                } else if is_valid(entry) {
                    visitor.block(&place, work)?;
                    if work.wants_yield() {
                        return Flow::Break(end);
                    }
                }
                ipa = end;
            }
            Flow::Continue(())
        }
    };
}

impl<M: TableMemory, C: Cpu, B: Deref<Target = [AtomicU64]>> Stage2<M, C, B> {
    walker!(level0, 0, below: level1);
    walker!(level1, 1, below: level2);
    walker!(level2, 2, below: level3);

    fn level3<V: Visitor<B>>(
        &self,
        table: &Table,
        range: Range<u64>,
        visitor: &mut V,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        let slots = index(range.start, 3)..index(range.end - 1, 3) + 1;
        visitor.pages(
            &Pages {
                table,
                slots,
                start: range.start,
            },
            work,
        )
    }

    fn walk<V: Visitor<B>>(
        &self,
        range: Range<u64>,
        visitor: &mut V,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        let mut ipa = range.start;
        while ipa < range.end {
            let root_span = self.layout.root_span();
            let end = ((ipa | (root_span - 1)) + 1).min(range.end);
            let root = self.root(ipa);
            match self.layout.start_level {
                0 => self.level0(root, ipa..end, visitor, work)?,
                1 => self.level1(root, ipa..end, visitor, work)?,
                _ => self.level2(root, ipa..end, visitor, work)?,
            }
            ipa = end;
        }
        Flow::Continue(())
    }

    /// Visits `walked`, a part of `bounds`, giving the lock up wherever somebody wants it. What a
    /// visitor may do to an entry that reaches out of a range is decided by `bounds`. What it left in
    /// the TLBs is noted in the report: the caller invalidates once, when all its passes are done.
    ///
    /// Fails only if the visitor needs tables and none can be had; all that was begun is finished then.
    pub(crate) fn pass<V: Visitor<B>>(
        &self,
        bounds: Range<u64>,
        walked: Range<u64>,
        visitor: &mut V,
        report: &mut PassReport,
        tables_wanted: usize,
    ) -> Result<(), TableError> {
        let mut cache = self.table_cache();
        let mut wanted = tables_wanted;
        let mut starved = false;
        let mut at = walked.start;
        while at < walked.end {
            // A cache that cannot be filled is no failure yet: there may be nothing left to split.
            let filled = cache.fill(wanted);
            if starved && cache.is_empty() {
                return filled;
            }
            let guard = self.exclusive();
            let mut work = Work::new(self, &guard, bounds.clone(), &mut cache, report);
            loop {
                let flow = self.walk(at..walked.end, visitor, &mut work);
                work.complete();
                at = match (flow, work.again.take()) {
                    (Flow::Continue(()), None) => return Ok(()),
                    (Flow::Continue(()), Some(again)) => again,
                    (Flow::Break(resume), again) => again.map_or(resume, |at| at.min(resume)),
                };
                if work.starved || work.wants_yield() {
                    break;
                }
            }
            starved = work.starved;
            drop(guard);
            if starved {
                wanted = wanted.max(2)
            } else {
                report.lock_yields += 1
            }
        }
        Ok(())
    }
}

/// What a pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PassReport {
    /// Leaf entries whose permission (or hint) was changed.
    pub entries_changed: u64,
    /// Blocks exchanged for tables.
    pub splits: u64,
    /// Tables exchanged for blocks.
    pub merges: u64,
    /// Broadcast TLB invalidations.
    pub invalidations: u64,
    /// How often the lock was given up because somebody wanted it.
    pub lock_yields: u64,
    /// TLBs hold entries that are out of date until the next invalidation.
    pub(crate) stale: bool,
}
