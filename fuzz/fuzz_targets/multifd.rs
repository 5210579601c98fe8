//! Arbitrary bytes as the packets of a multifd channel.
//!
//! A packet is mostly zeros. So the first byte of the input says how payloads are compressed, and
//! then come packets, each as a byte of flags, three bytes of counts (pages_alloc, normal, zero),
//! four bytes of payload length, a byte for the length of the name, the name, and as many offsets
//! as can follow, each as two bytes of its page's number and one of what is added to it.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use paguro_wire::PAGE_BYTES;
use paguro_wire::stream::ChannelInput;
use paguro_wire::stream::multifd::{
    COMPRESSED_MAX_BYTES, Init, MAGIC, PACKET_BYTES, PAGES_MAX, PacketReader, Payload,
};
use paguro_wire::stream::ram::{BlockTable, ListedBlock};

fuzz_target!(|input: &[u8]| {
    let _ = Init::decode(&mut ChannelInput::with_buffer(input, 0), &[0; 16], 4);
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let compression = match first % 3 {
        0 => Payload::None,
        1 => Payload::Zlib,
        _ => Payload::Zstd,
    };
    let blocks = vec![
        ListedBlock::new("a", 70 << 12),
        ListedBlock::new("b", 1 << 12),
    ];
    let Ok(table) = BlockTable::new(blocks) else {
        return;
    };
    let mut reader = PacketReader::new(Arc::new(table.clone()), compression);
    // As they are, and as a script of packets.
    let _ = reader.packet(&mut ChannelInput::with_buffer(input, 0));
    let mut rest = rest;
    while let Some(bytes) = packet(&mut rest) {
        let Ok(packet) = reader.packet(&mut ChannelInput::with_buffer(&bytes[..], 0)) else {
            continue;
        };
        assert!(packet.normal.len() + packet.zero.len() <= PAGES_MAX);
        assert_eq!(packet.normal.is_empty(), packet.payload_bytes == 0);
        assert!(packet.payload_bytes <= COMPRESSED_MAX_BYTES);
        for offset in packet.normal.iter().chain(packet.zero) {
            assert!(offset + PAGE_BYTES <= table.blocks()[packet.block].used_length_bytes);
        }
        // Written and read again, it is the same.
        let mut out = Vec::new();
        packet.encode(&table, compression, &mut out);
        let mut again = PacketReader::new(Arc::new(table.clone()), compression);
        let again = again.packet(&mut ChannelInput::with_buffer(&out[..], 0));
        assert_eq!(again.expect("it was just written"), packet);
    }
});

fn packet(script: &mut &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = script.split_first_chunk::<9>()?;
    let [flags, alloc, normal, zero, a, b, c, d, name_bytes] = *head;
    let (name, mut rest) = rest.split_at_checked(usize::from(name_bytes % 8))?;
    let mut out = Vec::with_capacity(PACKET_BYTES);
    for word in [MAGIC, 1, flags.into(), alloc.into(), normal.into()] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(&[a, b, c, d]);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&u32::from(zero).to_be_bytes());
    out.resize(64, 0);
    out.extend_from_slice(name);
    out.resize(320, 0);
    for _ in 0..usize::from(normal)
        .saturating_add(usize::from(zero))
        .min(PAGES_MAX)
    {
        let Some(([high, low, add], tail)) = rest.split_first_chunk::<3>() else {
            break;
        };
        let page = u64::from(u16::from_be_bytes([*high, *low]));
        out.extend_from_slice(&(page * PAGE_BYTES + u64::from(*add)).to_be_bytes());
        rest = tail;
    }
    out.resize(PACKET_BYTES, 0);
    *script = rest;
    Some(out)
}
