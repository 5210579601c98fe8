//! Whether RAM that somebody else made is fresh.
//!
//! A page that exists already is never asked for: whoever touches it goes on with what stands there, and
//! no fault says so. And a page that the file does not have stays what it is. So content is refused, and
//! not overwritten: who has some made a mistake, and the guest would be neither the one nor the other.

use paguro_ram::RamBlock;
use paguro_ram::presence::present;
use paguro_sys::page_size;
use paguro_sys::presence::Pagemap;

use super::{RestoreError, RestoreMode};
use crate::Memory;

/// Refuses RAM in which something stands: with [`RestoreMode::Lazy`] any page that exists, also one that
/// is zero; else only one that is not zero, so that RAM may have been populated ahead.
pub(super) fn check(memory: &Memory, mode: RestoreMode) -> Result<(), RestoreError> {
    let pagemap = Pagemap::open(&memory.host()).map_err(RestoreError::Pagemap)?;
    for block in memory.ram().blocks() {
        if let Some(page) = first_page(block, &pagemap, mode)? {
            return Err(RestoreError::NotFresh {
                block: block.id().to_owned(),
                page,
            });
        }
    }
    Ok(())
}

/// The first page that stands in the way.
fn first_page(
    block: &RamBlock,
    pagemap: &Pagemap,
    mode: RestoreMode,
) -> Result<Option<usize>, RestoreError> {
    let mut first = None;
    let page = page_size();
    let is_zero = |number: usize| block.mapping().is_zero(number * page, page);
    let found = present(block, 0..block.pages(), pagemap, |mut run| {
        if first.is_none() {
            first = match mode {
                RestoreMode::Lazy => run.next(),
                _ => run.find(|&number| !is_zero(number)),
            };
        }
    });
    found.map_err(|source| RestoreError::Presence {
        block: block.id().to_owned(),
        source,
    })?;
    Ok(first)
}
