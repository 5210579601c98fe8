//! How much memory buffers may take that nobody has given a size.
//!
//! A buffer that is too large gets the machine killed, which is worse than anything that a small one
//! costs. So it may take half of what is free: of everything that bounds memory, see [`Limits`],
//! that leaves the least. What the guest has not touched yet is not free, for the guest may touch it
//! at any time, nor is what is kept of each page: sets, checksums. The other half is for what comes
//! with a buffer: page tables, threads, files that are being written.
//!
//! Of the host's own free memory an eighth may be taken however much RAM is untouched: a host that
//! promises more than it has is not this machine's to save.

use paguro_ram::{GuestRam, PageKind};
use paguro_sys::{Bound, Free, Limits};

/// Kept of each page of RAM, in bytes: a checksum, and a bit in each of eight sets.
const TABLES_BYTES: u64 = 4 + 1;

/// What may be taken, and what allows no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes.
    pub bytes: u64,
    /// What bounds it; nothing where the host tells of nothing.
    pub bound: Option<Bound>,
}

impl Allowance {
    /// Of buffers beside this RAM, now.
    pub fn beside(ram: &GuestRam, limits: &Limits) -> Self {
        // Pages of the pool for huge pages are had already, and are in nobody's count.
        let small = ram.blocks().iter();
        let small = small.filter(|block| block.page_kind() != PageKind::Huge);
        let bytes: usize = small.map(|block| block.used_bytes()).sum();
        let untouched = (bytes as u64).saturating_sub(limits.anonymous_bytes());
        let tables = (ram.pages() as u64).saturating_mul(TABLES_BYTES);
        Self::of(limits.memory(), untouched, tables)
    }

    fn of(free: Vec<Free>, untouched_bytes: u64, table_bytes: u64) -> Self {
        let unbounded = Self {
            bytes: u64::MAX,
            bound: None,
        };
        free.into_iter().fold(unbounded, |least, free| {
            let bytes = free.bytes.saturating_sub(table_bytes);
            let left = bytes.saturating_sub(untouched_bytes) / 2;
            let bytes = match free.bound {
                Bound::Host => left.max(bytes / 8),
                Bound::Cgroup { .. } => left,
                // Here RAM counts from the beginning.
                _ => bytes / 2,
            };
            if bytes < least.bytes {
                Self {
                    bytes,
                    bound: Some(free.bound),
                }
            } else {
                least
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn free(mib: u64, bound: Bound) -> Free {
        let bytes = mib * MIB;
        Free { bytes, bound }
    }

    fn cgroup(path: &str) -> Bound {
        let (path, limit_bytes) = (path.into(), 1 << 30);
        Bound::Cgroup { path, limit_bytes }
    }

    #[test]
    fn what_leaves_the_least_bounds_it() {
        let all = || {
            vec![
                free(300, cgroup("/a")),
                free(260, cgroup("/a/b")),
                free(1000, Bound::Host),
                free(50, Bound::Data { limit_bytes: 1 }),
            ]
        };
        // The guest has all its memory: half of the least.
        let data = Bound::Data { limit_bytes: 1 };
        let found = Allowance::of(all(), 0, 0);
        assert_eq!((found.bytes / MIB, found.bound), (25, Some(data)));
        // It may touch 250 MiB more, which limits of the process have counted already.
        let found = Allowance::of(all(), 250 * MIB, 0);
        let least = (5, Some(cgroup("/a/b")));
        assert_eq!((found.bytes / MIB, found.bound), least);
        let found = Allowance::of(all(), 270 * MIB, 0);
        assert_eq!(found.bytes, 0);
        // What is kept of each page is taken all the same.
        let found = Allowance::of(all(), 0, 20 * MIB);
        assert_eq!(found.bytes / MIB, 15);
    }

    #[test]
    fn a_host_that_promises_more_than_it_has_leaves_an_eighth_of_what_is_free() {
        let found = Allowance::of(vec![free(800, Bound::Host)], 10_000 * MIB, 0);
        assert_eq!(found.bytes, 100 * MIB);
        assert_eq!(Allowance::of(Vec::new(), 1, 1).bytes, u64::MAX);
    }
}
