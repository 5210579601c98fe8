//! All that was measured, as JSON has it. Times end in `_us`, sizes in `_bytes`; a [`Spread`] is
//! `{min, median, max}` of the runs.

use paguro_lab::Channel;
use serde::{Deserialize, Serialize};

use crate::report::{Aim, HostFacts, RulerTest};
use crate::stats::Spread;

/// The result of `bench migrate`.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// Whether it was a quick one.
    pub quick: bool,
    /// `kvm` or `threads`.
    pub accel: &'static str,
    /// The host.
    pub host: HostFacts,
    /// How long it took.
    pub took_s: f64,
    /// The test of the outside clock.
    pub ruler: RulerTest,
    /// Bytes moved in a second.
    pub throughput: Vec<Throughput>,
    /// Guests that write while they move.
    pub moves: Vec<Moves>,
    /// What tracking costs by the size of RAM.
    pub tracking: Vec<Tracking>,
    /// Looking for zero pages.
    pub zero_scan: Option<Scan>,
    /// Differences of pages.
    pub xbzrle: Vec<Delta>,
    /// Compression.
    pub zstd: Option<Zstd>,
    /// The aims, and what was reached.
    pub aims: Vec<Aim>,
    /// What was not measured, and why.
    pub skipped: Vec<String>,
}

/// One move, as it was seen and reported.
#[derive(Clone, Copy, Debug)]
pub struct MoveSeen {
    pub seen_us: f64,
    pub idle_us: f64,
    pub blind_us: f64,
    pub rate_before: f64,
    pub rate_meanwhile: f64,
    pub report: Engine,
}

/// Of the engine's report.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Engine {
    pub transferred_bytes: u64,
    pub precopy_bytes: u64,
    pub downtime_bytes: u64,
    pub normal_pages: u64,
    pub dirty_sync_count: u64,
    pub bandwidth: u64,
    pub forecast_us: u64,
    pub last_dirty_bytes: u64,
    pub downtime_us: u64,
    pub setup_us: u64,
    pub track_us: u64,
    pub sync_us: u64,
    pub total_us: u64,
}

impl Engine {
    /// The last dirty set by the bandwidth of the passes before.
    pub fn dirty_us(&self) -> f64 {
        self.last_dirty_bytes as f64 / self.bandwidth.max(1) as f64 * 1e6
    }
}

/// A guest that leaves its memory alone moves, and as many bytes go over raw sockets.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// `tcp` or `unix`.
    pub channel: Channel,
    /// That pages go over: 1 is the main one, more are multifd channels beside it.
    pub connections: usize,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How often.
    pub runs: usize,
    /// From the first page until the guest was stopped.
    pub moved_us: Spread,
    /// Raw sockets into memory that is there.
    pub raw_us: Spread,
    /// Raw sockets into memory that the host must hand out first, as the destination's.
    pub raw_fresh_us: Spread,
}

impl Throughput {
    /// How many, for people.
    pub fn connections(&self) -> String {
        match self.connections {
            1 => "1 connection".to_owned(),
            many => format!("{many} connections"),
        }
    }

    /// Throughput as a share of raw sockets'.
    pub fn share(&self) -> f64 {
        self.raw_us.median / self.moved_us.median.max(1.0)
    }

    /// The same of raw sockets into fresh memory.
    pub fn fresh_share(&self) -> f64 {
        self.raw_fresh_us.median / self.moved_us.median.max(1.0)
    }
}

/// Moves of a guest that writes.
#[derive(Clone, Debug, Serialize)]
pub struct Moves {
    /// `tcp` or `unix`.
    pub channel: Channel,
    /// What its RAM is made of: `anon`, `memfd`.
    pub backing: String,
    /// Pages a second that the guest shall write; 0: as fast as it goes.
    pub rate_pages_per_s: u64,
    /// What it goes over.
    pub set_bytes: u64,
    /// How often.
    pub runs: usize,
    /// The longest gap that the outside clock saw.
    pub seen_us: Spread,
    /// The longest in 160 ms before.
    pub idle_us: Spread,
    /// A gap may be so much longer than it was seen to be.
    pub blind_us: Spread,
    /// The stop as the source reports it.
    pub downtime_us: Spread,
    /// The forecast by which it was stopped.
    pub forecast_us: Spread,
    /// Seen, by the forecast.
    pub seen_by_forecast: Spread,
    /// What was dirty when it was decided to stop the guest.
    pub last_dirty_bytes: Spread,
    /// These by the bandwidth of the passes before, as the engine measured it.
    pub dirty_by_bandwidth_us: Spread,
    /// Seen, by that.
    pub seen_by_dirty: Spread,
    /// Bytes sent while it was stopped.
    pub downtime_bytes: Spread,
    /// What these take at the rate of raw sockets of the same run.
    pub limit_us: Spread,
    /// From the command to the end.
    pub total_us: Spread,
    /// Passes.
    pub passes: Spread,
    /// Writes a second while it moved, by those before.
    pub rate_kept: Spread,
}

/// A guest that leaves its memory alone, by the size of RAM.
#[derive(Clone, Debug, Serialize)]
pub struct Tracking {
    /// RAM.
    pub memory_bytes: u64,
    /// From the order to begin until every write is tracked, the first sync included.
    pub start_us: Spread,
    /// The last sync.
    pub sync_us: Spread,
}

/// Looking for zero pages in memory full of them, and reading as much.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Scan {
    pub bytes: u64,
    pub scan_us: Spread,
    pub read_us: Spread,
}

/// XBZRLE of pages, and copying them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Delta {
    /// In a row, of each page.
    pub changed_bytes: u64,
    pub pages: u64,
    pub encoded_bytes: u64,
    pub encode_us: Spread,
    pub copy_us: Spread,
}

/// Pages through zstd as multifd channels use it, and through the library alone.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Zstd {
    /// The level.
    pub level: u8,
    /// Of all pages.
    pub bytes: u64,
    /// What a channel sends for them.
    pub packed_bytes: u64,
    /// What the library makes of as many at a time, each lot for itself.
    pub library_bytes: u64,
    pub pack_us: Spread,
    pub library_pack_us: Spread,
    pub unpack_us: Spread,
    pub library_unpack_us: Spread,
}
