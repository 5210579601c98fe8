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

/// Some of the host's huge pages, given back when dropped; `None` with a printed reason.
struct HugePages(String);

impl HugePages {
    fn take(count: usize) -> Option<Self> {
        const FILE: &str = "/proc/sys/vm/nr_hugepages";
        let before = std::fs::read_to_string(FILE).ok()?;
        let now = before.trim().parse::<usize>().ok()? + count;
        let _ = std::fs::write(FILE, now.to_string());
        let got = std::fs::read_to_string(FILE).ok()?.trim().parse();
        let taken = Self(before);
        if got == Ok(now) {
            return Some(taken);
        }
        println!("SKIPPED: no {count} huge pages to be had");
        None
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write("/proc/sys/vm/nr_hugepages", &self.0);
    }
}
