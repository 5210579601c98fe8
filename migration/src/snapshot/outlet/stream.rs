//! A frozen picture on its way out as a stream.
//!
//! ```text
//! header  CONFIGURATION  START ram  PART ..  FULL ..  EOF  VMDESCRIPTION
//! ```
//!
//! As QEMU's background snapshot: every page once, in the order in which it is claimed, no END, no
//! commands. Pages that are zero are left out: who loads it has fresh RAM.

use paguro_dirty::Copied;
use paguro_ram::GuestRam;
use paguro_sys::{Pacer, RateLimit};
use paguro_wire::device::DeviceSection;
use paguro_wire::snapshot::extension::Facts;

use super::{Opened, Outlet};
use crate::channel::{self, Address, Outgoing};
use crate::error::{MigrateError, unconfirmed};
use crate::snapshot::picture::Picture;
use crate::snapshot::request::Request;
use crate::stream::{BREATH, EofError, Stream, table_of};
use crate::{Control, SnapshotError};

/// A stream that was begun.
pub(in crate::snapshot) struct StreamOutlet {
    stream: Stream,
    /// The list of blocks: what is sent must be of these lengths.
    ram: GuestRam,
    lengths: Vec<usize>,
}

impl StreamOutlet {
    /// Connects, and sends what describes the machine.
    pub(in crate::snapshot) fn open(
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

    fn save(&mut self, picture: &Picture<'_>) -> Result<(), SnapshotError> {
        let mut pacer = Pacer::of_this_thread();
        let mut limit = RateLimit::new(self.stream.written_bytes(), picture.max_bandwidth());
        while let Some(copied) = picture.next_pages()? {
            self.part(&copied).map_err(of_stream)?;
            let written = self.stream.written_bytes();
            picture.count(&copied, written);
            // Its room is given back before anybody sleeps.
            drop(copied);
            while let Some(rest) = limit.due(written, picture.max_bandwidth()) {
                if picture.control.is_cancelled() {
                    return Err(SnapshotError::Cancelled);
                }
                std::thread::sleep(rest.min(std::time::Duration::from_millis(20)));
                // Whoever loads it would give a silent one up.
                self.stream.idle(BREATH).map_err(of_stream)?;
            }
            picture.breathe(&mut pacer);
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
}

impl Opened for StreamOutlet {
    type Outlet = Self;

    /// The list of blocks is out already.
    fn lay_out(self, _: Request<'_>, _: &[usize]) -> Result<Self, SnapshotError> {
        let now = self.ram.blocks().iter().map(|block| block.used_bytes());
        if now.eq(self.lengths.iter().copied()) {
            Ok(self)
        } else {
            Err(SnapshotError::BlocksChanged)
        }
    }
}

impl Outlet for StreamOutlet {
    /// In this thread: nothing in a stream tells where the next page is.
    fn save_pages(&mut self, picture: &Picture<'_>) -> Result<(), SnapshotError> {
        let saved = self.save(picture);
        if saved.is_err() {
            picture.abandon();
        }
        saved
    }

    /// What left is not remembered.
    fn table_bytes(&self) -> usize {
        0
    }

    /// Devices, EOF, description: with EOF whoever loads it may run the guest.
    fn write_rest(&mut self, devices: &[DeviceSection], _: &Facts) -> Result<(), SnapshotError> {
        self.stream.devices(devices).map_err(of_stream)?;
        self.stream.eof(devices).map_err(|error| match error {
            EofError::Withheld(error) | EofError::Torn(error) => of_stream(error),
        })
    }

    fn written_bytes(&self) -> u64 {
        self.stream.written_bytes()
    }

    /// All is with the other side already, and no cancel takes it back.
    fn settle(&mut self, _: &Control) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.stream.written_bytes()
    }

    /// Ends the channel as a whole one.
    fn complete(self) -> Result<Option<String>, SnapshotError> {
        let what = self.stream.finish().map_err(of_stream)?;
        Ok(what.map(|what| unconfirmed(&what)))
    }
}

fn of_stream(error: MigrateError) -> SnapshotError {
    SnapshotError::Stream(Box::new(error))
}
