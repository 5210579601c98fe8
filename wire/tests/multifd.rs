//! Packets of multifd channels.

mod common;

use common::PAGE;
use common::stream::table;
use paguro_wire::input::Input;
use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::multifd::{
    COMPRESSED_MAX_BYTES, INIT_BYTES, Init, PACKET_BYTES, PAGES_MAX, Packet, PacketReader, Payload,
};
use paguro_wire::{DecodeError, Fault};
use proptest::prelude::*;

const OFFSETS: [u64; 3] = [0x3000, 0x1000, 0x4_5000];

fn packet() -> Packet<'static> {
    Packet {
        sync: false,
        number: 0x0102_0304_0506_0708,
        block: 0,
        normal: &OFFSETS[..2],
        zero: &OFFSETS[2..],
        payload_bytes: 2 * PAGE as u32,
    }
}

fn encode(packet: &Packet<'_>, compression: Payload) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.encode(&table(), compression, &mut bytes);
    assert_eq!(bytes.len(), PACKET_BYTES);
    bytes
}

fn check<T>(
    bytes: &[u8],
    compression: Payload,
    look: impl FnOnce(Packet<'_>) -> T,
) -> Result<T, DecodeError> {
    let mut reader = PacketReader::new(table(), compression);
    let mut input = ChannelInput::new(bytes);
    let packet = reader.packet(&mut input)?;
    assert_eq!(input.offset(), PACKET_BYTES as u64);
    Ok(look(packet))
}

/// The packet with some bytes changed.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut whole = encode(&packet(), Payload::None);
    whole[at..at + bytes.len()].copy_from_slice(bytes);
    whole
}

#[test]
fn bytes_are_qemus() {
    let bytes = encode(&packet(), Payload::None);
    assert_eq!(bytes.len(), 1344);
    let mut expected = b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\0\0\0\0\x80\0\0\0\x02\0\0\x20\0".to_vec();
    expected.extend_from_slice(b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x01");
    expected.resize(64, 0);
    expected.extend_from_slice(b"paguro.ram");
    expected.resize(320, 0);
    expected.extend_from_slice(b"\0\0\0\0\0\0\x30\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x04\x50\0");
    expected.resize(1344, 0);
    assert_eq!(bytes, expected);
    let mut sync = b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\x01".to_vec();
    sync.resize(1344, 0);
    sync[31] = 9;
    assert_eq!(encode(&Packet::sync(9), Payload::Zstd), sync);
    let init = Init {
        uuid: *b"0123456789abcdef",
        channel: 3,
    };
    let mut expected = b"\x11\x22\x33\x44\0\0\0\x010123456789abcdef\x03".to_vec();
    expected.resize(INIT_BYTES, 0);
    assert_eq!(init.encode()[..], expected);
}

#[test]
fn what_channels_say_first_is_checked() {
    let uuid = [7; 16];
    let init = Init { uuid, channel: 3 };
    let decode =
        |bytes: &[u8], channels| Init::decode(&mut ChannelInput::new(bytes), &uuid, channels);
    let bytes = init.encode();
    assert_eq!(decode(&bytes, 4).unwrap(), init);
    assert_eq!(decode(&bytes, 3).unwrap_err().fault(), Fault::Corrupt);
    for end in 0..INIT_BYTES {
        assert_eq!(
            decode(&bytes[..end], 4).unwrap_err().fault(),
            Fault::Truncated
        );
    }
    for (at, fault) in [
        (0, Fault::NotAStream),
        (7, Fault::Unsupported),
        (8, Fault::Differs),
        (23, Fault::Differs),
    ] {
        let mut bytes = bytes;
        bytes[at] ^= 0x80;
        assert_eq!(decode(&bytes, 4).unwrap_err().fault(), fault);
    }
}

#[test]
fn packets_without_pages_may_have_anything_left_over() {
    let mut stale = changed(16, &[0; 4]);
    stale[20..24].copy_from_slice(&0xffff_ffffu32.to_be_bytes());
    stale[32..36].copy_from_slice(&[0; 4]);
    stale[64..320].fill(b'x');
    stale[320..].fill(0xff);
    for flags in [0, 1, 3] {
        stale[11] = flags;
        let expected = Packet {
            sync: flags & 1 != 0,
            number: packet().number,
            ..Packet::sync(0)
        };
        check(&stale, Payload::None, |found| assert_eq!(found, expected)).unwrap();
    }
    // Of zero pages only the name matters.
    let zeros = Packet {
        normal: &[],
        payload_bytes: 0,
        ..packet()
    };
    let mut bytes = encode(&zeros, Payload::None);
    bytes[20..24].fill(0xff);
    check(&bytes, Payload::None, |found| assert_eq!(found, zeros)).unwrap();
}

#[test]
fn payloads_are_those_of_the_compression_that_was_agreed_on() {
    for compression in [Payload::Zlib, Payload::Zstd] {
        for payload_bytes in [1, COMPRESSED_MAX_BYTES] {
            let packet = Packet {
                payload_bytes,
                ..packet()
            };
            let bytes = encode(&packet, compression);
            check(&bytes, compression, |found| assert_eq!(found, packet)).unwrap();
            let error = check(&bytes, Payload::None, |_| ()).unwrap_err();
            assert_eq!(error.fault(), Fault::Differs);
        }
        for payload_bytes in [0, COMPRESSED_MAX_BYTES + 1, u32::MAX] {
            let packet = Packet {
                payload_bytes,
                ..packet()
            };
            let error = check(&encode(&packet, compression), compression, |_| ()).unwrap_err();
            assert_eq!(error.fault(), Fault::Corrupt);
        }
        let plain = encode(&packet(), Payload::None);
        assert_eq!(
            check(&plain, compression, |_| ()).unwrap_err().fault(),
            Fault::Differs
        );
    }
}

#[test]
fn wrong_packets_are_refused() {
    let long = [b'x'; 256];
    for (at, bytes, text) in [
        (0, &b"QEVM"[..], "magic of a multifd packet"),
        (7, b"\x02", "version 2"),
        (8, b"\0\0\0\x08", "flags 0x8"),
        (8, b"\0\0\0\x40", "flags 0x40"),
        (8, b"\x80\0\0\0", "flags 0x80000000"),
        (8, b"\0\0\0\x02", "here None, in the stream flags 0x2"),
        (
            12,
            b"\0\0\0\x81",
            "pages_alloc at 0xc: 129 is above the limit of 128",
        ),
        (
            12,
            b"\0\0\0\x02",
            "pages of a multifd packet at 0x10: 3 is above the limit of 2",
        ),
        (16, b"\0\0\0\x80", "129 is above the limit of 128"),
        (
            16,
            b"\xff\xff\xff\xff",
            "4294967296 is above the limit of 128",
        ),
        (
            32,
            b"\xff\xff\xff\xff",
            "4294967297 is above the limit of 128",
        ),
        (
            20,
            b"\0\0\x20\x01",
            "expected 8192 bytes for 2 pages, found 8193",
        ),
        (20, b"\0\0\0\0", "expected 8192 bytes for 2 pages, found 0"),
        (
            64,
            b"q",
            "expected a block of the list, found \"qaguro.ram\"",
        ),
        (64, b"\0", "filled up with NUL"),
        (319, b"x", "filled up with NUL"),
        (64, &long, "255 bytes at most"),
        (327, b"\x01", "found 0x3001"),
        (335, b"\x01", "offset of a page at 0x148"),
        (320, b"\xff", "found 0xff00000000003000"),
        (
            342,
            b"\x60",
            "a page in the 0x46000 bytes of \"paguro.ram\", found 0x46000",
        ),
    ] {
        let error = check(&changed(at, bytes), Payload::None, |_| ()).unwrap_err();
        assert!(
            error.to_string().contains(text),
            "{text:?} is not in {error}"
        );
    }
}

proptest! {
    #[test]
    fn packets_come_back_and_cut_off_ones_do_not(
        sync: bool,
        number: u64,
        pages in prop::collection::vec(0..70u64, 0..=PAGES_MAX),
        cut in 0..=PAGES_MAX,
        end in 0..PACKET_BYTES,
    ) {
        let offsets: Vec<_> = pages.iter().map(|page| page * PAGE as u64).collect();
        let (normal, zero) = offsets.split_at(cut.min(offsets.len()));
        let payload_bytes = (normal.len() * PAGE) as u32;
        let packet = Packet { sync, number, block: 0, normal, zero, payload_bytes };
        let bytes = encode(&packet, Payload::None);
        check(&bytes, Payload::None, |found| assert_eq!(found, packet)).unwrap();
        let error = check(&bytes[..end], Payload::None, |_| ()).unwrap_err();
        prop_assert_eq!(error.fault(), Fault::Truncated);
    }
}
