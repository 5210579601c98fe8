//! Live streams: read event by event, and refused where they are wrong.

mod common;

use std::io::{self, Read};

use common::stream::{self, MACHINE, Parts, RAM, first_pass, last_pass, page, small_stream};
use common::{PAGE, cpu};
use paguro_wire::device::{BODY_MAX_BYTES, DeviceSection, SectionReader, SectionWriter};
use paguro_wire::input::Input;
use paguro_wire::snapshot::RAM_MAX_BYTES;
use paguro_wire::stream::command::{Command, CommandHeader};
use paguro_wire::stream::configuration::Configuration;
use paguro_wire::stream::description::Description;
use paguro_wire::stream::devices::{self, DEVICES_MAX, EncodeError};
use paguro_wire::stream::order::{Order, PACKAGED_MAX_BYTES, PageSizes};
use paguro_wire::stream::ram::{
    BLOCKS_MAX, BlockTable, ListExtras, RamBlock, RamReader, RamRecord, RamWriter, TableError, flag,
};
use paguro_wire::stream::section::{self, SectionHeader};
use paguro_wire::stream::{ChannelInput, Event, Expected, StreamReader, header, xbzrle};
use paguro_wire::{DecodeError, Fault, globalstate};
use proptest::prelude::*;

/// All events, with what they announce read or not.
fn events_of<R: Read>(reader: R, read_payloads: bool) -> Result<Vec<Event>, DecodeError> {
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

fn events(bytes: &[u8]) -> Result<Vec<Event>, DecodeError> {
    events_of(bytes, true)
}

fn refusal(parts: Parts) -> DecodeError {
    events(&parts.out).expect_err("this stream is wrong")
}

fn started() -> Parts {
    Parts::begin().start()
}

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
    let mut reader = SectionReader::open(processor, "paguro/cpu", 1..=1).unwrap();
    assert_eq!(reader.u64("rax").unwrap(), 0x1122_3344_5566_7788);
    let description = Description::decode(json, 0).unwrap();
    let lengths: Vec<_> = description.devices.iter().map(|d| d.body_bytes()).collect();
    let body_bytes = cpu(0).body.len() as u64;
    assert_eq!(lengths, [Some(104), Some(4 + body_bytes)]);
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
        RamBlock::new("pc.ram", 0x400_0000),
        RamBlock::new("pc.bios", 0x8_2000),
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

#[test]
fn what_is_out_of_order_is_refused() {
    let whole = || started().part(section::END, last_pass).devices();
    let full = |id: u32, name: &str| {
        let (name, instance, version) = (name.to_owned(), 0, 1);
        let mut out = Vec::new();
        SectionHeader {
            id,
            name,
            instance,
            version,
        }
        .encode(section::FULL, &mut out);
        out
    };
    let footer = |id| {
        let mut out = Vec::new();
        section::encode_footer(id, &mut out);
        out
    };
    let configuration = Parts::begin().out.split_off(8);
    for (parts, text) in [
        (
            Parts::begin().part(section::PART, first_pass),
            "START of ram before its parts, found PART of section 2",
        ),
        (Parts::begin().devices(), "ram before all devices"),
        (Parts::begin().eof(), "expected ram before it, found none"),
        (
            Parts::begin().raw(&configuration),
            "section type at 0x15: expected 00 to 04 or 08, found 07",
        ),
        (Parts::begin().raw(b"\x06"), "found 06"),
        (started().start(), "expected a new one, found 2 again"),
        (
            started().start_as(9, "ram", 0, 4),
            "expected one START of ram, found a second",
        ),
        (
            Parts::begin().start_as(9, "block", 0, 4),
            "iterable section \"block\"; supported: ram",
        ),
        (
            Parts::begin().start_as(9, "ram", 0, 3),
            "version 3, instance 0; supported: version 4",
        ),
        (
            Parts::begin().start_as(9, "ram", 1, 4),
            "version 4, instance 1; supported",
        ),
        (
            started().raw(b"\x02\0\0\0\x09"),
            "expected section 2, which is ram, found PART of section 9",
        ),
        (
            whole().part(section::PART, first_pass),
            "no RAM behind its END or behind a device",
        ),
        (
            started()
                .part(section::END, last_pass)
                .part(section::END, last_pass),
            "found END of section 2",
        ),
        (
            started().devices().part(section::PART, first_pass),
            "found PART of section 2",
        ),
        (whole().devices(), "section id"),
        (
            whole().raw(&full(77, "globalstate")),
            "expected each once, found a second \"globalstate\".0",
        ),
        (
            started().raw(&full(77, "e1000")),
            "\"e1000\".0 of version 1; supported: sections of paguro",
        ),
        (
            started().raw(&full(RAM, "paguro/x")),
            "expected a new one, found 2 again",
        ),
        (
            started()
                .raw(&full(7, "paguro/x"))
                .raw(&[0, 0, 0, 1, 9])
                .raw(&footer(8)),
            "expected 7e of section 7, found 7e of section 8",
        ),
        (
            started()
                .raw(&full(7, "paguro/x"))
                .raw(&[0, 0, 0, 0])
                .raw(&[0; 5]),
            "found 00 of section 0",
        ),
        (
            whole().eof().eof(),
            "expected one VMDESCRIPTION or nothing behind EOF, found 00",
        ),
        (whole().eof().description().description(), "found 06"),
        (
            started().order(Order::Ping(1)),
            "expected OPEN_RETURN_PATH before it, found PING",
        ),
        (
            started()
                .order(Order::OpenReturnPath)
                .order(Order::OpenReturnPath),
            "found a second",
        ),
    ] {
        let error = refusal(parts).to_string();
        assert!(error.contains(text), "{text:?} is not in {error:?}");
    }
}

#[test]
fn numbers_at_their_limits_are_refused() {
    let list = |bytes: &[u8]| {
        Parts::begin()
            .raw(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04")
            .raw(bytes)
    };
    let mut many = (RAM_MAX_BYTES | flag::MEM_SIZE).to_be_bytes().to_vec();
    for index in 0..=BLOCKS_MAX {
        many.extend_from_slice(format!("\x06{index:06}\0\0\0\0\0\0\x10\0").as_bytes());
    }
    let too_long = |bytes: u32| {
        let mut parts = started().raw(b"\x04\0\0\0\x05\x08paguro/x\0\0\0\0\0\0\0\x01");
        parts.out.extend_from_slice(&bytes.to_be_bytes());
        parts
    };
    let mut sections = started();
    for id in 0..=DEVICES_MAX as u32 {
        let (name, instance, version) = ("paguro/x".to_owned(), id, 1);
        let id = id + 100;
        SectionHeader {
            id,
            name,
            instance,
            version,
        }
        .encode(section::FULL, &mut sections.out);
        sections.out.extend_from_slice(&[0; 4]);
        section::encode_footer(id, &mut sections.out);
    }
    let mut large = started();
    for id in 100..105u32 {
        let (name, instance, version) = ("paguro/x".to_owned(), id, 1);
        SectionHeader {
            id,
            name,
            instance,
            version,
        }
        .encode(section::FULL, &mut large.out);
        large
            .out
            .extend_from_slice(&(BODY_MAX_BYTES as u32).to_be_bytes());
        large.out.resize(large.out.len() + BODY_MAX_BYTES, 0);
        section::encode_footer(id, &mut large.out);
    }
    for (parts, text) in [
        (
            Parts::new().raw(b"QEVM\0\0\0\x03\x07\xff\xff\xff\xff"),
            "4294967295 is above the limit of 255",
        ),
        (list(&(RAM_MAX_BYTES + 0x1004).to_be_bytes()), "size of RAM"),
        (list(&many), "number of RAM blocks"),
        (list(b"\0\0\0\0\0\0\0\x04"), "0x0 with flags 0x4"),
        (list(b"\0\0\0\0\0\0\x10\x08"), "0x1000 with flags 0x8"),
        (
            list(b"\0\0\0\0\0\0\x10\x04\0"),
            "expected a name, found none",
        ),
        (
            list(b"\0\0\0\0\0\0\x10\x04\x01a\0\0\0\0\0\0\0\0"),
            "0x0 bytes for \"a\"",
        ),
        (
            list(b"\0\0\0\0\0\0\x10\x04\x01a\0\0\0\0\0\0\x20\0"),
            "at most 0x1000 bytes",
        ),
        (
            list(b"\0\0\0\0\0\0\x20\x04\x01a\0\0\0\0\0\0\x10\x01"),
            "0x1001 bytes for \"a\"",
        ),
        (
            list(b"\0\0\0\0\0\0\x20\x04\x01a\xff\xff\xff\xff\xff\xff\xf0\0"),
            "0xfffffffffffff000 bytes",
        ),
        (
            list(b"\0\0\0\0\0\0\x20\x04\x01a\0\0\0\0\0\0\x10\0\x01a\0\0\0\0\0\0\x10\0"),
            "found a second \"a\"",
        ),
        (too_long(u32::MAX), "length of a device section"),
        (
            too_long(BODY_MAX_BYTES as u32 + 1),
            "is above the limit of 16777216",
        ),
        (sections, "number of device sections"),
        (large, "length of all device sections"),
        (
            started().eof().raw(b"\x06\xff\xff\xff\xff"),
            "length of VMDESCRIPTION",
        ),
        (
            started().order(Order::Packaged {
                bytes: PACKAGED_MAX_BYTES + 1,
            }),
            "length of PACKAGED",
        ),
    ] {
        let error = refusal(parts).to_string();
        assert!(error.contains(text), "{text:?} is not in {error:?}");
    }
}

#[test]
fn records_that_are_none_are_refused() {
    for (record, text) in [
        (
            &b"\0\0\0\0\0\0\0\x28"[..],
            "the name of a block in the first record, found CONTINUE in flags 0x28",
        ),
        (
            b"\0\0\0\0\0\0\0\x08\x03abc",
            "expected a block of the list, found \"abc\"",
        ),
        (b"\0\0\0\0\0\0\0\x08\x00", "found \"\""),
        (
            b"\0\0\0\0\0\x04\x60\x08\x0apaguro.ram",
            "a page in the 0x46000 bytes of \"paguro.ram\", found 0x46000",
        ),
        (
            b"\xff\xff\xff\xff\xff\xff\xf0\x02\x0apaguro.ram",
            "found 0xfffffffffffff000",
        ),
        (
            b"\0\0\0\0\0\0\x10\x08\x0bpaguro.ram1",
            "0x1000 bytes of \"paguro.ram1\", found 0x1000",
        ),
        (
            b"\0\0\0\0\0\0\0\x02\x0apaguro.ram\x01",
            "byte that fills a ZERO page",
        ),
        (b"\0\0\0\0\0\0\x10\x04", "the list of blocks came already"),
        (
            b"\0\0\0\0\0\0\0\x80",
            "flags 0x80; supported: pages as they are",
        ),
        (
            b"\0\0\0\0\0\0\x01\0",
            "flags 0x100; supported: pages as they are",
        ),
        (b"\0\0\0\0\0\0\0\0", "flags 0x0"),
        (b"\0\0\0\0\0\0\0\x01", "flags 0x1"),
        (b"\0\0\0\0\0\0\0\x0a", "flags 0xa"),
        (b"\0\0\0\0\0\0\x08\x08", "flags 0x808"),
        (b"\0\0\0\0\0\0\0\x30", "flags 0x30"),
        (b"\0\0\0\0\0\0\x10\x10", "offset 0x1000 with flags 0x10"),
        (b"\0\0\0\0\0\0\0\x40\x0apaguro.ram\x02\0\x01", "encoding 2"),
        (
            b"\0\0\0\0\0\0\0\x40\x0apaguro.ram\x01\x10\x01",
            "length of XBZRLE",
        ),
    ] {
        let parts = started().part(section::PART, |_, out| out.extend_from_slice(record));
        let error = refusal(parts).to_string();
        assert!(error.contains(text), "{text:?} is not in {error:?}");
    }
    let mut early = Parts::begin().raw(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    stream::table().encode(ListExtras::default(), &mut early.out);
    first_pass(&mut early.ram, &mut early.out);
    let error = refusal(early).to_string();
    assert!(
        error.contains("no page before the list of RAM blocks has its end"),
        "{error}"
    );
}

#[test]
fn the_block_of_the_record_before_is_known_across_sections() {
    let mut input_bytes = Vec::new();
    let mut writer = RamWriter::new(stream::table());
    writer.zero(1, 0, &mut input_bytes);
    writer.eos(&mut input_bytes);
    writer.zero(1, 0, &mut input_bytes);
    assert_eq!(input_bytes.len(), (8 + 12 + 1) + 8 + (8 + 1));
    writer.forget_block();
    writer.zero(1, 0, &mut input_bytes);
    let mut input = ChannelInput::new(&input_bytes[..]);
    let mut reader = RamReader::new(stream::table());
    let zero = RamRecord::Zero {
        block: 1,
        offset: 0,
    };
    for expected in [zero, RamRecord::Eos, zero, zero] {
        assert_eq!(reader.record(&mut input).unwrap(), expected);
    }
    // Forgotten, it must be named.
    let mut input = ChannelInput::new(&input_bytes[29..]);
    reader.forget_block();
    assert!(reader.record(&mut input).is_err());
}

#[test]
fn another_machine_is_refused_with_the_values_of_both() {
    let stream_of = |configuration: Configuration| {
        let mut parts = Parts::new();
        header::encode(&mut parts.out);
        configuration.encode(&mut parts.out);
        parts.start().out
    };
    let expected = Expected {
        uuid: Some([1; 16]),
        ..Expected::machine(MACHINE)
    };
    let own = stream::configuration();
    for (configuration, text) in [
        (
            Configuration {
                machine: "paguro-2".into(),
                ..own.clone()
            },
            "here \"paguro-1\", in the stream \"paguro-2\"",
        ),
        (
            Configuration {
                machine: "paguro".into(),
                ..own.clone()
            },
            "in the stream \"paguro\"",
        ),
        (
            Configuration {
                capabilities: vec!["mapped-ram".into()],
                ..own.clone()
            },
            "here [], in the stream [\"mapped-ram\"]",
        ),
        (
            Configuration {
                uuid: Some([2; 16]),
                ..own.clone()
            },
            "UUID",
        ),
        (
            Configuration {
                target_page_bits: Some(13),
                ..own.clone()
            },
            "here 12, in the stream 13",
        ),
    ] {
        let bytes = stream_of(configuration);
        let error = StreamReader::new(ChannelInput::new(&bytes[..]), expected)
            .next()
            .unwrap_err();
        assert_eq!(error.fault(), Fault::Differs);
        assert!(
            error.to_string().contains(text),
            "{text:?} is not in {error}"
        );
    }
    let agreed = Configuration {
        uuid: Some([1; 16]),
        target_page_bits: Some(12),
        ..own
    };
    let bytes = stream_of(agreed);
    StreamReader::new(ChannelInput::new(&bytes[..]), expected)
        .next()
        .unwrap();
    for (bytes, fault) in [
        (&b"\x11\x22\x33\x44\0\0\0\x01"[..], Fault::NotAStream),
        (b"GET / HTTP/1.1\r\n", Fault::NotAStream),
        (b"QEVM\0\0\0\x02", Fault::Unsupported),
    ] {
        assert_eq!(events(bytes).unwrap_err().fault(), fault);
    }
}

#[test]
fn blocks_of_another_machine_are_refused_with_the_values_of_both() {
    let here = stream::table();
    let table = |blocks: &[(&str, u64)]| {
        let blocks = blocks
            .iter()
            .map(|(id, pages)| RamBlock::new(*id, pages * PAGE as u64));
        BlockTable::new(blocks.collect()).unwrap()
    };
    // In whatever order.
    let sound = table(&[("paguro.ram1", 1), ("paguro.ram", 70)]);
    assert_eq!(sound.same_as(&here, 0).unwrap(), [1, 0]);
    for (there, text) in [
        (
            table(&[("paguro.ram", 70), ("paguro.ram1", 2)]),
            "here \"paguro.ram1\" of 0x1000 bytes, in the stream \"paguro.ram1\" of 0x2000 bytes",
        ),
        (
            table(&[("paguro.ram", 70), ("x", 1)]),
            "in the stream \"x\" of 0x1000 bytes",
        ),
        (
            table(&[("paguro.ram", 70)]),
            "in the stream \"paguro.ram\" of 0x46000 bytes",
        ),
        (
            table(&[("paguro.ram", 70), ("paguro.ram1", 1), ("x", 1)]),
            "in the stream \"x\"",
        ),
    ] {
        let error = there.same_as(&here, 7).unwrap_err();
        assert_eq!(error.fault(), Fault::Differs);
        assert!(
            error.to_string().contains(text),
            "{text:?} is not in {error}"
        );
    }
}

#[test]
fn capabilities_add_to_the_list_of_blocks() {
    let large = RamBlock {
        page_size_bytes: Some(2 << 20),
        guest_address: Some(0x1_0000_0000),
        ..RamBlock::new("large", 4 << 20)
    };
    let small = RamBlock {
        guest_address: Some(0),
        ..RamBlock::new("small", 4096)
    };
    let table = BlockTable::new(vec![large, small]).unwrap();
    let is_large = |id: &str| id == "large";
    let extras = ListExtras {
        page_size_of: Some(&is_large),
        guest_addresses: true,
    };
    let mut bytes = Vec::new();
    table.encode(extras, &mut bytes);
    assert_eq!(bytes.len(), 8 + (6 + 8 + 8 + 8) + (6 + 8 + 8));
    let decode = |extras| BlockTable::decode(&mut ChannelInput::new(&bytes[..]), extras);
    assert_eq!(decode(extras).unwrap(), table);
    assert!(decode(ListExtras::default()).is_err());
}

#[test]
fn tables_that_cannot_be_sent_are_refused() {
    let named = |id: &str, bytes: u64| RamBlock::new(id, bytes);
    let id = "x".to_owned();
    for (blocks, error) in [
        (vec![], TableError::Empty),
        (
            vec![named("", 4096)],
            TableError::BadName { id: String::new() },
        ),
        (
            vec![named("x", 4096), named("x", 4096)],
            TableError::Repeated { id: id.clone() },
        ),
        (
            vec![named("x", 0)],
            TableError::NotPages {
                id: id.clone(),
                used_length_bytes: 0,
            },
        ),
        (
            vec![named("x", 4097)],
            TableError::NotPages {
                id,
                used_length_bytes: 4097,
            },
        ),
        (
            vec![named("x", RAM_MAX_BYTES), named("y", 4096)],
            TableError::TooLarge,
        ),
        (
            vec![named("x", 4096); BLOCKS_MAX + 1],
            TableError::TooMany {
                found: BLOCKS_MAX + 1,
            },
        ),
    ] {
        assert_eq!(BlockTable::new(blocks), Err(error));
    }
}

#[test]
fn devices_that_nobody_could_read_are_not_sent() {
    let make = |name: &str| SectionWriter::new(name, 0, 1).u8("a", 1).finish().unwrap();
    let encode = |devices: &[DeviceSection]| devices::encode(devices, 3, &mut Vec::new());
    let endless = |name: &str| {
        Err(EncodeError::Endless {
            name: name.to_owned(),
        })
    };
    encode(&[make("paguro/x"), make("paguro/y")]).unwrap();
    assert_eq!(encode(&[make("e1000")]), endless("e1000"));
    assert_eq!(encode(&[make("globalstate")]), endless("globalstate"));
    let (name, instance) = ("paguro/x".to_owned(), 0);
    let twice = encode(&[make("paguro/x"), make("paguro/x")]);
    assert_eq!(twice, Err(EncodeError::Repeated { name, instance }));
    let mut undescribed = make("paguro/x");
    undescribed.fields.clear();
    assert!(matches!(
        encode(&[undescribed]),
        Err(EncodeError::Undescribed { .. })
    ));
    let mut long = make("paguro/x");
    long.body.resize(BODY_MAX_BYTES + 1, 0);
    assert!(matches!(encode(&[long]), Err(EncodeError::TooLong { .. })));
}

fn orders() -> impl Strategy<Value = Order> {
    let block = "[a-z./]{1,100}|[a-z]{255}";
    let range =
        (0..1u64 << 40, 1..1u64 << 40).prop_map(|(start, pages)| (start << 12, pages << 12));
    prop_oneof![
        any::<u32>().prop_map(Order::Ping),
        (any::<u64>(), any::<u64>()).prop_map(|(host_bytes, target_bytes)| {
            Order::PostcopyAdvise(Some(PageSizes {
                host_bytes,
                target_bytes,
            }))
        }),
        (0..=PACKAGED_MAX_BYTES).prop_map(|bytes| Order::Packaged { bytes }),
        (block, prop::collection::vec(range, 0..20))
            .prop_map(|(block, ranges)| Order::PostcopyRamDiscard { block, ranges }),
        block.prop_map(|block| Order::ReceivedBitmap { block }),
        prop::sample::select(vec![
            Order::OpenReturnPath,
            Order::PostcopyAdvise(None),
            Order::PostcopyListen,
            Order::PostcopyRun,
            Order::EnableColo,
            Order::PostcopyResume,
            Order::SwitchoverStart,
        ]),
    ]
}

proptest! {
    #[test]
    fn commands_come_back_and_wrong_lengths_do_not(order in orders(), longer in 1..40u16) {
        let mut bytes = Vec::new();
        order.encode(&mut bytes);
        let decode = |bytes: &[u8]| Order::decode(&mut ChannelInput::with_buffer(bytes, 0));
        prop_assert_eq!(decode(&bytes[1..]).unwrap(), order);
        for end in 1..bytes.len() {
            let error = decode(&bytes[1..end]).unwrap_err();
            prop_assert!(matches!(error, DecodeError::Truncated { .. }), "{error}");
        }
        // A length that is not the command's, with as many bytes.
        let length = u16::from_be_bytes([bytes[3], bytes[4]]) + longer;
        bytes[3..5].copy_from_slice(&length.to_be_bytes());
        bytes.resize(bytes.len() + usize::from(longer), 0);
        prop_assert!(decode(&bytes[1..]).is_err() || (length == 16 && bytes[2] == 3));
    }

    #[test]
    fn a_flipped_byte_is_an_error_or_another_stream(at in 0..9000usize, flip in 1..=255u8) {
        let mut bytes = small_stream();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let _ = events(&bytes);
    }

    #[test]
    fn records_come_back(
        records in prop::collection::vec((0..3u8, 0..71u64, prop::collection::vec(any::<u8>(), 0..50)), 0..40),
        buffer in 0..3usize,
    ) {
        let mut writer = RamWriter::new(stream::table());
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (kind, page, delta) in &records {
            // Page 70 is that of the other block.
            let (block, offset) = ((page / 70) as usize, page % 70 * PAGE as u64);
            let before = bytes.len();
            expected.push(match kind {
                0 => {
                    writer.page(block, offset, &mut bytes);
                    bytes.extend_from_slice(&[9; PAGE]);
                    RamRecord::Page { block, offset }
                }
                1 => {
                    writer.zero(block, offset, &mut bytes);
                    RamRecord::Zero { block, offset }
                }
                _ => {
                    writer.xbzrle(block, offset, delta, &mut bytes);
                    RamRecord::Xbzrle { block, offset, bytes: delta.len() }
                }
            });
            prop_assert!(bytes.len() - before <= RamWriter::RECORD_MAX_BYTES + PAGE);
        }
        let mut input = ChannelInput::with_buffer(&bytes[..], buffer * 5000);
        let mut reader = RamReader::new(stream::table());
        for (expected, (_, _, delta)) in expected.iter().zip(&records) {
            prop_assert_eq!(reader.record(&mut input).unwrap(), *expected);
            match expected {
                RamRecord::Page { .. } => prop_assert_eq!(input.page("page").unwrap(), &[9; PAGE]),
                RamRecord::Xbzrle { bytes, .. } => {
                    let mut found = vec![0; *bytes];
                    input.fill("delta", &mut found).unwrap();
                    prop_assert_eq!(&found, delta);
                }
                _ => {}
            }
        }
        prop_assert!(input.at_end("end").unwrap());
    }
}

#[test]
fn commands_of_other_lengths_or_numbers_are_refused() {
    for (command, payload_bytes) in [
        (Command::OpenReturnPath, 1),
        (Command::Ping, 0),
        (Command::Ping, 8),
        (Command::PostcopyAdvise, 8),
        (Command::PostcopyRun, 4),
        (Command::Packaged, 0),
        (Command::SwitchoverStart, 4),
    ] {
        let mut parts = started().order(Order::OpenReturnPath);
        CommandHeader {
            command,
            payload_bytes,
        }
        .encode(&mut parts.out);
        let error = refusal(parts.raw(&[0; 8])).to_string();
        assert!(error.contains("length of a command"), "{error}");
    }
    for number in [0u8, 12, 255] {
        let error = refusal(started().raw(&[8, 0, number, 0, 0])).to_string();
        assert!(error.contains("unsupported: command"), "{error}");
    }
}
