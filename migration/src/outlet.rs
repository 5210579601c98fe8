//! A frozen picture on its way out as a stream.
//!
//! ```text
//! header  CONFIGURATION  START ram  PART ..  FULL ..  EOF  VMDESCRIPTION
//! ```
//!
//! As QEMU's background snapshot: every page once, in the order in which it is claimed, no END, no
//! commands. Pages that are zero are left out: who loads it has fresh RAM.

use std::sync::atomic::Ordering;

use paguro_dirty::{Copied, Freeze};
use paguro_ram::GuestRam;
use paguro_sys::Pacer;
use paguro_wire::device::DeviceSection;

use crate::channel::{self, Address, Outgoing};
use crate::control::add;
use crate::error::{MigrateError, unconfirmed};
use crate::save::{breathe, next};
use crate::stream::{BREATH, EofError, Pace, Stream, table_of};
use crate::{Control, SnapshotError, SnapshotOptions};

/// A stream that was begun.
pub(crate) struct StreamOutlet {
    stream: Stream,
    /// The list of blocks: what is sent must be of these lengths.
    ram: GuestRam,
    lengths: Vec<usize>,
}

impl StreamOutlet {
    /// Connects, and sends what describes the machine.
    pub(crate) fn open(
        address: &Address,
        channel: &channel::Options,
        machine: &str,
        ram: &GuestRam,
    ) -> Result<Self, SnapshotError> {
        let connected = Outgoing::connect(address, channel)
            .map_err(|error| of_stream(MigrateError::Channel(error)))?;
        // A write of its guest waits for room in the page buffer, and room for this channel.
        connected.handle().set_guest_waits(true);
        let (_, writer) = connected.split();
        let table = table_of(ram).map_err(of_stream)?;
        let mut stream = Stream::new(writer, machine, ram.clone(), table);
        stream.begin(&[], false).map_err(of_stream)?;
        let lengths = ram.blocks().iter().map(|block| block.used_bytes());
        Ok(Self {
            stream,
            lengths: lengths.collect(),
            ram: ram.clone(),
        })
    }

    /// Saves all pages. The first failure ends it, and frees whoever waits for room.
    pub(crate) fn save_pages(
        &mut self,
        freeze: &Freeze,
        control: &Control,
        options: &SnapshotOptions,
    ) -> Result<(), SnapshotError> {
        let now = self.ram.blocks().iter().map(|block| block.used_bytes());
        if !now.eq(self.lengths.iter().copied()) {
            return Err(SnapshotError::BlocksChanged);
        }
        let saved = self.save(freeze, control, options);
        if saved.is_err() {
            freeze.abandon();
        }
        saved
    }

    fn save(
        &mut self,
        freeze: &Freeze,
        control: &Control,
        options: &SnapshotOptions,
    ) -> Result<(), SnapshotError> {
        let mut pacer = Pacer::of_this_thread();
        let mut pace = Pace::new(self.stream.written_bytes(), options.max_bandwidth);
        while let Some(copied) = next(freeze, options)? {
            if control.is_cancelled() {
                return Err(SnapshotError::Cancelled);
            }
            self.part(&copied).map_err(of_stream)?;
            let counters = &control.counters;
            let pages = copied.pages().len();
            add(&counters.normal_pages, pages);
            add(&counters.zero_pages, copied.zero_pages());
            add(&counters.done_pages, pages + copied.zero_pages());
            let written = self.stream.written_bytes();
            counters.transferred_bytes.store(written, Ordering::Relaxed);
            control.note_waits(freeze.buffer_waits());
            // Its room is given back before anybody sleeps.
            drop(copied);
            while let Some(rest) = pace.due(written, options.max_bandwidth) {
                if control.is_cancelled() {
                    return Err(SnapshotError::Cancelled);
                }
                std::thread::sleep(rest.min(std::time::Duration::from_millis(20)));
                // Whoever loads it would give a silent one up.
                self.stream.idle(BREATH).map_err(of_stream)?;
            }
            breathe(&mut pacer, freeze, options);
        }
        self.stream.flush().map_err(of_stream)
    }

    fn part(&mut self, copied: &Copied) -> Result<(), MigrateError> {
        if copied.pages().is_empty() {
            return Ok(());
        }
        self.stream.begin_part(false);
        for (index, &page) in copied.pages().iter().enumerate() {
            self.stream
                .content(copied.block(), page, copied.content(index))?;
        }
        self.stream.end_part()
    }

    /// Devices, EOF, description.
    pub(crate) fn write_rest(
        &mut self,
        devices: &[DeviceSection],
        control: &Control,
    ) -> Result<(), SnapshotError> {
        self.stream.devices(devices).map_err(of_stream)?;
        self.stream.eof(devices).map_err(|error| match error {
            EofError::Withheld(error) | EofError::Torn(error) => of_stream(error),
        })?;
        let transferred = &control.counters.transferred_bytes;
        transferred.store(self.stream.written_bytes(), Ordering::Relaxed);
        Ok(())
    }

    /// Ends the channel as a whole one; what could not be confirmed is given back in words.
    pub(crate) fn complete(self) -> Result<Option<String>, SnapshotError> {
        let what = self.stream.finish().map_err(of_stream)?;
        Ok(what.map(|what| unconfirmed(&what)))
    }
}

fn of_stream(error: MigrateError) -> SnapshotError {
    SnapshotError::Stream(Box::new(error))
}
