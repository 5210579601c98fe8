//! Table memory on the heap, with a budget.

use super::rules::Rules;
use crate::sync::Mutex;
use crate::table::{Table, TableMemory};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Where the simulated tables stand; aligned for a root of sixteen.
const BASE_PA: u64 = 0x7000_0000_0000;
const TABLE_BYTES: u64 = 4096;
/// The first tables are kept for a root of more than one.
const ROOT_TABLES: usize = 16;

/// A fixed number of tables, which can be made to run out early. Clones are the same arena.
#[derive(Clone)]
pub struct Arena(Arc<Pool>);

struct Pool {
    tables: Vec<Table>,
    in_use: Vec<AtomicBool>,
    free: Mutex<Vec<usize>>,
    budget: AtomicU64,
    rules: OnceLock<Rules>,
}

impl Arena {
    /// Room for `tables` tables, besides the root.
    pub fn new(tables: usize) -> Self {
        let tables = zeroed(tables + ROOT_TABLES);
        let in_use = tables.iter().map(|_| AtomicBool::new(false)).collect();
        let free = Mutex::new((ROOT_TABLES..tables.len()).rev().collect());
        Self(Arc::new(Pool {
            tables,
            in_use,
            free,
            budget: AtomicU64::new(u64::MAX),
            rules: OnceLock::new(),
        }))
    }

    /// Lets `tables` more allocations succeed and fails all after them.
    pub fn set_budget(&self, tables: u64) {
        self.0.budget.store(tables, Ordering::SeqCst);
    }

    /// Tables that are handed out, the root's among them.
    pub fn used(&self) -> usize {
        self.0
            .in_use
            .iter()
            .filter(|used| used.load(Ordering::SeqCst))
            .count()
    }

    /// From now on all changes of tables are checked.
    pub(super) fn watch(&self, rules: Rules) {
        let watched = self.0.rules.set(rules).is_ok();
        assert!(watched, "one tree at a time is checked");
    }

    pub(super) fn rules(&self) -> Option<&Rules> {
        self.0.rules.get()
    }

    /// Memory of tables was changed and is cleaned.
    pub(super) fn cleaned(&self, start: *const u8, bytes: usize) {
        let Some(rules) = self.rules() else {
            return;
        };
        let from_first = start.addr() - self.0.tables.as_ptr().addr();
        let (table, byte) = (
            from_first / size_of::<Table>(),
            from_first % size_of::<Table>(),
        );
        // Entries are larger under shuttle, whose atomics are more than their value.
        let entry_bytes = size_of::<Table>() / 512;
        let slots = byte / entry_bytes..(byte + bytes.max(1)).div_ceil(entry_bytes).min(512);
        let pa = BASE_PA + table as u64 * TABLE_BYTES;
        rules.cleaned(pa, slots, |slot| self.entry(pa, slot));
    }

    /// The entry as it is now.
    pub(super) fn entry(&self, table_pa: u64, slot: usize) -> u64 {
        let table = &self.0.tables[Self::index(table_pa)];
        table.entries()[slot].load(crate::sync::Ordering::SeqCst)
    }

    fn index(pa: u64) -> usize {
        ((pa - BASE_PA) / TABLE_BYTES) as usize
    }
}

// SAFETY: the tables live as long as the arena, at addresses that do not change; each is handed out
// once until it comes back; a root of n <= 16 tables starts at the arena's first one, and the arena is
// aligned for sixteen in the addresses that it uses.
unsafe impl TableMemory for Arena {
    fn allocate(&self, tables: usize) -> Option<u64> {
        let paid = |budget: u64| {
            if budget == u64::MAX {
                Some(budget)
            } else {
                budget.checked_sub(1)
            }
        };
        self.0
            .budget
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, paid)
            .ok()?;
        let first = match tables {
            1 => self.0.free.lock().unwrap().pop()?,
            2..=ROOT_TABLES if !self.0.in_use[0].load(Ordering::SeqCst) => 0,
            _ => return None,
        };
        for used in &self.0.in_use[first..first + tables] {
            assert!(!used.swap(true, Ordering::SeqCst), "table handed out twice");
        }
        let pa = BASE_PA + first as u64 * TABLE_BYTES;
        if let Some(rules) = self.rules() {
            rules.allocated(pa, tables);
        }
        Some(pa)
    }

    fn free(&self, pa: u64, tables: usize) {
        if let Some(rules) = self.rules() {
            rules.freed(pa, tables);
        }
        let first = Self::index(pa);
        for used in &self.0.in_use[first..first + tables] {
            assert!(used.swap(false, Ordering::SeqCst), "table given back twice");
        }
        if tables == 1 {
            self.0.free.lock().unwrap().push(first);
        }
    }

    fn table(&self, pa: u64) -> NonNull<Table> {
        let at = Self::index(pa);
        assert!(
            self.0.in_use[at].load(Ordering::Relaxed),
            "walk into a table that was given back"
        );
        NonNull::from(&self.0.tables[at])
    }
}

#[cfg(not(feature = "shuttle"))]
fn zeroed(tables: usize) -> Vec<Table> {
    let layout = std::alloc::Layout::array::<Table>(tables).unwrap();
    // SAFETY: the layout has a size (there is always a root); zero bytes are a `Table` (of atomics of
    // value 0); pointer, length and capacity are those of the allocation. Zeroed memory is not touched
    // until it is used, which a large arena relies on.
    unsafe {
        let memory = std::alloc::alloc_zeroed(layout).cast::<Table>();
        assert!(!memory.is_null(), "no memory for the simulated tables");
        Vec::from_raw_parts(memory, tables, tables)
    }
}

#[cfg(feature = "shuttle")]
fn zeroed(tables: usize) -> Vec<Table> {
    (0..tables).map(|_| Table::new()).collect()
}
