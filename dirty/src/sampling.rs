//! How fast RAM is written, without a tracker: pages picked at random are looked at twice.
//!
//! Nothing is protected and nothing is cleared, so it may go on beside whatever else watches the RAM:
//! a freeze, a tracker, a pager. The price is that it is an estimate, and that what is written with the
//! same content is not seen.
//!
//! What is absent is not read: reading it would make it present, which takes memory (of shared memory,
//! as much as writing) or has a pager fetch it. It counts as zero, and so does what is discarded; a page
//! that comes to be with content in between counts as written. Of a page that has not arrived yet nothing
//! is known, so it is no part of the sample: that it arrives is no write.

use std::collections::TryReserveError;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::time::Instant;

use paguro_faults::Supply;
use paguro_ram::{GuestRam, RamBlock, presence};
use paguro_sys::presence::Pagemap;
use paguro_sys::{Host, page_size};

use crate::tracker::DirtyRate;

/// Which pages are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// How many of each GiB, at least one of each block, and no more than there are. One may be picked
    /// twice.
    pub pages_per_gib: u64,
    /// Which ones: the same seed picks the same pages of the same RAM.
    pub seed: u64,
}

/// RAM could not be sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The host's: `/proc` is not mounted.
    #[error("cannot find out which pages of guest RAM exist")]
    Pagemap(#[source] io::Error),
    /// The host's: it does not tell which pages exist.
    #[error("cannot find out which pages of RAM block {block} exist")]
    Presence {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host's: no memory for what is kept of each page of the sample.
    #[error("no memory for a sample of guest RAM")]
    Tables(#[from] TryReserveError),
}

/// A page, by the number of its block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Picked {
    block: usize,
    page: usize,
}

/// Of a block's sample.
#[derive(Clone, Copy, Default)]
struct Counts {
    picked: usize,
    changed: usize,
}

impl Sampling {
    /// Estimates how many different pages of `ram` are written while `wait` waits; `source` has the
    /// pages that have not arrived. The rates of vCPUs are not known.
    ///
    /// # Errors
    ///
    /// [`SamplingError`].
    pub fn measure(
        &self,
        ram: &GuestRam,
        host: &Host,
        source: Option<&dyn Supply>,
        wait: impl FnOnce(),
    ) -> Result<DirtyRate, SamplingError> {
        let mut eye = Eye::open(ram, host)?;
        let mut picked = self.pick(ram)?;
        let mut counts: Vec<Counts> = vec![Counts::default(); ram.blocks().len()];
        // What has not arrived cannot have been written, and is a part of its block all the same.
        picked.iter().for_each(|it| counts[it.block].picked += 1);
        if let Some(source) = source {
            picked.retain(|it| !source.is_to_come(it.block, it.page));
        }
        let mut before = Vec::new();
        before.try_reserve_exact(picked.len())?;
        let since = Instant::now();
        for page in &picked {
            before.push(eye.look(page)?);
        }
        wait();
        // Between two looks at one page; both take about as long.
        let elapsed = since.elapsed();
        for (page, before) in picked.iter().zip(before) {
            counts[page.block].changed += usize::from(eye.look(page)? != before);
        }
        let blocks = counts.iter().zip(ram.blocks());
        let pages = blocks.map(|(count, block)| {
            count.changed as u128 * block.pages() as u128 / count.picked.max(1) as u128
        });
        Ok(DirtyRate {
            pages: pages.sum::<u128>() as usize,
            elapsed,
            vcpus: Vec::new(),
        })
    }

    fn pick(&self, ram: &GuestRam) -> Result<Vec<Picked>, SamplingError> {
        let gib = (1 << 30) / page_size() as u64;
        let count = |block: &RamBlock| {
            let pages = block.pages() as u64;
            pages
                .saturating_mul(self.pages_per_gib)
                .div_ceil(gib)
                .clamp(1, pages.max(1))
        };
        let all = ram.blocks().iter().map(|block| count(block) as usize).sum();
        let mut picked = Vec::new();
        picked.try_reserve_exact(all)?;
        // Of zero comes nothing but zero.
        let mut state = self.seed ^ 0x9e37_79b9_7f4a_7c15;
        state = state.max(1);
        for (index, block) in ram.blocks().iter().enumerate() {
            let pages = block.pages() as u64;
            for _ in 0..count(block) {
                let page = (next(&mut state) % pages.max(1)) as usize;
                picked.push(Picked { block: index, page });
            }
        }
        // Neighbours in memory are cheaper to look at one after the other.
        picked.sort_unstable();
        Ok(picked)
    }
}

/// Looks at pages, and leaves them as they are.
struct Eye<'a> {
    ram: &'a GuestRam,
    pagemap: Pagemap,
    content: Vec<u8>,
    zero: u64,
}

impl<'a> Eye<'a> {
    fn open(ram: &'a GuestRam, host: &Host) -> Result<Self, SamplingError> {
        let pagemap = Pagemap::open(host).map_err(SamplingError::Pagemap)?;
        for block in ram.blocks() {
            presence::map_rest(block).map_err(|error| unknown(block, error))?;
        }
        let content = vec![0; page_size()];
        Ok(Self {
            ram,
            pagemap,
            zero: digest(&content),
            content,
        })
    }

    /// A digest of what a page holds.
    fn look(&mut self, &Picked { block, page }: &Picked) -> Result<u64, SamplingError> {
        let block = &self.ram.blocks()[block];
        if !self.has_content(block, page)? {
            return Ok(self.zero);
        }
        let mapping = block.mapping();
        mapping.copy_out(page * page_size(), &mut self.content);
        Ok(digest(&self.content))
    }

    fn has_content(&self, block: &RamBlock, page: usize) -> Result<bool, SamplingError> {
        // It may have become shorter since.
        if page >= block.pages() {
            return Ok(false);
        }
        let part = page..page + 1;
        let mut populated = false;
        let discards = self.ram.discards();
        discards.populated(block, part.clone(), &mut |_| populated = true);
        let mut exists = false;
        if populated {
            presence::present(block, part, &self.pagemap, |found| {
                exists |= found.contains(&page);
            })
            .map_err(|error| unknown(block, error))?;
        }
        Ok(exists)
    }
}

fn unknown(block: &RamBlock, source: io::Error) -> SamplingError {
    SamplingError::Presence {
        block: block.id().to_owned(),
        source,
    }
}

fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

/// xorshift: good enough to pick pages.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
