//! The way that pages go.
//!
//! A sender finds out which pages are to be sent, and when; how each gets to the destination is up to its
//! [`Way`], and the sender does not ask which that is. There is always a main channel, on which everything
//! else goes: its [`Stream`], in PARTs. A way writes to it what it has to, and may have channels of its own.
//!
//! | room | pages go |
//! |---|---|
//! | `plain` | in the stream, each as a whole |
//! | `delta` | in the stream, as what changed of them (XBZRLE) |
//! | `multifd` | over connections of their own: `queue`, `lane`, `packet` |
//!
//! What is [sent](Way::send) may be any pages of a block, in any order and any number: a chunk of a pass, or
//! one page that somebody waits for. All of them were taken out of the set of dirty pages, and cleared,
//! before. Between two ends of a pass no page is sent twice.

mod delta;
mod lane;
mod multifd;
mod packet;
mod plain;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use super::MigrateError;
use super::command::{Command, Stopped};
use super::outstanding::Due;
use super::tally::Tally;
use crate::stream::{BREATH, Bandwidth, Stream};

pub(super) use delta::{Deltas, affordable};
pub(super) use lane::{Lane, introduce};
pub(super) use multifd::Multifd;
pub(super) use plain::Plain;

/// A way that pages go, as long as one connection lasts. A call is for many pages, and looks at each of
/// them as it is now: whoever writes to one meanwhile has it sent again.
pub(super) trait Way: Send {
    /// Before the stream is begun. Whether the mark of multifd stands behind its list of blocks.
    fn begin(&mut self) -> bool {
        false
    }

    /// A pass begins: pages that were sent may come again.
    fn begin_pass(&mut self, _tally: &mut Tally) {}

    /// Sends pages of a block, in a PART, or takes them in hand until it ends. As how many whole pages
    /// what is known to be sent of them counts.
    ///
    /// # Errors
    ///
    /// The channel's; or the sender is told to stop.
    fn send(&mut self, main: &mut Main<'_>, block: usize, due: &Due) -> Result<u64, Stopped>;

    /// A PART is about to end, which with `is_last` is the last one of a pass: then all that was taken in
    /// hand goes. What a PING behind it tells of.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    fn end_part(&mut self, _main: &mut Main<'_>, _is_last: bool) -> Result<Told, Stopped> {
        Ok(Told::Part)
    }

    /// Begins what is sent while the guest stands still.
    fn begin_rest(&mut self, main: &mut Main<'_>) {
        main.stream.begin_part(true);
    }

    /// All of the rest was sent: what was taken in hand goes, and END is open on the main channel.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    fn end_rest(&mut self, _main: &mut Main<'_>) -> Result<(), Stopped> {
        Ok(())
    }

    /// Bytes written so far, to channels of its own.
    fn written_bytes(&self) -> u64 {
        0
    }

    /// Counts what its own channels did since this was called last, and how long they wrote.
    fn measure(&mut self, _tally: &mut Tally, _bandwidth: &mut Bandwidth) {}

    /// Bytes that so many bytes of pages are expected to be when they are written.
    fn packed_bytes(&self, page_bytes: u64) -> u64 {
        page_bytes
    }

    /// How long writing so many bytes of pages takes, beside what it takes to find and read them.
    fn writing(&self, page_bytes: u64, bytes_per_s: u64) -> Duration {
        Duration::from_secs_f64(page_bytes as f64 / bytes_per_s as f64)
    }

    /// All was sent, and has arrived: its own channels end as whole ones.
    fn finish(&mut self) {}
}

/// What a PING says when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// All of the PART before it was digested.
    Part,
    /// All of the pass was.
    Pass,
    /// Nothing that matters.
    Nothing,
}

/// What a way works with that is not its own.
pub(super) struct Main<'a> {
    pub(super) stream: &'a mut Stream,
    pub(super) tally: &'a mut Tally,
    pub(super) commands: &'a Receiver<Command>,
}

impl Main<'_> {
    /// An attempt took its time, within a PART: whether to go on, while the other side hears that this one
    /// lives.
    fn go_on(&mut self) -> Result<(), Stopped> {
        if is_told_to_stop(self.commands) {
            Err(Stopped::Told)
        } else {
            Ok(self.stream.breathe(BREATH)?)
        }
    }

    /// As how many pages what was written to the stream counts that `send` writes.
    fn pages(
        &mut self,
        send: impl FnOnce(&mut Self) -> Result<(), MigrateError>,
    ) -> Result<u64, Stopped> {
        let before = self.stream.written_bytes();
        send(self)?;
        let bytes = self.stream.written_bytes() - before;
        Ok(bytes.div_ceil(paguro_sys::page_size() as u64))
    }
}

/// Whether the control side has let go of a sender.
pub(super) fn is_told_to_stop(commands: &Receiver<Command>) -> bool {
    // Nothing is commanded before the guest is stopped.
    matches!(commands.try_recv(), Err(TryRecvError::Disconnected))
}
