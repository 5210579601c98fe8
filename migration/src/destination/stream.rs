//! Reading a stream, and handing over what it says.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use paguro_wire::input::Input;
use paguro_wire::stream::configuration::IGNORE_SHARED;
use paguro_wire::stream::order::Order;
use paguro_wire::stream::ram::RamRecord;
use paguro_wire::stream::{ChannelInput, Event, Expected, StreamReader};

use super::memory::{Ahead, Arriving};
use super::patience::Patience;
use super::{Arrival, ReceiveError};
use crate::machine::Recipient;
use crate::source::table_of;
use crate::switchover::DestinationEvent;

/// Numbers are published after so many records.
const PUBLISH: usize = 256;

/// Reads a whole stream. Everything but its end is handed over as it comes.
pub(super) fn read<R: Read>(
    arrival: &Arrival,
    recipient: &dyn Recipient,
    reader: R,
) -> Result<(), ReceiveError> {
    let ram = recipient.ram();
    let here = table_of(&ram).map_err(ReceiveError::Blocks)?;
    let mut memory: Option<Arc<Arriving>> = None;
    let mut ahead = Ahead::default();
    let limit = arrival.options.silence.map(|silence: Duration| 3 * silence);
    let (reader, clock) = Patience::new(reader, limit);
    let input = ChannelInput::new(reader);
    let mut expected = Expected::machine(recipient.machine_name());
    if arrival.options.hand_over {
        expected.capabilities = &[IGNORE_SHARED];
        expected.list.guest_addresses = true;
    }
    let mut stream = StreamReader::new(input, expected);
    let mut tally = Tally::default();
    let mut permitted = false;
    let mut at_end = false;
    loop {
        clock.restart();
        let event = match stream.next() {
            Ok(event) => event,
            // What stands behind EOF decides nothing.
            Err(error) if permitted => {
                tracing::debug!(%error, "the stream does not end well behind EOF");
                return Ok(());
            }
            Err(error) => return Err(ReceiveError::Stream(error)),
        };
        match event {
            Event::Ram(record) => {
                if record == RamRecord::MultifdFlush {
                    match arrival.lanes.count() {
                        0 => return Err(unsupported("multifd channels")),
                        _ => arrival.lanes.flush(arrival)?,
                    }
                }
                if at_end && record == RamRecord::Eos {
                    // Everything is here.
                    arrival.lanes.close();
                }
                let Some(memory) = &memory else {
                    return Err(ReceiveError::Bug);
                };
                let content = memory.take(record, stream.input(), &mut ahead);
                tally.count(content.map_err(ReceiveError::Stream)?, record);
                if tally.records >= PUBLISH {
                    tally.publish(arrival, stream.input().offset());
                }
            }
            Event::RamStart { table, offset } => {
                let arriving = Arriving::new(ram.clone(), &table, &here, offset);
                let arriving = Arc::new(arriving.map_err(ReceiveError::Stream)?);
                arrival.lanes.begin(arriving.clone(), table.clone());
                memory = Some(arriving);
                let total = &arrival.progress.total_bytes;
                total.store(table.total_bytes(), std::sync::atomic::Ordering::Relaxed);
            }
            Event::Configuration(_) | Event::RamPart => {}
            Event::RamEnd => at_end = true,
            Event::Order(order) => obey(arrival, &order)?,
            Event::Device(device) => {
                tally.publish(arrival, stream.input().offset());
                arrival.lock().devices.push(device);
            }
            Event::Eof => {
                tally.publish(arrival, stream.input().offset());
                permitted = true;
                let _ = arrival.on(DestinationEvent::Eof);
            }
            Event::Description(_) => {}
            Event::Closed => return Ok(()),
            _ => return Err(unsupported("something this version does not know")),
        }
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
        use std::sync::atomic::Ordering::Relaxed;
        let progress = &arrival.progress;
        progress.normal_pages.fetch_add(self.normal as u64, Relaxed);
        progress.zero_pages.fetch_add(self.zero as u64, Relaxed);
        let bytes = bytes + progress.multifd_bytes.load(Relaxed);
        progress.transferred_bytes.store(bytes, Relaxed);
        *self = Self::default();
    }
}

/// The first bytes of a stream that somebody else has looked at already.
pub(super) fn behind<R: Read>(first: [u8; 4], rest: R) -> impl Read {
    std::io::Cursor::new(first).chain(rest)
}
