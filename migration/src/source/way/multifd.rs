//! Pages over connections of their own.
//!
//! The sender hands over batches of pages, each of one block; whichever channel is free takes the
//! next. The queue is short, so that what was handed over is sent before long and a slow network
//! holds the sender up.
//!
//! **A page must not be overtaken by an older copy of itself.** Within a pass each page is sent
//! once. At the end of a pass every channel writes what it has in hand and then SYNC, and none
//! takes a batch of the next pass before all have done so; the destination takes nothing of the
//! next pass before it saw the SYNC of every channel.
//!
//! **A channel that breaks ends the migration** until its last SYNC is written. After that it has
//! nothing to write, and whatever becomes of it matters to nobody.

use std::sync::Arc;
use std::time::Duration;

use paguro_sys::page_size;

use super::packet::Batch;
use super::queue::{Done, Lanes, Queue, Tried};
use super::{Main, Told, Way};
use crate::source::command::{LOOK, Stopped};
use crate::source::hooks::Hooks;
use crate::source::outstanding::Due;
use crate::source::tally::Tally;
use crate::stream::{Bandwidth, Packing};

/// The sender's end of the multifd channels. Dropping it ends their threads.
pub(in crate::source) struct Multifd {
    lanes: Lanes,
    /// What goes to them next.
    batch: Box<Batch>,
    /// What they had done when that was counted last, and what compression saves.
    measured: Done,
    packing: Packing,
}

impl Multifd {
    /// For so many channels, which take what there is to do from the queue.
    pub(in crate::source) fn new(channels: u8, hooks: Hooks) -> (Self, Arc<Queue>) {
        let (lanes, queue) = Lanes::new(channels, hooks);
        let this = Self {
            lanes,
            batch: Box::new(Batch::new()),
            measured: Done::default(),
            packing: Packing::default(),
        };
        (this, queue)
    }

    /// Adds a page to what goes next, and lets that go when it is full.
    fn add(
        &mut self,
        main: &mut Main<'_>,
        (block, page): (usize, usize),
        is_gone: bool,
    ) -> Result<(), Stopped> {
        if !self.batch.takes(block) {
            self.push(main)?;
        }
        self.batch.add(block, page, is_gone);
        Ok(())
    }

    fn push(&mut self, main: &mut Main<'_>) -> Result<(), Stopped> {
        if !self.batch.is_empty() {
            patiently(main, || self.lanes.push(&self.batch, LOOK))?;
            self.batch.clear();
        }
        Ok(())
    }

    /// What is left goes to the channels, and each writes SYNC behind it. Whether they did.
    fn sync(&mut self, main: &mut Main<'_>, last: bool) -> Result<bool, Stopped> {
        self.push(main)?;
        let asked = self.lanes.ask_sync(last);
        if asked {
            patiently(main, || self.lanes.synced(LOOK))?;
        }
        Ok(asked)
    }
}

impl Way for Multifd {
    fn begin(&mut self) -> bool {
        self.lanes.ask_sync(false)
    }

    /// Channels tell only later what they wrote: all of it counts.
    fn send(&mut self, main: &mut Main<'_>, block: usize, due: &Due) -> Result<u64, Stopped> {
        for &page in &due.content {
            self.add(main, (block, page), false)?;
        }
        for &page in &due.gone {
            self.add(main, (block, page), true)?;
        }
        Ok((due.content.len() + due.gone.len()) as u64)
    }

    /// What goes over the channels is known to be there at the end of a pass only. Before that there is
    /// little in a PART, but it says that this side is well.
    fn end_part(&mut self, main: &mut Main<'_>, is_last: bool) -> Result<Told, Stopped> {
        if !is_last {
            return Ok(Told::Nothing);
        }
        let is_synced = self.sync(main, false)?;
        self.measure(main.tally, &mut main.stream.bandwidth);
        if is_synced {
            main.stream.multifd_flush();
        }
        Ok(Told::Pass)
    }

    /// In END nothing can be said while the channels are waited for.
    fn begin_rest(&mut self, main: &mut Main<'_>) {
        main.stream.begin_part(false);
    }

    fn end_rest(&mut self, main: &mut Main<'_>) -> Result<(), Stopped> {
        let is_synced = self.sync(main, true)?;
        main.stream.end_part()?;
        main.stream.begin_part(true);
        if is_synced {
            main.stream.multifd_flush();
        }
        Ok(())
    }

    fn written_bytes(&self) -> u64 {
        self.lanes.written_bytes()
    }

    fn measure(&mut self, tally: &mut Tally, bandwidth: &mut Bandwidth) {
        let now = self.lanes.done();
        let before = std::mem::replace(&mut self.measured, now);
        let bytes = now.bytes - before.bytes;
        let normal_pages = now.normal_pages - before.normal_pages;
        tally.normal_pages += normal_pages;
        tally.zero_pages += now.zero_pages - before.zero_pages;
        tally.multifd_bytes += bytes;
        bandwidth.count(bytes, now.spent - before.spent);
        self.packing.count(bytes, normal_pages * page_size() as u64);
    }

    fn packed_bytes(&self, page_bytes: u64) -> u64 {
        (page_bytes as f64 * self.packing.share()) as u64
    }

    /// The channels write while pages are looked for.
    fn writing(&self, _: u64, _: u64) -> Duration {
        Duration::ZERO
    }

    fn finish(&mut self) {
        self.lanes.finish();
    }
}

/// Tries until the channels could, within a PART.
fn patiently(main: &mut Main<'_>, attempt: impl Fn() -> Tried) -> Result<(), Stopped> {
    loop {
        match attempt() {
            Tried::Done => return Ok(()),
            Tried::Broken => return Err(Stopped::Told),
            Tried::Busy => main.go_on()?,
        }
    }
}
