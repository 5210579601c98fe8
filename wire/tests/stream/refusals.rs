//! Elements out of order, and numbers beyond their limits.

use paguro_wire::device::BODY_MAX_BYTES;
use paguro_wire::snapshot::RAM_MAX_BYTES;
use paguro_wire::stream::devices::DEVICES_MAX;
use paguro_wire::stream::order::{Order, PACKAGED_MAX_BYTES};
use paguro_wire::stream::ram::{BLOCKS_MAX, flag};
use paguro_wire::stream::section;
use paguro_wire::stream::section::SectionHeader;

use crate::common::stream::{Parts, RAM, first_pass, last_pass, refusal, started};
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
            started().raw(&full(77, "paguro/of/globalstate")),
            "expected a name of its own behind paguro/of/, found \"paguro/of/globalstate\".0",
        ),
        (
            started().raw(&full(77, "paguro/of/paguro/cpu")),
            "expected a name of its own",
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
