//! How a machine is sent.

use std::time::Duration;

use paguro_sys::{Limits, page_size};

use super::MigrateError;
use crate::channel::{self, Address};
use crate::multifd::Multifd;

/// How a machine is sent. [`MigrateOptions::new`] gives QEMU's defaults, without its limit of
/// bandwidth.
#[derive(Clone, Debug)]
pub struct MigrateOptions {
    /// Where to.
    pub address: Address,
    /// How the channel is made, and what ends it.
    pub channel: channel::Options,
    /// How long the guest may stand still, by the forecast.
    pub downtime_limit: Duration,
    /// Bytes a second sent at most while the guest runs; 0: no limit.
    pub max_bandwidth: u64,
    /// Bytes a second that the forecast reckons with, instead of what was measured; 0: measured.
    pub avail_switchover_bandwidth: u64,
    /// Stop in `pre-switchover` until the operator says `migrate-continue`.
    pub pause_before_switchover: bool,
    /// All of RAM, which is shared memory, is [handed over](crate::handover) instead of copied, to
    /// a destination on this host that expects it.
    pub hand_over: bool,
    /// The unix socket over which that is done; none: that of `address`, by a connection before the
    /// stream's.
    pub hand_over_address: Option<Address>,
    /// What happens if the guest writes faster than the channel takes it.
    pub convergence: Convergence,
    /// Pages go over connections of their own; the destination must be told the same.
    pub multifd: Option<Multifd>,
    /// From the second pass on only what changed of a page is sent, as far as a cache of so many
    /// bytes knows the page: QEMU's `xbzrle-cache-size`, a power of two. It is smaller where
    /// [`Allowance`](crate::Allowance) says so. Not with multifd.
    pub xbzrle_cache_bytes: Option<u64>,
    /// How long a source whose guest runs on goes on trying to tell a destination so that may have
    /// loaded it, when all else is over.
    pub linger: Duration,
    /// Where the host says what this process may have.
    pub limits: Limits,
    /// What is broken on purpose.
    pub sabotage: SourceSabotage,
}

impl MigrateOptions {
    /// QEMU's `xbzrle-cache-size` unless another is asked for.
    pub const XBZRLE_CACHE_BYTES: u64 = 64 << 20;

    /// To `address`, with a downtime limit of 300 ms and without a limit of bandwidth.
    pub fn new(address: Address, channel: channel::Options) -> Self {
        Self {
            address,
            channel,
            downtime_limit: Duration::from_millis(300),
            max_bandwidth: 0,
            avail_switchover_bandwidth: 0,
            pause_before_switchover: false,
            hand_over: false,
            hand_over_address: None,
            convergence: Convergence::default(),
            multifd: None,
            xbzrle_cache_bytes: None,
            linger: Duration::from_secs(30),
            limits: Limits::of_this_process(),
            sabotage: SourceSabotage::None,
        }
    }

    /// Whether these can be together; [`migrate`](super::migrate) looks by itself.
    ///
    /// # Errors
    ///
    /// [`MigrateError::Option`].
    pub fn check(&self) -> Result<(), MigrateError> {
        let wrong = |(option, value, rule)| MigrateError::Option {
            option,
            value,
            rule,
        };
        if let Some(bytes) = self.xbzrle_cache_bytes {
            let option = "xbzrle-cache-size";
            if !bytes.is_power_of_two() || bytes < page_size() as u64 {
                let rule = "it is a power of two, and at least a page";
                return Err(wrong((option, bytes.to_string(), rule)));
            }
            if self.multifd.is_some() {
                let rule = "pages that go over multifd channels have no differences";
                return Err(wrong((option, bytes.to_string(), rule)));
            }
        }
        if let Some(multifd) = &self.multifd {
            multifd.check().map_err(wrong)?;
            if !self.connects() {
                let rule = "it needs an address that can be connected to more than once";
                return Err(wrong(("multifd", format!("at {}", self.address), rule)));
            }
        }
        if self.hand_over {
            self.check_hand_over().map_err(wrong)?;
        }
        Ok(())
    }

    /// Where RAM is handed over, if it is.
    pub(super) fn hand_over_address(&self) -> &Address {
        self.hand_over_address.as_ref().unwrap_or(&self.address)
    }

    fn check_hand_over(&self) -> Result<(), (&'static str, String, &'static str)> {
        const UNIX: &str = "mode cpr-transfer hands over descriptors, for which it takes unix:PATH";
        let way = self.hand_over_address();
        if !matches!(way, Address::Unix(_)) {
            return Err(("the cpr channel", way.to_string(), UNIX));
        }
        if !self.connects() {
            let rule = "mode cpr-transfer needs a destination that answers, for there is one RAM: \
                        tcp, unix or vsock";
            return Err(("the main channel", self.address.to_string(), rule));
        }
        let other = if self.multifd.is_some() {
            "it is not compatible with multifd, which sends pages"
        } else if self.xbzrle_cache_bytes.is_some() {
            "it is not compatible with xbzrle, which sends pages"
        } else if self.channel.tls.is_some() {
            "it is not compatible with tls-creds: no descriptor goes through TLS"
        } else {
            return Ok(());
        };
        Err(("mode", "cpr-transfer".to_owned(), other))
    }

    /// Whether its address can be connected to, as often as needed.
    fn connects(&self) -> bool {
        matches!(
            self.address,
            Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. }
        )
    }
}

/// What happens if the forecast does not come down to the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convergence {
    /// Slow the guest down, as QEMU's `auto-converge` does.
    pub throttle: Option<Throttle>,
    /// Keep each vCPU below a rate of writes, as QEMU's `dirty-limit` does; then `throttle` does
    /// nothing. Only with a tracker that knows what each vCPU writes: KVM's dirty ring.
    pub dirty_limit: Option<DirtyLimit>,
    /// After so long the migration ends as `at_timeout` says; none: it goes on until it is
    /// cancelled, and says so in its forecast.
    pub timeout: Option<Duration>,
    /// What happens then.
    pub at_timeout: AtTimeout,
}

impl Default for Convergence {
    fn default() -> Self {
        Self {
            throttle: None,
            dirty_limit: None,
            timeout: None,
            at_timeout: AtTimeout::Cancel,
        }
    }
}

/// What happens to a migration that did not converge in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtTimeout {
    /// It is given up, and the guest runs on.
    Cancel,
    /// The guest is stopped for as long as the rest takes.
    Switchover,
}

/// QEMU's `vcpu-dirty-limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyLimit {
    /// What a vCPU may write in a second.
    pub bytes_per_s: u64,
    /// How often it is looked at; less often where a vCPU naps longer.
    pub period: Duration,
    /// It is kept once the guest dirties more than that share of what is sent, in percent.
    pub trigger_threshold: u8,
}

impl Default for DirtyLimit {
    fn default() -> Self {
        Self {
            bytes_per_s: 1 << 20,
            period: Duration::from_secs(1),
            trigger_threshold: 50,
        }
    }
}

/// QEMU's `cpu-throttle-*`, in percent of a vCPU's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// The guest is slowed down if it dirties more than that share of what is sent.
    pub trigger_threshold: u8,
    /// At first.
    pub initial: u8,
    /// And so much more, each time that it did not help.
    pub increment: u8,
    /// At most.
    pub max: u8,
    /// Near the end by no more than needed.
    pub tailslow: bool,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            trigger_threshold: 50,
            initial: 20,
            increment: 10,
            max: 99,
            tailslow: false,
        }
    }
}

/// What is broken on purpose, for tests to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceSabotage {
    /// Nothing.
    None,
    /// Pages are read before their chunk is cleared: a write in between is lost.
    ClearAfterRead,
    /// Some dirty pages of the last pass are left out.
    SkipPage,
    /// The multifd channels do not wait for each other but at the end, and one of them lags.
    SkipMultifdSync,
    /// The cache of XBZRLE is told of pages that are not sent.
    StaleDelta,
    /// Whoever is to send EOF ends instead, and says nothing.
    SilentSender,
}

impl SourceSabotage {
    /// The names under which a program offers them.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("break-clear-after-read", Self::ClearAfterRead),
        ("break-skip-dirty-page", Self::SkipPage),
        ("break-skip-multifd-sync", Self::SkipMultifdSync),
        ("break-stale-xbzrle", Self::StaleDelta),
        ("break-silent-sender", Self::SilentSender),
    ];
}
