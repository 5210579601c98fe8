//! Device sections: written, read back, and refused when they are not what was asked for.

use paguro_wire::device::{
    BODY_MAX_BYTES, DeviceError, DeviceSection, SECTION_NAME_MAX_BYTES, SectionReader,
    SectionWriter,
};
use proptest::prelude::*;

fn sample() -> DeviceSection {
    SectionWriter::new("paguro/sample", 3, 2)
        .u8("a", 0x12)
        .bool("b", true)
        .u16("c", 0x1234)
        .u32("d", 0x1234_5678)
        .u64("e", 0x1234_5678_9abc_def0)
        .i64("f", -2)
        .fixed_buffer("g", b"fixed")
        .buffer("h", b"counted")
        .buffer("empty", b"")
        .array_u64("i", &[1, u64::MAX])
        .structure("j", |writer| {
            writer.u8("k", 7);
        })
        .array_struct("l", [1u16, 2, 3], |writer, value| {
            writer.u16("m", value);
        })
        .array_struct("n", [&b"x"[..], b"yz"], |writer, value| {
            writer.buffer("o", value);
        })
        .array_struct("none", [0u8; 0], |_, _| ())
        .finish()
        .unwrap()
}

fn read_sample(section: &DeviceSection) -> Result<(), DeviceError> {
    let mut reader = SectionReader::open(section, "paguro/sample", 1..=2)?;
    assert_eq!((reader.instance(), reader.version()), (3, 2));
    assert_eq!(reader.u8("a")?, 0x12);
    assert!(reader.bool("b")?);
    assert_eq!(reader.u16("c")?, 0x1234);
    assert_eq!(reader.u32("d")?, 0x1234_5678);
    assert_eq!(reader.u64("e")?, 0x1234_5678_9abc_def0);
    assert_eq!(reader.i64("f")?, -2);
    assert_eq!(reader.fixed_buffer("g", 5)?, b"fixed");
    assert_eq!(reader.buffer("h")?, b"counted");
    assert_eq!(reader.buffer("empty")?, b"");
    assert_eq!(reader.array_u64("i")?, [1, u64::MAX]);
    assert_eq!(reader.structure("j", |reader| reader.u8("k"))?, 7);
    assert_eq!(
        reader.array_struct("l", |reader| reader.u16("m"))?,
        [1, 2, 3]
    );
    let texts = reader.array_struct("n", |reader| reader.buffer("o"))?;
    assert_eq!(texts, [&b"x"[..], b"yz"]);
    assert!(
        reader
            .array_struct("none", |reader| reader.u8("x"))?
            .is_empty()
    );
    reader.finish()
}

#[test]
fn fields_are_big_endian_and_unpadded() {
    let section = SectionWriter::new("s", 0, 1)
        .u16("a", 1)
        .i64("b", -2)
        .array_u64("c", &[3])
        .finish()
        .unwrap();
    let expected = b"\0\x01\xff\xff\xff\xff\xff\xff\xff\xfe\0\0\0\x01\0\0\0\0\0\0\0\x03";
    assert_eq!(section.body, expected);
}

#[test]
fn all_kinds_of_fields_read_back() {
    let mut section = sample();
    read_sample(&section).unwrap();
    let described = section.describe();
    assert_eq!(described.body_bytes(), Some(section.body.len() as u64));
    let lengths: Vec<_> = section
        .fields
        .iter()
        .map(|field| (field.name.as_str(), field.array_len, field.index))
        .filter(|(_, length, index)| length.is_some() || index.is_some())
        .collect();
    // Equal elements are described once, unequal ones each.
    assert_eq!(
        lengths,
        [
            ("i", Some(2), None),
            ("l", Some(3), None),
            ("n", None, Some(0)),
            ("n", None, Some(1)),
        ]
    );
    // Without a description, too.
    section.fields.clear();
    read_sample(&section).unwrap();
}

#[test]
fn unequal_elements_after_equal_ones_keep_their_order() {
    let lengths = [1usize, 1, 1, 2, 1];
    let section = SectionWriter::new("s", 0, 1)
        .array_struct("a", lengths, |writer, length| {
            writer.buffer("b", &vec![9; length]);
        })
        .finish()
        .unwrap();
    let indices: Vec<_> = section.fields[1..]
        .iter()
        .map(|field| field.index)
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 4].map(Some));
    assert_eq!(
        section.describe().body_bytes(),
        Some(section.body.len() as u64)
    );
    let mut reader = SectionReader::new(&section);
    let read = reader
        .array_struct("a", |reader| Ok(reader.buffer("b")?.len()))
        .unwrap();
    assert_eq!(read, lengths);
}

#[test]
fn every_truncation_names_section_field_and_offset() {
    let whole = sample();
    for length in 0..whole.body.len() {
        for described in [true, false] {
            let mut section = whole.clone();
            section.body.truncate(length);
            if !described {
                section.fields.clear();
            }
            let error = read_sample(&section).unwrap_err();
            assert!(matches!(error, DeviceError::TooShort { .. }), "{error}");
        }
    }
    let mut section = whole;
    section.body.truncate(5);
    let text = read_sample(&section).unwrap_err().to_string();
    assert_eq!(
        text,
        "\"paguro/sample\".3: field \"d\" at offset 4 needs 4 bytes, 1 are left"
    );
}

#[test]
fn what_is_left_over_is_an_error() {
    let mut section = sample();
    section.body.push(0);
    let error = read_sample(&section).unwrap_err();
    assert!(matches!(error, DeviceError::Trailing { bytes: 1, .. }));
}

#[test]
fn another_name_or_version_is_an_error() {
    let mut section = sample();
    section.version = 3;
    let error = read_sample(&section).unwrap_err();
    assert!(matches!(
        error,
        DeviceError::WrongVersion {
            found: 3,
            newest: 2,
            ..
        }
    ));
    section.version = 0;
    assert!(read_sample(&section).is_err());
    section.version = 1;
    section.name = "paguro/other".to_owned();
    let error = read_sample(&section).unwrap_err();
    assert!(matches!(error, DeviceError::WrongSection { .. }));
}

#[test]
fn swapped_fields_are_an_error_where_they_are_described() {
    let section = SectionWriter::new("s", 0, 1)
        .u64("rax", 1)
        .u64("rbx", 2)
        .finish()
        .unwrap();
    let mut reader = SectionReader::new(&section);
    let error = reader.u64("rbx").unwrap_err();
    assert!(matches!(error, DeviceError::WrongField { offset: 0, .. }));
    // Another program's names are none of our business.
    let mut reader = SectionReader::new(&section).undescribed();
    assert_eq!(reader.u64("other").unwrap(), 1);
    // Another size is as wrong as another name.
    let mut reader = SectionReader::new(&section);
    assert!(reader.u32("rax").is_err());
}

#[test]
fn a_field_left_unread_in_an_element_is_an_error() {
    let section = SectionWriter::new("s", 0, 1)
        .array_struct("a", [1u8, 2], |writer, value| {
            writer.u8("b", value).u8("c", value);
        })
        .finish()
        .unwrap();
    let mut reader = SectionReader::new(&section);
    let error = reader
        .array_struct("a", |reader| reader.u8("b"))
        .unwrap_err();
    assert!(matches!(error, DeviceError::WrongField { .. }), "{error}");
}

#[test]
fn counts_beyond_the_body_allocate_nothing() {
    let section = SectionWriter::new("s", 0, 1)
        .u32("a_count", u32::MAX)
        .finish()
        .unwrap();
    let reader = || SectionReader::new(&section).undescribed();
    let too_short = |error| matches!(error, DeviceError::TooShort { .. });
    assert!(too_short(reader().buffer("a").unwrap_err()));
    assert!(too_short(reader().array_u64("a").unwrap_err()));
    assert!(too_short(
        reader()
            .array_struct("a", |reader| reader.u8("b"))
            .unwrap_err()
    ));
}

#[test]
fn elements_without_bytes_are_an_error() {
    let section = SectionWriter::new("s", 0, 1)
        .u32("a_count", 3)
        .u32("b", 0)
        .finish()
        .unwrap();
    let mut reader = SectionReader::new(&section).undescribed();
    assert!(reader.array_struct("a", |_| Ok(())).is_err());
}

#[test]
fn bodies_and_names_are_bounded() {
    let large = vec![0; BODY_MAX_BYTES];
    let fits = SectionWriter::new("s", 0, 1)
        .fixed_buffer("a", &large)
        .finish();
    assert_eq!(fits.unwrap().body.len(), BODY_MAX_BYTES);
    let error = SectionWriter::new("s", 0, 1)
        .buffer("a", &large)
        .finish()
        .unwrap_err();
    assert!(matches!(error, DeviceError::BodyTooLong { .. }));
    // Nested bytes count with what stands before them.
    let error = SectionWriter::new("s", 0, 1)
        .u8("a", 0)
        .structure("b", |writer| {
            writer.fixed_buffer("c", &large);
        })
        .finish()
        .unwrap_err();
    assert!(matches!(error, DeviceError::BodyTooLong { .. }));
    for name in ["", &"x".repeat(256)] {
        assert!(SectionWriter::new(name, 0, 1).finish().is_err());
        assert!(SectionWriter::new("s", 0, 1).u8(name, 0).finish().is_err());
    }
}

#[test]
fn opaque_bytes_are_a_section_like_others() {
    let bytes = b"what only the VMM knows".to_vec();
    let section = DeviceSection::opaque("firecracker/microvm", 7, bytes.clone()).unwrap();
    assert_eq!(section.body, bytes);
    assert_eq!(section.describe().body_bytes(), Some(bytes.len() as u64));
    let mut reader = SectionReader::open(&section, "firecracker/microvm", 7..=7).unwrap();
    assert_eq!(
        reader.fixed_buffer("bytes", bytes.len()).unwrap(),
        &bytes[..]
    );
    reader.finish().unwrap();
    let empty = DeviceSection::opaque("x", 1, Vec::new()).unwrap();
    assert_eq!(empty.describe().body_bytes(), Some(0));
}

#[test]
fn a_section_that_nobody_can_take_along_is_not_made() {
    let longest = "x".repeat(SECTION_NAME_MAX_BYTES);
    for name in ["", &format!("{longest}x"), "a\nb", "globalstate"] {
        let error = DeviceSection::opaque(name, 1, Vec::new()).unwrap_err();
        assert!(matches!(error, DeviceError::BadName { .. }), "{error}");
    }
    DeviceSection::opaque(&longest, 1, vec![0; BODY_MAX_BYTES]).unwrap();
    let error = DeviceSection::opaque("x", 1, vec![0; BODY_MAX_BYTES + 1]).unwrap_err();
    assert!(matches!(error, DeviceError::BodyTooLong { .. }), "{error}");
}

#[test]
fn a_bool_is_0_or_1() {
    let section = SectionWriter::new("s", 0, 1).u8("a", 2).finish().unwrap();
    let error = SectionReader::new(&section).bool("a").unwrap_err();
    assert!(matches!(error, DeviceError::BadValue { .. }));
}

proptest! {
    #[test]
    fn random_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..256)) {
        let mut section = sample();
        section.body = body;
        // Values differ, so the checks of `read_sample` would fail: only read.
        let mut reader = SectionReader::new(&section).undescribed();
        let _ = reader.buffer("a").is_ok()
            && reader.array_u64("b").is_ok()
            && reader.array_struct("c", |reader| reader.u16("d")).is_ok()
            && reader.structure("e", |reader| reader.bool("f")).is_ok();
        let _ = reader.finish();
    }

    #[test]
    fn arrays_read_back(values in proptest::collection::vec(any::<u64>(), 0..64), bytes: Vec<u8>) {
        let section = SectionWriter::new("s", 0, 1)
            .array_u64("values", &values)
            .buffer("bytes", &bytes)
            .finish()
            .unwrap();
        prop_assert_eq!(section.describe().body_bytes(), Some(section.body.len() as u64));
        let mut reader = SectionReader::new(&section);
        prop_assert_eq!(reader.array_u64("values").unwrap(), values);
        prop_assert_eq!(reader.buffer("bytes").unwrap(), bytes);
        reader.finish().unwrap();
    }
}
