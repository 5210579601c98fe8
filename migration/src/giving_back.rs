//! Guest memory is given back, by whoever has guest addresses for it.

use std::ops::Range;

use paguro_dirty::FreezeError;
use paguro_ram::{Pages, RamBlock};

use crate::Memory;

/// Memory cannot be given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscardError {
    /// The caller's, or the guest's, who says what it does not need: it is not all RAM.
    #[error("{bytes:#x} bytes at guest address {guest_address:#x} are not all RAM")]
    Outside {
        /// The first address.
        guest_address: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The snapshot's that is under way: what was to be given back could not be copied. It has failed.
    #[error("what is given back could not be copied for the snapshot that is under way")]
    Copy(#[source] FreezeError),
}

impl Memory {
    /// Gives memory back by guest addresses, as balloons and virtio-mem have them: calls `give_back` for
    /// the pages of each block in the range, which gives them back or lets it be. Returns how many bytes
    /// that were.
    ///
    /// Only whole pages are given back, on hugetlbfs whole huge ones: what of a page is not in the range,
    /// the guest may need. So a balloon that comes with 4 KiB gives nothing of a huge page.
    ///
    /// Waits, and is called, as [`Memory::discard`].
    ///
    /// # Errors
    ///
    /// [`DiscardError::Outside`]: nothing was given back. [`DiscardError::Copy`]: blocks in front of the
    /// one that could not be copied were.
    pub fn discard_at(
        &self,
        guest_address: u64,
        bytes: u64,
        mut give_back: impl FnMut(&RamBlock, Range<usize>),
    ) -> Result<u64, DiscardError> {
        let outside = || DiscardError::Outside {
            guest_address,
            bytes,
        };
        let end = guest_address.checked_add(bytes).ok_or_else(outside)?;
        let found = self.ram().units_at(guest_address..end);
        let mut given = 0;
        for Pages { block, pages } in found.ok_or_else(outside)? {
            let ram = &self.ram().blocks()[block];
            given += ram.bytes_of(&pages).len() as u64;
            self.discard(block, pages.clone(), || give_back(ram, pages))
                .map_err(DiscardError::Copy)?;
        }
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use paguro_dirty::{Freeze, FreezeOptions, HugePolicy, Sabotage};
    use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind};
    use paguro_sys::{Advice, Fallbacks, Host};
    use paguro_testkit::{must_end, skipped};

    use super::*;

    const PAGE: u64 = 4096;

    /// Two blocks of eight pages of ones, one behind the other.
    fn memory() -> Arc<Memory> {
        let block = |id: &str, first: u64| BlockConfig {
            id: id.to_owned(),
            guest_address: first * PAGE,
            bytes: 8 * PAGE as usize,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        };
        let ram = GuestRam::builder()
            .block(block("low", 0))
            .block(block("high", 8))
            .build()
            .unwrap();
        for block in ram.blocks() {
            block.mapping().copy_in(0, &[1; 8 * PAGE as usize]);
        }
        Memory::new(Host::probe(&Fallbacks::default()), ram)
    }

    fn drop_pages(block: &RamBlock, pages: Range<usize>) {
        let bytes = block.bytes_of(&pages);
        let mapping = block.mapping();
        mapping
            .advise(bytes.start, bytes.len(), Advice::DontNeed)
            .unwrap();
    }

    fn is_zero(memory: &Memory, page: u64) -> bool {
        let block = &memory.ram().blocks()[page as usize / 8];
        block
            .mapping()
            .is_zero(page as usize % 8 * PAGE as usize, PAGE as usize)
    }

    #[test]
    fn whole_pages_of_all_blocks_are_given_back_or_nothing() {
        let memory = memory();
        let given = memory
            .discard_at(6 * PAGE + 5, 3 * PAGE, drop_pages)
            .unwrap();
        assert_eq!(given, 2 * PAGE);
        let zeros: Vec<_> = (0..16).filter(|&page| is_zero(&memory, page)).collect();
        assert_eq!(zeros, [7, 8]);
        for (at, bytes) in [(15 * PAGE, 2 * PAGE), (u64::MAX - 5, 10), (99 * PAGE, 1)] {
            let nothing = |_: &RamBlock, pages| panic!("{pages:?} given back");
            let refused = memory.discard_at(at, bytes, nothing);
            assert!(matches!(refused, Err(DiscardError::Outside { .. })));
        }
    }

    #[test]
    fn a_snapshot_that_is_under_way_has_it_first() {
        let _ends = must_end();
        let memory = memory();
        let host = memory.host();
        if !host.can_freeze() {
            return skipped("userfaultfd with write-protection is not available to this process");
        }
        let options = FreezeOptions {
            host,
            chunk_pages: 4,
            buffer_bytes: 4 << 20,
            huge: HugePolicy::Keep,
            retry: Duration::ZERO,
            check: true,
            sabotage: Sabotage::None,
        };
        let faults = memory.faults().unwrap();
        let freeze = Freeze::new(Some(faults), memory.ram().clone(), None, &[], options).unwrap();
        memory.set_freeze(&freeze);
        freeze.arm(|| true).unwrap();
        freeze.hold(freeze.barrier()).unwrap();
        assert_eq!(
            memory.discard_at(0, 16 * PAGE, drop_pages).unwrap(),
            16 * PAGE
        );
        assert!((0..16).all(|page| is_zero(&memory, page)));
        let mut saved = 0;
        while let Some(copied) = freeze.next().unwrap() {
            saved += copied.pages().len();
        }
        freeze.end();
        assert_eq!(saved, 16, "pages with content");
    }
}
