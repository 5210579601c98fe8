//! RAM blocks as regions of the log.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use paguro_ram::{GuestRam, RamBlock};
use paguro_stage2::{
    AtomicU64, ConfigError, Cpu, LogError, PAGE_SIZE, RegionId, Stage2, TableError, TableMemory,
    words_for,
};

/// One bit a page of a block.
pub type Bitmap = Box<[AtomicU64]>;

/// RAM cannot be put behind tables, or cannot be logged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamLogError {
    /// The caller's: the tables cannot be made.
    #[error("no stage-2 tables can be made")]
    Config(#[source] ConfigError),
    /// The caller's: RAM does not fit behind them.
    #[error("RAM block {block} cannot be mapped")]
    Map {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: TableError,
    },
    /// The caller's: the block is no region of the log: there are too many, or it is not within the
    /// input size.
    #[error("RAM block {block} cannot be logged")]
    Region {
        /// The block.
        block: String,
        /// Why.
        #[source]
        source: LogError,
    },
}

/// The tables of a VM whose RAM blocks are logged. Trackers of one VM share it.
pub struct RamLog<M: TableMemory, C: Cpu> {
    pub(crate) ram: GuestRam,
    /// In the order of the blocks.
    pub(crate) regions: Vec<RegionId>,
    /// A tracker has started.
    pub(crate) taken: AtomicBool,
    tables: Stage2<M, C, Bitmap>,
}

impl<M: TableMemory, C: Cpu> std::fmt::Debug for RamLog<M, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RamLog of {} blocks", self.regions.len())
    }
}

impl<M: TableMemory, C: Cpu> RamLog<M, C> {
    /// Makes each RAM block, at its guest address and up to its maximum length, a region of the log.
    /// `tables` have no other region. Nothing is logged yet; RAM may be mapped before or later.
    ///
    /// # Errors
    ///
    /// [`RamLogError::Region`].
    pub fn new(ram: GuestRam, tables: Stage2<M, C, Bitmap>) -> Result<Self, RamLogError> {
        let region = |block: &RamBlock| {
            let words = words_for(block.max_pages() as u64);
            let bitmap = (0..words).map(|_| AtomicU64::new(0)).collect();
            let added = tables.add_region(range(block), bitmap);
            added.map_err(|source| RamLogError::Region {
                block: block.id().to_owned(),
                source,
            })
        };
        let regions = ram.blocks().iter().map(|block| region(block));
        Ok(Self {
            regions: regions.collect::<Result<_, _>>()?,
            taken: AtomicBool::new(false),
            tables,
            ram,
        })
    }

    /// The tables.
    pub fn tables(&self) -> &Stage2<M, C, Bitmap> {
        &self.tables
    }

    /// The RAM that they map.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

/// Where a block is for the guest.
pub(crate) fn range(block: &RamBlock) -> Range<u64> {
    let start = block.guest_address();
    start..start.saturating_add(block.max_pages() as u64 * PAGE_SIZE)
}
