//! The main channel of a stream: everything that is sent on it, in order, through one buffer.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paguro_ram::GuestRam;
use paguro_sys::page_size;
use paguro_wire::device::DeviceSection;
use paguro_wire::stream::configuration::{Configuration, IGNORE_SHARED};
use paguro_wire::stream::order::Order;
use paguro_wire::stream::ram::{self, BlockTable, ListExtras, RamWriter};
use paguro_wire::stream::section::{self, SectionHeader};
use paguro_wire::stream::{devices, header};

use super::bandwidth::Bandwidth;
use crate::channel::{ChannelError, Writer};
use crate::error::MigrateError;

/// The number of the RAM section; devices follow.
const RAM_SECTION: u32 = 1;
/// What is collected before it is written.
const BUFFER_BYTES: usize = 512 << 10;
/// It is not silent for longer while the multifd channels, or the limit of bandwidth, are waited for.
pub(crate) const BREATH: Duration = Duration::from_secs(1);

/// A stream on its way out.
pub(crate) struct Stream {
    writer: Writer,
    out: Vec<u8>,
    ram: GuestRam,
    records: RamWriter,
    configuration: Configuration,
    /// What goes behind EOF, if it was made already.
    description: Option<Vec<u8>>,
    /// Bytes written so far.
    written_bytes: u64,
    /// Whether a write failed: nothing more of the stream may follow then.
    broken: bool,
    /// Of all channels.
    pub(crate) bandwidth: Bandwidth,
    /// When it was written to last.
    written_at: Instant,
}

impl Stream {
    pub(crate) fn new(
        writer: Writer,
        machine: &str,
        ram: GuestRam,
        table: Arc<BlockTable>,
    ) -> Self {
        Self {
            writer,
            out: Vec::with_capacity(BUFFER_BYTES + 2 * page_size()),
            records: RamWriter::new(table),
            ram,
            configuration: Configuration {
                machine: machine.to_owned(),
                ..Configuration::default()
            },
            description: None,
            written_bytes: 0,
            broken: false,
            bandwidth: Bandwidth::default(),
            written_at: Instant::now(),
        }
    }

    /// RAM stays out of the stream: the other side has it already.
    pub(crate) fn ignore_shared(&mut self) {
        self.configuration.capabilities = vec![IGNORE_SHARED.to_owned()];
    }

    /// Bytes written so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Header, configuration, whatever opens the return path, and the list of blocks; with
    /// `multifd`, the mark that goes with the first SYNC of its channels.
    pub(crate) fn begin(&mut self, pings: &[u32], multifd: bool) -> Result<(), MigrateError> {
        header::encode(&mut self.out);
        self.configuration.encode(&mut self.out);
        if !pings.is_empty() {
            Order::OpenReturnPath.encode(&mut self.out);
        }
        for &value in pings {
            Order::Ping(value).encode(&mut self.out);
        }
        SectionHeader {
            id: RAM_SECTION,
            name: ram::NAME.to_owned(),
            instance: 0,
            version: ram::VERSION,
        }
        .encode(section::START, &mut self.out);
        let table = self.records.table().clone();
        let extras = ListExtras {
            guest_addresses: self.configuration.has(IGNORE_SHARED),
            ..ListExtras::default()
        };
        table.encode(extras, &mut self.out);
        if multifd {
            self.multifd_flush();
        }
        self.end_part()?;
        self.flush()
    }

    /// The blocks as the other side was told of them.
    pub(crate) fn table(&self) -> &Arc<BlockTable> {
        self.records.table()
    }

    /// Begins a PART, or with `last` the END.
    pub(crate) fn begin_part(&mut self, last: bool) {
        let kind = if last { section::END } else { section::PART };
        section::encode_continuation(kind, RAM_SECTION, &mut self.out);
    }

    /// Here the destination waits until each multifd channel is at its SYNC.
    pub(crate) fn multifd_flush(&mut self) {
        self.records.multifd_flush(&mut self.out);
    }

    /// Ends a PART and begins the next, if nothing was written for so long: a destination that
    /// hears nothing gives up.
    pub(crate) fn breathe(&mut self, after: Duration) -> Result<(), MigrateError> {
        if self.written_at.elapsed() >= after {
            self.end_part()?;
            self.flush()?;
            self.begin_part(false);
        }
        Ok(())
    }

    /// As [`breathe`](Self::breathe), but between two PARTs.
    pub(crate) fn idle(&mut self, after: Duration) -> Result<(), MigrateError> {
        if self.written_at.elapsed() >= after {
            self.begin_part(false);
            self.end_part()?;
            self.flush()?;
        }
        Ok(())
    }

    pub(crate) fn end_part(&mut self) -> Result<(), MigrateError> {
        self.records.eos(&mut self.out);
        section::encode_footer(RAM_SECTION, &mut self.out);
        self.flush_if_full()
    }

    /// A page of RAM as it is now; whether it was not all zero.
    pub(crate) fn page(&mut self, block: usize, page: usize) -> Result<bool, MigrateError> {
        let bytes = page_size();
        let offset = page * bytes;
        let mapping = self.ram.blocks()[block].mapping();
        let content = !mapping.is_zero(offset, bytes);
        if content {
            self.records.page(block, offset as u64, &mut self.out);
            let at = self.out.len();
            self.out.resize(at + bytes, 0);
            mapping.copy_out(offset, &mut self.out[at..]);
        } else {
            self.records.zero(block, offset as u64, &mut self.out);
        }
        self.flush_if_full()?;
        Ok(content)
    }

    /// A page whose content is at hand.
    pub(crate) fn content(
        &mut self,
        block: usize,
        page: usize,
        bytes: &[u8],
    ) -> Result<(), MigrateError> {
        let offset = (page * page_size()) as u64;
        self.records.page(block, offset, &mut self.out);
        self.out.extend_from_slice(bytes);
        self.flush_if_full()
    }

    /// A page as its difference to what the destination has.
    pub(crate) fn delta(
        &mut self,
        block: usize,
        page: usize,
        delta: &[u8],
    ) -> Result<(), MigrateError> {
        let offset = (page * page_size()) as u64;
        self.records.xbzrle(block, offset, delta, &mut self.out);
        self.flush_if_full()
    }

    /// A page that is zero.
    pub(crate) fn zero(&mut self, block: usize, page: usize) -> Result<(), MigrateError> {
        let offset = (page * page_size()) as u64;
        self.records.zero(block, offset, &mut self.out);
        self.flush_if_full()
    }

    pub(crate) fn devices(&mut self, devices: &[DeviceSection]) -> Result<(), MigrateError> {
        devices::encode(devices, RAM_SECTION + 1, &mut self.out).map_err(MigrateError::Devices)?;
        self.flush()
    }

    pub(crate) fn order(&mut self, order: &Order) -> Result<(), MigrateError> {
        order.encode(&mut self.out);
        self.flush()
    }

    /// Makes what goes behind EOF: of many vCPUs it is long. Whoever does so while the destination loads
    /// has it at hand when it is wanted.
    pub(crate) fn describe(&mut self, devices: &[DeviceSection]) {
        if self.description.is_some() {
            return;
        }
        let mut description = Vec::new();
        let made = devices::encode_description(&self.configuration, devices, &mut description);
        // One that cannot be made is no reason to stop here; whoever reads can do without.
        if let Err(error) = made {
            tracing::warn!(%error, "the stream has no description");
            description.clear();
        }
        self.description = Some(description);
    }

    /// The permission to run, and the description. Says in the error whether a byte may have left.
    pub(crate) fn eof(&mut self, devices: &[DeviceSection]) -> Result<(), EofError> {
        if self.broken || !self.out.is_empty() {
            return Err(EofError::Withheld(MigrateError::Bug));
        }
        self.describe(devices);
        self.out.push(section::EOF);
        self.out.extend(self.description.take().unwrap_or_default());
        let plain = self.writer.plain_fd().is_some();
        // The first write either takes a byte or, on a plain descriptor, certainly none.
        let first = self.writer.write(&self.out);
        match first {
            Ok(0) => Err(EofError::Withheld(MigrateError::broken(
                "write to",
                std::io::ErrorKind::WriteZero.into(),
            ))),
            Ok(count) => {
                self.written_bytes += count as u64;
                let rest = self.out.split_off(count);
                self.out.clear();
                let written = self.writer.write_all(&rest);
                self.written_bytes += rest.len() as u64;
                written.map_err(|error| EofError::Torn(MigrateError::broken("write to", error)))
            }
            Err(error) => {
                self.broken = true;
                let error = MigrateError::broken("write to", error);
                Err(if plain {
                    EofError::Withheld(error)
                } else {
                    EofError::Torn(error)
                })
            }
        }
    }

    /// Waits until what was written is on the disk, where it goes to one.
    pub(crate) fn settle(&mut self) -> Result<(), MigrateError> {
        self.writer
            .settle()
            .map_err(|error| MigrateError::broken("sync what was written to", error))
    }

    /// Whether what is written lies in memory until it is synced.
    pub(crate) fn is_file(&self) -> bool {
        self.writer.is_file()
    }

    /// How long it takes until what the channel itself still holds has left it, as far as that is
    /// known.
    pub(crate) fn held(&self, bytes_per_s: u64) -> Option<Duration> {
        let held = self.writer.held_bytes() as f64 / bytes_per_s as f64;
        Duration::try_from_secs_f64(held).ok()
    }

    /// Ends the channel as a whole one; as [`Writer::finish`].
    pub(crate) fn finish(self) -> Result<Option<ChannelError>, MigrateError> {
        self.writer
            .finish()
            .map_err(|error| MigrateError::broken("end the channel to", error))
    }

    fn flush_if_full(&mut self) -> Result<(), MigrateError> {
        if self.out.len() < BUFFER_BYTES {
            Ok(())
        } else {
            self.flush()
        }
    }

    /// Writes what is collected. The time that it takes is what the channel's bandwidth is.
    pub(crate) fn flush(&mut self) -> Result<(), MigrateError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let written = self.writer.write_all(&self.out);
        self.broken |= written.is_err();
        written.map_err(|error| MigrateError::broken("write to", error))?;
        let bytes = self.out.len() as u64;
        self.written_bytes += bytes;
        self.written_at = Instant::now();
        self.bandwidth.count(bytes, self.written_at - start);
        self.out.clear();
        Ok(())
    }

    /// Whether the stream is between two elements, with nothing of one half written.
    pub(crate) fn is_whole(&self) -> bool {
        !self.broken
    }
}

/// What became of the permission to run.
pub(crate) enum EofError {
    /// Not a byte of it left this process.
    Withheld(MigrateError),
    /// It may have left.
    Torn(MigrateError),
}
