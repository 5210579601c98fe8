//! A source that lies: whatever comes in is refused within bounded memory and time, with an error
//! that names what is wrong and where; and what is no stream does not even end the waiting.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::pair::{Pair, Tally, turn};
use crate::relay::{Place, Socket};
use crate::side::{Judged, POLL, SILENCE_MS, Side};

/// What a stream may make a destination allocate, beyond its RAM.
const MEMORY_BYTES: u64 = 112 << 20;

const RAM_BYTES: u64 = 16 << 20;

const MEM_SIZE: u64 = 4;
const PAGE: u64 = 8;
const EOS: u64 = 0x10;
const ZERO: u64 = 2;

/// A stream in the making.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(machine: &str) -> Self {
        Self(b"QEVM\x00\x00\x00\x03\x07".to_vec())
            .u32(machine.len() as u32)
            .raw(machine.as_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(self, number: u8) -> Self {
        self.raw(&[number])
    }

    fn u32(self, number: u32) -> Self {
        self.raw(&number.to_be_bytes())
    }

    fn u64(self, number: u64) -> Self {
        self.raw(&number.to_be_bytes())
    }

    fn name(self, name: &str) -> Self {
        self.u8(name.len() as u8).raw(name.as_bytes())
    }

    /// START, which is section 1, or FULL, which is section 4, of some name.
    fn section(self, kind: u8, name: &str, version: u32) -> Self {
        self.u8(kind)
            .u32(kind.into())
            .name(name)
            .u32(0)
            .u32(version)
    }

    fn footer(self) -> Self {
        self.u8(0x7e).u32(1)
    }

    /// The list of one block.
    fn list(self, total: u64, name: &str, bytes: u64) -> Self {
        self.u64(total | MEM_SIZE).name(name).u64(bytes)
    }

    /// All before the first pages.
    fn setup(self) -> Self {
        self.section(1, "ram", 4)
            .list(RAM_BYTES, BLOCK, RAM_BYTES)
            .u64(EOS)
            .footer()
    }

    fn part(self) -> Self {
        self.u8(2).u32(1)
    }

    /// An order with a payload.
    fn order(self, number: u16, payload: &[u8]) -> Self {
        let length = payload.len() as u16;
        self.u8(8)
            .raw(&number.to_be_bytes())
            .raw(&length.to_be_bytes())
            .raw(payload)
    }
}

const BLOCK: &str = "paguro.ram";

/// Streams, and words that the error must have.
fn streams(machine: &str) -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let new = || Bytes::new(machine);
    let page = [7; 4096];
    vec![
        (
            "another version",
            b"QEVM\x00\x00\x00\x09".to_vec(),
            &["version", "9"],
        ),
        (
            "a name of 4 GiB",
            Bytes(b"QEVM\x00\x00\x00\x03\x07".to_vec()).u32(u32::MAX).0,
            &["4294967295"],
        ),
        (
            "another machine",
            Bytes::new("pc-i440fx").setup().0,
            &["pc-i440fx"],
        ),
        (
            "2^63 bytes of RAM",
            new()
                .section(1, "ram", 4)
                .list(1 << 63, BLOCK, 1 << 63)
                .u64(EOS)
                .footer()
                .0,
            &["9223372036854775808"],
        ),
        (
            "a block of another size",
            new()
                .section(1, "ram", 4)
                .list(2 * RAM_BYTES, BLOCK, 2 * RAM_BYTES)
                .u64(EOS)
                .footer()
                .0,
            &["0x2000000", "0x1000000", BLOCK],
        ),
        (
            "another block",
            new()
                .section(1, "ram", 4)
                .list(RAM_BYTES, "pc.ram", RAM_BYTES)
                .u64(EOS)
                .footer()
                .0,
            &["pc.ram"],
        ),
        (
            "another version of ram",
            new().section(1, "ram", 77).0,
            &["77"],
        ),
        (
            "a setup that is repeated",
            new().setup().setup().0,
            &["ram"],
        ),
        (
            "a list in a part",
            new().setup().part().list(RAM_BYTES, BLOCK, RAM_BYTES).0,
            &["0x"],
        ),
        (
            "pages before the list",
            new().part().u64(PAGE).name(BLOCK).raw(&page).0,
            &["0x"],
        ),
        (
            "a page behind its block",
            new()
                .setup()
                .part()
                .u64(RAM_BYTES | PAGE)
                .name(BLOCK)
                .raw(&page)
                .0,
            &["0x1000000", BLOCK],
        ),
        (
            "a page at the end of numbers",
            new().setup().part().u64(!0xfff | ZERO).name(BLOCK).u8(0).0,
            &["0xfffffffffffff000", BLOCK],
        ),
        (
            "a page of no block",
            new().setup().part().u64(PAGE).name("nothing").raw(&page).0,
            &["nothing"],
        ),
        (
            "flags that nobody knows",
            new().setup().part().u64(0xfc0).0,
            &["0x"],
        ),
        (
            "a footer of another section",
            new().setup().part().u64(EOS).u8(0x7e).u32(99).0,
            &["99"],
        ),
        (
            "a part of another section",
            new().setup().u8(2).u32(1234).u64(EOS).0,
            &["1234"],
        ),
        (
            "an unknown section",
            new().setup().section(4, "vga", 2).u32(0).0,
            &["vga"],
        ),
        (
            "a device of 4 GiB",
            new().setup().section(4, "paguro/cpu", 1).u32(u32::MAX).0,
            &["device", "4294967295"],
        ),
        (
            "a kind of section that is none",
            new().setup().u8(0x55).0,
            &["55"],
        ),
        (
            "an order that is none",
            new().setup().order(0xeeee, &[]).0,
            &["0x"],
        ),
        (
            "PING of another length",
            new().setup().order(2, &[0; 64]).0,
            &["64"],
        ),
        ("EOF without anything", new().setup().u8(0).0, &[]),
        (
            "PING 2 without devices",
            new().setup().order(1, &[]).order(2, &[0, 0, 0, 2]).0,
            &[],
        ),
        (
            "a description of 4 GiB",
            new().setup().u8(6).u32(u32::MAX).0,
            &["0x"],
        ),
    ]
}

#[test]
fn streams_that_lie_are_refused_and_say_where() {
    let mut tally = Tally::default();
    let machine = machine_name();
    for (number, (what, bytes, words)) in streams(&machine).into_iter().enumerate() {
        if !crate::is_full() && number % 4 != 0 {
            continue;
        }
        let _turn = turn();
        let verdict = refused(&bytes, words).map(|()| "refused".to_owned());
        tally.add(what, verdict);
    }
    tally.end("streams that lie");
}

/// By a real stream, whose beginning says it.
fn machine_name() -> String {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let place = Place::unix(dir.path(), "listener");
    let door = match &place {
        Place::Unix(path) => std::os::unix::net::UnixListener::bind(path).unwrap(),
        Place::Tcp(_) => unreachable!(),
    };
    let mut source = Side::source(dir.path(), None, "100");
    source
        .must("migrate", json!({ "uri": place.uri() }))
        .unwrap();
    let (socket, _) = door.accept().unwrap();
    let socket = Socket::unix(socket);
    let mut head = [0; 13];
    socket.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes([head[9], head[10], head[11], head[12]]);
    let mut name = vec![0; length as usize];
    socket.read_exact(&mut name).unwrap();
    String::from_utf8(name).unwrap()
}

fn refused(bytes: &[u8], words: &[&str]) -> Judged {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::unix(dir.path(), "destination");
    let mut side = Side::destination(dir.path(), None, &place.uri());
    let socket = place.connect().map_err(|error| error.to_string())?;
    // Refused before all of it is taken.
    let _ = socket.write_all(bytes);
    socket.end_writes();
    let began = Instant::now();
    let mut peak = 0;
    while side.ended().is_none() {
        peak = side.peak_bytes().unwrap_or(peak);
        if began.elapsed() > Duration::from_millis(4 * SILENCE_MS) + Duration::from_secs(5) {
            return Err(format!("it is not refused in time: {}", side.migration()?));
        }
        std::thread::sleep(POLL);
    }
    if peak > MEMORY_BYTES {
        return Err(format!("it took {peak} bytes of memory"));
    }
    if side.writes() != 0 {
        return Err("the guest ran".to_owned());
    }
    let said = side.must_fail()?;
    match words.iter().find(|word| !said.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("it does not name {word:?}: {said}")),
    }
}

#[test]
fn a_byte_now_and_then_is_refused_in_time() {
    let _turn = turn();
    let machine = "a machine";
    let dir = tempfile::tempdir().unwrap();
    let place = Place::unix(dir.path(), "destination");
    let mut side = Side::destination(dir.path(), None, &place.uri());
    let socket = place.connect().unwrap();
    let began = Instant::now();
    // Never silent, and never done.
    for byte in Bytes::new(machine).raw(&[b'x'; 400]).0 {
        if side.ended().is_some() || socket.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(SILENCE_MS / 4));
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "a slow source holds it up for ever"
        );
    }
    let said = side.must_fail().unwrap();
    println!(
        "one byte in {} ms: {:?}, {said}",
        SILENCE_MS / 4,
        began.elapsed()
    );
}

#[test]
fn what_is_no_stream_does_not_end_the_waiting() {
    let _turn = turn();
    let mut pair = Pair::new("10000");
    let Place::Unix(path) = pair.direct.clone() else {
        unreachable!()
    };
    let scans: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.0\r\n\r\n",
        b"QEV",
        &[0x16, 3, 1, 0, 0xa5, 1, 0, 0, 0xa1],
        b"PgOQ",
        b"PgOQ\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ];
    let rounds = if crate::is_full() { 50 } else { 2 };
    let mut open = Vec::new();
    for round in 0..rounds {
        for scan in scans {
            let socket = Socket::unix(UnixStream::connect(&path).unwrap());
            socket.write_all(scan).unwrap();
            match round % 2 {
                // Some stay, and say nothing more.
                0 if open.len() < 8 => open.push(socket),
                _ => socket.end(),
            }
        }
    }
    assert!(pair.destination.peak_bytes().unwrap() < MEMORY_BYTES);
    pair.destination.must_stand_empty().unwrap();
    pair.migrate(0).unwrap();
    pair.moved().unwrap();
}
