//! RAM in passes, while the guest runs.

use std::ops::Range;
use std::time::{Duration, Instant};

use paguro_sys::{RateLimit, page_size};

use super::Sender;
use crate::progress::Progress;
use crate::source::command::{LOOK, Stopped};
use crate::source::forecast::is_worth_a_pass;
use crate::source::outstanding::Due;
use crate::source::way::Told;
use crate::stream::BREATH;
use crate::time::micros;

/// A PART takes about that long.
const PART: Duration = Duration::from_millis(50);
/// And is no longer, so that what it takes the destination is known soon.
const PART_BYTES: u64 = 4 << 20;

/// Pages of a block.
type Chunk = (usize, Range<usize>);

impl Sender<'_> {
    /// Pass after pass, until the rest can be sent within the limit.
    pub(super) fn precopy(&mut self) -> Result<(), Stopped> {
        let mut pace = RateLimit::new(self.written_bytes(), self.job.migration.max_bandwidth());
        let mut since = (Instant::now(), self.written_bytes());
        self.transfer.labour.unlooked = self.transfer.pages.pages() as u64;
        // What was sent at first is by far the most of it.
        let mut is_first = true;
        loop {
            let pass = Instant::now();
            self.pass(&mut pace)?;
            // The rest would be sent in vain.
            self.check_ram()?;
            let sent_to = self.sent_to();
            let mut new_pages = self.sync()?;
            let mut outlook = self.outlook();
            if self.awaits(&outlook, sent_to, is_first) {
                is_first = false;
                self.await_digestion(sent_to, pass)?;
                new_pages += self.collect()?;
                outlook = self.outlook();
            }
            let new_bytes = (new_pages * page_size()) as u64;
            let took = since.0.elapsed().as_secs_f64().max(1e-6);
            let progress = self.job.migration.progress();
            Progress::set(&progress.dirty_pages_rate, (new_pages as f64 / took) as u64);
            let sent_bytes = self.written_bytes() - since.1;
            since = (Instant::now(), self.written_bytes());

            let forecast = self.forecast(&outlook);
            if self.is_enough(&outlook) {
                if self.is_time_over()
                    || !is_worth_a_pass(forecast, sent_bytes, self.transfer.pages.bytes())
                {
                    return Ok(());
                }
                continue;
            }
            if self.is_out_of_time(forecast)? {
                tracing::warn!(
                    forecast_us = micros(forecast),
                    "it does not converge in time, and the guest is stopped all the same"
                );
                Progress::set(&progress.forced, 1);
                return Ok(());
            }
            let percent = self
                .transfer
                .brake
                .sync(self.job.machine, new_bytes, sent_bytes);
            self.slowed(percent);
            self.look_at_vcpus();
        }
    }

    /// Everything that is dirty now, in PARTs; less when the time to converge is over.
    fn pass(&mut self, pace: &mut RateLimit) -> Result<(), Stopped> {
        let chunks: Vec<_> = self.transfer.pages.chunks().collect();
        self.way.begin_pass(&mut self.transfer.tally);
        let mut due = Due::default();
        let mut chunks = chunks.into_iter().peekable();
        let pass = Instant::now();
        while chunks.peek().is_some() {
            let part = Instant::now();
            self.part(&mut chunks, pace, &mut due)?;
            self.publish();
            self.look_at_vcpus();
            let outlook = self.outlook();
            let over = self.is_out_of_time(self.forecast(&outlook))?;
            let is_last = over || chunks.peek().is_none();
            let (way, mut main) = self.way();
            let told = way.end_part(&mut main, is_last)?;
            self.stream.end_part()?;
            match told {
                Told::Part => self.ask(part)?,
                Told::Pass => self.ask(pass)?,
                Told::Nothing => self.stream.flush()?,
            }
            if over {
                break;
            }
            self.keep(pace)?;
        }
        self.stream.flush()?;
        self.transfer.labour.fade();
        self.stream.bandwidth.fade();
        Ok(())
    }

    /// Begins a PART, and sends chunk after chunk in it for as long as it takes.
    fn part(
        &mut self,
        chunks: &mut impl Iterator<Item = Chunk>,
        pace: &RateLimit,
        due: &mut Due,
    ) -> Result<(), Stopped> {
        let (part, at) = (Instant::now(), self.written_bytes());
        let most = pace.in_time(PART).unwrap_or(u64::MAX).min(PART_BYTES);
        self.stream.begin_part(false);
        while part.elapsed() < PART
            && self.written_bytes() - at < most
            && let Some((block, chunk)) = chunks.next()
        {
            if self.is_told_to_stop() {
                return Err(Stopped::Told);
            }
            let start = Instant::now();
            let writing = self.stream.bandwidth.spent();
            let found = self.send(block, chunk.clone(), due)?;
            // What is written here is counted as that.
            let written = self.stream.bandwidth.spent() - writing;
            let took = start.elapsed().saturating_sub(written);
            let sent = due.content.len() + due.gone.len();
            self.transfer
                .labour
                .count(chunk.len() as u64, found, sent as u64, took);
        }
        Ok(())
    }

    /// Waits until so much may have been sent, as the limit of bandwidth has it.
    fn keep(&mut self, pace: &mut RateLimit) -> Result<(), Stopped> {
        while let Some(rest) = pace.due(self.written_bytes(), self.job.migration.max_bandwidth()) {
            if self.is_told_to_stop() {
                return Err(Stopped::Told);
            }
            std::thread::sleep(rest.min(LOOK));
            self.stream.idle(BREATH)?;
            self.look_at_vcpus();
            if self.is_time_over() {
                // What happens now is decided behind the next PART.
                break;
            }
        }
        Ok(())
    }

    pub(super) fn look_at_vcpus(&mut self) {
        let percent = self
            .transfer
            .brake
            .look(self.job.machine, &*self.transfer.tracker);
        self.slowed(percent);
    }

    fn slowed(&self, percent: Option<u8>) {
        if let Some(percent) = percent {
            tracing::info!(percent, "the guest is slowed down");
            let progress = self.job.migration.progress();
            Progress::set(&progress.throttle_percent, u64::from(percent));
        }
    }
}
