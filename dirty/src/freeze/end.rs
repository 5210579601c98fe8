//! The end: what is left is let go, in small steps, while the guest runs.

use paguro_faults::{Faults, Use};
use paguro_sys::{Advice, Raised};

use super::context::Context;
use super::pace::breathe;
use super::picture::Picture;
use crate::sizes::{self, GRANULE};

/// Takes protection and registration away. Once, and after the life of the freeze is over. What cannot
/// be undone is traced: there is nobody to tell who could do more.
pub(super) fn undo(context: &Context) {
    let Some(faults) = &context.faults else {
        return;
    };
    // From here on a protected page is released by whoever reads its event.
    faults.barrier().protected = None;
    faults.free_placements();
    paguro_sys::boost_timer();
    // Whoever faults in a range that is being let go waits for this thread.
    let _raised = Raised::begin();
    for (index, block) in context.blocks.iter().enumerate() {
        if !faults.is_registered(index, Use::WriteProtect) {
            continue;
        }
        if faults.is_registered(index, Use::Missing) {
            // A pager still fills it, and unregistering would drop both modes.
            release_all(faults, index, block);
        }
        let undone = faults.unregister(index, Use::WriteProtect, &block.rest(), breathe);
        if let Err(error) = undone {
            tracing::error!(%error, "a part of guest RAM stays registered");
        }
        join(block);
    }
}

fn release_all(faults: &Faults, index: usize, block: &Picture) {
    let pages = block.ram.max_pages();
    for granule in 0..pages.div_ceil(GRANULE) {
        if let Err(error) = faults.release(index, sizes::granule(granule, pages)) {
            tracing::error!(%error, "a part of guest RAM stays protected");
        }
        breathe();
    }
}

/// Maps shared memory by huge pages again where arming has split the mapping. The page cache still
/// has the huge pages, so nothing is copied.
fn join(block: &Picture) {
    block.split.take(0..block.split.pages(), |run| {
        for granule in run {
            let bytes = block
                .ram
                .bytes_of(&(granule * GRANULE..(granule + 1) * GRANULE));
            let joined = block
                .ram
                .mapping()
                .advise(bytes.start, bytes.len(), Advice::Collapse);
            if let Err(error) = joined {
                tracing::debug!(%error, granule, "stays split");
            }
            breathe();
        }
    });
}
