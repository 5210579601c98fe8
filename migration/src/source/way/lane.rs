//! One of the multifd channels, which writes what it takes from the queue.

use std::io::{self, IoSlice, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use paguro_ram::GuestRam;
use paguro_sys::{Places, page_size};
use paguro_wire::stream::multifd::{self, PACKET_BYTES, Packet};
use paguro_wire::stream::ram::BlockTable;

use super::packet::{Batch, Copies, Sorted};
use super::queue::{Ending, Queue, Work, Writes};
use crate::channel::Writer;
use crate::multifd::{Compression, Packer};
use crate::source::{MigrateError, Migration, answers};

/// One channel.
pub(in crate::source) struct Lane<'a> {
    pub(in crate::source) channel: u8,
    pub(in crate::source) writer: Writer,
    pub(in crate::source) queue: Arc<Queue>,
    pub(in crate::source) ram: GuestRam,
    pub(in crate::source) table: Arc<BlockTable>,
    pub(in crate::source) compression: Compression,
    pub(in crate::source) migration: &'a Migration,
    /// How long the destination may be silent; none: for ever.
    pub(in crate::source) silence: Option<Duration>,
}

impl Lane<'_> {
    /// Sends what is handed over until all ends. To be called in a thread of its own. A failure is told
    /// before anything closes: what the other side makes of that is not to be taken for the reason.
    pub(in crate::source) fn run(mut self) {
        let sent = catch_unwind(AssertUnwindSafe(|| self.send()));
        match sent.unwrap_or(Err(MigrateError::Bug)) {
            Ok(Ending::Whole) => {
                // The destination may have closed it long since.
                if let Err(error) = self.writer.finish() {
                    tracing::debug!(%error, "a multifd channel did not end well");
                }
            }
            Ok(Ending::Broken) => {}
            Err(error) => {
                // What the other side closed may as well end here.
                if error.is_closed_by_peer() {
                    self.queue.give_up();
                }
                answers::last_words(self.migration, self.silence, &error);
                self.migration.fail(error);
                self.queue.give_up();
            }
        }
    }

    fn send(&mut self) -> Result<Ending, MigrateError> {
        let mut desk = Desk::new(self.compression)?;
        let mut synced = 0;
        loop {
            match self.queue.next(synced) {
                Work::Batch(batch, number) => self.send_batch(&mut desk, &batch, number)?,
                Work::Sync(number) => {
                    let sync = Packet::sync(number);
                    self.write(&mut desk.head, &sync, &[]).map_err(broken)?;
                    synced += 1;
                    self.queue.wrote_sync(synced);
                }
                Work::End(ending) => return Ok(ending),
            }
        }
    }

    fn send_batch(
        &mut self,
        desk: &mut Desk,
        batch: &Batch,
        number: u64,
    ) -> Result<(), MigrateError> {
        let Desk {
            packer,
            packet,
            copies,
            head,
            held,
        } = desk;
        packet.sort(batch, &self.ram);
        self.queue.count(packet.normal, packet.zero);
        let late = self.queue.hooks().holds(*held, self.channel, number);
        if packer.is_none() && self.writer.is_direct() && !late {
            let sent = self.send_pages(head, (batch.block(), number), packet);
            return sent.map_err(broken);
        }
        let pages = copies.of(packet, batch.block(), &self.ram);
        if late {
            *held = true;
            self.queue.hold();
        }
        let payload = match packer {
            Some(packer) if packet.normal > 0 => packer.pack(pages).map_err(codec)?,
            _ => pages,
        };
        let packet = packet.at(batch.block(), number, payload.len());
        self.write(head, &packet, payload).map_err(broken)
    }

    /// Writes a packet, and its pages from where they lie. A page that is written to meanwhile goes
    /// in part as it was and in part as it is; it is dirty, and goes again.
    fn send_pages(
        &mut self,
        head: &mut Vec<u8>,
        (block, number): (usize, u64),
        packet: &Sorted,
    ) -> io::Result<()> {
        head.clear();
        let whole = packet.at(block, number, packet.content_bytes());
        whole.encode(&self.table, self.compression.on_wire(), head);
        let mut places = Places::new(self.ram.blocks()[block].mapping());
        for &offset in whole.normal {
            places.push(offset as usize, page_size());
        }
        let mut head = &head[..];
        let _writes = Writes::begin(&self.queue);
        while !head.is_empty() || places.left_bytes() > 0 {
            let sent = self.writer.send(&mut places, &mut head)?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.queue.wrote(sent);
        }
        Ok(())
    }

    /// Writes a packet and its payload together.
    fn write(&mut self, head: &mut Vec<u8>, packet: &Packet<'_>, payload: &[u8]) -> io::Result<()> {
        head.clear();
        packet.encode(&self.table, self.compression.on_wire(), head);
        let mut pieces = [IoSlice::new(head), IoSlice::new(payload)];
        let mut pieces = match payload {
            [] => &mut pieces[..1],
            _ => &mut pieces[..],
        };
        let _writes = Writes::begin(&self.queue);
        while !pieces.is_empty() {
            match self.writer.write_vectored(pieces) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.queue.wrote(count);
                    IoSlice::advance_slices(&mut pieces, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What a channel works with, from packet to packet.
struct Desk {
    packer: Option<Packer>,
    packet: Box<Sorted>,
    copies: Copies,
    head: Vec<u8>,
    /// A packet was held on purpose.
    held: bool,
}

impl Desk {
    fn new(compression: Compression) -> Result<Self, MigrateError> {
        let packer = match compression {
            Compression::None => None,
            Compression::Zstd { level } => Some(Packer::new(level).map_err(codec)?),
        };
        Ok(Self {
            packer,
            packet: Box::new(Sorted::new()),
            copies: Copies::default(),
            head: Vec::with_capacity(PACKET_BYTES),
            held: false,
        })
    }
}

fn broken(source: io::Error) -> MigrateError {
    MigrateError::broken("write to a multifd channel of", source)
}

fn codec(source: io::Error) -> MigrateError {
    MigrateError::broken("compress pages for", source)
}

/// What a channel says first.
pub(in crate::source) fn introduce(writer: &mut Writer, channel: u8) -> io::Result<()> {
    let uuid = [0; 16];
    writer.write_all(&multifd::Init { uuid, channel }.encode())
}
