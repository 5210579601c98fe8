//! The beginning: from here on somebody is told of writes to protected pages.

use std::sync::atomic::Ordering;

use paguro_faults::Use;
use paguro_ram::presence;

use super::context::Context;
use super::picture::Picture;
use crate::FreezeError;

/// Registers all blocks that the guest can write, and has pages that come placed protected. What was
/// registered before an error stays so.
///
/// # Errors
///
/// [`FreezeError::Unprotectable`], `Mergeable`, `Presence`, `Faults`.
pub(super) fn register(context: &Context) -> Result<(), FreezeError> {
    register_all(context)?;
    // Afterwards: registering may unmap shared page tables.
    context.blocks.iter().try_for_each(map_rest)
}

fn register_all(context: &Context) -> Result<(), FreezeError> {
    let Some(faults) = &context.faults else {
        return Ok(());
    };
    for (index, block) in context.blocks.iter().enumerate() {
        if !block.is_protected() {
            continue;
        }
        refuse_merging(block)?;
        if let Err(source) = faults.register(index, Use::WriteProtect) {
            if block.ram.can_be_protected() {
                return Err(source.into());
            }
            tracing::debug!(%source, "not protectable");
            return Err(FreezeError::Unprotectable {
                block: block.ram.id().to_owned(),
                why: "it is a private mapping of a file on a disk",
            });
        }
        // Asked afterwards: from here on no pager can take its registration away.
        let placed = faults.is_registered(index, Use::Missing);
        block.placed.store(placed, Ordering::Release);
    }
    context
        .hooks
        .protect_placements(|| faults.protect_placements());
    Ok(())
}

/// The kernel merges a protected page with equal ones of others (KSM) and drops its protection
/// without an event. What this process has mapped for guest RAM is kept out of that; of memory
/// that somebody else made, it is his decision, and there is no freeze where he wants it.
fn refuse_merging(block: &Picture) -> Result<(), FreezeError> {
    let mapping = block.ram.mapping();
    let asked = mapping
        .keep_unmerged()
        .and_then(|()| mapping.is_mergeable());
    match asked {
        Ok(false) => Ok(()),
        Ok(true) => Err(FreezeError::Mergeable {
            block: block.ram.id().to_owned(),
        }),
        Err(source) => Err(block.presence_error(source)),
    }
}

fn map_rest(block: &Picture) -> Result<(), FreezeError> {
    presence::map_rest(&block.ram).map_err(|source| block.presence_error(source))
}
