//! What `migrate-set-parameters` sets, and what the engine is given of it.

use std::time::Duration;

use paguro_migration::channel::{self, Address, Stop, TlsOptions};
use paguro_migration::multifd::{self, Multifd};
use paguro_migration::options::SnapshotOptions;
use paguro_migration::source::{
    self, AtTimeout, Convergence, DirtyLimit, MigrateOptions, Pages, SourceSabotage, Throttle,
};

use super::QmpError;
use super::capabilities::Capabilities;
use crate::cli::{CompressionArg, MultifdArgs};

/// Parameters of snapshots and migrations.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Those of snapshots; of them `max_bandwidth` and `threads` count for migrations too.
    pub snapshot: SnapshotOptions,
    /// `downtime-limit`
    pub downtime_limit_ms: u64,
    /// `avail-switchover-bandwidth`
    pub avail_switchover_bandwidth: u64,
    /// `cpu-throttle-*`, `max-cpu-throttle`, `throttle-trigger-threshold`
    pub throttle: Throttle,
    /// `vcpu-dirty-limit`, MiB a second
    pub vcpu_dirty_limit: u64,
    /// `x-vcpu-dirty-limit-period`
    pub vcpu_dirty_limit_period_ms: u64,
    /// `x-paguro-convergence-timeout`; 0: none
    pub convergence_timeout_s: u64,
    /// `x-paguro-at-timeout`
    pub at_timeout: AtTimeout,
    /// `x-paguro-silence`; 0: none
    pub silence_ms: u64,
    /// `tls-creds`; empty: no TLS
    pub tls_creds: String,
    /// `tls-hostname`; empty: that of the address
    pub tls_hostname: String,
    /// `mode`
    pub mode: Mode,
    /// `multifd-compression`
    pub multifd_compression: CompressionArg,
    /// `multifd-zstd-level`
    pub multifd_zstd_level: u8,
    /// `xbzrle-cache-size`
    pub xbzrle_cache_bytes: u64,
    /// What a migration does wrong on purpose.
    pub sabotage: SourceSabotage,
}

/// `mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// RAM is copied.
    Normal,
    /// It is handed over, to a process on this host.
    CprTransfer,
}

impl Settings {
    /// The defaults; snapshots have these options, and migrations this sabotage.
    pub fn new(snapshot: SnapshotOptions, sabotage: SourceSabotage) -> Self {
        Self {
            snapshot,
            downtime_limit_ms: 300,
            avail_switchover_bandwidth: 0,
            throttle: Throttle::default(),
            vcpu_dirty_limit: 1,
            vcpu_dirty_limit_period_ms: 1000,
            convergence_timeout_s: 0,
            at_timeout: AtTimeout::Cancel,
            silence_ms: 10_000,
            tls_creds: String::new(),
            tls_hostname: String::new(),
            mode: Mode::Normal,
            multifd_compression: CompressionArg::None,
            multifd_zstd_level: 1,
            xbzrle_cache_bytes: MigrateOptions::XBZRLE_CACHE_BYTES,
            sabotage,
        }
    }

    /// As the options of the program say; whether there are connections for pages.
    pub fn set_multifd(&mut self, args: &MultifdArgs) -> bool {
        if let Some(channels) = args.multifd_channels {
            self.snapshot.threads = channels.into();
        }
        if let Some(compression) = args.multifd_compression {
            self.multifd_compression = compression;
        }
        if let Some(level) = args.multifd_zstd_level {
            self.multifd_zstd_level = level;
        }
        args.multifd_channels.is_some()
    }

    /// How a migration to `address` is done.
    pub fn migrate_options(
        &self,
        capabilities: Capabilities,
        address: Address,
        mode: source::Mode,
    ) -> Result<MigrateOptions, QmpError> {
        let timeout = self.convergence_timeout_s;
        Ok(MigrateOptions {
            mode,
            downtime_limit: self.downtime_limit(),
            max_bandwidth: self.snapshot.max_bandwidth,
            avail_switchover_bandwidth: self.avail_switchover_bandwidth,
            pause_before_switchover: capabilities.pause_before_switchover,
            convergence: Convergence {
                throttle: capabilities.auto_converge.then_some(self.throttle),
                dirty_limit: capabilities.dirty_limit.then(|| DirtyLimit {
                    bytes_per_s: self.vcpu_dirty_limit << 20,
                    period: Duration::from_millis(self.vcpu_dirty_limit_period_ms),
                    trigger_threshold: self.throttle.trigger_threshold,
                }),
                timeout: (timeout > 0).then(|| Duration::from_secs(timeout)),
                at_timeout: self.at_timeout,
            },
            sabotage: self.sabotage,
            ..MigrateOptions::new(address, self.channel_options()?)
        })
    }

    /// How pages are sent; that multifd and xbzrle are not both on is seen to when they are set.
    pub fn precopy(&self, capabilities: Capabilities) -> source::Mode {
        let cache_bytes = self.xbzrle_cache_bytes;
        source::Mode::Precopy(match self.multifd(capabilities) {
            Some(multifd) => Pages::Multifd(multifd),
            None if capabilities.xbzrle => Pages::Xbzrle { cache_bytes },
            None => Pages::Plain,
        })
    }

    /// The connections for pages, on either side; both must be told the same.
    pub fn multifd(&self, capabilities: Capabilities) -> Option<Multifd> {
        capabilities.multifd.then(|| Multifd {
            // Bounded when it is set.
            channels: u8::try_from(self.snapshot.threads).unwrap_or(u8::MAX),
            compression: match self.multifd_compression {
                CompressionArg::None => multifd::Compression::None,
                CompressionArg::Zstd => multifd::Compression::Zstd {
                    level: self.multifd_zstd_level,
                },
            },
        })
    }

    /// How a channel is made, on either side.
    pub fn channel_options(&self) -> Result<channel::Options, QmpError> {
        let hostname = (!self.tls_hostname.is_empty()).then(|| self.tls_hostname.clone());
        let tls = (!self.tls_creds.is_empty()).then(|| TlsOptions {
            directory: self.tls_creds.clone().into(),
            hostname,
        });
        Ok(channel::Options {
            silence: self.silence(),
            tls,
            ..channel::Options::new(Stop::new()?)
        })
    }

    /// How long the guest may stand still.
    pub fn downtime_limit(&self) -> Duration {
        Duration::from_millis(self.downtime_limit_ms)
    }

    /// For how long the other side may be silent.
    pub fn silence(&self) -> Option<Duration> {
        (self.silence_ms > 0).then(|| Duration::from_millis(self.silence_ms))
    }
}
