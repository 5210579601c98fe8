//! Taking write permission away, and giving it back. Neither allocates, neither can fail.

use crate::batch::Work;
use crate::cpu::Cpu;
use crate::descriptor::{DIRTY_MODIFIER, GRANTED, VALID, WRITE};
use crate::layout::PAGE_SIZE;
use crate::sync::{AtomicU64, Ordering};
use crate::table::TableMemory;
use crate::walk::{Flow, Pages, Place, Visitor};
use core::ops::Deref;

/// Clears write permission, that one bit, of everything that has it.
pub(crate) struct Protect {
    /// Pages get DBM: the hardware sets write permission again, and that is the log.
    pub(crate) by_hardware: bool,
}

impl<B> Visitor<B> for Protect {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        // Never DBM on a block: the hardware would note 2 MiB as one write. It faults, and is split.
        if place.entry & WRITE != 0 {
            match work.stage2.config.hardware_dirty {
                true => _ = place.slot().fetch_and(!WRITE, Ordering::Relaxed),
                false => place.slot().store(place.entry & !WRITE, Ordering::Relaxed),
            }
            work.stage2.clean_entry(place.slot());
            work.report.entries_changed += 1;
            work.report.stale = true;
        }
        Flow::Continue(())
    }

    fn pages<M: TableMemory, C: Cpu>(
        &mut self,
        pages: &Pages<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        let entries = &pages.table.entries()[pages.slots.clone()];
        let hardware_writes = work.stage2.config.hardware_dirty;
        let mut changed = 0;
        for entry in entries {
            let raw = entry.load(Ordering::Relaxed);
            if raw & (VALID | WRITE) != VALID | WRITE {
                continue;
            }
            changed += 1;
            if self.by_hardware {
                // Both bits at once: without DBM in the same store a write would fault in between.
                update(entry, |raw| raw & !WRITE | DIRTY_MODIFIER);
            } else if hardware_writes {
                entry.fetch_and(!WRITE, Ordering::Relaxed);
            } else {
                // The lock keeps other CPUs away, and this hardware does not write entries.
                entry.store(raw & !WRITE, Ordering::Relaxed);
            }
        }
        if changed > 0 {
            work.stage2.clean_entries(entries);
            work.report.entries_changed += changed;
            work.report.stale = true;
        }
        Flow::Continue(())
    }
}

/// Gives write permission back where the mapper granted it; what the hardware logged goes to the bitmap.
pub(crate) struct Restore;

impl<B: Deref<Target = [AtomicU64]>> Visitor<B> for Restore {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        if place.entry & (GRANTED | WRITE) == GRANTED {
            place.slot().fetch_or(WRITE, Ordering::Relaxed);
            work.stage2.clean_entry(place.slot());
            work.report.entries_changed += 1;
            work.report.stale = true;
        }
        Flow::Continue(())
    }

    fn pages<M: TableMemory, C: Cpu>(
        &mut self,
        pages: &Pages<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        let entries = &pages.table.entries()[pages.slots.clone()];
        let mut changed = 0;
        for (at, entry) in entries.iter().enumerate() {
            let raw = entry.load(Ordering::Relaxed);
            let restored = raw & !DIRTY_MODIFIER | WRITE;
            if raw & (VALID | GRANTED) != VALID | GRANTED || raw == restored {
                continue;
            }
            let old = update(entry, |raw| raw & !DIRTY_MODIFIER | WRITE);
            if old & (DIRTY_MODIFIER | WRITE) == DIRTY_MODIFIER | WRITE {
                work.guard
                    .mark(pages.start + at as u64 * PAGE_SIZE, PAGE_SIZE);
            }
            changed += 1;
        }
        if changed > 0 {
            work.stage2.clean_entries(entries);
            work.report.entries_changed += changed;
            work.report.stale = true;
        }
        Flow::Continue(())
    }
}

/// Changes an entry that the hardware may be changing too; returns what it was.
pub(crate) fn update(entry: &AtomicU64, new: impl Fn(u64) -> u64) -> u64 {
    let mut raw = entry.load(Ordering::Relaxed);
    loop {
        match entry.compare_exchange_weak(raw, new(raw), Ordering::AcqRel, Ordering::Relaxed) {
            Ok(old) => return old,
            Err(now) => raw = now,
        }
    }
}
