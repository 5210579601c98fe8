//! Whether the guest may be stopped, and whether the time for that is over.

use std::time::{Duration, Instant};

use paguro_sys::page_size;

use super::Sender;
use crate::progress::Progress;
use crate::source::MigrateError;
use crate::source::command::Stopped;
use crate::source::forecast::Outlook;
use crate::source::options::AtTimeout;
use crate::time::micros;

impl Sender<'_> {
    /// Whether the guest may be stopped. Where nothing is left another pass makes it no shorter, and it is
    /// stopped whatever the way and its devices take, as QEMU does; the report says what was expected.
    pub(super) fn is_enough(&self, outlook: &Outlook) -> bool {
        let limit = self.job.migration.downtime_limit();
        outlook.downtime() <= limit || self.transfer.pages.pages() == 0
    }

    pub(super) fn is_time_over(&self) -> bool {
        let timeout = self.job.options.convergence.timeout;
        timeout.is_some_and(|time| self.job.began.elapsed() >= time)
    }

    /// Whether the time to converge is over and the guest is to be stopped all the same.
    pub(super) fn is_out_of_time(&self, forecast: Duration) -> Result<bool, Stopped> {
        let convergence = &self.job.options.convergence;
        let over = |time: &Duration| self.job.began.elapsed() >= *time;
        match (convergence.timeout.filter(over), convergence.at_timeout) {
            (None, _) => Ok(false),
            (Some(_), AtTimeout::Switchover) => Ok(true),
            (Some(time), AtTimeout::Cancel) => Err(Stopped::Failed(MigrateError::NotConverging {
                after_s: time.as_secs(),
                forecast_ms: u64::try_from(forecast.as_millis()).unwrap_or(u64::MAX),
            })),
        }
    }

    /// How things stand.
    pub(super) fn outlook(&self) -> Outlook {
        let measured = self.stream.bandwidth.bytes_per_s();
        let given = self.job.options.avail_switchover_bandwidth;
        let inner = self.job.migration.lock();
        let digestion = &inner.heard.digestion;
        let digested = digestion.bytes_per_s().map_or(0, |rate| rate as u64);
        let bytes_per_s = match (given, digested) {
            (0, 0) => measured,
            (0, digested) => measured.min(digested),
            (given, _) => given,
        };
        let backlog = if self.can_tell() {
            let (sent_to, stays) = (self.sent_to(), !self.returns);
            digestion.backlog(sent_to, stays, bytes_per_s, Instant::now())
        } else {
            self.stream.held(bytes_per_s)
        };
        let (pages, work) = self
            .transfer
            .labour
            .expect(self.transfer.pages.pages() as u64);
        let dirty_bytes = pages * page_size() as u64;
        // What an operator says of the way counts for writing, too.
        let writes_per_s = if given > 0 { given } else { measured };
        let writing = self.way.writing(dirty_bytes, writes_per_s);
        Outlook {
            backlog: backlog.unwrap_or_default(),
            dirty_bytes,
            packed_bytes: self.way.packed_bytes(dirty_bytes),
            work: work.saturating_add(writing),
            bytes_per_s,
            round_trip: digestion.round_trip(),
            sync: self.transfer.tally.sync,
            devices: self.transfer.device_cost,
        }
    }

    /// What is to be expected, for all to see.
    pub(super) fn forecast(&self, outlook: &Outlook) -> Duration {
        let forecast = outlook.downtime();
        let progress = self.job.migration.progress();
        Progress::set(&progress.bandwidth, self.stream.bandwidth.bytes_per_s());
        // Nothing was sent yet from which to tell: then there is next to nothing to send.
        let known = match forecast {
            Duration::MAX => 0,
            forecast => micros(forecast),
        };
        Progress::set(&progress.expected_downtime_us, known);
        Progress::set(&progress.forecast_us, known);
        Progress::set(&progress.last_dirty_bytes, outlook.dirty_bytes);
        forecast
    }
}
