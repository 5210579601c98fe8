//! Visitors that change the shape of the tree: splitting, merging, unmapping.

use crate::batch::Work;
use crate::cpu::Cpu;
use crate::descriptor::{ADDRESS, CONTIGUOUS, DIRTY_MODIFIER, VALID, WRITE, merged};
use crate::layout::PAGE_SIZE;
use crate::sync::{AtomicU64, Ordering};
use crate::table::TableMemory;
use crate::walk::{Flow, Pages, Place, Visitor};
use core::ops::Deref;

/// Makes the entries of a range ready to differ from each other: drops the contiguous hint, splits
/// blocks that reach out of the range, and, if eager, all others too. Permissions stay as they are, so
/// running out of tables halfway leaves a tree that maps what it mapped.
pub(crate) struct Split {
    /// Every block, down to pages; not only those that reach out of the range.
    pub(crate) eager: bool,
    /// Hints are dropped inside of the range too; not only in sets that reach out of it.
    pub(crate) unhint_all: bool,
}

impl Split {
    fn unhints<M: TableMemory, C: Cpu, B>(
        &self,
        start: u64,
        size: u64,
        work: &Work<'_, '_, M, C, B>,
    ) -> bool {
        let set_start = start & !(16 * size - 1);
        self.unhint_all || set_start < work.bounds.start || set_start + 16 * size > work.bounds.end
    }
}

impl<B> Visitor<B> for Split {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        let splits = self.eager || !place.is_within(&work.bounds);
        let hinted = place.entry & CONTIGUOUS != 0;
        if hinted && (splits || self.unhints(place.start, place.end - place.start, work)) {
            let first = place.slot & !15;
            work.unhint(place.table, first..first + 16);
            // The neighbours are broken with it; to split it, come again when it is made.
            let again = place.start.max(work.bounds.start);
            if splits {
                work.again.get_or_insert(again);
            }
            if work.batch_is_full() {
                return Flow::Break(again);
            }
            return Flow::Continue(());
        }
        if splits {
            let again = place.start.max(work.bounds.start);
            if !work.split(place) {
                return Flow::Break(again);
            }
            // What replaces a 1 GiB block may have to be split again, once it is linked. Its neighbours
            // come first, to share the invalidation.
            if place.level == 1 {
                work.again.get_or_insert(again);
            }
            if work.batch_is_full() {
                return Flow::Break(again);
            }
        }
        Flow::Continue(())
    }

    fn pages<M: TableMemory, C: Cpu>(
        &mut self,
        pages: &Pages<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        let hinted =
            |at: usize| pages.table.entries()[at].load(Ordering::Relaxed) & (VALID | CONTIGUOUS);
        let base = pages.start - pages.slots.start as u64 * PAGE_SIZE;
        for set in (pages.slots.start & !15..pages.slots.end).step_by(16) {
            if hinted(set) == VALID | CONTIGUOUS
                && self.unhints(base + set as u64 * PAGE_SIZE, PAGE_SIZE, work)
            {
                // The whole rest of the table in one change, if all of it is wanted.
                let end = if self.unhint_all {
                    pages.slots.end.next_multiple_of(16)
                } else {
                    set + 16
                };
                work.unhint(pages.table, set..end);
                let resume = base + end as u64 * PAGE_SIZE;
                if work.batch_is_full() {
                    return Flow::Break(resume);
                }
                if self.unhint_all {
                    break;
                }
            }
        }
        Flow::Continue(())
    }
}

/// Puts blocks in place of tables whose entries are contiguous and alike.
pub(crate) struct Merge;

impl<B> Visitor<B> for Merge {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        _: &Place<'_>,
        _: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        Flow::Continue(())
    }

    fn pages<M: TableMemory, C: Cpu>(
        &mut self,
        _: &Pages<'_>,
        _: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        Flow::Continue(())
    }

    fn leave<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        if !place.is_within(&work.bounds) || !work.stage2.layout.has_blocks(place.level) {
            return Flow::Continue(());
        }
        // Blocks below that are still being made would be taken for holes.
        if place.level == 1 && !work.batch_is_empty() {
            return Flow::Break(place.start);
        }
        let table_pa = place.entry & ADDRESS;
        let children = work.stage2.table_at(table_pa).entries();
        let Some(block) = merged(
            children.iter().map(|entry| entry.load(Ordering::Relaxed)),
            place.level,
        ) else {
            return Flow::Continue(());
        };
        work.merge(place, block, table_pa);
        if work.batch_is_full() {
            return Flow::Break(place.end);
        }
        Flow::Continue(())
    }
}

/// What reaches out of the range was split before; if it is there all the same, somebody mapped it, or
/// merged it, while the lock was free between two passes.
pub(crate) fn cut_block<M: TableMemory, C: Cpu, B>(
    place: &Place<'_>,
    work: &mut Work<'_, '_, M, C, B>,
) -> Flow {
    let size = place.end - place.start;
    let set = place.start & !(16 * size - 1);
    let set_is_within = work.bounds.start <= set && set + 16 * size <= work.bounds.end;
    if place.entry & CONTIGUOUS != 0 && !set_is_within {
        let first = place.slot & !15;
        work.unhint(place.table, first..first + 16);
    } else if !place.is_within(&work.bounds) {
        work.split(place);
    } else {
        return Flow::Continue(());
    }
    Flow::Break(place.start.max(work.bounds.start))
}

/// The same for the contiguous sets at both ends of some pages.
pub(crate) fn cut_pages<M: TableMemory, C: Cpu, B>(
    pages: &Pages<'_>,
    work: &mut Work<'_, '_, M, C, B>,
) -> Flow {
    for slot in [pages.slots.start, pages.slots.end - 1] {
        let set = slot & !15..(slot & !15) + 16;
        let is_within = pages.slots.start <= set.start && set.end <= pages.slots.end;
        let entry = pages.table.entries()[slot].load(Ordering::Relaxed);
        if !is_within && entry & (VALID | CONTIGUOUS) == VALID | CONTIGUOUS {
            work.unhint(pages.table, set);
            return Flow::Break(pages.start);
        }
    }
    Flow::Continue(())
}

/// Removes all entries of a range, and tables left without any. Contiguous sets go as a whole: while the
/// lock is free none may be there in part.
pub(crate) struct Unmap;

impl<B: Deref<Target = [AtomicU64]>> Visitor<B> for Unmap {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        cut_block(place, work)?;
        let first = place.slot & !15;
        let slots = match place.entry & CONTIGUOUS {
            0 => place.slot..place.slot + 1,
            _ => first..first + 16,
        };
        work.remove(place.table, slots, |_, _| ());
        Flow::Continue(())
    }

    fn pages<M: TableMemory, C: Cpu>(
        &mut self,
        pages: &Pages<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        cut_pages(pages, work)?;
        let guard = work.guard;
        work.remove(pages.table, pages.slots.clone(), |slot, old| {
            // Written since the hardware's log was last harvested: nobody can see that later.
            if old & (DIRTY_MODIFIER | WRITE) == DIRTY_MODIFIER | WRITE {
                let page = (slot - pages.slots.start) as u64;
                guard.mark(pages.start + page * PAGE_SIZE, PAGE_SIZE);
            }
        });
        Flow::Continue(())
    }

    fn leave<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        if !place.is_within(&work.bounds) {
            return Flow::Continue(());
        }
        // Filled by the last table below: that has to be completed, then this one is come to again.
        if work.batch_is_full() {
            return Flow::Break(place.start);
        }
        // Parts that were walked before the lock was free for a while may be mapped again.
        let children = work.stage2.below(place.entry).entries();
        if children
            .iter()
            .any(|entry| entry.load(Ordering::Relaxed) != 0)
        {
            return Flow::Continue(());
        }
        place.slot().store(0, Ordering::Release);
        work.stage2.clean_entry(place.slot());
        work.retire(place.entry & ADDRESS);
        if work.batch_is_full() {
            return Flow::Break(place.end);
        }
        Flow::Continue(())
    }
}
