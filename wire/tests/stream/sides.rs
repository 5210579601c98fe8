//! What both sides must have alike, and what none may send.

use paguro_wire::Fault;
use paguro_wire::device::{BODY_MAX_BYTES, DeviceSection, SECTION_NAME_MAX_BYTES, SectionWriter};
use paguro_wire::snapshot::RAM_MAX_BYTES;
use paguro_wire::stream::configuration::Configuration;
use paguro_wire::stream::devices::EncodeError;
use paguro_wire::stream::ram::{BLOCKS_MAX, BlockTable, ListExtras, ListedBlock, TableError};
use paguro_wire::stream::{ChannelInput, Expected, StreamReader, devices, header};

use crate::common::PAGE;
use crate::common::stream::{self, MACHINE, Parts, events};
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
            .map(|(id, pages)| ListedBlock::new(*id, pages * PAGE as u64));
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
    let large = ListedBlock {
        page_size_bytes: Some(2 << 20),
        guest_address: Some(0x1_0000_0000),
        ..ListedBlock::new("large", 4 << 20)
    };
    let small = ListedBlock {
        guest_address: Some(0),
        ..ListedBlock::new("small", 4096)
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
    let named = |id: &str, bytes: u64| ListedBlock::new(id, bytes);
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
    encode(&[make("firecracker/microvm"), make("e1000")]).unwrap();
    assert_eq!(encode(&[make("globalstate")]), endless("globalstate"));
    let mut unfit = make("paguro/x");
    unfit.name = "x".repeat(SECTION_NAME_MAX_BYTES + 1);
    assert!(matches!(encode(&[unfit]), Err(EncodeError::BadName { .. })));
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
