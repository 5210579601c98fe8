//! What a sender has done so far: its own count, by which it decides. [`Progress`] shows it.

use std::time::Duration;

use crate::progress::Progress;
use crate::time::micros;

/// Counts of one migration. Pages are of the host.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Pages sent with content, by whatever channel.
    pub(super) normal_pages: u64,
    /// Pages sent as zero.
    pub(super) zero_pages: u64,
    /// Bytes written to the multifd channels.
    pub(super) multifd_bytes: u64,
    /// What became of pages that were sent as differences, or might have been.
    pub(super) differences: Differences,
    /// Dirty syncs.
    pub(super) syncs: u64,
    /// How long the last one took.
    pub(super) sync: Duration,
}

/// Of XBZRLE.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Differences {
    /// Pages sent as differences, unchanged ones included.
    pub(super) pages: u64,
    /// Bytes of those differences.
    pub(super) bytes: u64,
    /// Pages that the cache did not know.
    pub(super) misses: u64,
    /// Pages whose difference was as long as a page.
    pub(super) overflows: u64,
    /// Misses of a thousand pages, in the last pass.
    pub(super) miss_permille: u64,
    /// A thousand times the bytes of pages for each byte of their differences, in the last pass.
    pub(super) encoding_rate_permille: u64,
}

impl Tally {
    /// Shows it.
    pub(super) fn mirror(&self, progress: &Progress) {
        Progress::set(&progress.normal_pages, self.normal_pages);
        Progress::set(&progress.zero_pages, self.zero_pages);
        Progress::set(&progress.multifd_bytes, self.multifd_bytes);
        Progress::set(&progress.dirty_syncs, self.syncs);
        Progress::set(&progress.sync_us, micros(self.sync));
        let of = &self.differences;
        Progress::set(&progress.xbzrle_pages, of.pages);
        Progress::set(&progress.xbzrle_bytes, of.bytes);
        Progress::set(&progress.xbzrle_cache_misses, of.misses);
        Progress::set(&progress.xbzrle_overflows, of.overflows);
        Progress::set(&progress.xbzrle_cache_miss_permille, of.miss_permille);
        let rate = of.encoding_rate_permille;
        Progress::set(&progress.xbzrle_encoding_rate_permille, rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_was_counted() {
        let mut tally = Tally {
            normal_pages: 7,
            multifd_bytes: 4 * 4096,
            syncs: 2,
            ..Tally::default()
        };
        let progress = Progress::default();
        // What an operator's display says is nobody's working state.
        Progress::set(&progress.normal_pages, 1000);
        tally.mirror(&progress);
        assert_eq!(Progress::get(&progress.normal_pages), 7);
        assert_eq!(Progress::get(&progress.multifd_bytes), 4 * 4096);
        tally.normal_pages += 1;
        tally.mirror(&progress);
        assert_eq!(Progress::get(&progress.normal_pages), 8);
        assert_eq!(Progress::get(&progress.dirty_syncs), 2);
    }
}
