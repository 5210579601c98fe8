//! Reading a stream, and handing over what it says.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use paguro_ram::GuestRam;
use paguro_wire::input::Input;
use paguro_wire::stream::configuration::IGNORE_SHARED;
use paguro_wire::stream::order::Order;
use paguro_wire::stream::ram::{BlockTable, RamRecord};
use paguro_wire::stream::{ChannelInput, Event, Expected, StreamReader};

use super::memory::{Ahead, Arriving, TakeError};
use super::patience::Patience;
use super::{Arrival, ReceiveError};
use crate::machine::Recipient;
use crate::stream::table_of;
use crate::switchover::DestinationEvent;

/// Numbers are published after so many records.
const PUBLISH: usize = 256;

/// Reads a whole stream, whose `first` bytes somebody else has read already. Everything but its end is
/// handed over as it comes.
pub(super) fn read<R: Read>(
    arrival: &Arrival,
    recipient: &dyn Recipient,
    first: &[u8],
    reader: R,
) -> Result<(), ReceiveError> {
    let ram = recipient.memory().ram();
    let here = table_of(ram).map_err(ReceiveError::Blocks)?;
    let limit = arrival.options.silence.map(|silence: Duration| 3 * silence);
    let (reader, clock) = Patience::new(reader, limit);
    let input = ChannelInput::new(reader).behind(first);
    let mut expected = Expected::machine(recipient.machine_name());
    if arrival.options.mode.handed_over().is_some() {
        expected.capabilities = &[IGNORE_SHARED];
        expected.list.guest_addresses = true;
    }
    let mut stream = StreamReader::new(input, expected);
    let mut incoming = Incoming {
        arrival,
        ram,
        here,
        memory: None,
        ahead: Ahead::default(),
        tally: Tally::default(),
        permitted: false,
        at_end: false,
    };
    loop {
        clock.restart();
        let event = match stream.next() {
            Ok(Event::Closed) => return Ok(()),
            Ok(event) => event,
            // What stands behind EOF decides nothing.
            Err(error) if incoming.permitted => {
                tracing::debug!(%error, "the stream does not end well behind EOF");
                return Ok(());
            }
            Err(error) => return Err(ReceiveError::Stream(error)),
        };
        incoming.take(event, stream.input())?;
    }
}

/// A stream as far as it was read.
struct Incoming<'a> {
    arrival: &'a Arrival,
    ram: &'a GuestRam,
    here: Arc<BlockTable>,
    /// Where pages go, once the list of blocks came.
    memory: Option<Arc<Arriving>>,
    ahead: Ahead,
    tally: Tally,
    permitted: bool,
    at_end: bool,
}

impl Incoming<'_> {
    /// Hands over what was read; what belongs to it is next in the input.
    fn take<R: Read>(
        &mut self,
        event: Event,
        input: &mut ChannelInput<R>,
    ) -> Result<(), ReceiveError> {
        let arrival = self.arrival;
        match event {
            Event::Ram(record) => self.page(record, input)?,
            Event::RamStart { table, offset } => {
                let memory = Arriving::new(self.ram.clone(), &table, &self.here, offset);
                let memory = Arc::new(memory.map_err(ReceiveError::Stream)?);
                arrival.lanes.begin(memory.clone(), table.clone());
                self.memory = Some(memory);
                let total = &arrival.progress.total_bytes;
                total.store(table.total_bytes(), Relaxed);
            }
            Event::Configuration(_) | Event::RamPart | Event::Description(_) => {}
            Event::RamEnd => self.at_end = true,
            Event::Order(order) => obey(arrival, &order)?,
            Event::Device(device) => {
                check_owner(arrival)?;
                self.tally.publish(arrival, input.offset());
                arrival.lock().devices.push(device);
            }
            Event::Eof => {
                check_owner(arrival)?;
                self.tally.publish(arrival, input.offset());
                self.permitted = true;
                let _ = arrival.on(DestinationEvent::Eof);
            }
            _ => return Err(unsupported("something this version does not know")),
        }
        Ok(())
    }

    /// A record of a page, or a mark between them.
    fn page<R: Read>(
        &mut self,
        record: RamRecord,
        input: &mut ChannelInput<R>,
    ) -> Result<(), ReceiveError> {
        let arrival = self.arrival;
        if record == RamRecord::MultifdFlush {
            match arrival.lanes.count() {
                0 => return Err(ReceiveError::NoMultifd),
                _ => arrival.lanes.flush(&arrival.progress)?,
            }
        }
        if self.at_end && record == RamRecord::Eos {
            // Everything is here.
            arrival.lanes.close();
        }
        let Some(memory) = &self.memory else {
            return Err(ReceiveError::Bug);
        };
        // The source runs in this RAM.
        if arrival.options.mode.handed_over().is_some() && record != RamRecord::Eos {
            return Err(unsupported("pages of RAM that was handed over"));
        }
        let content = memory.take(record, input, &mut self.ahead);
        let content = content.map_err(|error| match error {
            TakeError::Stream(error) => ReceiveError::Stream(error),
            TakeError::Place(error) => ReceiveError::Place(error),
        })?;
        self.tally.count(content, record);
        if self.tally.records >= PUBLISH {
            self.tally.publish(arrival, input.offset());
        }
        Ok(())
    }
}

/// What was handed over is RAM of the machine whose stream this is. Somebody else's may come to the
/// same door, and devices over RAM of a machine that still runs would be the end of both.
fn check_owner(arrival: &Arrival) -> Result<(), ReceiveError> {
    let whose = arrival.options.mode.handed_over();
    if whose.is_some() && arrival.lock().destination.id() != whose {
        Err(unsupported("a machine in RAM that another one handed over"))
    } else {
        Ok(())
    }
}

fn obey(arrival: &Arrival, order: &Order) -> Result<(), ReceiveError> {
    let _ = match order {
        Order::OpenReturnPath | Order::SwitchoverStart => Ok(()),
        Order::Ping(value) => arrival.on(DestinationEvent::Ping(*value)),
        Order::Forget => arrival.on(DestinationEvent::Forget),
        other => return Err(unsupported(&format!("{other:?}"))),
    };
    Ok(())
}

fn unsupported(what: &str) -> ReceiveError {
    ReceiveError::Unsupported {
        what: what.to_owned(),
    }
}

/// Counts that are published now and then.
#[derive(Default)]
struct Tally {
    records: usize,
    normal: usize,
    zero: usize,
}

impl Tally {
    fn count(&mut self, content: bool, record: RamRecord) {
        self.records += 1;
        match record {
            RamRecord::Eos | RamRecord::MultifdFlush => {}
            _ if content => self.normal += 1,
            _ => self.zero += 1,
        }
    }

    fn publish(&mut self, arrival: &Arrival, bytes: u64) {
        let progress = &arrival.progress;
        progress.normal_pages.fetch_add(self.normal as u64, Relaxed);
        progress.zero_pages.fetch_add(self.zero as u64, Relaxed);
        let bytes = bytes + progress.multifd_bytes.load(Relaxed);
        progress.transferred_bytes.store(bytes, Relaxed);
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use paguro_ram::{Backing, BlockConfig, GuestRam, PageKind, RamBlock};
    use paguro_sys::{Fallbacks, Host};
    use paguro_wire::device::DeviceSection;
    use paguro_wire::stream::configuration::Configuration;
    use paguro_wire::stream::header;
    use paguro_wire::stream::ram::{self, ListExtras, RamWriter};
    use paguro_wire::stream::section::{self, SectionHeader};

    use super::super::{ReceiveMode, ReceiveOptions};
    use super::*;
    use crate::Memory;
    use crate::machine::{Board, MachineError};

    /// A machine of nothing but RAM.
    struct Bare(Arc<Memory>);

    impl Board for Bare {
        fn memory(&self) -> &Arc<Memory> {
            &self.0
        }

        fn machine_name(&self) -> &str {
            "bare"
        }
    }

    impl Recipient for Bare {
        fn load(&self, _: &[DeviceSection]) -> Result<(), MachineError> {
            Ok(())
        }

        fn start(&self) -> Result<(), MachineError> {
            Ok(())
        }
    }

    #[test]
    fn ram_that_was_handed_over_is_not_written_by_a_stream() {
        let block = RamBlock::new(BlockConfig {
            id: "ram".to_owned(),
            guest_address: 0,
            bytes: 2 << 20,
            backing: Backing::Memfd,
            pages: PageKind::Small,
        });
        let ram = GuestRam::new(vec![block.unwrap()]);
        let mapping = ram.blocks()[0].mapping().clone();
        mapping.copy_in(0, &[7]);
        let table = table_of(&ram).unwrap();
        let here = Bare(Memory::new(Host::probe(&Fallbacks::default()), ram));
        let stream = |zero: bool| {
            let mut out = Vec::new();
            header::encode(&mut out);
            let configuration = Configuration {
                machine: "bare".to_owned(),
                capabilities: vec![IGNORE_SHARED.to_owned()],
                ..Configuration::default()
            };
            configuration.encode(&mut out);
            let section = SectionHeader {
                id: 1,
                name: ram::NAME.to_owned(),
                instance: 0,
                version: ram::VERSION,
            };
            section.encode(section::START, &mut out);
            let extras = ListExtras {
                guest_addresses: true,
                ..ListExtras::default()
            };
            table.encode(extras, &mut out);
            let mut records = RamWriter::new(table.clone());
            records.eos(&mut out);
            section::encode_footer(1, &mut out);
            section::encode_continuation(section::PART, 1, &mut out);
            if zero {
                records.zero(0, 0, &mut out)
            } else {
                records.page(0, 0, &mut out);
                out.resize(out.len() + 4096, 9);
            }
            records.eos(&mut out);
            section::encode_footer(1, &mut out);
            out
        };
        let mut options = ReceiveOptions::new(true, false);
        options.mode = ReceiveMode::HandOver {
            migration: crate::switchover::MigrationId::new([7; 16]),
        };
        for zero in [true, false] {
            let arrival = Arrival::new(options.clone(), None);
            let error = read(&arrival, &here, &[], &stream(zero)[..]).unwrap_err();
            let error = crate::error::with_causes(&error);
            assert!(error.contains("handed over"), "{zero}: {error}");
            let mut byte = [0];
            mapping.copy_out(0, &mut byte);
            assert_eq!(byte, [7]);
        }
    }
}
