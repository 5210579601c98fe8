//! Taking pages out of what is to be sent, and sending them.

use std::ops::Range;

use super::Sender;
use crate::source::MigrateError;
use crate::source::command::Stopped;
use crate::source::outstanding::{Due, TakeError};
use crate::source::way::is_told_to_stop;
use crate::stream::BREATH;

impl Sender<'_> {
    /// Sends what is dirty of a chunk; as how many whole pages what is known to be sent counts.
    pub(super) fn send(
        &mut self,
        block: usize,
        chunk: Range<usize>,
        due: &mut Due,
    ) -> Result<u64, Stopped> {
        self.bring(block, &chunk)?;
        let tracker = self.job.hooks.clearing(&*self.transfer.tracker);
        let taken = self.transfer.pages.take(block, chunk.clone(), tracker, due);
        taken.map_err(|error| match error {
            TakeError::Tracker(error) => MigrateError::Tracker(error),
            TakeError::Presence { block, source } => MigrateError::Presence { block, source },
        })?;
        let (way, mut main) = self.way();
        let found = way.send(&mut main, block, due)?;
        let sent = self.job.hooks.sent(&*self.transfer.tracker, block, chunk);
        sent.map_err(MigrateError::Tracker)?;
        Ok(found)
    }

    /// Has what of a chunk is still elsewhere come. While it cannot be had the other side hears that
    /// this one lives, and this one that it is to stop.
    fn bring(&mut self, block: usize, chunk: &Range<usize>) -> Result<(), Stopped> {
        let mut end = None;
        let brought = {
            let (commands, stream, end) = (&self.commands, &mut self.stream, &mut end);
            let is_stopped = self.transfer.is_stopped;
            let mut go_on = || {
                if is_told_to_stop(commands) {
                    *end = Some(Stopped::Told);
                } else if !is_stopped && let Err(error) = stream.idle(BREATH) {
                    *end = Some(error.into());
                }
                end.is_none()
            };
            self.transfer.pages.bring(block, chunk, &mut go_on)
        };
        match (brought, end) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(end)) => Err(end),
            (Err(source), None) => {
                let block = self.transfer.ram.blocks()[block].id().to_owned();
                Err(MigrateError::Unarrived { block, source }.into())
            }
        }
    }
}
