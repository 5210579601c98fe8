//! Changes of live entries that need a TLB invalidation halfway, up to 32 to one invalidation.
//!
//! First half: the old entry is taken away (its valid bit is cleared, or nT is set, as the CPUs want
//! it; see [`BlockChange`]). Then one invalidation. Second half: the new entry is stored, and tables
//! that nobody can reach any more go back to the allocator. Both halves are done under one hold of the
//! lock, so a vCPU that met a missing entry finds it made again when it gets the lock.
//!
//! Removing a leaf is the first half of a change whose second half is somebody else's: as soon as the
//! lock is free, another CPU may map something else there. So the invalidation comes before that, too.
//!
//! The hardware may be changing entries too. What it can change in an entry that is exchanged here is
//! the access flag alone (DBM is set only on pages, and only while they are logged), and a lost access
//! flag is set again by the next access.

use crate::cpu::Cpu;
use crate::descriptor::{CONTIGUOUS, NO_TRANSLATE, VALID, child, is_valid, table_entry};
use crate::layout::BlockChange;
use crate::stage2::{Exclusive, Stage2};
use crate::sync::{AtomicU64, Ordering};
use crate::table::{CACHE_TABLES, Table, TableCache, TableMemory};
use crate::walk::{PassReport, Place};
use core::ops::Range;

enum Change<'a> {
    /// `slot` gets `new` in the end; `retired` is freed then.
    Exchange {
        slot: &'a AtomicU64,
        new: u64,
        retired: Option<u64>,
    },
    /// These entries get their valid bit back, without the hint.
    Unhint { entries: &'a [AtomicU64] },
    /// An unreachable table.
    Retire { table_pa: u64 },
}

/// The second halves that wait for the invalidation.
struct Batch<'a> {
    changes: [Option<Change<'a>>; CACHE_TABLES],
    len: usize,
}

/// One hold of the lock by a pass: what its visitor works with.
pub(crate) struct Work<'a, 'c, M: TableMemory, C: Cpu, B> {
    pub(crate) stage2: &'a Stage2<M, C, B>,
    pub(crate) guard: &'a Exclusive<'a, B>,
    pub(crate) bounds: Range<u64>,
    pub(crate) report: &'a mut PassReport,
    /// A table was wanted and the cache was empty.
    pub(crate) starved: bool,
    /// The walk has to come here again when it is done with what it has begun.
    pub(crate) again: Option<u64>,
    /// Leaves are gone whose translation TLBs may still hold.
    removed: bool,
    /// Chunks walked since the lock could last be given up without an invalidation.
    chunks: usize,
    cache: &'a mut TableCache<'c, M>,
    batch: Batch<'a>,
}

impl<'a, 'c, M: TableMemory, C: Cpu, B> Work<'a, 'c, M, C, B> {
    pub(crate) fn new(
        stage2: &'a Stage2<M, C, B>,
        guard: &'a Exclusive<'a, B>,
        bounds: Range<u64>,
        cache: &'a mut TableCache<'c, M>,
        report: &'a mut PassReport,
    ) -> Self {
        let batch = Batch {
            changes: [const { None }; CACHE_TABLES],
            len: 0,
        };
        Self {
            stage2,
            guard,
            bounds,
            report,
            starved: false,
            again: None,
            removed: false,
            chunks: 0,
            cache,
            batch,
        }
    }

    /// Asked after each chunk. A hypervisor that wants the lock to be given up gets it at once; somebody
    /// who waits for it, as soon as that costs no invalidation, or the batch has as many chunks as it has
    /// places: 32 blocks under faults share one then, as they do without.
    pub(crate) fn wants_yield(&mut self) -> bool {
        let owes = self.owes_invalidation();
        self.chunks = if owes { self.chunks + 1 } else { 0 };
        let may_yield = !owes || self.chunks >= CACHE_TABLES;
        may_yield && self.guard.contended() || self.stage2.cpu.should_yield()
    }

    /// Whether an invalidation has to come before the lock may be given up.
    fn owes_invalidation(&self) -> bool {
        let needed = |change: &Change<'_>| match change {
            // Old and new translate alike, and CPUs of FEAT_BBM level 2 may hold both.
            Change::Exchange { retired: None, .. } | Change::Unhint { .. } => {
                self.stage2.config.block_change != BlockChange::Direct
            }
            Change::Exchange { .. } | Change::Retire { .. } => true,
        };
        let changes = &self.batch.changes[..self.batch.len];
        self.removed || changes.iter().flatten().any(needed)
    }

    pub(crate) fn batch_is_full(&self) -> bool {
        self.batch.len == CACHE_TABLES
    }

    pub(crate) fn batch_is_empty(&self) -> bool {
        self.batch.len == 0
    }

    /// The entry as long as the work lasts: tables are freed by [`complete`](Self::complete) only,
    /// which ends every change that refers to them.
    fn slot(&self, place: &Place<'_>) -> &'a AtomicU64 {
        &self.entries(place.table)[place.slot]
    }

    fn entries(&self, table: &Table) -> &'a [AtomicU64; 512] {
        // SAFETY: the table is part of the tree, the lock is held for 'a, and the only thing that
        // frees a table meanwhile is `complete`, after it dropped the changes that refer to it.
        unsafe { &*(table.entries() as *const _) }
    }

    /// Puts a table of the same mapping in place of a block. `false`: no table was left.
    pub(crate) fn split(&mut self, place: &Place<'_>) -> bool {
        let Some(table_pa) = self.cache.take() else {
            self.starved = true;
            return false;
        };
        self.stage2
            .fill_with_children(table_pa, place.entry, place.level);
        if self.stage2.config.block_change == BlockChange::Direct {
            // It is linked at once; otherwise the invalidation in between makes it visible.
            self.stage2.cpu.publish();
        }
        let new = table_entry(table_pa);
        self.begin_exchange(place, new, new, None);
        self.report.splits += 1;
        true
    }

    /// Puts `block` in place of the table that `place` points to.
    pub(crate) fn merge(&mut self, place: &Place<'_>, block: u64, table_pa: u64) {
        let meanwhile = match self.stage2.config.block_change {
            BlockChange::NoTranslate => block | NO_TRANSLATE,
            _ => block,
        };
        self.begin_exchange(place, meanwhile, block, Some(table_pa));
        self.report.merges += 1;
    }

    fn begin_exchange(
        &mut self,
        place: &Place<'_>,
        meanwhile: u64,
        new: u64,
        retired: Option<u64>,
    ) {
        let slot = self.slot(place);
        match self.stage2.config.block_change {
            BlockChange::BreakBeforeMake => {
                slot.fetch_and(!VALID, Ordering::AcqRel);
            }
            // A block is marked until the TLBs are clean; a table is followed by the marked block.
            BlockChange::NoTranslate if retired.is_none() => {
                slot.fetch_or(NO_TRANSLATE, Ordering::AcqRel);
            }
            BlockChange::NoTranslate | BlockChange::Direct => {
                slot.store(meanwhile, Ordering::Release)
            }
        }
        self.stage2.clean_entry(slot);
        self.push(Change::Exchange { slot, new, retired });
    }

    /// Drops the contiguous hint of all entries in `slots`, which consists of whole sets.
    pub(crate) fn unhint(&mut self, table: &Table, slots: Range<usize>) {
        let entries = &self.entries(table)[slots];
        let direct = self.stage2.config.block_change == BlockChange::Direct;
        for entry in entries {
            if entry.load(Ordering::Relaxed) & (VALID | CONTIGUOUS) == VALID | CONTIGUOUS {
                // Differing hints within a set are as bad as differing sizes, so this breaks, too.
                let gone = if direct { CONTIGUOUS } else { VALID };
                entry.fetch_and(!gone, Ordering::AcqRel);
                self.report.entries_changed += 1;
            }
        }
        self.stage2.clean_entries(entries);
        self.push(Change::Unhint { entries });
    }

    /// Removes all that the slots map.
    pub(crate) fn remove(
        &mut self,
        table: &Table,
        slots: Range<usize>,
        mut each: impl FnMut(usize, u64),
    ) {
        let entries = &table.entries()[slots.clone()];
        let before = self.report.entries_changed;
        for (slot, entry) in slots.zip(entries) {
            if entry.load(Ordering::Relaxed) != 0 {
                each(slot, entry.swap(0, Ordering::AcqRel));
                self.report.entries_changed += 1;
            }
        }
        self.removed |= self.report.entries_changed != before;
        self.stage2.clean_entries(entries);
    }

    /// Frees an unlinked table once no walker can be in it.
    pub(crate) fn retire(&mut self, table_pa: u64) {
        self.push(Change::Retire { table_pa });
    }

    fn push(&mut self, change: Change<'a>) {
        self.batch.changes[self.batch.len] = Some(change);
        self.batch.len += 1;
    }

    /// One invalidation, then the second half of everything begun. Belongs before the lock is given up.
    pub(crate) fn complete(&mut self) {
        if self.batch.len == 0 && !self.removed {
            return;
        }
        if self.owes_invalidation() {
            self.stage2.cpu.invalidate_vm();
            self.report.invalidations += 1;
            self.report.stale = false;
        } else {
            // The pass's last one will do.
            self.report.stale = true;
        }
        self.removed = false;
        self.chunks = 0;
        let len = core::mem::take(&mut self.batch.len);
        let changes = &mut self.batch.changes[..len];
        for change in changes.iter_mut().filter_map(Option::take) {
            match change {
                Change::Exchange { slot, new, retired } => {
                    slot.store(new, Ordering::Release);
                    self.stage2.clean_entry(slot);
                    if let Some(table_pa) = retired {
                        self.stage2.memory.free(table_pa, 1);
                    }
                }
                Change::Unhint { entries } => {
                    for entry in entries {
                        let raw = entry.load(Ordering::Relaxed);
                        if raw != 0 && !is_valid(raw) {
                            entry.store((raw | VALID) & !CONTIGUOUS, Ordering::Release);
                            self.stage2.clean_entry(entry);
                        }
                    }
                }
                Change::Retire { table_pa } => self.stage2.memory.free(table_pa, 1),
            }
        }
        self.stage2.cpu.publish();
    }
}

impl<M: TableMemory, C: Cpu, B> Stage2<M, C, B> {
    /// Writes the table that maps what `block` maps, and cleans it; nothing points to it yet.
    pub(crate) fn fill_with_children(&self, table_pa: u64, block: u64, block_level: u8) {
        let table = self.table_at(table_pa);
        for (slot, entry) in table.entries().iter().enumerate() {
            entry.store(
                child(block & !NO_TRANSLATE, block_level, slot),
                Ordering::Relaxed,
            );
        }
        self.clean_table(table);
    }

    pub(crate) fn clean_table(&self, table: &Table) {
        self.cpu
            .clean((table as *const Table).cast(), size_of::<Table>());
    }

    pub(crate) fn clean_entries(&self, entries: &[AtomicU64]) {
        self.cpu
            .clean(entries.as_ptr().cast(), size_of_val(entries));
    }

    pub(crate) fn clean_entry(&self, entry: &AtomicU64) {
        self.cpu
            .clean((entry as *const AtomicU64).cast(), size_of::<AtomicU64>());
    }
}
