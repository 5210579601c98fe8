//! How fast RAM is written, without sending any of it.

use std::time::{Duration, Instant};

use paguro_ram::GuestRam;

use super::report::sets;
use super::{Tracker, TrackerError};

/// Pages that are cleared together.
const CHUNK_PAGES: usize = 4096;

/// What was written within a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyRate {
    /// Different pages that were written.
    pub pages: usize,
    /// Within this time.
    pub elapsed: Duration,
    /// Pages a second of each vCPU, where the tracker knows; else empty.
    pub vcpus: Vec<u64>,
}

impl DirtyRate {
    /// Different pages a second.
    pub fn pages_per_s(&self) -> u64 {
        (self.pages as u128 * 1_000_000 / self.elapsed.as_micros().max(1)) as u64
    }
}

/// Counts the pages of `ram` that are written while `wait` waits. The tracker must not be started; it
/// is stopped afterwards. A page that is written twice counts once, so the rate falls with the time.
///
/// # Errors
///
/// [`TrackerError`]; the tracker is stopped.
pub fn measure(
    tracker: &dyn Tracker,
    ram: &GuestRam,
    wait: impl FnOnce(),
) -> Result<DirtyRate, TrackerError> {
    tracker.start()?;
    let measured = count(tracker, ram, wait);
    tracker.stop();
    measured
}

fn count(
    tracker: &dyn Tracker,
    ram: &GuestRam,
    wait: impl FnOnce(),
) -> Result<DirtyRate, TrackerError> {
    // What is reported at first may be all of RAM, written or not.
    tracker.sync(&sets(ram))?;
    for (index, block) in ram.blocks().iter().enumerate() {
        let pages = block.pages();
        for start in (0..pages).step_by(CHUNK_PAGES) {
            tracker.clear(index, start..pages.min(start + CHUNK_PAGES))?;
        }
    }
    tracker.vcpu_rates();
    let since = Instant::now();
    wait();
    let pages = tracker.sync(&sets(ram))?;
    Ok(DirtyRate {
        pages,
        elapsed: since.elapsed(),
        vcpus: tracker.vcpu_rates(),
    })
}
