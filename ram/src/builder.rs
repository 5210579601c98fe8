//! RAM put together of what a VMM has.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::{BlockConfig, Discards, GuestRam, RamBlock, RamError};

/// A block that is there, or one that is to be made.
#[derive(Debug)]
pub enum Block {
    /// Fresh memory of ours.
    New(BlockConfig),
    /// Made already: of a file, of a region ([`RamBlock::of_region`]), or of memory that somebody
    /// else mapped ([`RamBlock::adopt`]).
    Made(RamBlock),
}

impl From<BlockConfig> for Block {
    fn from(config: BlockConfig) -> Self {
        Self::New(config)
    }
}

impl From<RamBlock> for Block {
    fn from(block: RamBlock) -> Self {
        Self::Made(block)
    }
}

/// Puts RAM together, block by block.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
/// use paguro_sys::Mapping;
///
/// # let owner = Mapping::anonymous(1 << 20, false)?;
/// # let (address, bytes) = (owner.addr(), owner.len());
/// // What the VMM mapped, with whatever unmaps it when it is dropped.
/// // SAFETY: `owner` keeps it mapped, and nobody has a reference into it.
/// let mapping = unsafe { Mapping::foreign(address, bytes, owner)? };
/// let ram = GuestRam::builder()
///     .block(RamBlock::adopt("ram0", 0, Arc::new(mapping), Backing::Anonymous))
///     .block(BlockConfig {
///         id: "ram1".to_owned(),
///         guest_address: 1 << 32,
///         bytes: 1 << 20,
///         backing: Backing::Memfd,
///         pages: PageKind::Small,
///     })
///     .build()?;
/// assert_eq!(ram.bytes(), 2 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct GuestRamBuilder {
    blocks: Vec<Block>,
    discards: Option<Arc<dyn Discards>>,
}

impl GuestRam {
    /// RAM of blocks of all kinds, one after the other.
    pub fn builder() -> GuestRamBuilder {
        GuestRamBuilder::default()
    }
}

impl GuestRamBuilder {
    /// Adds one; blocks are in the order of their guest addresses.
    pub fn block(mut self, block: impl Into<Block>) -> Self {
        self.blocks.push(block.into());
        self
    }

    /// Says which device discards parts of it.
    pub fn discards(mut self, discards: Arc<dyn Discards>) -> Self {
        self.discards = Some(discards);
        self
    }

    /// Makes what is to be made.
    ///
    /// # Errors
    ///
    /// [`RamError`]: the host has no such memory; [`RamError::Twice`], [`RamError::Overlap`].
    pub fn build(self) -> Result<GuestRam, RamError> {
        let blocks = self.blocks.into_iter().map(|block| match block {
            Block::New(config) => RamBlock::new(config),
            Block::Made(block) => Ok(block),
        });
        let blocks: Vec<RamBlock> = blocks.collect::<Result<_, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = blocks.iter().find(|block| !names.insert(block.id())) {
            return Err(RamError::Twice {
                id: twice.id().to_owned(),
            });
        }
        apart(&blocks, |block| {
            let start = block.guest_address();
            start..start.saturating_add(block.max_bytes() as u64)
        })?;
        apart(&blocks, |block| block.addresses_of(&(0..block.max_pages())))?;
        let ram = GuestRam::new(blocks);
        Ok(match self.discards {
            Some(discards) => ram.with_discards(discards),
            None => ram,
        })
    }
}

/// That no two blocks are in one place.
fn apart<A: Ord + Copy>(
    blocks: &[RamBlock],
    place: impl Fn(&RamBlock) -> Range<A>,
) -> Result<(), RamError> {
    let mut places: Vec<_> = blocks.iter().map(|block| (place(block), block)).collect();
    places.sort_by_key(|(place, _)| place.start);
    let overlap = places.windows(2).find(|two| two[0].0.end > two[1].0.start);
    match overlap {
        Some(two) => Err(RamError::Overlap {
            one: two[0].1.id().to_owned(),
            other: two[1].1.id().to_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::{Backing, NothingDiscarded, PageKind};

    fn config(id: &str, pages: Range<u64>) -> BlockConfig {
        BlockConfig {
            id: id.to_owned(),
            guest_address: pages.start * 4096,
            bytes: (pages.end - pages.start) as usize * 4096,
            backing: Backing::Anonymous,
            pages: PageKind::Small,
        }
    }

    #[test]
    fn blocks_that_are_there_stand_beside_new_ones() {
        let there = RamBlock::new(config("there", 8..12)).unwrap();
        let address = there.mapping().addr();
        let ram = GuestRam::builder()
            .block(config("new", 0..8))
            .block(there)
            .discards(Arc::new(NothingDiscarded))
            .build()
            .unwrap();
        let ids: Vec<_> = ram.blocks().iter().map(|block| block.id()).collect();
        assert_eq!((ids, ram.pages()), (vec!["new", "there"], 12));
        assert_eq!(ram.locate(address + 5).unwrap().block, 1);
    }

    #[test]
    fn no_two_have_a_name_or_a_place_in_common() {
        let both = |one, other| GuestRam::builder().block(one).block(other).build();
        let twice = both(config("a", 0..1), config("a", 1..2));
        assert!(matches!(twice, Err(RamError::Twice { .. })));
        let overlap = both(config("a", 4..8), config("b", 0..5));
        assert!(matches!(overlap, Err(RamError::Overlap { one, .. }) if one == "b"));
        // Two blocks of one mapping.
        let first = RamBlock::new(config("a", 0..4)).unwrap();
        let again = first.mapping().clone();
        let again = RamBlock::adopt("b", 1 << 32, again, Backing::Anonymous);
        let here = GuestRam::builder().block(first).block(again).build();
        assert!(matches!(here, Err(RamError::Overlap { .. })));
        assert!(both(config("a", 4..8), config("b", 0..4)).is_ok());
    }
}
