//! The cache of XBZRLE: pages as the destination has them, so that only what changed is sent.
//!
//! It begins with the second pass, as QEMU's: in the first there is nothing to be different from.
//! Its size is fixed and each page has one place in it; a page that was used lately keeps its
//! place. What is in the cache is exactly what was sent: a page is copied once, and both the
//! difference and the cached copy are made from that copy, whatever the guest writes meanwhile. A
//! page that is cached is never sent without the cache being told, or every later difference to it
//! would be wrong.

use paguro_ram::GuestRam;
use paguro_sys::page_size;
use paguro_wire::PAGE_BYTES;
use paguro_wire::stream::xbzrle::{self, Encoded};

use super::{Main, Way};
use crate::Allowance;
use crate::source::MigrateError;
use crate::source::command::Stopped;
use crate::source::hooks::Hooks;
use crate::source::outstanding::Due;
use crate::source::tally::Tally;
use crate::stream::Stream;

const PAGE: usize = PAGE_BYTES as usize;
/// A page that was used in one of so many passes keeps its place.
const LIFETIME: u32 = 2;
/// No page.
const EMPTY: u64 = u64::MAX;

/// The cache, and what it is used with.
pub(in crate::source) struct Deltas {
    ram: GuestRam,
    /// Of each place: which page, and the pass in which it was used last.
    tags: Box<[(u64, u32)]>,
    /// The pages; what was never used of it costs nothing.
    pages: Vec<u8>,
    /// The first page of each block, in one count of all.
    firsts: Vec<u64>,
    pass: u32,
    scratch: Box<[u8; PAGE]>,
    delta: Vec<u8>,
    hooks: Hooks,
    passed: Period,
}

/// Counts at the end of the last pass.
#[derive(Clone, Copy, Default)]
struct Period {
    pages: u64,
    bytes: u64,
    misses: u64,
    sent: u64,
}

/// The size of a cache that the host has memory for: as asked for, or the next power of two below
/// what may be taken. A cache that got the machine killed would save nothing.
pub(in crate::source) fn affordable(cache_bytes: u64, allowance: &Allowance) -> u64 {
    if cache_bytes <= allowance.bytes {
        return cache_bytes;
    }
    let bytes = 1 << allowance.bytes.max(PAGE_BYTES).ilog2();
    if let Some(bound) = &allowance.bound {
        tracing::info!(%bound, bytes, cache_bytes, "a small cache of pages");
    }
    bytes
}

impl Deltas {
    /// Of so many bytes, a power of two of at least a page; more than there is RAM would lie idle.
    ///
    /// # Errors
    ///
    /// [`MigrateError::Cache`]: the host has no memory for it.
    pub(in crate::source) fn new(
        ram: &GuestRam,
        cache_bytes: u64,
        hooks: Hooks,
    ) -> Result<Self, MigrateError> {
        let mut next = 0;
        let firsts = ram.blocks().iter().map(|block| {
            let first = next;
            next += block.max_pages() as u64;
            first
        });
        let firsts = firsts.collect();
        let places = (cache_bytes / PAGE_BYTES).min(next.next_power_of_two()) as usize;
        // What cannot be had is asked for so that it is an error: memory that comes zeroed, and costs
        // nothing before it is used, is had or ends the process, and the guest with it.
        let bytes = places * (PAGE + size_of::<(u64, u32)>());
        let asked = Vec::<u8>::new().try_reserve_exact(bytes);
        asked.map_err(|source| MigrateError::Cache { bytes, source })?;
        Ok(Self {
            ram: ram.clone(),
            tags: vec![(EMPTY, 0); places].into_boxed_slice(),
            pages: vec![0; places * PAGE],
            firsts,
            pass: 0,
            scratch: Box::new([0; PAGE]),
            delta: Vec::with_capacity(PAGE),
            hooks,
            passed: Period::default(),
        })
    }

    fn is_active(&self) -> bool {
        self.pass > 1
    }

    /// Sends a page as it is now.
    fn page(
        &mut self,
        stream: &mut Stream,
        (block, page): (usize, usize),
        tally: &mut Tally,
    ) -> Result<(), MigrateError> {
        if !self.is_active() {
            let content = stream.page(block, page)?;
            if content {
                tally.normal_pages += 1
            } else {
                tally.zero_pages += 1
            }
            return Ok(());
        }
        let mapping = self.ram.blocks()[block].mapping();
        mapping.copy_out(page * page_size(), &mut self.scratch[..]);
        if self.scratch.iter().all(|byte| *byte == 0) {
            return self.zero(stream, (block, page), tally);
        }
        let (place, tag) = self.place_of(block, page);
        if self.tags[place].0 != tag {
            tally.differences.misses += 1;
            let (holds, used) = self.tags[place];
            if holds == EMPTY || used + LIFETIME <= self.pass {
                self.tags[place] = (tag, self.pass);
                self.pages[place * PAGE..][..PAGE].copy_from_slice(&self.scratch[..]);
            }
            tally.normal_pages += 1;
            return stream.content(block, page, &self.scratch[..]);
        }
        self.tags[place].1 = self.pass;
        self.delta.clear();
        let Some(old) = self.pages[place * PAGE..].first_chunk::<PAGE>() else {
            return Err(MigrateError::Bug);
        };
        let encoded = xbzrle::encode(old, &self.scratch, PAGE - 1, &mut self.delta);
        let hoarded = self.hooks.hoards(page);
        match encoded {
            _ if hoarded => {}
            Encoded::Unchanged => {
                tally.differences.pages += 1;
                return Ok(());
            }
            Encoded::Delta => {
                stream.delta(block, page, &self.delta)?;
                tally.differences.pages += 1;
                let bytes = self.delta.len() + xbzrle::HEADER_BYTES;
                tally.differences.bytes += bytes as u64;
            }
            Encoded::Overflow => {
                tally.differences.overflows += 1;
                tally.normal_pages += 1;
                stream.content(block, page, &self.scratch[..])?;
            }
        }
        self.pages[place * PAGE..][..PAGE].copy_from_slice(&self.scratch[..]);
        Ok(())
    }

    /// Sends a page of zeros.
    fn zero(
        &mut self,
        stream: &mut Stream,
        (block, page): (usize, usize),
        tally: &mut Tally,
    ) -> Result<(), MigrateError> {
        let (place, tag) = self.place_of(block, page);
        if self.tags[place].0 == tag {
            self.pages[place * PAGE..][..PAGE].fill(0);
        }
        tally.zero_pages += 1;
        stream.zero(block, page)
    }

    fn place_of(&self, block: usize, page: usize) -> (usize, u64) {
        let tag = self.firsts[block] + page as u64;
        (tag as usize & (self.tags.len() - 1), tag)
    }
}

impl Way for Deltas {
    /// A pass begins. Before the second nothing is cached.
    fn begin_pass(&mut self, tally: &mut Tally) {
        self.pass += 1;
        let of = &mut tally.differences;
        let now = Period {
            pages: of.pages,
            bytes: of.bytes,
            misses: of.misses,
            sent: tally.normal_pages,
        };
        let before = std::mem::replace(&mut self.passed, now);
        let permille = |part: u64, of: u64| (part * 1000).checked_div(of).unwrap_or(0);
        let tried = now.pages - before.pages + (now.sent - before.sent);
        of.miss_permille = permille(now.misses - before.misses, tried);
        let plain = (now.pages - before.pages) * PAGE_BYTES;
        of.encoding_rate_permille = permille(plain, now.bytes - before.bytes);
    }

    fn send(&mut self, main: &mut Main<'_>, block: usize, due: &Due) -> Result<u64, Stopped> {
        main.pages(|Main { stream, tally, .. }| {
            for &page in &due.content {
                self.page(stream, (block, page), tally)?;
            }
            for &page in &due.gone {
                self.zero(stream, (block, page), tally)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use paguro_ram::{Backing, BlockConfig, PageKind, RamBlock};

    use super::*;
    use crate::source::SourceSabotage;

    #[test]
    fn a_cache_for_which_there_is_no_memory_is_an_error() {
        // More than any host has, and none of it is there.
        let block = RamBlock::new(BlockConfig {
            id: "ram".to_owned(),
            guest_address: 0,
            bytes: 1 << 46,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        });
        let ram = GuestRam::new(vec![block.unwrap()]);
        let hooks = Hooks::new(SourceSabotage::None);
        let error = Deltas::new(&ram, 1 << 46, hooks).map(drop).unwrap_err();
        assert!(matches!(error, MigrateError::Cache { .. }), "{error}");
        assert!(Deltas::new(&ram, 1 << 20, hooks).is_ok());
    }

    #[test]
    fn a_cache_is_as_large_as_the_host_allows() {
        let with = |bytes| {
            let bound = Some(paguro_sys::Bound::Host);
            affordable(64 << 20, &Allowance { bytes, bound })
        };
        assert_eq!(with(u64::MAX), 64 << 20);
        assert_eq!(with(64 << 20), 64 << 20);
        assert_eq!(with((64 << 20) - 1), 32 << 20);
        assert_eq!(with(5 << 20), 4 << 20);
        assert_eq!(with(0), PAGE_BYTES);
    }
}
