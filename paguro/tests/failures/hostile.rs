//! A source that lies: whatever comes in is refused within bounded memory and time, with an error
//! that names what is wrong and where; and what is no stream does not even end the waiting.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use paguro_testkit::wait;

use crate::pair::{Pair, Tally, turn};
use crate::relay::{Place, Socket};
use crate::side::{Judged, SILENCE_MS, Side};

/// What a stream may make a destination allocate, beyond its RAM.
const MEMORY_BYTES: u64 = 112 << 20;

const RAM_BYTES: u64 = 16 << 20;

const BLOCK: &str = "paguro.ram";

fn head(machine: &str) -> Vec<u8> {
    let length = machine.len() as u32;
    let mark = b"QEVM\0\0\0\x03\x07".as_slice();
    [mark, &length.to_be_bytes(), machine.as_bytes()].concat()
}

/// A stream with one block of RAM, up to its first pages. By hand: nobody sends what follows.
fn setup(ram_bytes: u64) -> Vec<u8> {
    const MEM_SIZE: u64 = 4;
    const EOS: u64 = 0x10;
    [
        &head(paguro_vmm::MACHINE_NAME),
        b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04".as_slice(),
        &(ram_bytes | MEM_SIZE).to_be_bytes(),
        &[BLOCK.len() as u8],
        BLOCK.as_bytes(),
        &ram_bytes.to_be_bytes(),
        &EOS.to_be_bytes(),
        b"\x7e\0\0\0\x01",
    ]
    .concat()
}

/// What the decoder refuses is tested with it. Here is one such stream, for how it is told, and two that
/// only a destination can refuse.
#[test]
fn streams_that_lie_are_refused_and_say_where() {
    const OPEN_RETURN_PATH: &[u8] = b"\x08\0\x01\0\0";
    const PING_2: &[u8] = b"\x08\0\x02\0\x04\0\0\0\x02";
    let behind = |elements: &[&[u8]]| [setup(RAM_BYTES), elements.concat()].concat();
    let mut tally = Tally::default();
    for (what, bytes, words) in [
        (
            "a block of another size",
            setup(2 * RAM_BYTES),
            &["0x2000000", "0x1000000", BLOCK][..],
        ),
        ("EOF without anything", behind(&[&[0]]), &[]),
        (
            "PING 2 without devices",
            behind(&[OPEN_RETURN_PATH, PING_2]),
            &[],
        ),
    ] {
        let _turn = turn();
        let verdict = refused(&bytes, words).map(|()| "refused".to_owned());
        tally.add(what, verdict);
    }
    tally.end("streams that lie");
}

fn refused(bytes: &[u8], words: &[&str]) -> Judged {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::unix(dir.path(), "destination");
    let mut side = Side::destination(None, &place.uri());
    let socket = place.connect().map_err(|error| error.to_string())?;
    // Refused before all of it is taken.
    let _ = socket.write_all(bytes);
    socket.end_writes();
    let mut peak = 0;
    let limit = Duration::from_millis(4 * SILENCE_MS) + Duration::from_secs(5);
    let began = Instant::now();
    let refused = wait(|| {
        peak = side.peak_bytes().unwrap_or(peak);
        (side.ended().is_some() || began.elapsed() > limit).then_some(())
    });
    if refused.is_none() || side.ended().is_none() {
        return Err(format!("it is not refused in time: {}", side.migration()?));
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
    let dir = tempfile::tempdir().unwrap();
    let place = Place::unix(dir.path(), "destination");
    let mut side = Side::destination(None, &place.uri());
    let socket = place.connect().unwrap();
    let began = Instant::now();
    // Never silent, and never done.
    let stream = [head("a machine"), vec![b'x'; 400]].concat();
    for byte in stream {
        if side.ended().is_some() || socket.write_all(&[byte]).is_err() {
            break;
        }
        // The pace of this source is what is tested.
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
