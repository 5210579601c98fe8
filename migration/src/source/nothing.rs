//! Where there is nothing to track.

use std::ops::Range;

use paguro_dirty::tracker::{Tracker, TrackerError};
use paguro_ram::PageSet;

/// A tracker that hears nothing: where there is nothing to hear, or something is broken on purpose.
pub(super) struct Nothing;

impl Tracker for Nothing {
    fn start(&self) -> Result<(), TrackerError> {
        Ok(())
    }

    fn sync(&self, _: &[PageSet]) -> Result<usize, TrackerError> {
        Ok(0)
    }

    fn clear(&self, _: usize, _: Range<usize>) -> Result<(), TrackerError> {
        Ok(())
    }

    fn stop(&self) {}
}
