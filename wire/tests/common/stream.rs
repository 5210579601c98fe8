//! Small streams to test with.
#![allow(dead_code)]

use std::io::Read;
use std::sync::Arc;

use paguro_wire::DecodeError;
use paguro_wire::device::DeviceSection;
use paguro_wire::globalstate;
use paguro_wire::input::Input;
use paguro_wire::stream::configuration::Configuration;
use paguro_wire::stream::order::Order;
use paguro_wire::stream::ram::{self, BlockTable, ListExtras, ListedBlock, RamRecord, RamWriter};
use paguro_wire::stream::section::{self, SectionHeader};
use paguro_wire::stream::{ChannelInput, Event, Expected, StreamReader, devices, header, xbzrle};

use super::{PAGE, cpu};

pub const MACHINE: &str = "paguro-1";
pub const RAM: u32 = 2;

/// What is sent: QEMU's section, one of paguro's, and one of a VMM.
pub fn sections() -> [DeviceSection; 3] {
    [
        globalstate::section(globalstate::RUNNING).unwrap(),
        cpu(0),
        DeviceSection::opaque("firecracker/microvm", 3, b"its state".to_vec()).unwrap(),
    ]
}

/// Two blocks: 70 pages and one.
pub fn table() -> Arc<BlockTable> {
    let blocks = vec![
        ListedBlock::new("paguro.ram", 70 * PAGE as u64),
        ListedBlock::new("paguro.ram1", PAGE as u64),
    ];
    Arc::new(BlockTable::new(blocks).unwrap())
}

pub fn configuration() -> Configuration {
    Configuration {
        machine: MACHINE.to_owned(),
        ..Default::default()
    }
}

/// Elements that can be put together in any order.
pub struct Parts {
    pub out: Vec<u8>,
    pub ram: RamWriter,
}

impl Parts {
    pub fn new() -> Self {
        Self {
            out: Vec::new(),
            ram: RamWriter::new(table()),
        }
    }

    /// Header and configuration.
    pub fn begin() -> Self {
        let mut parts = Self::new();
        header::encode(&mut parts.out);
        configuration().encode(&mut parts.out);
        parts
    }

    pub fn order(mut self, order: Order) -> Self {
        order.encode(&mut self.out);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.out.extend_from_slice(bytes);
        self
    }

    pub fn start(self) -> Self {
        self.start_as(RAM, ram::NAME, 0, ram::VERSION)
    }

    pub fn start_as(mut self, id: u32, name: &str, instance: u32, version: u32) -> Self {
        SectionHeader {
            id,
            name: name.to_owned(),
            instance,
            version,
        }
        .encode(section::START, &mut self.out);
        let table = Arc::clone(self.ram.table());
        table.encode(ListExtras::default(), &mut self.out);
        self.end_of_body(id)
    }

    fn end_of_body(mut self, id: u32) -> Self {
        self.ram.eos(&mut self.out);
        section::encode_footer(id, &mut self.out);
        self
    }

    /// PART or END with these records.
    pub fn part(mut self, kind: u8, records: impl FnOnce(&mut RamWriter, &mut Vec<u8>)) -> Self {
        section::encode_continuation(kind, RAM, &mut self.out);
        records(&mut self.ram, &mut self.out);
        self.end_of_body(RAM)
    }

    pub fn devices(mut self) -> Self {
        devices::encode(&sections(), RAM + 1, &mut self.out).unwrap();
        self
    }

    pub fn eof(self) -> Self {
        self.raw(&[section::EOF])
    }

    pub fn description(mut self) -> Self {
        devices::encode_description(&configuration(), &sections(), &mut self.out).unwrap();
        self
    }
}

pub fn page(byte: u8) -> [u8; PAGE] {
    std::array::from_fn(|at| byte.wrapping_add((at / 8) as u8))
}

/// The difference between pages 5 and 6 of [`page`]'s making, in its first bytes.
pub fn delta() -> Vec<u8> {
    let mut new = page(5);
    new[..40].copy_from_slice(&page(6)[..40]);
    let mut delta = Vec::new();
    xbzrle::encode(&page(5), &new, PAGE, &mut delta);
    delta
}

/// The first part: a page, a zero page, a page of the other block.
pub fn first_pass(ram: &mut RamWriter, out: &mut Vec<u8>) {
    ram.page(0, 0, out);
    out.extend_from_slice(&page(5));
    ram.zero(0, 69 * PAGE as u64, out);
    ram.page(1, 0, out);
    out.extend_from_slice(&page(7));
}

/// The last part.
pub fn last_pass(ram: &mut RamWriter, out: &mut Vec<u8>) {
    ram.xbzrle(0, 0, &delta(), out);
    ram.multifd_flush(out);
}

/// A whole migration.
pub fn small_stream() -> Vec<u8> {
    let parts = Parts::begin()
        .order(Order::OpenReturnPath)
        .order(Order::Ping(1))
        .start()
        .part(section::PART, first_pass)
        .part(section::END, last_pass)
        .devices()
        .order(Order::Ping(2))
        .eof()
        .description();
    parts.out
}

/// All events, with what they announce read or not.
pub fn events_of<R: Read>(reader: R, read_payloads: bool) -> Result<Vec<Event>, DecodeError> {
    let input = ChannelInput::with_buffer(reader, 0);
    let mut stream = StreamReader::new(input, Expected::machine(MACHINE));
    let mut events = Vec::new();
    loop {
        let event = stream.next()?;
        if event == Event::Closed {
            return Ok(events);
        }
        if let (Event::Ram(record), true) = (&event, read_payloads) {
            match *record {
                RamRecord::Page { .. } => drop(stream.input().array::<PAGE>("page")?),
                RamRecord::Xbzrle { bytes, .. } => {
                    stream.input().fill("delta", &mut vec![0; bytes])?;
                }
                _ => {}
            }
        }
        events.push(event);
    }
}

pub fn events(bytes: &[u8]) -> Result<Vec<Event>, DecodeError> {
    events_of(bytes, true)
}

pub fn refusal(parts: Parts) -> DecodeError {
    events(&parts.out).expect_err("this stream is wrong")
}

pub fn started() -> Parts {
    Parts::begin().start()
}
