//! Whole streams, and what is left of them.

use std::io::{self, Read};

use paguro_wire::device::{DeviceSection, SectionReader};
use paguro_wire::input::Input;
use paguro_wire::stream::configuration::Configuration;
use paguro_wire::stream::description::Description;
use paguro_wire::stream::order::Order;
use paguro_wire::stream::ram::{BlockTable, ListExtras, ListedBlock, RamRecord, RamWriter};
use paguro_wire::stream::section::SectionHeader;
use paguro_wire::stream::{ChannelInput, Event, Expected, StreamReader, header, section, xbzrle};
use paguro_wire::{Fault, globalstate};
use proptest::prelude::*;

use crate::common::stream::{
    self, MACHINE, events, events_of, first_pass, page, small_stream, started,
};
use crate::common::{PAGE, cpu};
/// One byte a read.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = buffer.len().min(1);
        self.0.read(&mut buffer[..bytes])
    }
}

#[test]
fn a_whole_migration_is_read_event_by_event() {
    let bytes = small_stream();
    let found = events(&bytes).unwrap();
    let block = |block: usize, offset: usize| (block, offset as u64 * PAGE as u64);
    let ((b0, o0), (b69, o69), (b1, o1)) = (block(0, 0), block(0, 69), block(1, 0));
    let at = |text: &str| bytes.windows(text.len()).position(|w| w == text.as_bytes());
    let expected = [
        Event::Configuration(stream::configuration()),
        Event::Order(Order::OpenReturnPath),
        Event::Order(Order::Ping(1)),
        Event::RamStart {
            table: stream::table(),
            offset: at("paguro.ram").unwrap() as u64 - 9,
        },
        Event::Ram(RamRecord::Eos),
        Event::RamPart,
        Event::Ram(RamRecord::Page {
            block: b0,
            offset: o0,
        }),
        Event::Ram(RamRecord::Zero {
            block: b69,
            offset: o69,
        }),
        Event::Ram(RamRecord::Page {
            block: b1,
            offset: o1,
        }),
        Event::Ram(RamRecord::Eos),
        Event::RamEnd,
        Event::Ram(RamRecord::Xbzrle {
            block: 0,
            offset: 0,
            bytes: stream::delta().len(),
        }),
        Event::Ram(RamRecord::MultifdFlush),
        Event::Ram(RamRecord::Eos),
    ];
    assert_eq!(found[..expected.len()], expected);
    let [
        Event::Device(state),
        Event::Device(processor),
        Event::Device(theirs),
        Event::Order(Order::Ping(2)),
        Event::Eof,
        Event::Description(json),
    ] = &found[expected.len()..]
    else {
        panic!("{:?}", &found[expected.len()..]);
    };
    assert_eq!(globalstate::run_state(state).unwrap(), "running");
    let sent = DeviceSection {
        fields: Vec::new(),
        ..cpu(0)
    };
    assert_eq!(*processor, sent);
    let of_a_vmm = DeviceSection::opaque("firecracker/microvm", 3, b"its state".to_vec()).unwrap();
    let sent = DeviceSection {
        fields: Vec::new(),
        ..of_a_vmm
    };
    assert_eq!(*theirs, sent);
    let mut reader = SectionReader::open(processor, "paguro/cpu", 1..=1).unwrap();
    assert_eq!(reader.u64("rax").unwrap(), 0x1122_3344_5566_7788);
    let description = Description::decode(json, 0).unwrap();
    let lengths: Vec<_> = description.devices.iter().map(|d| d.body_bytes()).collect();
    let body_bytes = cpu(0).body.len() as u64;
    assert_eq!(lengths, [Some(104), Some(4 + body_bytes), Some(4 + 9)]);
    assert_eq!(description.devices[2].name, "paguro/of/firecracker/microvm");
    // One byte at a time, and with pages that nobody reads, it is the same stream.
    assert_eq!(events_of(Trickle(&bytes), true).unwrap(), found);
    assert_eq!(events_of(&bytes[..], false).unwrap(), found);
}

#[test]
fn pages_are_those_that_were_sent() {
    let bytes = small_stream();
    let input = ChannelInput::new(&bytes[..]);
    let mut stream = StreamReader::new(input, Expected::machine(MACHINE));
    let mut ram = [vec![0xee; 70 * PAGE], vec![0xee; PAGE]];
    loop {
        match stream.next().unwrap() {
            Event::Ram(RamRecord::Page { block, offset }) => {
                let place = &mut ram[block][offset as usize..][..PAGE];
                place.copy_from_slice(stream.input().page("page").unwrap());
            }
            Event::Ram(RamRecord::Zero { block, offset }) => {
                ram[block][offset as usize..][..PAGE].fill(0);
            }
            Event::Ram(RamRecord::Xbzrle {
                block,
                offset,
                bytes,
            }) => {
                let at = stream.input().offset();
                let mut delta = vec![0; bytes];
                stream.input().fill("delta", &mut delta).unwrap();
                let place = ram[block][offset as usize..].first_chunk_mut().unwrap();
                xbzrle::decode(&delta, at, place).unwrap();
            }
            Event::Closed => break,
            _ => {}
        }
    }
    assert_eq!(ram[0][..40], page(6)[..40]);
    assert_eq!(ram[0][40..PAGE], page(5)[40..]);
    assert!(ram[0][69 * PAGE..].iter().all(|byte| *byte == 0));
    assert!(ram[0][PAGE..69 * PAGE].iter().all(|byte| *byte == 0xee));
    assert_eq!(ram[1], page(7));
}

#[test]
fn a_background_snapshot_has_no_end_of_ram() {
    let parts = started().part(section::PART, first_pass).devices().eof();
    let found = events(&parts.out).unwrap();
    assert_eq!(found.last(), Some(&Event::Eof));
}

#[test]
fn the_bytes_that_qemu_writes() {
    // What was captured of QEMU 7.2, with the list of blocks and the pages made shorter.
    let mut bytes = Vec::new();
    for part in [
        &b"QEVM\0\0\0\x03\x07\0\0\0\x0dpc-i440fx-7.2"[..],
        b"\x08\0\x01\0\0",
        b"\x08\0\x02\0\x04\0\0\0\x01",
        b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04",
        b"\0\0\0\0\x04\x08\x20\x04",
        b"\x06pc.ram\0\0\0\0\x04\0\0\0",
        b"\x07pc.bios\0\0\0\0\0\x08\x20\0",
        b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02",
        b"\x02\0\0\0\x02",
        b"\0\0\0\0\0\0\0\x08\x06pc.ram",
        &page(1),
        b"\0\0\0\0\0\0\x10\x22\0",
        b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02",
        b"\0",
    ] {
        bytes.extend_from_slice(part);
    }
    let input = ChannelInput::new(&bytes[..]);
    let mut stream = StreamReader::new(input, Expected::machine("pc-i440fx-7.2"));
    let table = BlockTable::new(vec![
        ListedBlock::new("pc.ram", 0x400_0000),
        ListedBlock::new("pc.bios", 0x8_2000),
    ]);
    let (zero, offset) = (
        RamRecord::Zero {
            block: 0,
            offset: 0x1000,
        },
        0x39,
    );
    for expected in [
        Event::Configuration(Configuration {
            machine: "pc-i440fx-7.2".to_owned(),
            ..Default::default()
        }),
        Event::Order(Order::OpenReturnPath),
        Event::Order(Order::Ping(1)),
        Event::RamStart {
            table: table.clone().unwrap().into(),
            offset,
        },
        Event::Ram(RamRecord::Eos),
        Event::RamPart,
        Event::Ram(RamRecord::Page {
            block: 0,
            offset: 0,
        }),
        Event::Ram(zero),
        Event::Ram(RamRecord::Eos),
        Event::Eof,
        Event::Closed,
        Event::Closed,
    ] {
        assert_eq!(stream.next().unwrap(), expected);
    }
    // And the same bytes are written.
    let mut out = Vec::new();
    header::encode(&mut out);
    let machine = "pc-i440fx-7.2".to_owned();
    Configuration {
        machine,
        ..Default::default()
    }
    .encode(&mut out);
    Order::OpenReturnPath.encode(&mut out);
    Order::Ping(1).encode(&mut out);
    let (id, name, instance, version) = (2, "ram".to_owned(), 0, 4);
    SectionHeader {
        id,
        name,
        instance,
        version,
    }
    .encode(section::START, &mut out);
    let mut ram = RamWriter::new(table.unwrap().into());
    ram.table().encode(ListExtras::default(), &mut out);
    ram.eos(&mut out);
    section::encode_footer(2, &mut out);
    section::encode_continuation(section::PART, 2, &mut out);
    ram.page(0, 0, &mut out);
    out.extend_from_slice(&page(1));
    ram.zero(0, 0x1000, &mut out);
    ram.eos(&mut out);
    section::encode_footer(2, &mut out);
    out.push(section::EOF);
    assert_eq!(out, bytes);
}

#[test]
fn every_truncation_of_a_stream_is_an_error() {
    let bytes = small_stream();
    let eof = bytes
        .windows(10)
        .rposition(|w| w == b"\x08\0\x02\0\x04\0\0\0\x02\0")
        .unwrap()
        + 10;
    for end in 0..bytes.len() {
        match events(&bytes[..end]) {
            Ok(_) => assert_eq!(end, eof, "a stream cut at {end:#x} is taken for whole"),
            Err(error) => {
                assert_eq!(error.fault(), Fault::Truncated, "cut at {end:#x}: {error}");
                let text = format!("the peer closed the channel at {end:#x}");
                assert!(error.to_string().ends_with(&text), "{error}");
            }
        }
    }
}

proptest! {
    #[test]
    fn a_flipped_byte_is_an_error_or_another_stream(at in 0..9000usize, flip in 1..=255u8) {
        let mut bytes = small_stream();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let _ = events(&bytes);
    }
}
