//! Mappings, presence and bus errors, on the real kernel.

mod arena;
mod bus_error;
mod mapping;
mod presence;

use std::sync::{Mutex, MutexGuard};

/// Addresses that were just unmapped are looked at, and huge pages are counted: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Whether anything is mapped at an address.
fn is_mapped(addr: usize) -> bool {
    let mut one = 0u8;
    // SAFETY: mincore touches nothing at `addr`; it writes one byte.
    unsafe { libc::mincore(addr as *mut _, 4096, &mut one) == 0 }
}

/// Some of the host's huge pages, given back when dropped; `None` with a printed reason. Others may
/// take and give back theirs meanwhile, so it is a difference that is asked for and given back.
struct HugePages(i64);

impl HugePages {
    fn take(count: i64) -> Option<Self> {
        let taken = Self(change(count)?);
        let pool = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let number = |name: &str| -> i64 {
            let line = pool.lines().find(|line| line.starts_with(name));
            let word = line.and_then(|line| line.split_whitespace().nth(1));
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        if number("HugePages_Free:") - number("HugePages_Rsvd:") >= count {
            return Some(taken);
        }
        println!("SKIPPED: no {count} huge pages to be had");
        None
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        change(-self.0);
    }
}

/// Makes the pool larger or smaller; by how much it did.
fn change(count: i64) -> Option<i64> {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";
    let size = || -> Option<i64> { std::fs::read_to_string(FILE).ok()?.trim().parse().ok() };
    let before = size()?;
    let _ = std::fs::write(FILE, (before + count).max(0).to_string());
    Some(size()? - before)
}
