//! Where things are in RAM, and the table allocator.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use paguro_stage2::{Table, TableMemory};

/// RAM of the guest, by physical address: two blocks of 1 GiB, and 32 MiB for blocks of 2 MiB.
pub const GIB_LOW: u64 = 0x8000_0000;
pub const GIB_HIGH: u64 = 0xc000_0000;
pub const SMALL: u64 = 0x7000_0000;

const TABLES_START: u64 = 0x5000_0000;
const TABLES: usize = 4096;
const ROOT_TABLES: usize = 16;
const BITMAPS_START: u64 = 0x6000_0000;

struct Pool {
    locked: AtomicBool,
    free: UnsafeCell<([u32; TABLES], usize)>,
}

// SAFETY: `free` is reached with `locked` taken only.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool {
    locked: AtomicBool::new(false),
    free: UnsafeCell::new(([0; TABLES], 0)),
};

fn with_pool<R>(run: impl FnOnce(&mut ([u32; TABLES], usize)) -> R) -> R {
    while POOL.locked.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    // SAFETY: the lock is taken.
    let result = run(unsafe { &mut *POOL.free.get() });
    POOL.locked.store(false, Ordering::Release);
    result
}

/// Once, before any table is asked for.
pub fn init() {
    with_pool(|(free, len)| {
        for table in ROOT_TABLES..TABLES {
            free[*len] = table as u32;
            *len += 1;
        }
    });
}

pub fn free_tables() -> usize {
    with_pool(|(_, len)| *len)
}

pub struct PoolMemory;

// SAFETY: the pool's range of RAM is used for nothing else and is mapped at its physical address; each
// table is handed out once until it comes back; a root has the aligned start of the range to itself,
// as this program makes one VM after the other.
unsafe impl TableMemory for PoolMemory {
    fn allocate(&self, tables: usize) -> Option<u64> {
        if tables > 1 {
            return (tables <= ROOT_TABLES).then_some(TABLES_START);
        }
        with_pool(|(free, len)| {
            *len = len.checked_sub(1)?;
            Some(TABLES_START + u64::from(free[*len]) * 4096)
        })
    }

    fn free(&self, pa: u64, tables: usize) {
        if tables == 1 {
            with_pool(|(free, len)| {
                free[*len] = ((pa - TABLES_START) / 4096) as u32;
                *len += 1;
            });
        }
    }

    fn table(&self, pa: u64) -> NonNull<Table> {
        assert!(
            (TABLES_START..TABLES_START + TABLES as u64 * 4096).contains(&pa),
            "{pa:#x} is no table"
        );
        // SAFETY: not null, by the check above.
        unsafe { NonNull::new_unchecked(pa as *mut Table) }
    }
}

/// Number `slot` of the places for bitmaps, 64 KiB each.
pub fn bitmap(slot: usize, words: usize) -> &'static [AtomicU64] {
    assert!(words <= 8192);
    let start = BITMAPS_START + slot as u64 * 0x1_0000;
    // SAFETY: RAM that is used for nothing else, of atomics only.
    unsafe { core::slice::from_raw_parts(start as *const AtomicU64, words) }
}

/// The first word of the guest's page at `pa`, as the hypervisor reads it.
pub fn guest_word(pa: u64) -> u64 {
    // SAFETY: `pa` is in the guest's RAM, which is mapped at its physical address.
    unsafe { (pa as *const u64).read_volatile() }
}

pub fn clear_guest_page(pa: u64) {
    // SAFETY: as above; no guest runs.
    unsafe { (pa as *mut u64).write_volatile(0) };
}
