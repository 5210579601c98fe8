//! Streams of a source that lies: each is refused by what is wrong with it, within bounded memory.
//!
//! The bytes are written by hand, because no encoder makes them. In a process of its own, whose memory
//! is looked at.

mod common;

use common::{PAGE, RawFile};
use paguro_wire::DecodeError;
use paguro_wire::input::Input;
use paguro_wire::stream::ram::{BlockTable, ListedBlock, RamRecord};
use paguro_wire::stream::{ChannelInput, Event, Expected, StreamReader};

const MACHINE: &str = "paguro-1";
const BLOCK: &str = "paguro.ram";
const RAM_BYTES: u64 = 16 << 20;

const PAGE_FLAG: u64 = 8;
const EOS: u64 = 0x10;
const ZERO: u64 = 2;

/// What all streams here may take together: a length that is believed takes it all, and more.
const MEMORY_BYTES: u64 = 48 << 20;

/// A stream that is right so far, and what is added to it.
type Add = fn(&mut RawFile) -> &mut RawFile;

fn begin(machine: &str) -> RawFile {
    let mut stream = RawFile::default();
    stream.raw(b"QEVM\0\0\0\x03\x07");
    stream.u32(machine.len() as u32).raw(machine.as_bytes());
    stream
}

/// The list of one block.
fn list(stream: &mut RawFile, id: &str, bytes: u64) {
    stream.start_ram(1, bytes).str8(id).u64(bytes).eos_footer(1);
}

fn listed(id: &str, bytes: u64) -> RawFile {
    let mut stream = begin(MACHINE);
    list(&mut stream, id, bytes);
    stream
}

/// All before the first pages.
fn setup() -> RawFile {
    listed(BLOCK, RAM_BYTES)
}

fn part(stream: &mut RawFile) -> &mut RawFile {
    stream.raw(&[2]).u32(1)
}

fn page<'a>(stream: &'a mut RawFile, address: u64, block: &str) -> &'a mut RawFile {
    part(stream)
        .u64(address | PAGE_FLAG)
        .str8(block)
        .raw(&[7; PAGE])
}

fn order<'a>(stream: &'a mut RawFile, number: u16, payload: &[u8]) -> &'a mut RawFile {
    let length = payload.len() as u16;
    stream.raw(&[8]).u16(number).u16(length).raw(payload)
}

/// Reads it all, as a machine with one block does.
fn read(bytes: &[u8]) -> Result<(), DecodeError> {
    let here = BlockTable::new(vec![ListedBlock::new(BLOCK, RAM_BYTES)]).unwrap();
    let input = ChannelInput::new(bytes);
    let mut stream = StreamReader::new(input, Expected::machine(MACHINE));
    loop {
        match stream.next()? {
            Event::RamStart { table, offset } => drop(table.same_as(&here, offset)?),
            Event::Ram(RamRecord::Page { .. }) => drop(stream.input().array::<PAGE>("page")?),
            Event::Closed => return Ok(()),
            _ => {}
        }
    }
}

/// Each with words that the error must have.
fn refused(begun: &RawFile, rows: &[(&str, Add, &[&str])]) {
    for (what, add, words) in rows {
        let mut stream = RawFile {
            bytes: begun.bytes.clone(),
        };
        add(&mut stream);
        let error = read(&stream.bytes).expect_err(what).to_string();
        for word in *words {
            assert!(error.contains(word), "{what}: {word:?} is not in {error:?}");
        }
    }
}

#[test]
fn streams_that_lie_are_refused_and_say_where() {
    heads_that_lie();
    lists_that_lie();
    pages_that_lie();
    sections_that_lie();
    let peak_bytes = peak_bytes();
    assert!(peak_bytes < MEMORY_BYTES, "{peak_bytes}");
}

fn heads_that_lie() {
    refused(
        &RawFile::default(),
        &[
            (
                "another version",
                |s| s.raw(b"QEVM\0\0\0\x09"),
                &["version", "9"],
            ),
            (
                "a name of 4 GiB",
                |s| s.raw(b"QEVM\0\0\0\x03\x07").u32(u32::MAX),
                &["4294967295"],
            ),
        ],
    );
    let mut another = begin("pc-i440fx");
    list(&mut another, BLOCK, RAM_BYTES);
    refused(&another, &[("another machine", |s| s, &["pc-i440fx"])]);
}

fn lists_that_lie() {
    for (what, list, words) in [
        (
            "2^63 bytes of RAM",
            listed(BLOCK, 1 << 63),
            &["9223372036854775808"][..],
        ),
        (
            "a block of another size",
            listed(BLOCK, 2 * RAM_BYTES),
            &["0x2000000", "0x1000000", BLOCK],
        ),
        ("another block", listed("pc.ram", RAM_BYTES), &["pc.ram"]),
    ] {
        refused(&list, &[(what, |s| s, words)]);
    }
    refused(
        &begin(MACHINE),
        &[
            (
                "another version of ram",
                |s| s.raw(&[1]).u32(1).str8("ram").u32(0).u32(77),
                &["77"],
            ),
            (
                "pages before the list",
                |s| page(s, 0, BLOCK),
                &["START of ram before its parts"],
            ),
        ],
    );
    refused(
        &setup(),
        &[
            (
                "a setup that is repeated",
                |s| s.raw(&setup().bytes[begin(MACHINE).bytes.len()..]),
                &["section id", "found 1 again"],
            ),
            (
                "a list in a part",
                |s| part(s).u64(RAM_BYTES | 4).str8(BLOCK).u64(RAM_BYTES),
                &["0x1000000", "flags 0x4"],
            ),
        ],
    );
}

fn pages_that_lie() {
    refused(
        &setup(),
        &[
            (
                "a page behind its block",
                |s| page(s, RAM_BYTES, BLOCK),
                &["0x1000000", BLOCK],
            ),
            (
                "a page at the end of numbers",
                |s| part(s).u64(!0xfff | ZERO).str8(BLOCK).raw(&[0]),
                &["0xfffffffffffff000", BLOCK],
            ),
            (
                "a page of no block",
                |s| page(s, 0, "nothing"),
                &["nothing"],
            ),
            (
                "flags that nobody knows",
                |s| part(s).u64(0xfc0),
                &["0xfc0"],
            ),
        ],
    );
}

fn sections_that_lie() {
    refused(
        &setup(),
        &[
            (
                "a footer of another section",
                |s| part(s).u64(EOS).footer(99),
                &["99"],
            ),
            (
                "a part of another section",
                |s| s.raw(&[2]).u32(1234).u64(EOS),
                &["1234"],
            ),
            (
                "an unknown section",
                |s| s.full(4, "vga", 0, 2).u32(0),
                &["vga"],
            ),
            (
                "a device of 4 GiB",
                |s| s.full(4, "paguro/cpu", 0, 1).u32(u32::MAX),
                &["device", "4294967295"],
            ),
            (
                "a kind of section that is none",
                |s| s.raw(&[0x55]),
                &["55"],
            ),
            (
                "an order that is none",
                |s| order(s, 0xeeee, &[]),
                &["at 0x4f", "61166"],
            ),
            ("PING of another length", |s| order(s, 2, &[0; 64]), &["64"]),
            (
                "a description of 4 GiB",
                |s| s.raw(&[6]).u32(u32::MAX),
                &["at 0x4e", "06"],
            ),
        ],
    );
}

/// The highest resident size of this process so far.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix("kB").unwrap();
    kib.trim().parse::<u64>().unwrap() << 10
}
