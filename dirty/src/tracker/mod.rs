//! Trackers: which pages were written since they were last asked.
//!
//! | tracker | sees | pages are protected again |
//! |---|---|---|
//! | [`KvmLog`] | the guest's writes, and KVM's own | by [`Tracker::clear`] (or by the sync, on old kernels) |
//! | [`KvmLog::shared`] | the same, of a log that the VMM needs for itself | by [`Tracker::clear`] |
//! | [`KvmRing`] | the same, and which vCPU it was | by the sync |
//! | [`AsyncProtect`] | all that is written through this process' mapping | by the sync |
//! | [`MarkTracker`] | what the VMM and its devices say that they wrote | there is nothing to protect |
//! | [`Bitmaps`] | the same, by bitmaps that the VMM has, as those of `vm-memory` | there is nothing to protect |
//! | [`Union`] | what any of several sees | |
//!
//! A VMM that needs KVM's log for its own differential snapshots shares it, or leaves it alone:
//! [`AsyncProtect`] neither switches nor clears anything that is KVM's.
//!
//! More may stand elsewhere: that of Arm stage-2 tables is `paguro-stage2-tracker`.
//!
//! # Nothing is lost
//!
//! All of them keep one rule: a page is protected (or marked anew) *before* whoever was told of it
//! reads it. The sender takes a page from its set of dirty pages, calls [`Tracker::clear`] for the
//! chunk, and only then reads it; a write that comes later, in the middle of the reading too, is
//! reported by the next sync. The other way round a write between reading and clearing would be
//! forgotten. Whatever is reported too often costs time only.
//!
//! # The last sync
//!
//! A processor may keep writes to itself while it runs its guest (Intel's page-modification log), and
//! collecting the state of devices writes to RAM. So the last sync comes after all vCPUs have left
//! the guest and device state was collected. What a sync misses while vCPUs run comes with the next.
//!
//! # What is discarded
//!
//! Discarded ranges, and pages beyond the used length of a block, are never reported, whoever wrote
//! to them.

mod bitmaps;
mod bits;
mod error;
mod log;
mod marks;
mod measure;
mod place;
mod protect;
pub mod report;
mod ring;
mod union;

use std::ops::Range;

use paguro_ram::PageSet;

pub use bitmaps::Bitmaps;
pub use bits::WrittenBits;
pub use error::TrackerError;
pub use log::KvmLog;
pub use marks::{MarkTracker, Marks};
pub use measure::{DirtyRate, measure};
pub use protect::AsyncProtect;
pub use ring::{KvmRing, KvmRings};
pub use union::Union;

/// Says which pages were written.
///
/// All methods may be called from any thread. A tracker that is dropped is stopped.
pub trait Tracker: Send + Sync {
    /// Starts: every page written after this returned is reported by a later sync. What was
    /// written before may be reported too, up to all of RAM; so the first sync comes before the
    /// first page is sent, or all would be sent twice.
    ///
    /// # Errors
    ///
    /// [`TrackerError`]; all that was begun is undone.
    fn start(&self) -> Result<(), TrackerError>;

    /// Adds what was written (since the start, or since it was last reported and cleared) to
    /// `dirty`: one set for each RAM block, in the order of
    /// [`GuestRam::blocks`](paguro_ram::GuestRam::blocks), made for its maximum length. Returns the
    /// number of pages that were not in `dirty` before.
    ///
    /// # Errors
    ///
    /// [`TrackerError`]. What was added by then stays, and what was not added is not lost: it
    /// comes with the next sync that succeeds.
    fn sync(&self, dirty: &[PageSet]) -> Result<usize, TrackerError>;

    /// To be called just before pages are read to be sent, after they were taken from the set of
    /// dirty ones: later writes are reported by the next sync. The range is a chunk: it begins at a
    /// multiple of 64 pages, and ends at one or at the end of the block. Does nothing where the
    /// sync did it already.
    ///
    /// # Errors
    ///
    /// [`TrackerError`].
    fn clear(&self, block: usize, pages: Range<usize>) -> Result<(), TrackerError>;

    /// Ends it: protection is gone, huge mappings may form again. Ending twice is no error.
    fn stop(&self);

    /// Pages a second written by each vCPU since the last call, where the tracker knows; else empty.
    fn vcpu_rates(&self) -> Vec<u64> {
        Vec::new()
    }
}
