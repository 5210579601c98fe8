//! Taking write permission away, and giving it back, for either of two reasons: a log is on
//! ([`Protect`], [`Restore`]), or the caller wants the range to stay as it is ([`Freeze`], [`Thaw`]).
//! Neither pair gives back what the other took.

use crate::batch::Work;
use crate::cpu::Cpu;
use crate::descriptor::{DIRTY_MODIFIER, GRANTED, PROTECTED, VALID, WRITE};
use crate::layout::PAGE_SIZE;
use crate::region::State;
use crate::shape::{cut_block, cut_pages};
use crate::sync::{AtomicU64, Ordering};
use crate::table::TableMemory;
use crate::walk::{Flow, Pages, Place, Visitor};
use core::ops::Deref;

/// Clears write permission, that one bit, of everything that has it. What is frozen has not.
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
            if work.stage2.config.hardware_dirty {
                _ = place.slot().fetch_and(!WRITE, Ordering::Relaxed)
            } else {
                place.slot().store(place.entry & !WRITE, Ordering::Relaxed)
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

/// Gives write permission back where the mapper granted it and nothing is frozen; what the hardware
/// logged goes to the bitmap.
pub(crate) struct Restore;

impl<B: Deref<Target = [AtomicU64]>> Visitor<B> for Restore {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        if place.entry & (GRANTED | PROTECTED | WRITE) == GRANTED {
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
            if raw & (VALID | GRANTED | PROTECTED) != VALID | GRANTED || raw == restored {
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

/// Takes write permission away until it is thawed, whatever a log does meanwhile.
pub(crate) struct Freeze;

/// Gives back what [`Freeze`] took; where a log is on, the next write faults, and is logged.
pub(crate) struct Thaw;

impl Freeze {
    fn freezes(entry: u64) -> bool {
        entry & (VALID | GRANTED | PROTECTED) == VALID | GRANTED
    }

    fn frozen(entry: u64) -> u64 {
        entry & !(WRITE | DIRTY_MODIFIER) | PROTECTED
    }
}

impl<B: Deref<Target = [AtomicU64]>> Visitor<B> for Freeze {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        cut_block(place, work)?;
        if Self::freezes(place.entry) {
            update(place.slot(), Self::frozen);
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
        cut_pages(pages, work)?;
        let guard = work.guard;
        update_pages(pages, work, |ipa, entry| {
            if !Self::freezes(entry.load(Ordering::Relaxed)) {
                return false;
            }
            // The hardware's log of it ends here: nobody could see that later.
            let old = update(entry, Self::frozen);
            if old & (DIRTY_MODIFIER | WRITE) == DIRTY_MODIFIER | WRITE {
                guard.mark(ipa, PAGE_SIZE);
            }
            true
        });
        Flow::Continue(())
    }
}

impl Thaw {
    fn thaws(entry: u64) -> bool {
        entry & (VALID | PROTECTED) == VALID | PROTECTED
    }

    fn thawed(entry: u64, is_logged: bool) -> u64 {
        let write = if is_logged { 0 } else { WRITE };
        entry & !PROTECTED | write
    }
}

impl<B: Deref<Target = [AtomicU64]>> Visitor<B> for Thaw {
    fn block<M: TableMemory, C: Cpu>(
        &mut self,
        place: &Place<'_>,
        work: &mut Work<'_, '_, M, C, B>,
    ) -> Flow {
        cut_block(place, work)?;
        if Self::thaws(place.entry) {
            let is_logged = work.guard.wants_pages(&(place.start..place.end));
            update(place.slot(), |raw| Self::thawed(raw, is_logged));
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
        cut_pages(pages, work)?;
        let guard = work.guard;
        update_pages(pages, work, |ipa, entry| {
            if !Self::thaws(entry.load(Ordering::Relaxed)) {
                return false;
            }
            let region = guard.at(ipa);
            let is_logged = region.is_some_and(|region| region.state != State::Off);
            update(entry, |raw| Self::thawed(raw, is_logged));
            true
        });
        Flow::Continue(())
    }
}

/// `change` says whether it changed the entry.
fn update_pages<M: TableMemory, C: Cpu, B>(
    pages: &Pages<'_>,
    work: &mut Work<'_, '_, M, C, B>,
    mut change: impl FnMut(u64, &AtomicU64) -> bool,
) {
    let entries = &pages.table.entries()[pages.slots.clone()];
    let ipas = (pages.start..).step_by(PAGE_SIZE as usize);
    let changed = entries
        .iter()
        .zip(ipas)
        .filter(|(entry, ipa)| change(*ipa, entry));
    let changed = changed.count() as u64;
    if changed > 0 {
        work.stage2.clean_entries(entries);
        work.report.entries_changed += changed;
        work.report.stale = true;
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
