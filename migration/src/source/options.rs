//! How a machine is sent.

use std::time::Duration;

use paguro_sys::Limits;

use super::{MigrateError, Mode, SourceSabotage};
use crate::channel::{self, Address};

/// How a machine is sent. [`MigrateOptions::new`] gives QEMU's defaults, without its limit of
/// bandwidth.
#[derive(Clone, Debug)]
pub struct MigrateOptions {
    /// Where to.
    pub address: Address,
    /// How the other side gets RAM.
    pub mode: Mode,
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
    /// What happens if the guest writes faster than the channel takes it.
    pub convergence: Convergence,
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
            mode: Mode::default(),
            channel,
            downtime_limit: Duration::from_millis(300),
            max_bandwidth: 0,
            avail_switchover_bandwidth: 0,
            pause_before_switchover: false,
            convergence: Convergence::default(),
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
        let unfit = |(option, value, rule)| MigrateError::Option {
            option,
            value,
            rule,
        };
        self.mode.check(self).map_err(unfit)
    }

    /// Whether its address can be connected to, as often as needed.
    pub(super) fn connects(&self) -> bool {
        matches!(
            self.address,
            Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. }
        )
    }
}

/// Which option cannot be, what it is, and what it must be.
pub(super) type Unfit = (&'static str, String, &'static str);

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
