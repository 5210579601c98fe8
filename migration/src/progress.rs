//! What an operator sees of a running migration.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of one migration; they grow or change while it runs. Pages are of the host.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of RAM, all in all.
    pub total_bytes: AtomicU64,
    /// Bytes of pages that are still to be sent, absent ones included.
    pub remaining_bytes: AtomicU64,
    /// Bytes written to all channels.
    pub transferred_bytes: AtomicU64,
    /// Of those, to the multifd channels.
    pub multifd_bytes: AtomicU64,
    /// Of those, while the guest ran.
    pub precopy_bytes: AtomicU64,
    /// Of those, while it stood still.
    pub downtime_bytes: AtomicU64,
    /// Pages sent with content.
    pub normal_pages: AtomicU64,
    /// Pages sent as zero.
    pub zero_pages: AtomicU64,
    /// Dirty syncs so far.
    pub dirty_syncs: AtomicU64,
    /// Pages written by the guest in a second, at the last sync.
    pub dirty_pages_rate: AtomicU64,
    /// Bytes a second that the channel takes.
    pub bandwidth: AtomicU64,
    /// How long the guest would stand still if it were stopped now, by the forecast.
    pub expected_downtime_us: AtomicU64,
    /// The forecast by which it was stopped.
    pub forecast_us: AtomicU64,
    /// 1 if it was stopped because the time to converge was over.
    pub forced: AtomicU64,
    /// Bytes of dirty pages when it was stopped.
    pub last_dirty_bytes: AtomicU64,
    /// How long it stood still, as the engine sees it: from the order to stop it until the
    /// destination confirmed, or, one way, until all was written.
    pub downtime_us: AtomicU64,
    /// From the command until RAM began to be sent.
    pub setup_us: AtomicU64,
    /// All of it.
    pub total_us: AtomicU64,
    /// How much the vCPUs are slowed down, in percent.
    pub throttle_percent: AtomicU64,
    /// How long the last sync took.
    pub sync_us: AtomicU64,
    /// How long it took to begin tracking.
    pub track_us: AtomicU64,
    /// Pages sent as differences, unchanged ones included.
    pub xbzrle_pages: AtomicU64,
    /// Bytes of those differences.
    pub xbzrle_bytes: AtomicU64,
    /// Pages that the cache of differences did not know.
    pub xbzrle_cache_misses: AtomicU64,
    /// Pages whose difference was as long as a page.
    pub xbzrle_overflows: AtomicU64,
    /// Misses of a thousand pages, in the last pass.
    pub xbzrle_cache_miss_permille: AtomicU64,
    /// A thousand times the bytes of pages for each byte of their differences, in the last pass.
    pub xbzrle_encoding_rate_permille: AtomicU64,
}

impl Progress {
    pub(crate) fn set(counter: &AtomicU64, value: u64) {
        counter.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// What a migration did and what it cost: [`Progress`] at its end. Times in microseconds, sizes in
/// bytes, pages of the host.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct MigrateReport {
    /// Where to.
    pub uri: String,
    /// What could not be confirmed, in words, although all is there: that a file outlives a crash
    /// of the host.
    pub warning: Option<String>,
    /// Bytes of RAM.
    pub total_bytes: u64,
    /// Bytes written to all channels.
    pub transferred_bytes: u64,
    /// Of those, to the multifd channels.
    pub multifd_bytes: u64,
    /// Of those, while the guest ran.
    pub precopy_bytes: u64,
    /// Of those, while it stood still.
    pub downtime_bytes: u64,
    /// Pages sent with content.
    pub normal_pages: u64,
    /// Pages sent as zero.
    pub zero_pages: u64,
    /// Dirty syncs.
    pub dirty_sync_count: u64,
    /// Bytes a second that the channel took.
    pub bandwidth: u64,
    /// The forecast by which the guest was stopped.
    pub forecast_us: u64,
    /// It was longer than the limit, but the time to converge was over.
    pub forced: bool,
    /// Bytes of dirty pages at that moment.
    pub last_dirty_bytes: u64,
    /// How long the guest stood still, as the engine sees it.
    pub downtime_us: u64,
    /// From the command until RAM began to be sent.
    pub setup_us: u64,
    /// How long it took to begin tracking.
    pub track_us: u64,
    /// How long the last sync took.
    pub sync_us: u64,
    /// All of it.
    pub total_us: u64,
    /// How much the vCPUs were slowed down at the end, in percent.
    pub throttle_percent: u64,
    /// Pages sent as differences, unchanged ones included.
    pub xbzrle_pages: u64,
    /// Bytes of those differences.
    pub xbzrle_bytes: u64,
    /// Pages that the cache of differences did not know.
    pub xbzrle_cache_misses: u64,
    /// Pages whose difference was as long as a page.
    pub xbzrle_overflows: u64,
    /// Misses of a thousand pages, in the last pass.
    pub xbzrle_cache_miss_permille: u64,
    /// A thousand times the bytes of pages for each byte of their differences, in the last pass.
    pub xbzrle_encoding_rate_permille: u64,
}

impl Progress {
    /// As it is now.
    pub fn report(&self, uri: String) -> MigrateReport {
        let get = Self::get;
        MigrateReport {
            uri,
            warning: None,
            total_bytes: get(&self.total_bytes),
            transferred_bytes: get(&self.transferred_bytes),
            multifd_bytes: get(&self.multifd_bytes),
            precopy_bytes: get(&self.precopy_bytes),
            downtime_bytes: get(&self.downtime_bytes),
            normal_pages: get(&self.normal_pages),
            zero_pages: get(&self.zero_pages),
            dirty_sync_count: get(&self.dirty_syncs),
            bandwidth: get(&self.bandwidth),
            forecast_us: get(&self.forecast_us),
            forced: get(&self.forced) != 0,
            last_dirty_bytes: get(&self.last_dirty_bytes),
            downtime_us: get(&self.downtime_us),
            setup_us: get(&self.setup_us),
            track_us: get(&self.track_us),
            sync_us: get(&self.sync_us),
            total_us: get(&self.total_us),
            throttle_percent: get(&self.throttle_percent),
            xbzrle_pages: get(&self.xbzrle_pages),
            xbzrle_bytes: get(&self.xbzrle_bytes),
            xbzrle_cache_misses: get(&self.xbzrle_cache_misses),
            xbzrle_overflows: get(&self.xbzrle_overflows),
            xbzrle_cache_miss_permille: get(&self.xbzrle_cache_miss_permille),
            xbzrle_encoding_rate_permille: get(&self.xbzrle_encoding_rate_permille),
        }
    }
}
