//! The blocks of RAM, as both sides of a stream list them.

use std::sync::Arc;

use paguro_ram::GuestRam;
use paguro_wire::stream::ram::{BlockTable, ListedBlock};

use crate::error::MigrateError;

/// The blocks of RAM as a stream lists them.
pub(crate) fn table_of(ram: &GuestRam) -> Result<Arc<BlockTable>, MigrateError> {
    let blocks = ram.blocks().iter().map(|block| {
        let bytes = block.used_bytes() as u64;
        let mut listed = ListedBlock::new(block.id(), bytes);
        // Left out of the stream unless a capability wants it.
        listed.guest_address = Some(block.guest_address());
        listed
    });
    BlockTable::new(blocks.collect())
        .map(Arc::new)
        .map_err(MigrateError::Blocks)
}
