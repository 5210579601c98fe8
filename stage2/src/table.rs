//! Table memory: what a table is, where it comes from, and the cache that is filled before the lock.

use crate::error::TableError;
use crate::sync::{AtomicU64, Ordering};
use core::ptr::NonNull;

/// A translation table: 512 entries, changed by atomic operations only, as other CPUs and the
/// hardware's walker read them meanwhile.
#[repr(C, align(4096))]
pub struct Table([AtomicU64; 512]);

impl Table {
    /// A table without entries.
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Its entries.
    pub fn entries(&self) -> &[AtomicU64; 512] {
        &self.0
    }

    pub(crate) fn clear(&self) {
        for entry in &self.0 {
            entry.store(0, Ordering::Relaxed);
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// The allocator of tables. It may fail. [`allocate`](Self::allocate) is never called with the table
/// lock held, so it may sleep or take locks of its own; [`free`](Self::free) may be, so it must neither
/// wait for a vCPU nor touch guest memory.
///
/// # Safety
/// The pages that [`allocate`](Self::allocate) hands out belong to the caller until they come back
/// through [`free`](Self::free): nobody else writes them, they are aligned to their size (a power of
/// two), and [`table`](Self::table) gives a pointer to that memory, valid as long and as a `Table`,
/// for each of them.
pub unsafe trait TableMemory {
    /// Physical address of `tables` tables side by side, aligned to their total size. More than one is
    /// asked for only for the root. The content may be anything.
    fn allocate(&self, tables: usize) -> Option<u64>;

    /// Takes back what `allocate` gave.
    fn free(&self, pa: u64, tables: usize);

    /// Where the hypervisor sees the table at `pa`.
    fn table(&self, pa: u64) -> NonNull<Table>;
}

/// How many tables a cache holds, and how many changes of size share one TLB invalidation.
pub(crate) const CACHE_TABLES: usize = 32;

/// Tables set aside, so that none is allocated under the lock.
///
/// A vCPU keeps one of its own for the faults that it handles; a pass makes one as it starts. What is
/// left goes back to the allocator when the cache is dropped.
pub struct TableCache<'m, M: TableMemory> {
    memory: &'m M,
    tables: [u64; CACHE_TABLES],
    len: usize,
}

impl<'m, M: TableMemory> TableCache<'m, M> {
    pub(crate) fn new(memory: &'m M) -> Self {
        Self {
            memory,
            tables: [0; CACHE_TABLES],
            len: 0,
        }
    }

    /// Sets tables aside until `wanted` are there.
    ///
    /// # Errors
    /// [`TableError::OutOfTables`]; those that could be had are kept.
    pub fn fill(&mut self, wanted: usize) -> Result<(), TableError> {
        while self.len < wanted.min(CACHE_TABLES) {
            self.tables[self.len] = self.memory.allocate(1).ok_or(TableError::OutOfTables)?;
            self.len += 1;
        }
        Ok(())
    }

    /// Tables that are there.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is there.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn take(&mut self) -> Option<u64> {
        self.len = self.len.checked_sub(1)?;
        Some(self.tables[self.len])
    }
}

impl<M: TableMemory> Drop for TableCache<'_, M> {
    fn drop(&mut self) {
        while let Some(pa) = self.take() {
            self.memory.free(pa, 1);
        }
    }
}
