//! Whether a frozen page is still what it was in the pause.
//!
//! Two things are looked at after a chunk was copied and before it is released:
//!
//! * **Its protection is still there**, always. The kernel has ways to take it away without an event:
//!   merging a page with equal ones of others (KSM) is one, a bug would be another. A page that was
//!   still protected after its copy was made cannot have been written before. That costs one walk
//!   over the page tables of the chunk, a hundredth of what copying it costs.
//! * **Its content is that of the pause**, if [`FreezeOptions::check`](crate::FreezeOptions::check) asks for it.
//!   Writers that do not go through the mapping (another mapping of the same memory, `pwrite`, pages that were pinned
//!   before) leave the protection as it is. So all of RAM is read in the pause and a digest of each
//!   page is kept, which prolongs the pause by some 0.2 ms a MiB: for tests, and to find out whether a
//!   VMM has writers that it does not know of.

use std::ops::Range;

use paguro_ram::{Backing, presence};
use paguro_sys::page_size;

use super::context::Context;
use super::life::Epoch;
use super::picture::Picture;
use crate::sizes::{GRANULE, granules};
use crate::{Copied, FreezeError};

/// In the pause: what each page holds. Not while RAM is filled: a page that is not there would be
/// waited for.
pub(super) fn take_digests(context: &Context) -> Result<(), FreezeError> {
    if !context.options.check || context.source.is_some() {
        return Ok(());
    }
    for block in &context.blocks {
        let page_bytes = page_size();
        let mut digests = Vec::new();
        digests.try_reserve_exact(block.pages())?;
        digests.resize(block.pages(), 0);
        let mut content = vec![0; page_bytes];
        block.absent.gaps(0..block.pages(), |there| {
            for page in there {
                // Discarded pages are nobody's business.
                if !block.claimed.contains(page) {
                    let mapping = block.ram.mapping();
                    mapping.copy_out(page * page_bytes, &mut content);
                    digests[page] = crc32c::crc32c(&content);
                }
            }
        });
        let _ = block.digests.set(digests);
    }
    Ok(())
}

/// Looks at pages that were copied and are still claimed and protected.
pub(super) fn check(
    context: &Context,
    index: usize,
    pages: &Range<usize>,
    copied: &Copied,
) -> Result<(), FreezeError> {
    if context.life.now() != Epoch::Frozen {
        return Ok(());
    }
    context.hooks.check(|| {
        let block = &context.blocks[index];
        check_protection(context, block, pages)?;
        let Some(digests) = block.digests.get() else {
            return Ok(());
        };
        check_content(block, pages, copied, digests)?;
        check_absent(context, block, pages)
    })
}

fn check_protection(
    context: &Context,
    block: &Picture,
    pages: &Range<usize>,
) -> Result<(), FreezeError> {
    if context.faults.is_none() || !block.is_protected() {
        return Ok(());
    }
    for (granule, part) in granules(pages.clone()) {
        if !block.armed.contains(granule) {
            continue;
        }
        let mut lost = None;
        presence::unprotected(&block.ram, part, &context.pagemap, |run| {
            lost = lost.or(Some(run.start));
        })
        .map_err(|source| block.presence_error(source))?;
        if let Some(page) = lost {
            let block = block.ram.id().to_owned();
            return Err(FreezeError::ProtectionLost { block, page });
        }
    }
    Ok(())
}

fn check_content(
    block: &Picture,
    pages: &Range<usize>,
    copied: &Copied,
    digests: &[u32],
) -> Result<(), FreezeError> {
    let page_bytes = page_size();
    let zeros = crc32c::crc32c(&vec![0; page_bytes]);
    let kept = copied.pages();
    for page in pages.clone().filter(|&page| !block.absent.contains(page)) {
        let slot = kept.binary_search(&page).ok();
        let now = slot.map_or(zeros, |slot| crc32c::crc32c(copied.content(slot)));
        let at = page * page_bytes;
        let changed = |slot| !block.ram.mapping().is_equal(at, copied.content(slot));
        // Also what was written while it was copied: the next writer of this kind may be faster.
        if now != digests[page] || slot.is_some_and(changed) {
            return Err(unseen_writer(block, page));
        }
    }
    Ok(())
}

/// What did not exist and is not mapped cannot be protected, where there is a file.
fn check_absent(
    context: &Context,
    block: &Picture,
    pages: &Range<usize>,
) -> Result<(), FreezeError> {
    if block.ram.backing() != Backing::Memfd || block.ram.unit_pages() != 1 {
        return Ok(());
    }
    let page_bytes = page_size();
    let mut came = Vec::new();
    block.find(&context.pagemap, pages.clone(), |run| {
        came.extend(run.filter(|&page| block.absent.contains(page)));
    })?;
    for page in came {
        let armed = block.armed.contains(page / GRANULE);
        if armed && !block.ram.mapping().is_zero(page * page_bytes, page_bytes) {
            return Err(unseen_writer(block, page));
        }
    }
    Ok(())
}

fn unseen_writer(block: &Picture, page: usize) -> FreezeError {
    let block = block.ram.id().to_owned();
    FreezeError::UnseenWriter { block, page }
}
