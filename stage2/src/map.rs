//! Mapping: blocks where alignment and the log allow them, pages elsewhere.

use crate::cpu::Cpu;
use crate::descriptor::{Attributes, CONTIGUOUS, index, is_valid, leaf, span, table_entry};
use crate::error::TableError;
use crate::layout::PAGE_SIZE;
use crate::stage2::{Exclusive, Stage2};
use crate::sync::{AtomicU64, Ordering};
use crate::table::{TableCache, TableMemory};
use core::ops::{Deref, Range};

/// Why a chunk ended before its range did; mapped so far up to the address.
enum Stop {
    Starved(u64),
    Yield(u64),
    Occupied(u64),
}

struct Request {
    range: Range<u64>,
    pa: u64,
    bits: u64,
    contiguous: bool,
}

impl Request {
    fn pa_of(&self, ipa: u64) -> u64 {
        self.pa + (ipa - self.range.start)
    }

    /// Whether address and output allow an entry of `size` at `ipa`.
    fn fits(&self, ipa: u64, size: u64) -> bool {
        (ipa | self.pa_of(ipa)) & (size - 1) == 0 && self.range.end - ipa >= size
    }
}

impl<M: TableMemory, C: Cpu, B: Deref<Target = [AtomicU64]>> Stage2<M, C, B> {
    /// Maps a range that is not mapped to `pa` and what follows. Blocks are used where both addresses
    /// are aligned, except where a log is on: there pages are, and each counts as dirty, as its content
    /// is new to whoever reads the log.
    ///
    /// # Errors
    /// What the call mapped is unmapped again: `AlreadyMapped`, `OutOfTables`. Nothing was done:
    /// `Range`, `OutputAddress`.
    pub fn map(
        &self,
        range: Range<u64>,
        pa: u64,
        attributes: Attributes,
    ) -> Result<(), TableError> {
        let mut cache = self.table_cache();
        let mapped = self.map_with(&mut cache, range.clone(), pa, attributes);
        match mapped {
            Ok(()) => Ok(()),
            Err((upto, error)) => {
                // Both ends are ours, so no block reaches out of them and nothing has to be split.
                if upto > range.start {
                    self.unmap(range.start..upto)?;
                }
                Err(error)
            }
        }
    }

    /// Maps one page as the answer to a translation fault, with tables from the vCPU's own cache.
    /// `false`: another vCPU was first, which is as good.
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    pub fn map_page(
        &self,
        cache: &mut TableCache<'_, M>,
        ipa: u64,
        pa: u64,
        attributes: Attributes,
    ) -> Result<bool, TableError> {
        let range = ipa..ipa.saturating_add(PAGE_SIZE);
        match self.map_with(cache, range, pa, attributes) {
            Ok(()) => Ok(true),
            Err((_, TableError::AlreadyMapped { .. })) => Ok(false),
            Err((_, error)) => Err(error),
        }
    }

    /// On failure, the address up to which all was mapped.
    fn map_with(
        &self,
        cache: &mut TableCache<'_, M>,
        range: Range<u64>,
        pa: u64,
        attributes: Attributes,
    ) -> Result<(), (u64, TableError)> {
        let mut at = range.start;
        self.layout
            .check(&range)
            .map_err(|error| (at, error.into()))?;
        let last = pa.checked_add(range.end - range.start);
        if pa & (PAGE_SIZE - 1) != 0 || last.is_none_or(|last| last > 1 << 48) {
            return Err((at, TableError::OutputAddress { pa }));
        }
        let request = Request {
            range,
            pa,
            bits: attributes.bits(),
            contiguous: attributes.contiguous,
        };
        while at < request.range.end {
            // A path from the root needs at most three tables.
            let _ = cache.fill(3);
            let guard = self.exclusive();
            let stop = self.map_chunk(&guard, cache, &request, at);
            self.cpu.publish();
            drop(guard);
            match stop {
                Ok(()) => return Ok(()),
                Err(Stop::Yield(upto)) => at = upto,
                Err(Stop::Occupied(ipa)) => return Err((ipa, TableError::AlreadyMapped { ipa })),
                Err(Stop::Starved(upto)) => {
                    cache.fill(1).map_err(|error| (upto, error))?;
                    at = upto;
                }
            }
        }
        Ok(())
    }

    fn map_chunk(
        &self,
        guard: &Exclusive<'_, B>,
        cache: &mut TableCache<'_, M>,
        request: &Request,
        from: u64,
    ) -> Result<(), Stop> {
        let mut at = from;
        // End of the contiguous set that is being written.
        let mut set_end = from;
        while at < request.range.end {
            let place = self.last_entry(at);
            if is_valid(place.entry) {
                return Err(Stop::Occupied(at));
            }
            let size = span(place.level);
            let is_leaf = place.level == 3
                || self.layout.has_blocks(place.level)
                    && request.fits(at, size)
                    && !guard.wants_pages(&(at..at + size));
            if !is_leaf {
                let table_pa = cache.take().ok_or(Stop::Starved(at))?;
                let table = self.table_at(table_pa);
                table.clear();
                self.clean_table(table);
                // Visible to the walkers as empty before they can find it.
                self.cpu.publish();
                place.slot().store(table_entry(table_pa), Ordering::Release);
                self.clean_entry(place.slot());
                continue;
            }
            if request.contiguous
                && at >= set_end
                && self.is_free_set(guard, request, at, place.level)
            {
                set_end = at + 16 * size;
            }
            let hint = if at < set_end { CONTIGUOUS } else { 0 };
            let entry = leaf(request.pa_of(at), request.bits | hint, place.level);
            place.slot().store(entry, Ordering::Release);
            self.clean_entry(place.slot());
            guard.mark(at, size);
            at += size;
            // Within a set nobody may come in between: it would be found incomplete.
            let chunk_ends = at & (span(2) - 1) == 0;
            if chunk_ends && at >= set_end && (guard.contended() || self.cpu.should_yield()) {
                return Err(Stop::Yield(at));
            }
        }
        Ok(())
    }

    /// Whether sixteen entries from `ipa` on are free, and could all be written by this request.
    fn is_free_set(
        &self,
        guard: &Exclusive<'_, B>,
        request: &Request,
        ipa: u64,
        level: u8,
    ) -> bool {
        let size = span(level);
        if !request.fits(ipa, 16 * size) || guard.wants_pages(&(ipa..ipa + 16 * size)) {
            return false;
        }
        let place = self.last_entry(ipa);
        let first = index(ipa, level);
        place.table.entries()[first..first + 16]
            .iter()
            .all(|entry| entry.load(Ordering::Relaxed) == 0)
    }
}
