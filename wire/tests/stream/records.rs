//! Records of RAM.

use paguro_wire::input::Input;
use paguro_wire::stream::ram::{ListExtras, RamReader, RamRecord, RamWriter};
use paguro_wire::stream::{ChannelInput, section};
use proptest::prelude::*;

use crate::common::PAGE;
use crate::common::stream::{self, Parts, first_pass, refusal, started};
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

proptest! {
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
