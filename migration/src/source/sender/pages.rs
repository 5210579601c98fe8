//! The ways that pages go: the main channel, as differences, or the multifd channels.

use std::ops::Range;
use std::time::Duration;

use paguro_dirty::tracker::Tracker;
use paguro_sys::page_size;

use super::{LOOK, Nothing, Sender, Stopped, is_told_to_stop};
use crate::source::MigrateError;
use crate::source::lanes::{Lanes, Tried};
use crate::source::options::SourceSabotage;
use crate::source::outstanding::{Due, TakeError};
use crate::stream::BREATH;

/// What the multifd channels had done when that was counted last.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::source) struct Measured {
    spent: Duration,
    bytes: u64,
    page_bytes: u64,
}

impl Sender<'_> {
    pub(super) fn send(
        &mut self,
        block: usize,
        chunk: Range<usize>,
        due: &mut Due,
    ) -> Result<(), Stopped> {
        self.bring(block, &chunk)?;
        let broken = self.options.sabotage == SourceSabotage::ClearAfterRead;
        let tracker: &dyn Tracker = if broken { &Nothing } else { &*self.tracker };
        let taken = self.pages.take(block, chunk.clone(), tracker, due);
        taken.map_err(|error| match error {
            TakeError::Tracker(error) => MigrateError::Tracker(error),
            TakeError::Presence { block, source } => MigrateError::Presence { block, source },
        })?;
        if self.lanes.is_some() {
            return self.hand_to_lanes(block, due);
        }
        if let Some(deltas) = &mut self.deltas {
            for &page in &due.content {
                deltas.page(&mut self.stream, &self.ram, (block, page), &mut self.tally)?;
            }
            for &page in &due.gone {
                deltas.zero(&mut self.stream, (block, page), &mut self.tally)?;
            }
            return Ok(());
        }
        let mut zeros = due.gone.len();
        for &page in &due.content {
            zeros += usize::from(!self.stream.page(block, page)?);
        }
        for &page in &due.gone {
            self.stream.zero(block, page)?;
        }
        if broken {
            self.tracker
                .clear(block, chunk)
                .map_err(MigrateError::Tracker)?;
        }
        let total = due.content.len() + due.gone.len();
        self.tally.normal_pages += (total - zeros) as u64;
        self.tally.zero_pages += zeros as u64;
        Ok(())
    }

    /// Has what of a chunk is still elsewhere come. While it cannot be had the other side hears that
    /// this one lives, and this one that it is to stop.
    fn bring(&mut self, block: usize, chunk: &Range<usize>) -> Result<(), Stopped> {
        let mut end = None;
        let brought = {
            let (commands, stream, end) = (&self.commands, &mut self.stream, &mut end);
            let is_stopped = self.is_stopped;
            let mut go_on = || {
                if is_told_to_stop(commands) {
                    *end = Some(Stopped::Told);
                } else if !is_stopped && let Err(error) = stream.idle(BREATH) {
                    *end = Some(error.into());
                }
                end.is_none()
            };
            self.pages.bring(block, chunk, &mut go_on)
        };
        match (brought, end) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(end)) => Err(end),
            (Err(source), None) => {
                let block = self.ram.blocks()[block].id().to_owned();
                Err(MigrateError::Unarrived { block, source }.into())
            }
        }
    }

    fn hand_to_lanes(&mut self, block: usize, due: &Due) -> Result<(), Stopped> {
        let content = due.content.iter().map(|&page| (page, false));
        let gone = due.gone.iter().map(|&page| (page, true));
        for (page, is_gone) in content.chain(gone) {
            if !self.batch.takes(block) {
                self.push_batch()?;
            }
            self.batch.add(block, page, is_gone);
        }
        Ok(())
    }

    fn push_batch(&mut self) -> Result<(), Stopped> {
        if !self.batch.is_empty() {
            self.patiently(|sender, lanes| lanes.push(&sender.batch, LOOK))?;
            self.batch.clear();
        }
        Ok(())
    }

    /// What is left goes to the channels, and each writes SYNC behind it.
    pub(super) fn sync_lanes(&mut self, last: bool) -> Result<(), Stopped> {
        self.push_batch()?;
        self.ask_multifd_sync(last);
        if self.multifd_sync {
            self.patiently(|_, lanes| lanes.synced(LOOK))?;
        }
        Ok(())
    }

    pub(super) fn ask_multifd_sync(&mut self, last: bool) {
        let asked = self
            .lanes
            .as_ref()
            .is_some_and(|lanes| lanes.ask_sync(last));
        self.multifd_sync = asked;
    }

    /// The end of a pass on the multifd channels, within a PART.
    pub(super) fn end_multifd_pass(&mut self, last: bool) -> Result<(), Stopped> {
        if self.lanes.is_none() {
            return Ok(());
        }
        self.sync_lanes(last)?;
        self.measure_lanes();
        if std::mem::take(&mut self.multifd_sync) {
            self.stream.multifd_flush();
        }
        Ok(())
    }

    /// Counts what the channels wrote since this was called last.
    pub(super) fn measure_lanes(&mut self) {
        let Some(lanes) = &self.lanes else {
            return;
        };
        let counts = lanes.counts();
        let now = Measured {
            // Time first: what is written meanwhile counts next time as a little more, not as no time.
            spent: lanes.spent(),
            bytes: counts.bytes(),
            page_bytes: counts.normal_pages() * page_size() as u64,
        };
        let before = std::mem::replace(&mut self.measured, now);
        let bytes = now.bytes - before.bytes;
        self.stream.bandwidth.count(bytes, now.spent - before.spent);
        self.packing
            .count(bytes, now.page_bytes - before.page_bytes);
    }

    /// Tries until the channels could, within a PART.
    fn patiently(
        &mut self,
        mut attempt: impl FnMut(&Self, &Lanes) -> Tried,
    ) -> Result<(), Stopped> {
        loop {
            let Some(lanes) = &self.lanes else {
                return Ok(());
            };
            match attempt(self, lanes) {
                Tried::Done => return Ok(()),
                Tried::Broken => return Err(Stopped::Told),
                Tried::Busy if self.is_told_to_stop() => return Err(Stopped::Told),
                Tried::Busy => self.stream.breathe(BREATH)?,
            }
        }
    }
}
