//! How a machine is sent.

use std::time::Duration;

use paguro_sys::{Limits, page_size};

use super::{MigrateError, Mode, Pages, SourceSabotage};
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
        self.check_mode().map_err(unfit)
    }

    /// What of these cannot be in their mode.
    fn check_mode(&self) -> Result<(), Unfit> {
        match &self.mode {
            Mode::Precopy(Pages::Plain) => Ok(()),
            Mode::Precopy(Pages::Xbzrle { cache_bytes }) => check_cache(*cache_bytes),
            Mode::Precopy(Pages::Multifd(multifd)) => {
                multifd.check()?;
                if !self.connects() {
                    let rule = "it needs an address that can be connected to more than once";
                    return Err(("multifd", format!("at {}", self.address), rule));
                }
                Ok(())
            }
            Mode::HandOver { address } => check_hand_over(address.as_ref(), self),
        }
    }

    /// Whether its address can be connected to, as often as needed.
    fn connects(&self) -> bool {
        matches!(
            self.address,
            Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. }
        )
    }
}

/// Which option cannot be, what it is, and what it must be.
type Unfit = (&'static str, String, &'static str);

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

fn check_cache(bytes: u64) -> Result<(), Unfit> {
    if !bytes.is_power_of_two() || bytes < page_size() as u64 {
        let rule = "it is a power of two, and at least a page";
        return Err(("xbzrle-cache-size", bytes.to_string(), rule));
    }
    Ok(())
}

fn check_hand_over(address: Option<&Address>, options: &MigrateOptions) -> Result<(), Unfit> {
    const UNIX: &str = "mode cpr-transfer hands over descriptors, for which it takes unix:PATH";
    let way = address.unwrap_or(&options.address);
    if !matches!(way, Address::Unix(_)) {
        return Err(("the cpr channel", way.to_string(), UNIX));
    }
    if !options.connects() {
        let rule = "mode cpr-transfer needs a destination that answers, for there is one RAM: \
                    tcp, unix or vsock";
        return Err(("the main channel", options.address.to_string(), rule));
    }
    if options.channel.tls.is_some() {
        let rule = "it is not compatible with tls-creds: no descriptor goes through TLS";
        return Err(("mode", "cpr-transfer".to_owned(), rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Stop, TlsOptions};
    use crate::multifd::Multifd;
    use crate::switchover::{Choice, SourceState};

    fn options(address: &str, mode: Mode) -> MigrateOptions {
        let channel = channel::Options::new(Stop::new().unwrap());
        MigrateOptions {
            mode,
            ..MigrateOptions::new(address.parse().unwrap(), channel)
        }
    }

    #[track_caller]
    fn assert_refused(options: &MigrateOptions, word: &str) {
        let error = options.check().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn ram_is_handed_over_through_a_unix_socket_to_who_answers() {
        let to = |at: Option<&str>| Mode::HandOver {
            address: at.map(|at| at.parse().unwrap()),
        };
        assert!(options("unix:/m", to(None)).check().is_ok());
        assert!(
            options("tcp:1.2.3.4:5", to(Some("unix:/c")))
                .check()
                .is_ok()
        );
        assert_refused(&options("tcp:1.2.3.4:5", to(None)), "the cpr channel");
        assert_refused(&options("unix:/m", to(Some("tcp:1.2.3.4:5"))), "unix:PATH");
        assert_refused(&options("exec:cat", to(Some("unix:/c"))), "main channel");
        let mut encrypted = options("unix:/m", to(None));
        encrypted.channel.tls = Some(TlsOptions {
            directory: "/nowhere".into(),
            hostname: None,
        });
        assert_refused(&encrypted, "tls-creds");
    }

    #[test]
    fn each_way_of_pages_has_its_rule() {
        let by = |address, pages| options(address, Mode::Precopy(pages));
        for cache_bytes in [0, 2048, 100_000] {
            assert_refused(
                &by("exec:cat", Pages::Xbzrle { cache_bytes }),
                "power of two",
            );
        }
        let cache_bytes = MigrateOptions::XBZRLE_CACHE_BYTES;
        let pages = Pages::Xbzrle { cache_bytes };
        assert!(by("exec:cat", pages).check().is_ok());
        assert_refused(&by("exec:cat", Pages::Multifd(Multifd::new(2))), "multifd");
        assert_refused(
            &by("unix:/m", Pages::Multifd(Multifd::new(0))),
            "must be one",
        );
        assert!(
            by("unix:/m", Pages::Multifd(Multifd::new(2)))
                .check()
                .is_ok()
        );
    }

    /// What an operator may do with a guest whose RAM another process has.
    #[test]
    fn who_has_handed_ram_over_may_not_run_in_it() {
        let handed = Mode::HandOver { address: None };
        let may = handed
            .advice(SourceState::Completed)
            .map(|advice| advice.may);
        assert_eq!(may, Some(&[Choice::Quit][..]));
        assert!(Mode::default().advice(SourceState::Completed).is_none());
    }
}
