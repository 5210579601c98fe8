//! Files that are wrong: each is refused with an error that says why, and none panics.

mod common;

use common::{RawFile, put, qemu_like, small_file};
use paguro_wire::snapshot::verify::{verify, verify_metadata};
use paguro_wire::snapshot::{Checksums, SnapshotFile, Summary};
use paguro_wire::{DecodeError, Fault, ReadAt};
use proptest::prelude::*;

/// What a restore does before it believes a file: it looks at no page then.
fn is_believed(bytes: &[u8]) -> bool {
    let Ok(file) = SnapshotFile::parse(bytes) else {
        return false;
    };
    verify_metadata(bytes, &file).is_ok_and(|damage| damage.is_empty())
}

/// Everything that can be done with a file.
fn use_all(bytes: &[u8]) -> Result<bool, DecodeError> {
    let file = SnapshotFile::parse(bytes)?;
    for block in &file.blocks {
        block.read_bitmap(bytes)?;
    }
    for device in file.devices() {
        device.read(bytes)?;
    }
    Summary::new(bytes, &file)?;
    Ok(verify(bytes, &file, 1, &|_| ())?.is_clean())
}

#[test]
fn no_snapshot_at_all() {
    for (bytes, fault) in [
        (&b""[..], Fault::NotASnapshot),
        (b"\x7fELF\x02\x01\x01", Fault::NotASnapshot),
        (b"QE", Fault::Truncated),
        (b"QX", Fault::NotASnapshot),
        (b"QEVM\0\0", Fault::Truncated),
        (b"QEVM\0\0\0\x02", Fault::Unsupported),
    ] {
        let error = use_all(bytes).unwrap_err();
        assert_eq!(error.fault(), fault, "{bytes:02x?}: {error}");
    }
    let error = use_all(b"").unwrap_err();
    assert_eq!(error.to_string(), "not a snapshot: the file is empty");
}

#[test]
fn every_truncation_is_an_error() {
    for checksums in [Checksums::On, Checksums::Off] {
        let small = small_file(checksums);
        let everywhere = small.metadata_ranges().into_iter().flatten();
        let pages_and_holes = (0..small.bytes.len()).step_by(4093);
        for end in everywhere.chain(pages_and_holes) {
            match use_all(&small.bytes[..end]) {
                Ok(_) => panic!("a file cut at {end:#x} is taken for whole"),
                Err(error) => assert!(
                    matches!(error.fault(), Fault::Truncated) || end == 0,
                    "cut at {end:#x}: {error}"
                ),
            }
        }
    }
}

#[test]
fn a_longer_file_is_an_error() {
    for checksums in [Checksums::On, Checksums::Off] {
        let mut small = small_file(checksums);
        small.bytes.push(0);
        assert!(use_all(&small.bytes).is_err());
    }
}

#[test]
fn every_flipped_bit_of_the_metadata_is_found() {
    let mut small = small_file(Checksums::On);
    assert!(use_all(&small.bytes).unwrap() && is_believed(&small.bytes));
    for at in small.metadata_ranges().into_iter().flatten() {
        for bit in 0..8 {
            small.bytes[at] ^= 1 << bit;
            let clean = use_all(&small.bytes).unwrap_or(false);
            assert!(!clean, "bit {bit} of byte {at:#x} can be flipped unseen");
            let believed = is_believed(&small.bytes);
            assert!(!believed, "bit {bit} of byte {at:#x}: seen by pages only");
            small.bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn every_flipped_bit_of_a_page_is_found() {
    let mut small = small_file(Checksums::On);
    let start = small.layout.blocks[0].page_offset(69) as usize;
    for at in start..start + 4096 {
        let bit = at % 8;
        small.bytes[at] ^= 1 << bit;
        assert!(!use_all(&small.bytes).unwrap(), "byte {at:#x}");
        small.bytes[at] ^= 1 << bit;
    }
}

/// A file of one block of one page, its places known: refused if `change` damages it.
fn changed(change: impl FnOnce(&mut RawFile, &Places)) -> Result<bool, DecodeError> {
    let mut raw = RawFile::default();
    raw.front("m").start_ram(3, 4096);
    let mem_size = raw.bytes.len() - 8;
    raw.block("r", 4096);
    let entry = mem_size + 8;
    let tail = raw.bytes.len();
    raw.eos_footer(3).end_ram(3);
    raw.full(4, "d", 0, 1).raw(&[0; 8]).footer(4);
    raw.close(r#"{"devices":[{"name":"d","instance_id":0,"fields":[{"name":"f","size":8}]}]}"#);
    let places = Places {
        mem_size,
        length: entry + 2,
        header: entry + 10,
        tail,
    };
    change(&mut raw, &places);
    use_all(&raw.bytes)
}

struct Places {
    mem_size: usize,
    length: usize,
    header: usize,
    tail: usize,
}

fn refused(what: &str, fault: Fault, change: impl FnOnce(&mut RawFile, &Places)) {
    match changed(change) {
        Ok(_) => panic!("{what}: accepted"),
        Err(error) => assert_eq!(error.fault(), fault, "{what}: {error}"),
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    use Fault::{Corrupt, Truncated, Unsupported};
    assert!(changed(|_, _| ()).unwrap());
    let u64_at = |at: usize, value: u64| {
        move |raw: &mut RawFile, _: &Places| put(&mut raw.bytes, at, &value.to_be_bytes())
    };
    let mut places = None;
    changed(|_, p| places = Some((p.mem_size, p.length, p.header, p.tail))).unwrap();
    let (mem_size, length, header, tail) = places.unwrap();

    refused(
        "RAM above the limit",
        Corrupt,
        u64_at(mem_size, 1 << 60 | 4),
    );
    refused(
        "no blocks for the RAM",
        Corrupt,
        u64_at(mem_size, 0x2000 | 4),
    );
    refused("less RAM than blocks", Corrupt, u64_at(mem_size, 4));
    refused("another record", Corrupt, u64_at(mem_size, 4096 | 8));
    refused("length beyond the sum", Corrupt, u64_at(length, 8192));
    refused("length of half a page", Corrupt, u64_at(length, 2048));
    refused("huge length", Corrupt, u64_at(length, u64::MAX));
    refused("header version 2", Unsupported, |raw, _| {
        put(&mut raw.bytes, header, &2u32.to_be_bytes());
    });
    refused("page size 0", Unsupported, u64_at(header + 4, 0));
    refused("page size 512", Unsupported, u64_at(header + 4, 512));
    refused("page size 2 MiB", Unsupported, u64_at(header + 4, 1 << 21));
    refused(
        "bitmap beyond the end",
        Truncated,
        u64_at(header + 12, 1 << 40),
    );
    refused(
        "bitmap at the last address",
        Truncated,
        u64_at(header + 12, u64::MAX),
    );
    refused("bitmap over the header", Corrupt, u64_at(header + 12, 0));
    refused("bitmap over the pages", Corrupt, u64_at(header + 12, 4096));
    refused(
        "pages not aligned",
        Corrupt,
        u64_at(header + 20, 4096 + 512),
    );
    refused("pages over the header", Corrupt, u64_at(header + 20, 0));
    refused(
        "pages beyond the end",
        Truncated,
        u64_at(header + 20, 1 << 40),
    );
    refused(
        "pages at the last address",
        Truncated,
        u64_at(header + 20, u64::MAX << 12),
    );
    refused(
        "pages where the tail is",
        Truncated,
        u64_at(header + 20, 8192),
    );
    refused("no EOS", Corrupt, u64_at(tail, 8));
    refused("another footer", Corrupt, |raw, p| {
        raw.bytes[p.tail + 12] = 9
    });
    refused("no footer", Corrupt, |raw, p| {
        raw.bytes.drain(p.tail + 8..p.tail + 13);
    });
    refused("END of another section", Corrupt, |raw, p| {
        raw.bytes[p.tail + 17] = 9
    });
    refused("unknown section type", Corrupt, |raw, p| {
        raw.bytes[p.tail + 13] = 0x55
    });
    refused("no END", Corrupt, |raw, p| {
        raw.bytes.drain(p.tail + 13..p.tail + 31);
    });
    refused("section of another name", Corrupt, |raw, p| {
        raw.bytes[p.tail + 37] = b'e'
    });
    refused("section id again", Corrupt, |raw, p| {
        raw.bytes[p.tail + 35] = 3;
        raw.bytes[p.tail + 58] = 3;
    });
    refused("device footer", Corrupt, |raw, p| {
        raw.bytes[p.tail + 54] = 0x7f
    });
    refused("ram twice", Corrupt, |raw, p| {
        let mut again = RawFile::default();
        again.start_ram(8, 0).eos_footer(8);
        raw.bytes.splice(p.tail + 13..p.tail + 13, again.bytes);
    });
    refused("a command that needs an answer", Unsupported, |raw, p| {
        let command = [8, 0, 7, 0, 4, 0, 0, 0, 0];
        raw.bytes.splice(p.tail + 13..p.tail + 13, command);
    });
    refused(
        "something in front of the description",
        Corrupt,
        |raw, p| {
            raw.bytes.insert(p.tail + 60, 0);
        },
    );
    refused("something behind the description", Truncated, |raw, _| {
        raw.bytes.extend_from_slice(b"more");
    });
}

#[test]
fn descriptions_that_cannot_be_are_refused() {
    let with = |json: &str| {
        let mut raw = RawFile::default();
        raw.front("m").start_ram(3, 4096).block("r", 4096);
        raw.eos_footer(3).end_ram(3);
        raw.full(4, "d", 0, 1).raw(&[0; 8]).footer(4);
        raw.close(json);
        use_all(&raw.bytes)
    };
    let device = |fields: &str| {
        format!(r#"{{"devices":[{{"name":"d","instance_id":0,"fields":[{fields}]}}]}}"#)
    };
    assert!(with(&device(r#"{"size":8}"#)).unwrap());
    assert!(with(&device(r#"{"size":2,"array_len":4}"#)).unwrap());
    for json in [
        "",
        "{}",
        "[]",
        "nothing",
        r#"{"devices":{}}"#,
        &device(r#"{"size":-8}"#),
        &device(r#"{"size":7}"#),
        &device(r#"{"size":9}"#),
        &device(r#"{"name":"f"}"#),
        &device(r#"{"size":18446744073709551615},{"size":9}"#),
        &device(r#"{"size":4294967296,"array_len":4294967296}"#),
        &device(r#"{"size":1000000000000}"#),
        &device(&"[".repeat(10_000)),
        &format!(r#"{{"x":{}}}"#, "[".repeat(200) + &"]".repeat(200)),
        r#"{"devices":[{"name":"d","instance_id":0,"fields":[{"size":8}]},
            {"name":"d","instance_id":0,"fields":[{"size":8}]}]}"#,
    ] {
        assert!(with(json).is_err(), "{json:.80}");
    }
}

#[test]
fn descriptions_of_any_length_are_found() {
    // The search goes back in steps of 64 KiB, and a frame may lie across two of them.
    for json_bytes in (65536 - 12)..(65536 + 12) {
        let mut raw = RawFile::default();
        raw.front("m").start_ram(3, 4096).block("r", 4096);
        raw.eos_footer(3).end_ram(3);
        let json = r#"{"devices":[]}"#;
        raw.close(&(json.to_owned() + &" ".repeat(json_bytes - json.len())));
        assert!(use_all(&raw.bytes).unwrap(), "{json_bytes} bytes");
    }
    let mut raw = RawFile::default();
    raw.front("m").start_ram(3, 4096).block("r", 4096);
    raw.eos_footer(3).end_ram(3);
    raw.close(&("{}".to_owned() + &" ".repeat((16 << 20) - 1)));
    assert!(use_all(&raw.bytes).is_err());
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let refused = |fault: Fault, build: &dyn Fn(&mut RawFile)| {
        let mut raw = RawFile::default();
        raw.raw(b"QEVM").u32(3);
        build(&mut raw);
        raw.start_ram(3, 0).eos_footer(3).end_ram(3).close("{}");
        let error = use_all(&raw.bytes).unwrap_err();
        assert_eq!(error.fault(), fault, "{error}");
    };
    let machine = |raw: &mut RawFile| {
        raw.raw(&[7]).u32(1).raw(b"m");
    };
    let capabilities = |raw: &mut RawFile, names: &[&str]| {
        raw.raw(&[5]).str8("configuration/capabilities").u32(1);
        raw.u32(names.len() as u32);
        for name in names {
            raw.str8(name);
        }
    };
    refused(Fault::Corrupt, &|_| ());
    refused(Fault::Corrupt, &|raw| {
        raw.raw(&[7]).u32(u32::MAX);
    });
    refused(Fault::Corrupt, &|raw| {
        raw.raw(&[7]).u32(1).raw(b"\xff");
    });
    refused(Fault::Unsupported, &|raw| machine(raw));
    refused(Fault::Unsupported, &|raw| {
        machine(raw);
        capabilities(raw, &["x-ignore-shared"]);
    });
    refused(Fault::Unsupported, &|raw| {
        machine(raw);
        capabilities(raw, &["mapped-ram", "x-ignore-shared"]);
    });
    refused(Fault::Unsupported, &|raw| {
        machine(raw);
        raw.raw(&[5]).str8("configuration/other").u32(1);
    });
    refused(Fault::Corrupt, &|raw| {
        machine(raw);
        capabilities(raw, &["mapped-ram"]);
        capabilities(raw, &["mapped-ram"]);
    });
    refused(Fault::Corrupt, &|raw| {
        machine(raw);
        raw.raw(&[5])
            .str8("configuration/capabilities")
            .u32(1)
            .u32(u32::MAX);
    });
}

#[test]
fn too_many_blocks_are_refused() {
    let mut raw = RawFile::default();
    raw.front("m").start_ram(3, 0);
    let mem_size = raw.bytes.len() - 8;
    put(&mut raw.bytes, mem_size, &(4096u64 | 4).to_be_bytes());
    // Blocks of no length never use up the RAM.
    for at in 0..5000 {
        let next = (raw.bytes.len() as u64 + 64).next_multiple_of(4096);
        raw.str8(&format!("{at:04}")).u64(0);
        raw.u32(1).u64(4096).u64(next).u64(next);
        raw.bytes.resize(next as usize, 0);
    }
    let error = use_all(&raw.bytes).unwrap_err();
    assert!(matches!(error, DecodeError::Limit { .. }), "{error}");
}

#[test]
fn an_error_of_the_host_is_told_from_damage() {
    struct Failing(Vec<u8>, u64);
    impl ReadAt for Failing {
        fn len_bytes(&self) -> std::io::Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            if offset + buffer.len() as u64 > self.1 {
                Err(std::io::Error::other("bad sector"))
            } else {
                self.0.read_at(offset, buffer)
            }
        }
    }
    let small = small_file(Checksums::On);
    let good_until = small.layout.resume_offset;
    let error = SnapshotFile::parse(&Failing(small.bytes, good_until)).unwrap_err();
    assert_eq!(error.fault(), Fault::Host);
    assert!(std::error::Error::source(&error).is_some());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = use_all(&bytes);
    }

    #[test]
    fn random_changes_never_panic(
        checksums in prop_oneof![Just(Checksums::On), Just(Checksums::Off)],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut small = small_file(checksums);
        let places: Vec<usize> = small.metadata_ranges().into_iter().flatten().collect();
        for (place, value) in changes {
            small.bytes[*place.get(&places)] = value;
        }
        let _ = use_all(&small.bytes);
    }

    #[test]
    fn random_words_in_qemus_file_never_panic(
        place in any::<prop::sample::Index>(),
        word in prop_oneof![any::<u64>(), Just(u64::MAX), Just(1 << 63), Just(0)],
    ) {
        let mut raw = qemu_like();
        let at = place.index(raw.bytes.len() - 8);
        put(&mut raw.bytes, at, &word.to_be_bytes());
        let _ = use_all(&raw.bytes);
    }
}
